"""Four separated wells: forward KL finds all of them.

python main.py --config=configs/synthetic_wells.py --workdir=runs/synthetic_wells

Measured on 2 busy CPU cores (103 s of training), 16,384 samples: the wells hold 22.6, 25.7, 25.2 and 26.6 % (reweighted
24.1 to 25.4); log Z -4.394 (exact -4.392), KL to the target 1.59 nats, 9,041 of the samples effective: all wells are
found, and the flow spends itself on the bridges between them.
"""

from configs import pieces


def get_config(arg: str = ""):
    config = pieces.toy("Four separated wells", "wells")
    config.stages.wells = pieces.toy_stage(
        "Four narrow wells at (2, 2) and its mirror images. Exact: log Z = -4.39238.",
        {"wells": {"kind": "synthetic", "energy": "wells"}},
        objective="forward_kl",
        batch_size=1024,
        num_steps=1000,
        learning_rate=3e-3,
    )
    config.order = ("wells",)
    return pieces.variant(config, arg)
