"""Converts StyleGAN2 generators: rosinality's .pt (as PromptGen uses them) or NVIDIA's .pkl of stylegan2-ada-pytorch.

    python convert/stylegan2_to_flax.py ffhq.pt ported_weights/stylegan2_ffhq
    python convert/stylegan2_to_flax.py metfaces.pkl ported_weights/metfaces_ada

Any size; channels and the depth of the mapping network are read off the tensors. Equalised learning rate scales are
folded into the weights. The mean latent is the mean of w over 50,000 standard normal z for a .pt, as PromptGen takes
it, and for a .pkl the running mean that NVIDIA stores in it and truncates with.

A .pt may lack the noise maps, which matter for noise "const" only and are refused there. Layers without any noise, as
NVIDIA's use_noise=False makes them, get noise of strength 0.
"""

from __future__ import annotations

import re
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from convert import family, nvidia_pickle, reading

MAPPING_RATE = 0.01  # learning rate multiplier of the mapping network, for weights and biases
FILTER = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64
MAX_LATENTS = 4096
MEAN_SAMPLES, MEAN_SEED = 50_000, zlib.crc32(b"mean_latent")


class Layout(NamedTuple):
    """Official names. `j` counts the blocks from 8 pixels on, `r` is the resolution, `k` the noise map.

    Attributes:
      dense: layer i of the mapping network.
      constant: the learned input.
      convolution: prefix of conv<i> of the block at r pixels.
      colours: prefix of its colour layer.
      leaves: of both kinds of layers: kernel, style kernel, style bias.
      bias: of a convolution.
      strength: of its noise.
      blur: filter behind an upsampling convolution.
      upsample: filter of the picture so far.
      filter_gain: with which the filters are stored.
      noise: stored map.
      ignored: pattern of what the forward pass never uses.
    """

    dense: Callable[[int], str]
    constant: str
    convolution: Callable[[int, int], str]
    colours: Callable[[int], str]
    leaves: tuple[str, str, str]
    bias: str
    strength: str
    blur: str
    upsample: Callable[[int], str]
    filter_gain: int
    noise: Callable[[int, int], str]
    ignored: str


class Noise(NamedTuple):
    """Which tensors of the noise a file has: how strong it is at every layer, and the stored maps."""

    strengths: bool = True
    maps: bool = True


ALL = Noise()


def _block(size):
    return size.bit_length() - 4


ROSINALITY = Layout(
    dense=lambda i: f"style.{i + 1}",
    constant="input.input",
    convolution=lambda r, i: "conv1" if r == 4 else f"convs.{2 * _block(r) + i}",
    colours=lambda r: "to_rgb1" if r == 4 else f"to_rgbs.{_block(r)}",
    leaves=("conv.weight", "conv.modulation.weight", "conv.modulation.bias"),
    bias="activate.bias",
    strength="noise.weight",
    blur="conv.blur.kernel",
    upsample=lambda r: f"to_rgbs.{_block(r)}.upsample.kernel",
    filter_gain=4,
    noise=lambda r, i: f"noises.noise_{2 * _block(r) + 1 + i}",
    ignored=r"(?!)",
)
NVIDIA = Layout(
    dense=lambda i: f"mapping.fc{i}",
    constant="synthesis.b4.const",
    convolution=lambda r, i: f"synthesis.b{r}.conv{i}",
    colours=lambda r: f"synthesis.b{r}.torgb",
    leaves=("weight", "affine.weight", "affine.bias"),
    bias="bias",
    strength="noise_strength",
    blur="resample_filter",
    upsample=lambda r: f"synthesis.b{r}.resample_filter",
    filter_gain=1,
    noise=lambda r, i: f"synthesis.b{r}.conv{i}.noise_const",
    ignored=r"synthesis\.(b4|b\d+\.conv1)\.resample_filter|mapping\.w_avg",
)


def scaled(factor: float) -> Callable:
    """A dense layer (out, in) as (in, out), times factor."""
    return lambda weight: np.float32(weight.astype(np.float64).T * factor)


def dense_kernel(rate: float) -> Callable:
    """A dense layer (out, in) as (in, out), with its equalised learning rate."""
    return lambda weight: scaled(rate / np.sqrt(weight.shape[1]))(weight)


def kernel(weight, *filters, flip: bool = False, gain: int = 1) -> np.ndarray:
    """(O, I, k, k), with or without a leading 1, as HWIO with its equalised learning rate.

    A transposed convolution scatters its kernel, ours is correlated, hence flipped. `filters` are only checked.
    """
    if any(each.shape != FILTER.shape or not np.allclose(each, FILTER * gain, atol=1e-6) for each in filters):
        raise ValueError("another resampling filter than [1, 3, 3, 1]")
    weight = weight.reshape(weight.shape[-4:]).astype(np.float64).transpose(2, 3, 1, 0)
    weight = weight / np.sqrt(np.prod(weight.shape[:3]))
    return np.float32(weight[::-1, ::-1] if flip else weight)


