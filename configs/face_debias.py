"""De-biasing by the moment constraint: gender presentation 50/50, as the shipped classifier sees it.

python main.py --config=configs/face_debias.py --workdir=runs/face_debias

Other shares: --config.stages.debias.controls.gender.mu.female=0.7. Of first choices, not of mean probabilities:
--config.stages.debias.controls.gender.count=hard.

Measured on one core of an AMD EPYC (220 s of training), 4,096 samples: mean P(female) 0.362 to 0.506 (asked 0.500),
KL to the target shares 0.0387 to 0.0001; the independent judge's mean P(female) goes from 0.290 to 0.367. The flow is
0.37 nats from its target (95 %: 0.35 to 0.39), 0.36 seen from the target, of which it misses 2 %; reweighted, 46 % of
the samples are effective. Mean cosine between face embeddings 0.40 before and 0.41 after. Two other trainings had 0.515
and 0.513.
"""

from configs import pieces


def get_config(arg: str = ""):
    config = pieces.base(
        "Gender presentation at 50/50",
        "The closest distribution to the generator's whose mean P(female) is one half (Eq. 5-7); beta keeps following "
        "the gap while the flow trains, so that the reached moment is the asked one.",
    )
    controls = {"gender": pieces.moment("faceapi_age_gender", "gender", {"female": 0.5}, count="soft")}
    config.stages.debias = pieces.stage("Moment constraint on P(female).", controls, closed_loop=0.3, num_steps=360)
    config.evaluation.judges = {"faceres": ("gender",)}
    config.order = ("debias",)
    config.evaluation.num_samples = 4096
    return pieces.variant(config, arg)
