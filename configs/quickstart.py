"""Everybody smiles; then, on top of that generator, heads turn: two prompts, one nested in the other.

python main.py --config=configs/quickstart.py --workdir=runs/quickstart

Measured on 2 cores of an Intel Xeon, 1,024 samples: smiles 21.4 % to 87.6 % (independent judge 18.2 % to 75.8 %); then
mean yaw 3.8 to 23.0 degrees with 84.1 % smiles. The smile stage is 1.71 nats from its target seen from the flow (95 %:
1.49 to 1.91) and 1.19 seen from the target (1.04 to 1.35), of which it misses 19 %. Three runs had the same figures;
with compilation and report they took 181, 240 and 255 seconds, as others shared the machine, and 1.7 GB. On 2 cores of
an AMD EPYC, where sums are rounded otherwise, it was 1.66, 1.22 and 24 %, with 87.1 % smiles (76.5 %), in 482 seconds.
By reverse KL alone, with 200 steps, it was 1.75, 1.64 and 30 %, with 89.9 % smiles (77.9 %).
"""

from configs import pieces


def get_config(arg: str = ""):
    config = pieces.base(
        "Everybody smiles, then heads turn",
        "A face generator is made to sample smiling people only; the result is a generator again, and its heads are "
        "then turned to one side. The classifier and the landmark model that say so are needed in training only.",
    )
    smile = {"smile": pieces.classifier("faceapi_expression", "expression", "happy", weight=3.0, mirror=True)}
    summary = "The classifier energy -3 log P(happy), mirror image included."
    config.stages.smile = pieces.stage(summary, smile, directions=20, num_steps=180, **pieces.BOTH_WAYS)

    turn = {"turn": pieces.pose(yaw=25.0, sigma=3.5)}
    config.stages.turn = pieces.stage(
        "Yaw of 25 degrees, on top of the smiling generator.", turn, num_steps=150, batch_size=16
    )
    config.evaluation.judges.facemesh = ()
    config.evaluation.num_samples = 1024
    config.order = ("smile", "turn")
    return pieces.variant(config, arg)
