"""De-biasing by the moment constraint: gender presentation 50/50, as the shipped classifier sees it.

python main.py --config=configs/face_debias.py --workdir=runs/face_debias

Measured on 2 CPU cores, 1,024 samples: mean P(female) 0.349 to 0.420 of the asked 0.500 after 250 steps, KL to the
target shares 0.047 to 0.013, effective sample size 0.76 of the samples. The loop is still on its way at this length.
"""

from configs import pieces


def get_config(arg: str = ""):
    config = pieces.base(
        "Gender presentation at 50/50",
        "The closest distribution to the generator's whose mean P(female) is one half (Eq. 5-7); beta keeps following "
        "the gap while the flow trains, so that the reached moment is the asked one.",
    )
    controls = {"gender": pieces.moment("faceapi_age_gender", "gender", (0.5, 0.5))}
    config.stages.debias = pieces.stage("Moment constraint on P(female).", controls, closed_loop=0.05, num_steps=250)
    config.evaluation.judges = {"faceapi_age_gender": ("gender",), "faceres": ("gender",)}
    config.order = ("debias",)
    return pieces.shrink(config) if arg == "smoke" else config
