"""Four separated wells: forward KL finds all of them.

python main.py --config=configs/synthetic_wells.py --workdir=runs/synthetic_wells

Measured on one core of an AMD EPYC (34 seconds in all), 16,384 samples: the wells hold 22.6, 25.8, 25.2 and 26.5 %
(reweighted 24.2 to 25.4); log Z -4.388 (95 %: -4.400 to -4.373; exact -4.392). The flow is 1.60 nats from its target,
0.48 seen from the target, of which it misses 0.7 %, and 8,992 of the samples are effective: all wells are found, and
the flow spends itself on the bridges between them.
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
