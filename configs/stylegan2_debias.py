"""De-biasing StyleGAN2 by FairFace and the moment constraint: the paper's experiments, one name each after the colon.

python main.py --config=configs/stylegan2_debias.py:race_1_ffhq --workdir=runs/race_1_ffhq
python main.py --config=configs/stylegan2_debias.py:beta_ffhq --workdir=runs/beta_ffhq

Known: race_1_ffhq, race_2_ffhq, age_1_ffhq, age_2_ffhq, and race, gender and age by 1 and 2 for metfaces; 1 is the
constraint itself, 2 doubles its beta against the shortfall of the flow. beta_ffhq and beta_metfaces fit beta for race,
gender and age together and train nothing: their report reweights the generator's own samples. With `_smoke` behind the
name, two steps. The checkpoints are not shipped: a missing one is answered with the file, where it is published, and
the command that converts it. Not run with the published checkpoints here.
Recipe: experiments *_debias_* and debias_ebm_* of the official repository, but that beta is fitted by the convex dual
on 4,096 samples (Eq. 7 by Adam is `moments.fit_beta_sgd`), and stays as fitted: the official code lets it drift.
"""

from configs import pieces
from promptgen_jax import checks

EXPERIMENTS = {
    f"{attribute}_{weight}_{data}": (attribute, weight, data)
    for data, attributes in (("ffhq", ("race", "age")), ("metfaces", ("race", "gender", "age")))
    for attribute in attributes
    for weight in (1, 2)
}
BETAS = {f"beta_{data}": data for data in ("ffhq", "metfaces")}
ATTRIBUTES = ("race", "gender", "age")


def get_config(arg: str = "race_1_ffhq"):
    name = (arg or "race_1_ffhq").removesuffix("_smoke")
    checks.check_known("configs/stylegan2_debias.py", name, (*EXPERIMENTS, *BETAS))
    data = BETAS.get(name) or EXPERIMENTS[name][2]
    config = pieces.base(
        name.replace("_", " "),
        f"StyleGAN2 ({data}) under the moment constraint of equal shares, as FairFace sees them (Eq. 5-7). FairFace "
        "sees presentation in a picture by the classes of its annotators, not what people are.",
    )
    config.generator = {"name": f"stylegan2_{data}", "truncation_psi": 1.0, "noise": "random"}
    config.evaluation.update({"pictures": {"truncation_psi": 0.7}, "num_samples": 4096})
    config.evaluation.judges = {}
    if name in BETAS:
        controls = {attribute: pieces.moment("fairface", attribute) for attribute in ATTRIBUTES}
        config.stages.debias = pieces.measured("Equal shares of race, gender and age, by reweighting.", controls)
    else:
        attribute, weight, _ = EXPERIMENTS[name]
        controls = {attribute: pieces.moment("fairface", attribute, weight=float(weight))}
        summary = f"{weight} times the fitted beta of equal shares by {attribute}."
        config.stages.debias = pieces.paper_stage(summary, controls, batch_size=8, accumulation=32, num_steps=2000)
        config.evaluation.judges = {"fairface": ATTRIBUTES}
    config.order = ("debias",)
    return pieces.two_steps(config) if arg.endswith("_smoke") else config
