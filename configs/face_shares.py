"""Shares as dials, female presentation and smiles at once: one training for every pair of shares in their ranges.

python main.py --config=configs/face_shares.py --workdir=runs/face_shares

Pictures at any pair: promptgen sample --workdir=runs/face_shares --condition=female=0.7,happy=0.5
What is reached: python -m benchmarks.dials shares

Not measured at this length yet; docs/dials.md has shorter trainings, which stay far from the ends of the ranges.
Training took 8 minutes on 2 cores of an AMD EPYC shared with other work; measuring takes longer still.
"""

from configs import pieces


def get_config(arg: str = ""):
    config = pieces.base(
        "Shares of female presentation and of smiles",
        "One flow for every pair of shares, the closest distribution to the generator's whose mean P(female) and "
        "P(happy) are those that are asked for; beta of each pair solves the convex dual (Eq. 5-7).",
    )
    controls = {
        "gender": pieces.moment("faceapi_age_gender", "gender"),
        "expression": pieces.moment("faceapi_expression", "expression"),
    }
    config.stages.shares = pieces.stage(
        "Moment constraints on P(female) and P(happy), whose shares the condition asks for.",
        controls,
        condition={"female": (0.3, 0.9, "share"), "happy": (0.2, 0.6, "share")},
        closed_loop=0.5,
        learning_rate=3e-3,
        num_steps=400,
    )
    config.stages.shares.flow["cond_scale"] = 30.0
    config.evaluation.num_samples = 8192  # few of which support the hardest pair
    config.evaluation.judges = {"faceres": ("gender",), "emotion": ("emotion",)}
    config.order = ("shares",)
    return pieces.variant(config, arg)
