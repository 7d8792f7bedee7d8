"""Text control of the shipped face generator by the shipped small CLIP, which knows these faces and few words.

python main.py --config=configs/face_text.py --workdir=runs/face_text
python main.py --config=configs/face_text.py --config.stages.text.controls.text.text="a photo of a man looking left" \
    --workdir=runs/face_text_man

Measured on one core of an AMD EPYC, 1,024 samples, 89 and 77 s of training. The judges named here had no part in the
captions that the CLIP was trained on:
"a photo of a smiling woman": happy 18.2 % to 69.0 % (emotion), female 12.7 % to 40.2 % (faceres); by the classifiers
that wrote the captions 21.4 % to 86.7 % and 32.3 % to 73.4 %. The flow is 1.50 nats from its target (95 %: 1.36 to
1.64), 1.70 seen from the target, of which it misses 28 %. With 1,200 steps of 64 and a flow of preset "large" it is
1.01 nats away (0.88 to 1.15), but 1.76 seen from the target, of which it misses 24 %. By the mixed objective along 32
directions, as configs/face_smile.py trains, in 1,000 steps of 64: 1.27 (1.15 to 1.40), 1.21 (1.02 to 1.41) and 21 %,
with 66.5 % and 39.4 % by the judges named here.
"a photo of a man looking left": mean yaw 0.8 to 24.4 degrees, positive being left, by facemesh, which wrote the
captions; male 87.3 % to 86.7 % (faceres), no change, and 67.7 % to 74.5 % by the classifier that wrote them. What else
moves is in SOURCE.md of the weights.
"""

from configs import pieces

TEXT = "a photo of a smiling woman"


def get_config(arg: str = ""):
    config = pieces.base(
        "Faces by words",
        "A face generator is made to sample what a sentence says, by the CLIP energy (Eq. 3). The CLIP is small, and "
        "trained by this project on the generator's own faces: it knows expression, gender presentation, direction and "
        "light, and nothing else. Left and right are the viewer's.",
    )
    # plain views: moved or cut out they hide what tells expressions apart, and with other colours dark means nothing
    control = pieces.clip(TEXT, weight=30.0, network="tinyclip_faces", num_augmentations=1, policy="")
    config.stages.text = pieces.stage(
        "The CLIP energy of a text.", {"text": control}, num_steps=300, learning_rate=2e-3
    )
    config.evaluation.judges = {
        "faceapi_expression": ("expression",),
        "emotion": ("emotion",),
        "faceapi_age_gender": ("gender",),
        "faceres": ("gender",),
        "facemesh": (),
    }
    config.evaluation.num_samples = 1024
    config.order = ("text",)
    return pieces.variant(config, arg)
