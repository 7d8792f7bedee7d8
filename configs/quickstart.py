"""Everybody smiles; then, on top of that generator, heads turn: two prompts, one nested in the other.

python main.py --config=configs/quickstart.py --workdir=runs/quickstart

Measured on 2 cores of an AMD EPYC, 1,024 samples: smiles 21.4 % to 87.1 % (independent judge 18.2 % to 76.5 %); then
mean yaw 2.8 to 22.8 degrees with 84.8 % smiles. The smile stage is 1.66 nats from its target seen from the flow (95 %:
1.45 to 1.84) and 1.22 seen from the target (1.05 to 1.38), of which it misses 24 %. With compilation and report it took
482 seconds and 1.6 GB; on a day when the machine was faster 304, with one device for both cores. With 60 and 40 steps,
one after the other, 130 and 190. Rounding alone moves figures: runs of the same seed, whose programs add in another
order, had 1.65 to 1.74, 1.16 to 1.22 and 22 to 24 %. By reverse KL alone, with 200 steps, it was 1.75, 1.64 and 30 %,
with 89.9 % smiles (77.9 %).
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
    config.stages.smile = pieces.stage(summary, smile, num_steps=300, **pieces.BOTH_WAYS)

    turn = {"turn": pieces.pose(yaw=25.0, sigma=3.5)}
    config.stages.turn = pieces.stage(
        "Yaw of 25 degrees, on top of the smiling generator.", turn, num_steps=150, batch_size=16
    )
    config.evaluation.judges.facemesh = ()
    config.evaluation.num_samples = 1024
    config.order = ("smile", "turn")
    return pieces.variant(config, arg)
