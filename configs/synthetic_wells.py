"""Four separated wells: forward KL finds all of them.

python main.py --config=configs/synthetic_wells.py --workdir=runs/synthetic_wells
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
    return pieces.shrink(config) if arg == "smoke" else config
