"""Renaming the tensors of another library into our tree: recipes, and their parts for layers of PyTorch.

A recipe maps each target in the new tree to the tensors it is made of and the function that makes it. Every tensor of
the file is used exactly once or named as ignored; all that is missing or left over is reported in one sentence.
Batch normalisation in evaluation mode is an affine map with constant coefficients. It is folded, in float64 and then
rounded to the precision of the file, into the convolution before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import flax.traverse_util
import numpy as np

EPSILON = 1e-5
NORM = ("weight", "bias", "running_mean", "running_var")


class Part(NamedTuple):
    """How to make one entry of the new tree: `make(*sources)` gives an array, or a dict of them."""

    sources: tuple[str, ...]
    make: Callable[..., np.ndarray | dict]


def keep(name: str) -> Part:
    """The tensor of that name, unchanged."""
    return Part((name,), lambda tensor: tensor)


def build_tree(
    where: str | Path, tensors: dict[str, np.ndarray], recipe: dict[str, Part], ignored: Iterable[str] = ()
) -> dict:
    """Applies a recipe to the tensors of a file.

    Args:
      where: the file, for messages.
      tensors: all tensors of the file by name.
      recipe: part by target, `/`-joined.
      ignored: names that may be there and are not needed.

    Raises:
      ValueError: missing, unexpected, misshapen or non-finite tensors, all of them in one message.
    """
    needed = {source for part in recipe.values() for source in part.sources}
    problems = [f"missing {name}" for name in sorted(needed - tensors.keys())]
    problems += [f"unexpected {name}" for name in sorted(tensors.keys() - needed - set(ignored))]
    problems += [
        f"{name} holds NaN or infinite values"
        for name in sorted(needed & tensors.keys())
        if not np.all(np.isfinite(tensors[name]))
    ]
    if not problems:
        tree = {}
        for target, part in recipe.items():
            sources = [tensors[name] for name in part.sources]
            try:
                tree[target] = part.make(*sources)
            except (ValueError, IndexError, TypeError):
                shapes = ", ".join(f"{name} {np.shape(tensors[name])}" for name in part.sources)
                problems.append(f"{target} cannot be made from {shapes}")
    if problems:
        more = f"; and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise ValueError(
            f"{where}: {len(problems)} problems: {'; '.join(problems[:10])}{more}. Check that the file is complete "
            "and is the model this converter reads."
        )
    return flax.traverse_util.unflatten_dict(flax.traverse_util.flatten_dict(tree, sep="/"), sep="/")


def unused(names: Iterable[str]) -> list[str]:
    """Counters of batches, which newer files hold beside running statistics."""
    return [name for name in names if name.endswith(".num_batches_tracked")]


def norm_parts(name: str) -> tuple[str, ...]:
    """What a batch normalisation is made of, in the order that `affine` takes."""
    return tuple(f"{name}.{part}" for part in NORM)


def affine(weight, bias, mean, variance, *, epsilon: float = EPSILON) -> tuple[np.ndarray, np.ndarray]:
    """Scale and shift (C,) of a batch normalisation, float64."""
    if not weight.shape == bias.shape == mean.shape == variance.shape:
        raise ValueError("statistics of different sizes")
    if np.any(variance < 0):
        raise ValueError("negative variance")
    scale = weight / np.sqrt(np.float64(variance) + epsilon)
    return scale, bias - mean * scale


def norm(name: str) -> Part:
    """A batch normalisation on its own, as `models.layers.ScaleShift`."""

    def make(*statistics):
        scale, shift = affine(*statistics)
        dtype = statistics[0].dtype
        return {"scale": scale.astype(dtype), "bias": shift.astype(dtype)}

    return Part(norm_parts(name), make)


def conv(name: str, *, bias: bool = False) -> Part:
    """A convolution (out, in, height, width) as HWIO."""
    if bias:
        return Part(
            (f"{name}.weight", f"{name}.bias"),
            lambda kernel, bias: {"kernel": kernel.transpose(2, 3, 1, 0), "bias": bias},
        )
    return Part((f"{name}.weight",), lambda kernel: {"kernel": kernel.transpose(2, 3, 1, 0)})


def conv_norm(conv: str, norm: str, *, epsilon: float = EPSILON) -> Part:
    """A convolution (out, in, height, width) without bias, and the batch normalisation behind it."""

    def make(kernel, *statistics):
        scale, shift = affine(*statistics, epsilon=epsilon)
        folded = kernel.transpose(2, 3, 1, 0) * scale
        return {"kernel": folded.astype(kernel.dtype), "bias": shift.astype(kernel.dtype)}

    return Part((f"{conv}.weight", *norm_parts(norm)), make)


def dense(*names: str, bias: bool = True) -> Part:
    """A dense layer (out, in), or several that read the same input, side by side.

    Args:
      *names: of the layers; "{}" in one stands for weight or bias, which else follow behind a dot.
      bias: whether there is one.
    """

    def make(*tensors):
        layer = {"kernel": np.concatenate(tensors[: len(names)]).T}
        return {**layer, "bias": np.concatenate(tensors[len(names) :])} if bias else layer

    full = [name if "{}" in name else f"{name}.{{}}" for name in names]
    return Part(tuple(name.format(part) for part in ("weight", "bias")[: 1 + bias] for name in full), make)


def patches(name: str, *, bias: bool = True) -> Part:
    """A convolution (out, 3, size, size) with stride size as a dense layer on patches (size · size · 3)."""

    def make(kernel, *rest):
        layer = {"kernel": kernel.transpose(2, 3, 1, 0).reshape(-1, len(kernel))}
        return {**layer, "bias": rest[0]} if bias else layer

    return Part(tuple(f"{name}.{part}" for part in ("weight", "bias")[: 1 + bias]), make)


def layer_norm(name: str) -> Part:
    """Layer normalisation with scale and bias."""
    return Part((f"{name}.weight", f"{name}.bias"), lambda scale, bias: {"scale": scale, "bias": bias})


def refuse(config, **computed: tuple) -> None:
    """Raises ValueError naming what a configuration of transformers asks for and this library does not compute.

    Args:
      config: the configuration.
      **computed: by name of an entry, the values that are computed.
    """
    for name, known in computed.items():
        if (value := getattr(config, name, None)) not in known:
            expected = " or ".join(map(repr, known))
            raise ValueError(
                f"{name} is {value!r}, which is not computed here; expected {expected}. Use another model."
            )


def pair(size: int | list[int]) -> list[int]:
    """Rows and columns of a size in a configuration, which is one number where both are equal."""
    return [size, size] if isinstance(size, int) else list(size)


def side(name: str, size: int | list[int]) -> int:
    """The one side of a square in a configuration. Raises ValueError if it is none."""
    rows, columns = pair(size)
    if rows != columns:
        raise ValueError(f"{name} is {size}; expected a square, others are not computed here. Use another model.")
    return rows