def convolutions(sizes: list[int]) -> list[tuple[int, int]]:
    """(resolution, index in its block) of every convolution with noise; at 4 pixels there is the second only."""
    return [(size, index) for size in sizes for index in ((1,) if size == 4 else (0, 1))]


def recipe(layout: Layout, sizes: list[int], depth: int, noise: Noise = ALL) -> dict[str, reading.Part]:
    """Parameters and noise maps of `models.stylegan2.StyleGAN2` by target.

    Args:
      layout: official names.
      sizes: resolutions, 4, 8, ...
      depth: of the mapping network.
      noise: what there is of it; without maps there are no buffers for them, unless without strengths too.
    """
    constant = reading.Part((layout.constant,), lambda c: c.reshape(c.shape[-3:]).transpose(1, 2, 0))
    parts = {"params/synthesis/constant": constant}
    for index in range(depth):
        target, name = f"params/mapping/layer_{index}", layout.dense(index)
        parts[f"{target}/kernel"] = reading.Part((f"{name}.weight",), dense_kernel(MAPPING_RATE))
        parts[f"{target}/bias"] = reading.Part((f"{name}.bias",), scaled(MAPPING_RATE))
    for size in sizes:
        block = f"params/synthesis/block_{size}"
        colours = layout.colours(size)
        filters = () if size == 4 else (layout.upsample(size),)
        parts |= _modulated(layout, f"{block}/to_rgb", colours, filters)
        parts[f"{block}/to_rgb/bias"] = reading.Part((f"{colours}.bias",), np.ravel)
    for size, index in convolutions(sizes):
        target, name = f"params/synthesis/block_{size}/conv{index}", layout.convolution(size, index)
        filters = (f"{name}.{layout.blur}",) if index == 0 else ()
        parts |= _modulated(layout, target, name, filters, flip=index == 0)
        parts[f"{target}/bias"] = reading.keep(f"{name}.{layout.bias}")
        strength, stored = f"{target}/noise_strength", f"buffers/noise_{2 * _block(size) + 1 + index}"
        if noise.strengths:
            parts[strength] = reading.Part((f"{name}.{layout.strength}",), lambda each: each.reshape(()))
        else:
            parts[strength] = _zeros()
        if noise.maps:
            parts[stored] = reading.Part((layout.noise(size, index),), lambda each: each.reshape(each.shape[-2:]))
        elif not noise.strengths:
            parts[stored] = _zeros(size, size)
    return parts


def _zeros(*shape):
    return reading.Part((), lambda: np.zeros(shape, np.float32))


def _modulated(layout, target, name, filters, *, flip=False):
    weight, style, bias = (f"{name}.{leaf}" for leaf in layout.leaves)
    return {
        f"{target}/kernel": reading.Part(
            (weight, *filters), lambda *arrays: kernel(*arrays, flip=flip, gain=layout.filter_gain)
        ),
        f"{target}/style/kernel": reading.Part((style,), dense_kernel(1)),
        f"{target}/style/bias": reading.keep(bias),
    }


def mean_latent(mapping: dict) -> np.ndarray:
    """The mean of w (S,) over 50,000 standard normal z of a fixed NumPy draw.

    Args:
      mapping: converted parameters of the mapping network.
    """
    layers = [mapping[f"layer_{index}"] for index in range(len(mapping))]
    shape = (MEAN_SAMPLES, layers[0]["kernel"].shape[0])
    x = np.random.RandomState(MEAN_SEED).standard_normal(shape).astype(np.float32)
    x /= np.sqrt(np.mean(x**2, axis=1, keepdims=True) + 1e-8)
    for layer in layers:
        x = x @ layer["kernel"] + layer["bias"]
        x = np.maximum(x, np.float32(0.2) * x) * np.float32(2**0.5)
    return x.mean(axis=0, dtype=np.float64).astype(np.float32)


