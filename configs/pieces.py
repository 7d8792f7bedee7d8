"""Parts that config files are made of. No config reads another experiment."""

import dataclasses

from ml_collections import ConfigDict, config_dict

from promptgen_jax import checks
from promptgen_jax.flows.conditions import FULL
from promptgen_jax.training import TrainConfig

DEFAULTS = {
    field.name: field.default
    for field in dataclasses.fields(TrainConfig)
    if field.name != "seed" and field.default is not None
}
# a training by both divergences, the forward one of the generator's own samples, from a start close to them
BOTH_WAYS = {
    "objective": "mixed",
    "objective_options": {"prior_batch": 8, "forward_share": 0.46},
    "start": "normal",
}


def base(title: str, description: str) -> ConfigDict:
    """A run on the shipped face generator, without stages yet; `order` lists them as they build on each other."""
    return ConfigDict(
        {
            "title": title,
            "description": description,
            "seed": 42,
            "generator": {"name": "dcgan_digiface"},
            "order": (),
            "stages": {},
            "evaluation": {
                "pictures": {},  # options of the generator that differ in pictures, e.g. truncation_psi
                "num_samples": 2048,
                "num_shown": 16,
                "columns": 8,
                "judges": {"emotion": ("emotion",)},
            },
        }
    )


def stage(
    summary: str,
    controls: dict,
    *,
    on: str = "",
    below: dict | None = None,
    condition: dict | None = None,
    corners: float = FULL,
    directions: int = 0,
    **training,
) -> dict:
    """One control to train, on top of the stage before it or of the one named by `on` ("generator": of none).

    `below` gives the generator other options from this stage on. The identity-start coupling flow keeps each person
    recognisable before and after; it moves latents along so many `directions`, or everywhere. With `condition`, ranges
    by name that `Conditions.of` reads (of angles in degrees), or sentences, the flow takes conditions drawn from them,
    the share `corners` of strengths at the corners of their ranges.
    """
    options = {
        "num_steps": 200,
        "batch_size": 32,
        "kl_batch_size": 1024,
        "learning_rate": 1e-3,
        "warmup_steps": 10,
        "save_every": 50,
    }
    strengths = any("strength" in told for told in (condition or {}).values())
    return ({"corners": corners} if strengths else {}) | {
        "summary": summary,
        "on": on,
        "below": below or {},
        "condition": condition or {},
        "controls": controls,
        "flow": {"architecture": "coupling", "num_layers": 8, "hidden_dim": 64}
        | ({"directions": directions} if directions else {}),
        "training": DEFAULTS | {"start": config_dict.placeholder(str)} | options | training,
    }


def measured(summary: str, controls: dict, **options) -> dict:
    """Controls that are fitted and measured, without a training: the report reweights the generator's own samples."""
    return stage(summary, controls, **options) | {"training": None}


def paper_stage(summary: str, controls: dict, **options) -> dict:
    """One control, trained by the recipe of the paper's text and class experiments on the paper's flow."""
    recipe = {"num_steps": 1280, "kl_batch_size": 0, "learning_rate": 1e-3, "warmup_steps": 0}
    config = stage(summary, controls, **recipe | options)
    config["flow"] = {"architecture": "allinone", "num_layers": 8, "hidden_dim": 256}
    return config


def text_experiment(
    text: str, weight: float, generator: dict, description: str, *, pictures: dict | None = None, **recipe
) -> ConfigDict:
    """One text control of a converted official generator by CLIP ViT-B/32, by the paper's recipe."""
    config = base(text, description)
    config.generator = generator
    controls = {"text": clip(text, weight=weight)}
    config.stages.text = paper_stage(f"{weight:g} times the CLIP energy of “{text}”.", controls, **recipe)
    config.order = ("text",)
    config.evaluation.update({"pictures": pictures or {}, "num_samples": 64})
    config.evaluation.judges = {}
    return config


