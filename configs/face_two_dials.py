"""Two dials at once, smile and turn: one training for every pair of strengths from 0, the generator itself, to 1.

python main.py --config=configs/face_two_dials.py --workdir=runs/face_two_dials

Pictures at any pair: promptgen sample --workdir=runs/face_two_dials --condition=smile=0.5,turn=1
What one training costs against one for each corner: python -m benchmarks.dials two
"""

from configs import pieces


def get_config(arg: str = ""):
    config = pieces.base(
        "Dials for smile and turn",
        "One flow for every pair of strengths, of -3 s log P(happy) and of t times the squared error of the yaw, "
        "½ ((yaw + 20) / 5)². With both at 0 it is exactly the identity.",
    )
    controls = {
        "smile": pieces.classifier("faceapi_expression", "expression", "happy", weight=3.0, mirror=True),
        "turn": pieces.pose(yaw=-20.0, sigma=5.0),
    }
    config.stages.both = pieces.stage(
        "Smile and turn, each times a strength from 0 to 1; half of the draws are at (0, 1), (1, 0) and (1, 1).",
        controls,
        condition={"smile": (0.0, 1.0, "strength"), "turn": (0.0, 1.0, "strength")},
    )
    config.evaluation.judges.facemesh = ()
    config.order = ("both",)
    return pieces.variant(config, arg)
