"""Text control of the shipped face generator by the shipped small CLIP, which knows these faces and few words.

python main.py --config=configs/face_text.py --workdir=runs/face_text
python main.py --config=configs/face_text.py --config.stages.text.controls.text.text="a photo of a man looking left" \
    --workdir=runs/face_text_man
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
    control = {
        "kind": "clip",
        "network": "tinyclip_faces",
        "text": TEXT,
        "weight": 200.0,
        "num_augmentations": 4,
        "policy": "translation,resize,cutout",  # as it was trained: with colour, bright and dark mean nothing
    }
    config.stages.text = pieces.stage("The CLIP energy of a text.", {"text": control})
    config.evaluation.judges = {
        "faceapi_expression": ("expression",),
        "emotion": ("emotion",),
        "faceapi_age_gender": ("gender",),
        "faceres": ("gender",),
        "facemesh": (),
    }
    config.order = ("text",)
    return pieces.shrink(config) if arg == "smoke" else config