def toy(title: str, problem: str) -> ConfigDict:
    """A run on a toy generator whose exact answer is known; its report shows the density instead of pictures."""
    config = base(title, "A toy problem with a known answer.")
    config.generator = {"name": "synthetic", "problem": problem}
    config.evaluation.judges = {}
    config.evaluation.num_samples = 16384
    return config


def toy_stage(summary: str, controls: dict, **options) -> dict:
    """One control on a toy generator, by the paper's flow."""
    config = stage(
        summary, controls, **{"kl_batch_size": 0, "warmup_steps": 0, "save_every": 500, "log_every": 50} | options
    )
    config["flow"] = {"architecture": "allinone", "num_layers": 8, "hidden_dim": 64}
    return config


def classifier(network: str, attribute: str, target: str, weight: float, mirror: bool = False) -> dict:
    """E = -log P(target | x); with `mirror`, the mean of it over the image and its mirror image."""
    control = {"kind": "classifier", "network": network, "attribute": attribute, "target": target, "weight": weight}
    return control | {"mirror": mirror}


def moment(network: str, attribute: str, mu="uniform", weight: float = 1.0, **options) -> dict:
    """The mean of P(label | x) becomes mu, shares by label; a weight above 1 overshoots on purpose."""
    return {"kind": "moment", "network": network, "attribute": attribute, "mu": mu, "weight": weight, **options}


def clip(text: str, weight: float, network: str = "clip_vit_b32", **options) -> dict:
    """The CLIP energy of a text (Eq. 3), over randomly augmented views, the paper's 50 unless `recipe` says "fast"."""
    return {"kind": "clip", "network": network, "text": text, "weight": weight, **options}


def sentence(weight: float, network: str = "tinyclip_faces", **options) -> dict:
    """The CLIP energy of the sentence that the condition says, over plain views, as `network` was trained on them."""
    plain = {"num_augmentations": 1, "policy": ""}
    return {"kind": "sentence", "network": network, "weight": weight, **plain, **options}


def pose(sigma: float = 5.0, weight: float = 1.0, **angles: float) -> dict:
    """Head pose to the given angles in degrees."""
    return {"kind": "pose", "sigma": sigma, "weight": weight, **angles}


def rotation(weight: float, canonical=(0.25, 0.0, 0.0), network: str = "facemesh") -> dict:
    """Head pose as the condition asks, relative to the canonical one, Euler angles XYZ in radians."""
    return {"kind": "rotation", "network": network, "canonical": canonical, "weight": weight}


def identity(weight: float, network: str = "faceres", **options) -> dict:
    """The same face as under the canonical condition."""
    return {"kind": "identity", "network": network, "options": options, "weight": weight}


def shrink(config: ConfigDict) -> ConfigDict:
    """The `:smoke` variant of any config: a minute on a CPU, to see that everything runs."""
    for one in config.stages.values():
        if one.training is None:
            continue
        small = {"num_steps": 4, "batch_size": 4, "warmup_steps": 0, "save_every": 2, "start": None}
        one.training.update(small | ({"kl_batch_size": 16} if one.training.kl_batch_size else {}))
    config.evaluation.update({"num_samples": 128, "num_shown": 8, "columns": 4})
    return config


def two_steps(config: ConfigDict) -> ConfigDict:
    """The `_smoke` variant of an experiment on a large generator: two steps of one image."""
    for one in config.stages.values():
        if one.training is not None:
            one.training.update({"num_steps": 2, "batch_size": 1, "accumulation": 1, "save_every": 1})
        for control in one.controls.values():
            if control.kind == "clip":
                control.num_augmentations = 2
    config.evaluation.update({"num_samples": 2, "num_shown": 2, "columns": 2})
    return config


def variant(config: ConfigDict, arg: str, small=shrink) -> ConfigDict:
    """What the word after the colon asks for: nothing the config itself, `smoke` its small variant.

    Raises:
      ValueError: another word.
    """
    if arg:
        checks.check_known("--config, after the colon", arg, ("smoke",))
    return small(config) if arg else config
