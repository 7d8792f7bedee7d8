"""A dial for the smile: one training for every strength from 0, the generator itself, to 1.

python main.py --config=configs/face_dial.py --workdir=runs/face_dial

Pictures at any strength: promptgen sample --workdir=runs/face_dial --condition=smile=0.5

Measured on 2 cores of an AMD EPYC shared with other work (2 minutes of training), 2,048 samples, of which half are at
full strength: happy 20.7 % to 80.7 %, by the independent judge 18.2 % to 68.9 %. The flow is 1.51 nats from its target
(95 %: 1.38 to 1.63), 1.14 seen from the target, of which it misses 17 %. Along the dial it is 0.59 nats away at 0.16,
1.10 at 0.36, 1.81 at 1, and log Z agrees with its integral everywhere.
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
