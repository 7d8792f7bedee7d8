"""Converts the generating half of official NVAE checkpoints, `checkpoint.pt`.

    python convert/nvae_to_flax.py checkpoint.pt ported_weights/nvae_ffhq256
    python convert/nvae_to_flax.py checkpoint.pt ported_weights/nvae_ffhq256 --readjust 500 --temperature 0.8

Sizes are read from the settings in the file. Weight normalisation is folded. The statistics of the batch normalisations
are those of the file, or, with --readjust, moved towards those of that many batches of 16 samples at the given
temperature, as the official script does before sampling; they are stored, so that every user has the same.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from convert import family, reading
from promptgen_jax.models import network
from promptgen_jax.models.nvae import NVAE

ENCODER = ("stem.", "pre_process.", "enc_tower.", "enc0.", "enc_sampler.", "nf_cells.")
COPIES = (".weight_normalized", ".num_batches_tracked")  # the former is `weight` once more, in newer files
BATCH_SIZE, SEED = 16, 0
DEFAULTS = {"ada_groups": False, "min_groups_per_scale": 1, "num_mixture_dec": 10}  # what older files leave out
SETTINGS = {
    "latent_channels": "num_latent_per_group",
    "num_cells": "num_cell_per_cond_dec",
    "num_post_blocks": "num_postprocess_blocks",
    "num_post_cells": "num_postprocess_cells",
    "num_mixture": "num_mixture_dec",
}


def normalised(weight, log_norm) -> np.ndarray:
    """A convolution OIHW with weight normalisation as HWIO: exp(log_norm) W / (norm of each output + 1e-5)."""
    weight = weight.astype(np.float64)
    norm = np.sqrt(np.sum(weight**2, axis=(1, 2, 3), keepdims=True))
    return np.float32((np.exp(np.float64(log_norm)) * weight / (norm + 1e-5)).transpose(2, 3, 1, 0))


def matrix(kernel: np.ndarray) -> np.ndarray:
    """A kernel (1, 1, in, out) as (in, out)."""
    return kernel.reshape(kernel.shape[-2:])


def _normalised(name, bias=True, *, dense=True):
    def make(weight, log_norm, *rest):
        kernel = normalised(weight, log_norm)
        return {"kernel": matrix(kernel) if dense else kernel} | ({"bias": rest[0]} if bias else {})

    sources = (f"{name}.weight", f"{name}.log_weight_norm", *((f"{name}.bias",) if bias else ()))
    return reading.Part(sources, make)


def _plain(name):
    return reading.Part((f"{name}.weight",), lambda weight: matrix(weight.transpose(2, 3, 1, 0)))


def _dense(name):
    return reading.Part((f"{name}.weight", f"{name}.bias"), lambda kernel, bias: {"kernel": kernel.T, "bias": bias})


def cell(name: str, *, up: bool = False) -> dict[str, reading.Part]:
    """Parameters and buffers of a `models.nvae.Cell`; an upsampling comes first in the official list of layers."""
    layers = f"{name}._ops.0.conv"
    norms = [f"{up + 0}.bn", f"{up + 1}.conv.1", f"{up + 2}.conv.1", f"{up + 4}.bn"]
    parts = {
        "params/expand/kernel": _plain(f"{layers}.{up + 1}.conv.0"),
        "params/kernel": reading.Part((f"{layers}.{up + 2}.conv.0.weight",), lambda each: each.transpose(2, 3, 1, 0)),
        "params/project/kernel": _plain(f"{layers}.{up + 3}"),
        "params/squeeze": _dense(f"{name}.se.se.0"),
        "params/excite": _dense(f"{name}.se.se.2"),
    }
    for index, norm in enumerate(norms):
        for target, source in (
            ("params/{}/scale", "weight"),
            ("params/{}/bias", "bias"),
            ("buffers/{}/mean", "running_mean"),
            ("buffers/{}/variance", "running_var"),
        ):
            parts[target.format(f"norm{index}")] = reading.keep(f"{layers}.{norm}.{source}")
    return parts | ({"params/skip": _normalised(f"{name}.skip.1", bias=False)} if up else {})


def _under(target: str, parts: dict) -> dict:
    """The parts one level deeper: `params/x` becomes `params/<target>/x`."""
    return {f"{kind}/{target}/{rest}": part for (kind, rest), part in ((k.split("/", 1), p) for k, p in parts.items())}


def _stack(groups: list[dict]) -> dict:
    """One part for the same entry of several groups, stacked along a new first axis."""

    def join(parts):
        sizes = [len(part.sources) for part in parts]

        def make(*tensors):
            made, start = [], 0
            for part, size in zip(parts, sizes, strict=True):
                made.append(part.make(*tensors[start : start + size]))
                start += size
            return jax.tree.map(lambda *leaves: np.stack(leaves), *made)

        return reading.Part(sum((part.sources for part in parts), ()), make)

    return {target: join([group[target] for group in groups]) for target in groups[0]}


def recipe(options: dict) -> dict[str, reading.Part]:
    """Parameters and buffers of `models.nvae.NVAE` by target. `options` are its fields."""
    parts = {
        "params/constant": reading.Part(("prior_ftr0",), lambda constant: constant.transpose(1, 2, 0)),
        "params/output": _normalised("image_conditional.1", dense=False),
    }
    entry, sampler = 0, 0
    for scale, count in enumerate(options["groups"]):
        groups = []
        for index in range(count):
            group = {}
            if scale or index:
                for number in range(options["num_cells"]):
                    group |= _under(f"cell_{number}", cell(f"dec_tower.{entry + number}"))
                entry += options["num_cells"]
                group["params/sampler"] = _normalised(f"dec_sampler.{sampler}.1")
                sampler += 1
            group["params/combiner/dense"] = _normalised(f"dec_tower.{entry}.conv")
            entry += 1
            groups.append(group)
        if scale == 0:
            parts |= groups.pop(0)
        parts |= _under(f"groups_{scale}", _stack(groups)) if groups else {}
        if scale < len(options["groups"]) - 1:
            parts |= _under(f"up_{scale}", cell(f"dec_tower.{entry}", up=True))
            entry += 1
    for block in range(options["num_post_blocks"]):
        for index in range(options["num_post_cells"]):
            number = block * options["num_post_cells"] + index
            parts |= _under(f"post_{block}_{index}", cell(f"post_process.{number}", up=index == 0))
    return parts


def read_options(source: str | Path, content: dict) -> dict:
    """Fields of `models.nvae.NVAE` from the settings that the file holds.

    Raises:
      ValueError: no settings, or those of a network that is not supported.
    """
    settings = content.get("args")
    settings = DEFAULTS | vars(settings) if isinstance(settings, argparse.Namespace) else {}
    wanted = {*SETTINGS.values(), "num_latent_scales", "num_groups_per_scale", "dataset", "use_se"}
    missing = sorted(wanted - settings.keys())
    constant = content["state_dict"].get("prior_ftr0")
    if missing or np.ndim(constant) != 3:
        what = f"no settings {', '.join(missing)} in args" if missing else "no prior_ftr0"
        raise ValueError(f"{source}: {what}. Pass the checkpoint.pt of the authors.")
    if not settings["use_se"] or settings["dataset"] in ("mnist", "omniglot"):
        raise ValueError(
            f"{source}: learnt from {settings['dataset']} with use_se {settings['use_se']}; only colour pictures and "
            "cells with squeeze and excitation are supported."
        )
    sizes = {name: settings[name] for name in (*SETTINGS.values(), "num_latent_scales", "num_groups_per_scale")}
    wrong = [
        name for name, value in sizes.items() if type(value) is int and not 0 <= value <= len(content["state_dict"])
    ]
    if wrong:
        raise ValueError(f"{source}: its settings {', '.join(wrong)} are beyond its tensors. Download it again.")
    counts, count = [], settings["num_groups_per_scale"]  # finest first
    for _ in range(settings["num_latent_scales"]):
        counts.append(count)
        count = max(settings["min_groups_per_scale"], count // 2) if settings["ada_groups"] else count
    options = {name: settings[setting] for name, setting in SETTINGS.items()}
    return options | {"groups": counts[::-1], "channels": constant.shape[0], "base_size": constant.shape[1]}


def readjust(module: NVAE, tree: dict, *, num_batches: int, temperature: float, noise: Callable | None = None) -> dict:
    """The tree with statistics of the batch normalisations moved towards those of samples, 5 % a batch.

    Args:
      module: the network.
      tree: its parameters and buffers.
      num_batches: of 16 samples.
      temperature: of the samples.
      noise: of batch k, (B, D); by default standard normal.

    Raises:
      ValueError: a count below 0; or statistics that became NaN, as some files give.
    """
    if num_batches < 0 or not temperature > 0:
        raise ValueError(f"--readjust {num_batches} --temperature {temperature}: expected numbers that are positive.")
    size = sum(module.group_sizes)
    noise = noise or (lambda k: jax.random.normal(jax.random.fold_in(jax.random.key(SEED), k), (BATCH_SIZE, size)))

    @jax.jit
    def step(tree, eps):
        _, new = module.apply(tree, eps, temperature=temperature, adjust=True, mutable=["buffers"])
        return new["buffers"]

    tree = jax.tree.map(jnp.asarray, tree)
    for index in range(num_batches):
        tree = {**tree, "buffers": step(tree, noise(index))}
    if not all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(tree["buffers"])):
        raise ValueError("--readjust: statistics became NaN or infinite. Convert without it.")
    return jax.tree.map(np.asarray, tree)


@reading.one_door
def convert(source: str | Path, *, num_batches: int = 0, temperature: float = 1.0) -> tuple[dict, dict]:
    """Reads an official NVAE.

    Args:
      source: checkpoint.pt.
      num_batches: of samples that the statistics of the batch normalisations are adjusted to, 0 for none.
      temperature: of those samples.

    Returns:
      (tree, config) for `promptgen_jax.models.nvae.NVAE`.

    Raises:
      FileNotFoundError, ValueError: missing, damaged, or another model.
    """
    content = reading.read_torch(source)
    content = content if isinstance(content, dict) else {}
    family.check_family(source, content, "NVAE")
    if not isinstance(content.get("state_dict"), dict):
        raise ValueError(f"{source}: holds no state_dict. Pass the checkpoint.pt of the authors.")
    content = {**content, "state_dict": reading.unwrapped(content["state_dict"])}
    options = read_options(source, content)
    decoder = {name: value for name, value in content["state_dict"].items() if not name.startswith(ENCODER)}
    decoder = {name: value for name, value in decoder.items() if not name.endswith(COPIES)}
    tree = reading.build_tree(source, reading.torch_arrays(source, decoder), recipe(options))
    doublings = len(options["groups"]) - 1 + options["num_post_blocks"]
    config = {
        "kind": "generator",
        "adapter": "nvae",
        "module": "nvae.NVAE",
        "options": options,
        "image_size": options["base_size"] << doublings,
    }
    module = network.load_module(config)
    config["latent_dim"] = sum(module.group_sizes)
    reading.check_shapes(source, tree, config, (1, config["latent_dim"]))
    count = sum(leaf.size for leaf in jax.tree.leaves(tree["params"]))
    statistics = "the batch-norm statistics of the file"
    if num_batches:
        tree = readjust(module, tree, num_batches=num_batches, temperature=temperature)
        samples = f"{num_batches} batches of {BATCH_SIZE} samples at temperature {temperature:g}"
        statistics = f"batch-norm statistics adjusted to {samples}"
        config["flags"] = f"--readjust {num_batches} --temperature {temperature:g}"
    size, groups = config["image_size"], len(module.group_sizes)
    about = (
        f"The generating half of an NVAE: {groups} groups of latents, {config['latent_dim']:,} numbers, to {size} x "
        f"{size} RGB. {count:,} parameters, float32, and as buffers {statistics}."
    )
    return tree, config | {"about": about}


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    options = {
        "--readjust": {
            "dest": "num_batches",
            "type": int,
            "default": 0,
            "metavar": "N",
            "help": f"adjust the batch-norm statistics to N batches of {BATCH_SIZE} samples",
        },
        "--temperature": {"type": float, "default": 1.0, "metavar": "T", "help": "of those samples"},
    }
    description = "Converts the generating half of an NVAE to a weight folder."
    return reading.run(convert, argv, description, script="nvae_to_flax.py", options=options)


if __name__ == "__main__":
    sys.exit(main())
