"""A dial for the smile: one training for every strength from 0, the generator itself, to 1.

python main.py --config=configs/face_dial.py --workdir=runs/face_dial

Pictures at any strength: promptgen sample --workdir=runs/face_dial --condition=smile=0.5
"""

from configs import pieces


def get_config(arg: str = ""):
    config = pieces.base(
        "A dial for the smile",
        "One flow for every strength s of the classifier control, -3 s log P(happy). At 0 it is exactly the identity.",
    )
    smile = {"smile": pieces.classifier("faceapi_expression", "expression", "happy", weight=3.0, mirror=True)}
    config.stages.smile = pieces.stage(
        "The classifier energy -3 log P(happy) of the image and its mirror image, times a strength from 0 to 1.",
        smile,
        condition={"smile": (0.0, 1.0, "strength")},
    )
    config.order = ("smile",)
    return pieces.variant(config, arg)
