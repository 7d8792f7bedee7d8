"""De-biasing by the moment constraint: gender presentation 50/50, as the shipped classifier sees it.

python main.py --config=configs/face_debias.py --workdir=runs/face_debias

Measured with 240 steps on 2 CPU cores, 1,024 samples: mean P(female) 0.349 to 0.480 (asked 0.500), KL to the target
shares 0.0466 to 0.0008, effective sample size 0.49 of the samples; the independent judge's mean P(female) goes from
0.280 to 0.345.
"""

from configs import pieces


def get_config(arg: str = ""):
    config = pieces.base(
        "Gender presentation at 50/50",
        "The closest distribution to the generator's whose mean P(female) is one half (Eq. 5-7); beta keeps following "
        "the gap while the flow trains, so that the reached moment is the asked one.",
    )
    controls = {"gender": pieces.moment("faceapi_age_gender", "gender", (0.5, 0.5))}
    config.stages.debias = pieces.stage("Moment constraint on P(female).", controls, closed_loop=0.3, num_steps=360)
    config.evaluation.judges = {"faceres": ("gender",)}
    config.order = ("debias",)
    config.evaluation.num_samples = 4096
    return pieces.shrink(config) if arg == "smoke" else config
