"""The 2-D mixture of Appendix A under a classifier: log Z = -1.20395 exactly.

python main.py --config=configs/synthetic_classifier.py --workdir=runs/synthetic_classifier

Measured on one core of an AMD EPYC (44 seconds in all), 16,384 samples: share of a_1 30.4 % to 99.9 %; log Z -1.202 (95
%: -1.208 to -1.196). The flow is 0.015 nats from its target (0.009 to 0.022), 0.005 seen from the target; 15,945 of the
samples are effective.
"""

from configs import pieces


def get_config(arg: str = ""):
    config = pieces.toy("2-D mixture, classifier control", "mixture2d")
    config.stages.a1 = pieces.toy_stage(
        "The energy -log p(a_1 | x). Exact: log Z = -1.20395, KL to the prior 1.20389.",
        {"a1": {"kind": "synthetic", "energy": "classifier"}},
        objective="score_function",
        batch_size=1024,
        num_steps=1500,
        learning_rate=5e-3,
    )
    config.order = ("a1",)
    return pieces.variant(config, arg)
