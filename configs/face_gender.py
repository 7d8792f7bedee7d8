"""Class control: female gender presentation, as the shipped classifier sees it.

python main.py --config=configs/face_gender.py --workdir=runs/face_gender

Measured on one CPU core shared with other work (16 minutes of training), 2,048 samples: female by the controlling judge
32.0 % to 94.8 %, by the independent one 13.4 % to 61.6 %. Mean cosine between face embeddings 0.40 before and 0.47
after, pixel spread 0.21 and 0.18: a little less varied. The distance to the target has not been measured by the
certificate of both sides. With weight 10 and 300 steps the shares were 86.4 % and 51.8 %.
"""

from configs import pieces


def get_config(arg: str = ""):
    config = pieces.base(
        "Gender presentation by a classifier",
        "Classifier control, -20 log P(female). The classifier sees gender presentation, not gender; an independent "
        "classifier judges beside it.",
    )
    control = {"female": pieces.classifier("faceapi_age_gender", "gender", "female", weight=20.0, mirror=True)}
    config.stages.female = pieces.stage(
        "The classifier energy -20 log P(female) of the image and its mirror image.",
        control,
        num_steps=400,
        batch_size=64,
        learning_rate=2e-3,
    )
    config.evaluation.judges = {"faceres": ("gender",)}
    config.order = ("female",)
    return pieces.variant(config, arg)
