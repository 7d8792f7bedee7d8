"""Two dials at once, smile and turn: one training for every pair of strengths from 0, the generator itself, to 1.

python main.py --config=configs/face_two_dials.py --workdir=runs/face_two_dials

Pictures at any pair: promptgen sample --workdir=runs/face_two_dials --condition=smile=0.5,turn=1
What one training costs against one for each corner: python -m benchmarks.dials two

Measured on one core of an AMD EPYC (188 seconds of training), 2,048 samples, of which half are at (0, 1), (1, 0) and
(1, 1): happy 20.7 % to 72.1 %, by the independent judge 18.2 % to 60.8 %, mean yaw 0.9 to -11.2 degrees. The flow is
2.17 nats from its target (95 %: 2.04 to 2.31), 1.56 seen from the target, of which it misses 31 %. With both dials at
0.16 it is 0.70 nats away, at 1 2.37. With one head for both dials it was 2.44, 1.93 and 39 %.
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
