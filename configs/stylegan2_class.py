"""Class control of StyleGAN2 by the CelebA classifiers: the paper's 18 experiments, one name each after the colon.

python main.py --config=configs/stylegan2_class.py:female_old --workdir=runs/female_old
python main.py --config=configs/stylegan2_class.py:table2 --workdir=runs/table2

`table2` trains all 18 and draws equal numbers of each cell of an attribute or a pair: the KL to uniform of Table 2.
With `_smoke` behind the name, two steps. The checkpoints are not shipped: a missing one is answered with the file,
where it is published, and the command that converts it. Not run with the published checkpoints here.
Recipe: experiments class_* of the official repository. Its energy ends at 18.4 nats, where training can stand still;
here it has no such floor, but for `--config.stages.<name>.controls.<class>.floor=1e-8`.
"""

from configs import pieces
from promptgen_jax import checks

YES, NO = "yes", "not yes"
EXPERIMENTS = {
    "male": (100.0, {"Male": YES}),
    "female": (100.0, {"Male": NO}),
    "eyeglasses": (300.0, {"Eyeglasses": YES}),
    "noeyeglasses": (150.0, {"Eyeglasses": NO}),
    "blond_hair": (300.0, {"Blond_Hair": YES}),
    "noblond_hair": (100.0, {"Blond_Hair": NO}),
    "male_young": (150.0, {"Male": YES, "Young": YES}),
    "male_old": (100.0, {"Male": YES, "Young": NO}),
    "female_young": (100.0, {"Male": NO, "Young": YES}),
    "female_old": (100.0, {"Male": NO, "Young": NO}),
    "male_glasses": (100.0, {"Male": YES, "Eyeglasses": YES}),
    "male_noglasses": (100.0, {"Male": YES, "Eyeglasses": NO}),
    "female_glasses": (100.0, {"Male": NO, "Eyeglasses": YES}),
    "female_noglasses": (100.0, {"Male": NO, "Eyeglasses": NO}),
    "eyeglasses_young": (100.0, {"Eyeglasses": YES, "Young": YES}),
    "eyeglasses_old": (100.0, {"Eyeglasses": YES, "Young": NO}),
    "noeyeglasses_young": (100.0, {"Eyeglasses": NO, "Young": YES}),
    "noeyeglasses_old": (100.0, {"Eyeglasses": NO, "Young": NO}),
}
TABLE_2 = {
    "gender": ("Male",),
    "eyeglasses": ("Eyeglasses",),
    "blond hair": ("Blond_Hair",),
    "age and gender": ("Male", "Young"),
    "age and eyeglasses": ("Eyeglasses", "Young"),
    "gender and eyeglasses": ("Male", "Eyeglasses"),
}


def network(attribute: str) -> str:
    return f"celeba_{attribute.lower()}"


def stage(name: str) -> dict:
    weight, targets = EXPERIMENTS[name]
    controls = {a.lower(): pieces.classifier(network(a), a, target, weight=weight) for a, target in targets.items()}
    wanted = ", ".join(f"{'no ' if target == NO else ''}{attribute}" for attribute, target in targets.items())
    summary = f"{weight:g} times the classifier energy of {wanted}."
    return pieces.paper_stage(summary, controls, on="generator", batch_size=8)


def get_config(arg: str = "female"):
    name = (arg or "female").removesuffix("_smoke")
    checks.check_known("configs/stylegan2_class.py", name, (*EXPERIMENTS, "table2"))
    config = pieces.base(name.replace("_", " "), "StyleGAN2 (ffhq) under CelebA attribute classifiers (section 4.2).")
    config.generator = {"name": "stylegan2_ffhq", "truncation_psi": 1.0, "noise": "random"}
    config.evaluation.update({"pictures": {"truncation_psi": 0.7}, "num_samples": 1024})
    config.evaluation.judges = {}
    config.order = tuple(EXPERIMENTS) if name == "table2" else (name,)
    config.stages = {one: stage(one) for one in config.order}
    if name == "table2":
        config.mixtures = {
            title: {
                "stages": tuple(n for n, (_, targets) in EXPERIMENTS.items() if tuple(targets) == attributes),
                "judges": (tuple((network(a), a, YES) for a in attributes),),
            }
            for title, attributes in TABLE_2.items()
        }
    return pieces.two_steps(config) if arg.endswith("_smoke") else config
