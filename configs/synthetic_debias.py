"""The 2-D mixture of Appendix A de-biased to 50/50, by the score function.

python main.py --config=configs/synthetic_debias.py --workdir=runs/synthetic_debias

With --config.stages.debias.training.objective=reverse_kl and the clip at 1, the paper's recipe, the share stops short.
"""

from configs import pieces


def get_config(arg: str = ""):
    config = pieces.toy("2-D mixture, de-biased to 50/50", "mixture2d")
    config.stages.debias = pieces.toy_stage(
        "Moment constraint on both classes. Exact: beta_1 - beta_2 = 0.84730, KL to the prior 0.08717.",
        {"debias": {"kind": "synthetic", "energy": "moment", "mu": (0.5, 0.5)}},
        objective="score_function",
        batch_size=512,
        num_steps=1500,
        learning_rate=1e-2,
    )
    config.order = ("debias",)
    config.evaluation.num_samples = 65536
    return pieces.shrink(config) if arg == "smoke" else config
