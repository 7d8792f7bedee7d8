"""Converts diffusion autoencoders with their denoiser of latents, `diffae_ffhq256.ckpt`.

    python convert/diffae_to_flax.py diffae_ffhq256.ckpt ported_weights/diffae_ffhq256

The statistics of the latents are those of `diffae_ffhq256_latent.pkl` or `latent.pkl` beside it, or of `latent.pkl`
where the official code puts it, checkpoints/ffhq256_autoenc for checkpoints/ffhq256_autoenc_latent/last.ckpt; without
such a file, those that the checkpoint itself holds. Sizes are read off the tensors; the averaged weights are taken. The
encoder, which sampling does not need, is left out.
"""

from __future__ import annotations

import collections
import re
import sys
from pathlib import Path

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from convert import family, reading

AVERAGED, STATISTICS, BESIDE = "ema_model.", ("conds_mean", "conds_std"), "latent.pkl"
UNUSED = r"model\..*|x_T|conds_mean|conds_std|ema_model\.encoder\..*"
ATTENTION_SIZE = 16


class Unread:
    """Stands in for a class of the trainer that is only named in the file."""


LIGHTNING = [
    (Unread, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"),
    (Unread, "pytorch_lightning.callbacks.lr_monitor.LearningRateMonitor"),
    (collections.OrderedDict, "pytorch_lightning.utilities.parsing.AttributeDict"),
]


def _dense(name):
    def make(kernel, bias):
        return {"kernel": kernel.reshape(kernel.shape[:2]).T, "bias": bias}

    return reading.Part((f"{name}.weight", f"{name}.bias"), make)


def _conv(name):
    sources = (f"{name}.weight", f"{name}.bias")
    return reading.Part(sources, lambda kernel, bias: {"kernel": kernel.transpose(2, 3, 1, 0), "bias": bias})


def _norm(name):
    return reading.Part((f"{name}.weight", f"{name}.bias"), lambda scale, bias: {"scale": scale, "bias": bias})


def _block(target, name, shortcut):
    parts = {
        f"{target}/norm_0": _norm(f"{name}.in_layers.0"),
        f"{target}/conv_0": _conv(f"{name}.in_layers.2"),
        f"{target}/level": _dense(f"{name}.emb_layers.1"),
        f"{target}/style": _dense(f"{name}.cond_emb_layers.1"),
        f"{target}/norm_1": _norm(f"{name}.out_layers.0"),
        f"{target}/conv_1": _conv(f"{name}.out_layers.3"),
    }
    return parts | ({f"{target}/shortcut": _conv(f"{name}.skip_connection")} if shortcut else {})


def _attention(target, name):
    return {
        f"{target}/norm": _norm(f"{name}.norm"),
        f"{target}/qkv": _dense(f"{name}.qkv"),
        f"{target}/output": _dense(f"{name}.proj_out"),
    }


def _time(target, name):
    return {f"{target}/dense_0": _dense(f"{name}.0"), f"{target}/dense_1": _dense(f"{name}.2")}


def recipe(options: dict) -> dict[str, reading.Part]:
    """Parameters and buffers of `models.diffae.DiffAE` by target, without `ema_model.`. `options` are its fields."""
    latent, unet = "params/latent_net", "params/unet"
    parts = _time(f"{latent}/time", "latent_net.time_embed")
    for index in range(options["latent_layers"]):
        name = f"latent_net.layers.{index}"
        parts[f"{latent}/layer_{index}"] = _dense(f"{name}.linear")
        if index < options["latent_layers"] - 1:
            parts[f"{latent}/scale_{index}"] = _dense(f"{name}.linear_emb")
            parts[f"{latent}/norm_{index}"] = _norm(f"{name}.norm")
    parts |= _time(f"{unet}/time", "time_embed.time_embed")
    parts[f"{unet}/down_0"] = _conv("input_blocks.0.0")
    parts |= _block(f"{unet}/middle_0", "middle_block.0", shortcut=False)
    parts |= _attention(f"{unet}/middle_attention", "middle_block.1")
    parts |= _block(f"{unet}/middle_1", "middle_block.2", shortcut=False)
    multipliers = options["multipliers"]
    attentive = options["image_size"].bit_length() - ATTENTION_SIZE.bit_length()
    for index in range(1, 3 * len(multipliers)):
        level = (index - 1) // 3
        target, name = f"{unet}/down_{index}", f"input_blocks.{index}"
        wider = index % 3 == 1 and level > 0 and multipliers[level] != multipliers[level - 1]
        parts |= _block(target, f"{name}.0", shortcut=wider)
        if index % 3 and level == attentive:
            parts |= _attention(f"{target}_attention", f"{name}.1")
    for index in range(3 * len(multipliers)):
        level = len(multipliers) - 1 - index // 3
        target, name = f"{unet}/up_{index}", f"output_blocks.{index}"
        parts |= _block(target, f"{name}.0", shortcut=True)
        if level == attentive:
            parts |= _attention(f"{target}_attention", f"{name}.1")
        if index % 3 == 2 and level:
            parts |= _block(f"{target}_double", f"{name}.{1 + (level == attentive)}", shortcut=False)
    parts[f"{unet}/norm"] = _norm("out.0")
    parts[f"{unet}/output"] = _conv("out.2")
    parts["buffers/mean"], parts["buffers/std"] = (reading.Part((name,), np.ravel) for name in STATISTICS)
    return parts


def read_options(source: str | Path, tensors: dict) -> dict:
    """Fields of `models.diffae.DiffAE`, to judge by the shapes of the tensors.

    Raises:
      ValueError: this is no such network.
    """
    count = reading.consecutive(tensors, r"input_blocks\.(\d+)\.0\.")
    layers = reading.consecutive(tensors, r"latent_net\.layers\.(\d+)\.")
    attentive = [index for index in range(count) if f"input_blocks.{index}.1.qkv.weight" in tensors]
    try:
        base = len(tensors["input_blocks.0.0.bias"])
        return {
            "image_size": ATTENTION_SIZE << (attentive[0] - 1) // 3,
            "multipliers": [
                len(tensors[f"input_blocks.{3 * level + 1}.0.out_layers.3.bias"]) // base for level in range(count // 3)
            ],
            "base_channels": base,
            "style_dim": len(tensors[f"latent_net.layers.{layers - 1}.linear.bias"]),
            "latent_layers": layers,
            "latent_width": len(tensors["latent_net.layers.0.linear.bias"]),
            "attention_size": ATTENTION_SIZE,
        }
    except (KeyError, IndexError) as error:
        raise ValueError(
            f"{source}: {count} input_blocks and {layers} layers of latent_net, attention in {attentive} ({error}); "
            "this is no diffusion autoencoder with a denoiser of latents. Pass diffae_ffhq256.ckpt."
        ) from None


def _without_copies(source, tensors: dict) -> dict:
    """The tensors with every shared layer once, under the name `linear_emb`."""
    tensors = dict(tensors)
    for name in [name for name in tensors if ".cond_layers.1." in name]:
        other = name.replace("cond_layers.1", "linear_emb")
        copy = tensors.pop(name)
        if not np.array_equal(copy, tensors.setdefault(other, copy)):
            raise ValueError(f"{source}: {name} and {other} differ, which are one layer. Download the file again.")
    return tensors


@reading.one_door
def convert(source: str | Path) -> tuple[dict, dict]:
    """Reads an official diffusion autoencoder.

    Args:
      source: diffae_<name>.ckpt, with the statistics in or beside it.

    Returns:
      (tree, config) for `promptgen_jax.models.diffae.DiffAE`.

    Raises:
      FileNotFoundError, ValueError: missing, damaged, or another model.
    """
    source = Path(source)
    content = reading.read_torch(source, LIGHTNING)
    content = content if isinstance(content, dict) else {}
    family.check_family(source, content, "DiffAE")
    state = content.get("state_dict")
    if all(name in content for name in STATISTICS):
        raise ValueError(
            f"{source}: the statistics of the latents, no network. Pass the checkpoint, with this file beside it."
        )
    if not isinstance(state, dict):
        raise ValueError(f"{source}: holds no state_dict. Pass diffae_ffhq256.ckpt.")
    statistics, where = read_statistics(source, state)
    state = reading.torch_arrays(source, {key: each for key, each in state.items() if not re.fullmatch(UNUSED, key)})
    tensors = _without_copies(source, {name.removeprefix(AVERAGED): value for name, value in state.items()})
    options = read_options(source, tensors)
    tree = reading.build_tree(source, tensors | statistics, recipe(options))
    config = {
        "kind": "generator",
        "adapter": "diffae",
        "module": "diffae.DiffAE",
        "options": options,
        "latent_dim": options["style_dim"],
        "image_size": options["image_size"],
    }
    reading.check_shapes(source, tree, config, (1, config["latent_dim"]))
    count = sum(leaf.size for leaf in jax.tree.leaves(tree["params"]))
    size = config["image_size"]
    config["about"] = (
        f"A diffusion autoencoder without its encoder: latent N(0, I) on R^{config['latent_dim']}, whose denoiser has "
        f"{options['latent_layers']} layers, to {size} x {size} RGB. {count:,} parameters, float32, and as buffers "
        f"mean and standard deviation of the latents, those of {where}."
    )
    return tree, config


def read_statistics(source: Path, state: dict) -> tuple[dict[str, np.ndarray], str]:
    """Mean and standard deviation of the latents, and where they are from.

    Args:
      source: the checkpoint.
      state: its state dict, whose own statistics are taken if there is no file with them.

    Raises:
      FileNotFoundError, ValueError: there are none, or the file with them is damaged.
    """
    named, trained = source.with_name(f"{source.stem}_{BESIDE}"), source.resolve().parent
    places = [named, source.with_name(BESIDE), trained.with_name(trained.name.removesuffix("_latent")) / BESIDE]
    path = next((path for path in places if path.is_file()), None)
    if path is None:
        found = {name: state[name] for name in STATISTICS if name in state}
        if len(found) < len(STATISTICS):
            raise FileNotFoundError(
                f"{named}: no such file, nor {BESIDE}, and no statistics of the latents in {source.name}. Download it "
                f"from where {source.name} is, and put it beside it."
            )
        return reading.torch_arrays(source, found), "the checkpoint"
    content = reading.read_torch(path)
    found = {name: content[name] for name in STATISTICS if name in content}
    if len(found) < len(STATISTICS):
        raise ValueError(
            f"{path}: holds no {' and '.join(STATISTICS)}. Pass the file that the official code infers from its images."
        )
    return reading.torch_arrays(path, found), path.name


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    description = "Converts a diffusion autoencoder with a denoiser of latents to a weight folder."
    return reading.run(convert, argv, description, script="diffae_to_flax.py")


if __name__ == "__main__":
    sys.exit(main())
