"""Several controls at once: smiling and looking to one side, trained together by one flow.

python main.py --config=configs/face_multi.py --workdir=runs/face_multi

Measured on one core of an Intel Xeon shared with other work (15 minutes of training), 2,048 samples: happy 20.7 % to
87.7 %, by the independent judge 18.2 % to 74.4 %; mean yaw 0.9 to -16.9 degrees. The flow is 1.85 nats from its target
(95 %: 1.68 to 2.02), 1.57 seen from the target (1.25 to 1.90), of which it misses 29 %. Along all 100 directions it was
2.75, 2.03 and 42 %, with 87.8 % (74.9 %) and -17.1 degrees; by reverse KL alone, 200 steps of 16 on one core of an AMD
EPYC, 2.80, 2.49 and 48 %, with 89.2 % (77.3 %) and -16.4 degrees.
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
    summary = "Both controls in one training."
    config.stages.both = pieces.stage(summary, controls, directions=20, num_steps=300, **pieces.BOTH_WAYS)
    config.evaluation.judges.facemesh = ()
    config.order = ("both",)
    return pieces.variant(config, arg)
