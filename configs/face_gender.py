"""Class control: female gender presentation, as the shipped classifier sees it.

python main.py --config=configs/face_gender.py --workdir=runs/face_gender
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
