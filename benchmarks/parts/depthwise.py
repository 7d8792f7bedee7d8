"""Depthwise convolution and max-pooling of the classifiers, with gradients: ours for CPUs against XLA's."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from benchmarks.case import Case, Side, compiled
from promptgen_jax.ops.depthwise import depthwise_conv, max_pool

# (pixels, channels, stride) of the depthwise convolutions of faceapi.Expression and faceapi.AgeGender
CONVOLUTIONS = (
    *((56, 32, 1), (56, 64, 1), (56, 32, 2), (28, 64, 1), (28, 128, 1), (28, 64, 2)),
    *((14, 128, 1), (14, 128, 2), (7, 256, 1)),
)
# (pixels, channels) of the 3x3 max-pools with stride 2 of faceapi.AgeGender
POOLS = ((56, 64), (28, 128), (14, 256))


def cases(quick: bool) -> list[Case]:
    """All convolutions together, and all pools."""
    batch = 1 if quick else 16
    sides = {
        "convolutions": (functools.partial(convolutions, True), functools.partial(convolutions, False)),
        "pools": (functools.partial(pools, functools.partial(max_pool, window=3)), functools.partial(pools, xla_pool)),
    }
    return [
        Case(
            name=f"depthwise/{name}",
            title=f"{name} of the classifiers, batch {batch}, with gradients",
            ours=functools.partial(side_of, one, batch, quick),
            other=functools.partial(side_of, two, batch, quick),
            label="XLA",
        )
        for name, (one, two) in sides.items()
    ]


def convolutions(shifted: bool, batch: int):
    """(function, arguments) of every convolution."""
    for pixels, channels, stride in CONVOLUTIONS:
        images = jax.random.normal(jax.random.key(0), (batch, pixels, pixels, channels))
        kernel = jax.random.normal(jax.random.key(1), (3, 3, 1, channels))
        yield functools.partial(depthwise_conv, kernel=kernel, stride=stride, shifted=shifted), images


def pools(pool, batch: int):
    """(function, arguments) of every pool."""
    for pixels, channels in POOLS:
        yield pool, jax.random.normal(jax.random.key(0), (batch, pixels, pixels, channels))


def xla_pool(images):
    """A window reduction."""
    return nn.max_pool(images, (3, 3), (2, 2), "SAME")


def side_of(made, batch: int, quick: bool) -> Side:
    """All of one kind, forward and backward."""
    work = list(made(batch))[-1:] if quick else list(made(batch))

    def all_of_them(inputs):
        found = {}
        for index, ((function, _), images) in enumerate(zip(work, inputs, strict=True)):
            output, pullback = jax.vjp(function, images)
            found |= {f"output {index}": output, f"gradient {index}": pullback(jnp.cos(output))[0]}
        return found

    return compiled(all_of_them, [images for _, images in work])
