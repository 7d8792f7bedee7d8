"""Class control: female gender presentation, as the shipped classifier sees it.

python main.py --config=configs/face_gender.py --workdir=runs/face_gender

Measured on 2 CPU cores busy with other work (19 minutes of training), 2,048 samples: female by the controlling judge
32.0 % to 86.4 %, by the independent one 13.4 % to 51.8 %. Loss 6.90 nats, its importance-sampled optimum 4.13. Mean
cosine between face embeddings 0.40 before and 0.45 after: a little less varied.
"""

from configs import pieces


def get_config(arg: str = ""):
    config = pieces.base(
        "Gender presentation by a classifier",
        "Classifier control, -10 log P(female). The classifier sees gender presentation, not gender; an independent "
        "classifier judges beside it.",
    )
    control = {"female": pieces.classifier("faceapi_age_gender", "gender", "female", weight=10.0, mirror=True)}
    config.stages.female = pieces.stage(
        "The classifier energy -10 log P(female) of the image and its mirror image.",
        control,
        num_steps=300,
        batch_size=64,
        learning_rate=2e-3,
    )
    config.evaluation.judges = {"faceres": ("gender",)}
    config.order = ("female",)
    return pieces.shrink(config) if arg == "smoke" else config
