"""De-biasing by the moment constraint: gender presentation 50/50, as the shipped classifier sees it.

python main.py --config=configs/face_debias.py --workdir=runs/face_debias

Other shares: --config.stages.debias.controls.gender.mu.female=0.7. Of first choices, not of mean probabilities:
--config.stages.debias.controls.gender.count=hard.

Measured on 2 CPU cores busy with other work (6 minutes of training), 4,096 samples: mean P(female) 0.362 to 0.515
(asked 0.500; 0.501 after reweighting), KL to the target shares 0.0387 to 0.0005, effective sample size 0.42 of the
samples; the independent judge's mean P(female) goes from 0.290 to 0.370. Mean cosine between face embeddings 0.40
before and 0.42 after. Another training, seed 0: 0.513, KL to the target shares 0.0003, independent judge 0.366; it is
0.39 nats from the target seen from either side, of which it misses 3 %.
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
