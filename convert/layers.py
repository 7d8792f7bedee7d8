"""Layers of PyTorch in our layout: parts of recipes that several converters share.

Batch normalisation in evaluation mode is an affine map with constant coefficients. It is folded, in float64 and then
rounded to the precision of the file, into the convolution before it.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from convert.reading import Part
from promptgen_jax.models import resnet

EPSILON = 1e-5
NORM = ("weight", "bias", "running_mean", "running_var")


def unused(names: Iterable[str]) -> list[str]:
    """Counters of batches, which newer files hold beside running statistics."""
    return [name for name in names if name.endswith(".num_batches_tracked")]


def norm_parts(name: str) -> tuple[str, ...]:
    """What a batch normalisation is made of, in the order that `affine` takes."""
    return tuple(f"{name}.{part}" for part in NORM)


def affine(weight, bias, mean, variance) -> tuple[np.ndarray, np.ndarray]:
    """Scale and shift (C,) of a batch normalisation, float64."""
    if not weight.shape == bias.shape == mean.shape == variance.shape:
        raise ValueError("statistics of different sizes")
    if np.any(variance < 0):
        raise ValueError("negative variance")
    scale = weight / np.sqrt(np.float64(variance) + EPSILON)
    return scale, bias - mean * scale


def norm(name: str) -> Part:
    """A batch normalisation on its own, as `models.layers.ScaleShift`."""

    def make(*statistics):
        scale, shift = affine(*statistics)
        dtype = statistics[0].dtype
        return {"scale": scale.astype(dtype), "bias": shift.astype(dtype)}

    return Part(norm_parts(name), make)


def conv(name: str) -> Part:
    """A convolution (out, in, height, width) without bias as HWIO."""
    return Part((f"{name}.weight",), lambda kernel: {"kernel": kernel.transpose(2, 3, 1, 0)})


def conv_norm(conv: str, norm: str) -> Part:
    """A convolution (out, in, height, width) without bias, and the batch normalisation behind it."""

    def make(kernel, *statistics):
        scale, shift = affine(*statistics)
        folded = kernel.transpose(2, 3, 1, 0) * scale
        return {"kernel": folded.astype(kernel.dtype), "bias": shift.astype(kernel.dtype)}

    return Part((f"{conv}.weight", *norm_parts(norm)), make)


def dense(name: str) -> Part:
    """A dense layer (out, in) with bias."""
    return Part((f"{name}.weight", f"{name}.bias"), lambda kernel, bias: {"kernel": kernel.T, "bias": bias})


def resnet_trunk(target: str, source: str, *, bottleneck: bool) -> dict[str, Part]:
    """`models.resnet.ResNet` without its head.

    Args:
      target: where it goes.
      source: prefix of torchvision's names, with its dot, or "".
      bottleneck: as in `models.resnet.ResNet`.
    """
    parts = {f"{target}/stem": conv_norm(f"{source}conv1", f"{source}bn1")}
    for stage, num_blocks in enumerate(resnet.BLOCKS, start=1):
        for index in range(num_blocks):
            block, name = f"{target}/stage{stage}_block{index}", f"{source}layer{stage}.{index}"
            for layer in (1, 2, 3) if bottleneck else (1, 2):
                parts[f"{block}/conv{layer}"] = conv_norm(f"{name}.conv{layer}", f"{name}.bn{layer}")
            if index == 0 and (bottleneck or stage > 1):
                parts[f"{block}/shortcut"] = conv_norm(f"{name}.downsample.0", f"{name}.downsample.1")
    return parts
