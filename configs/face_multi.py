"""Several controls at once: smiling and looking to one side, trained together by one flow.

python main.py --config=configs/face_multi.py --workdir=runs/face_multi

Measured on one CPU core shared with other work (5 minutes of training), 2,048 samples: happy 20.7 % to 88.8 %, by the
independent judge 18.2 % to 75.7 %; mean yaw 0.9 to -16.9 degrees. The distance to the target has not been measured by
the certificate of both sides.
"""

from configs import pieces


def get_config(arg: str = ""):
    config = pieces.base(
        "A smile and a pose at once", "Energies add: -3 log P(happy) and the squared error of the yaw."
    )
    controls = {
        "smile": pieces.classifier("faceapi_expression", "expression", "happy", weight=3.0, mirror=True),
        "turn": pieces.pose(yaw=-20.0, sigma=5.0),
    }
    config.stages.both = pieces.stage("Both controls in one training.", controls, batch_size=16)
    config.evaluation.judges.facemesh = ()
    config.order = ("both",)
    return pieces.variant(config, arg)