@reading.one_door
def convert(source: str | Path) -> tuple[dict, dict]:
    """Reads an official StyleGAN2 generator.

    Returns:
      (tree, config) for `promptgen_jax.models.stylegan2.StyleGAN2`.

    Raises:
      FileNotFoundError, ValueError: missing, damaged, or another network.
    """
    content = reading.read_checkpoint(source)
    content = content if isinstance(content, dict) else {}
    family.check_family(source, content, "StyleGAN2")
    if "G_ema" in content:
        layout, clamp = NVIDIA, _check_nvidia(source, content["G_ema"])
        tensors = {name: np.asarray(value, np.float32) for name, value in content["G_ema"].tensors().items()}
    elif isinstance(content.get("g_ema"), dict) or ROSINALITY.constant in content:
        layout, clamp = ROSINALITY, None
        tensors = reading.torch_arrays(source, reading.unwrapped(content.get("g_ema", content)))
    else:
        held = ", ".join(map(str, [*content][:10])) or "nothing"
        raise ValueError(
            f"{source}: holds {held}; expected g_ema, as in rosinality's .pt, or G_ema, as in NVIDIA's .pkl. "
            "Check that this is a StyleGAN2 checkpoint."
        )
    sizes, depth = _count(source, layout, tensors)
    noise = _noise(layout, tensors, sizes)
    parts = recipe(layout, sizes, depth, noise)
    if layout is NVIDIA:
        parts["buffers/mean_latent"] = reading.keep("mapping.w_avg")
    ignored = {name for name in tensors if re.fullmatch(layout.ignored, name)} - {"mapping.w_avg"}
    tree = reading.build_tree(source, tensors, parts, ignored)
    params, tree["buffers"] = tree["params"], tree.get("buffers", {})
    config = {
        "kind": "generator",
        "adapter": "stylegan2",
        "module": "stylegan2.StyleGAN2",
        "options": {
            "channels": [params["synthesis"][f"block_{size}"]["conv1"]["bias"].size for size in sizes],
            "style_dim": params["mapping"][f"layer_{depth - 1}"]["bias"].size,
            "mapping_layers": depth,
            "conv_clamp": clamp,
            **({} if "noise_0" in tree["buffers"] else {"stored_noise": False}),
        },
        "latent_dim": params["mapping"]["layer_0"]["kernel"].shape[0],
        "image_size": sizes[-1],
    }
    if config["latent_dim"] > MAX_LATENTS:
        raise ValueError(f"{source}: latents of {config['latent_dim']} numbers; expected at most {MAX_LATENTS}.")
    if layout is ROSINALITY:
        tree["buffers"]["mean_latent"] = mean_latent(params["mapping"])
    reading.check_shapes(source, tree, config, (1, config["latent_dim"]))
    return tree, config | {"about": _about(config, tree, layout, noise)}


def _count(source, layout, tensors):
    """The resolutions, and the depth of the mapping network, to judge by what is there."""
    sizes = [
        size
        for size in (4 << index for index in range(9))
        if any(name.startswith(f"{layout.colours(size)}.") for name in tensors)
    ]
    depth = 0
    while f"{layout.dense(depth)}.weight" in tensors:
        depth += 1
    if len(sizes) < 2 or depth == 0:
        raise ValueError(
            f"{source}: {len(sizes)} colour layers ({layout.colours(4)}, ...) and {depth} mapping layers "
            f"({layout.dense(0)}, ...) found; this is no StyleGAN2 generator with skip connections."
        )
    start = np.shape(tensors.get(layout.constant))[-2:]
    if len(start) == 2 and start != (4, 4):
        raise ValueError(
            f"{source}: its pictures are {start[0] * sizes[-1] // 4} x {start[1] * sizes[-1] // 4} pixels, grown from "
            f"{start[0]} x {start[1]}. Only square ones that grow from 4 x 4 are computed here; use another network."
        )
    return [4 << index for index in range(sizes[-1].bit_length() - 2)], depth


def _noise(layout, tensors, sizes):
    """What a file has of the noise. One that has some tensors of a kind is expected to have all."""
    layers = [(f"{layout.convolution(*each)}.{layout.strength}", layout.noise(*each)) for each in convolutions(sizes)]
    maps = any(stored in tensors for _, stored in layers)
    return Noise(strengths=maps or any(strength in tensors for strength, _ in layers), maps=maps)


def _check_nvidia(source, generator):
    """conv_clamp of an NVIDIA generator. Raises ValueError for one that computes something else than our module."""
    try:
        if not isinstance(generator, nvidia_pickle.Module):
            raise ValueError(f"G_ema is a {type(generator).__name__}")
        first, last = generator.child("mapping", "fc0").state, generator.child("synthesis", "b4", "conv1").state
        facts = {
            "class labels": (generator.state.get("c_dim", 0), 0),
            "activation of the mapping network": (first.get("activation", "lrelu"), "lrelu"),
            "activation of the convolutions": (last.get("activation", "lrelu"), "lrelu"),
            "learning rate multiplier of the mapping network": (
                float(first.get("bias_gain", MAPPING_RATE)),
                MAPPING_RATE,
            ),
        }
        wrong = [f"{fact} {got!r} instead of {want!r}" for fact, (got, want) in facts.items() if got != want]
        if wrong:
            raise ValueError(", ".join(wrong))
        clamp = last.get("conv_clamp")
        return None if clamp is None else float(clamp)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{source}: {error}. Only unconditional StyleGAN2 generators are supported.") from None


def _about(config, tree, layout, noise):
    size, count = config["image_size"], sum(leaf.size for leaf in jax.tree.leaves(tree["params"]))
    mean = {
        ROSINALITY: f"the mean of w over {MEAN_SAMPLES:,} standard normal latents, drawn by this converter",
        NVIDIA: "the running mean of w that the file holds",
    }[layout]
    kept = "the stored noise maps" if noise.maps else "maps of zeros, as its layers have no noise,"
    if noise.strengths and not noise.maps:
        kept = "no noise maps, which the file does not hold,"
    return (
        f"A StyleGAN2 generator: latent N(0, I) on R^{config['latent_dim']} to {size} x {size} RGB. {count:,} "
        f"parameters, float32, and as buffers {kept} and {mean}."
    )


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return reading.run(
        convert, argv, "Converts a StyleGAN2 generator to a weight folder.", script="stylegan2_to_flax.py"
    )


if __name__ == "__main__":
    sys.exit(main())
