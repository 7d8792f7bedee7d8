"""Iterated control: "a photo of a person without makeup", then equal shares of gender on top (section 4.5, Fig. 8).

python main.py --config=configs/stylegan2_makeup.py --workdir=runs/makeup

Three steps: the text control shifts the shares of gender presentation, the report of its stage says how far by
FairFace; beta is fitted on the composed generator; the second flow is trained with twice that beta. The second stage
stands on the first at truncation_psi 0.7, as officially. `:smoke`, two steps. The checkpoints are not shipped: a
missing one is answered with the file, where it is published, and the command that converts it. Not run with the
published checkpoints here.
Recipe: clip_a_person_without_makeup, no_debias_, debias_ebm_ and gender_debias_2_person_without_makeup of the official
repository.
"""

from configs import pieces

TEXT = "a photo of a person without makeup"


def get_config(arg: str = ""):
    config = pieces.base(
        "Without makeup, then balanced",
        "StyleGAN2 (ffhq) under a CLIP energy, then under the moment constraint of FairFace's gender presentation.",
    )
    config.generator = {"name": "stylegan2_ffhq", "truncation_psi": 1.0, "noise": "random"}
    config.stages.text = pieces.paper_stage(
        f"1000 times the CLIP energy of “{TEXT}”.",
        {"text": pieces.clip(TEXT, weight=1000.0)},
        batch_size=2,
        num_steps=5120,
    )
    config.stages.gender = pieces.paper_stage(
        "Twice the beta of equal shares by gender presentation, as FairFace sees it.",
        {"gender": pieces.moment("fairface", "gender", weight=2.0)},
        below={"truncation_psi": 0.7},
        batch_size=8,
        accumulation=32,
        num_steps=2000,
    )
    config.evaluation.update({"pictures": {"truncation_psi": 0.7}, "num_samples": 4096})
    config.evaluation.judges = {"fairface": ("gender",)}
    config.order = ("text", "gender")
    return pieces.variant(config, arg, pieces.two_steps)
