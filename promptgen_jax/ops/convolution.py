"""Convolution that is fast on CPUs: transposed ones too, and the gradient within loops.

XLA multiplies the zeros that a transposed convolution, or the gradient of a strided one, puts between pixels. Here it
is one small convolution for each place from a pixel to the next, with the taps that meet pixels there; or, where it
makes a few channels only, as of pixels, one matrix product for all taps.

XLA's fast convolution for CPUs takes kernels as HWIO alone. JAX writes the gradient by the images with the kernel's
channels exchanged, which XLA puts in order in the main program but not in the body of a loop, such as the steps of a
sampler or the accumulation of gradients: there it falls back to plain loops. The gradient here is in order as written.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from promptgen_jax.ops.products import of_layer

Pairs = tuple[tuple[int, int], tuple[int, int]]

FEW = 4  # channels that a convolution makes, of which it would fill up a part of its registers alone


def convolve(
    images: jax.Array,
    kernel: jax.Array,
    *,
    stride: int = 1,
    padding: Pairs = ((0, 0), (0, 0)),
    dilation: int = 1,
) -> jax.Array:
    """Correlates images with a kernel; on CPUs there is no forward-mode derivative.

    Args:
      images: (B, H, W, I).
      kernel: (h, w, I, O).
      stride: of the kernel over the images.
      padding: zeros before and after, of rows and of columns, each less than the kernel is long.
      dilation: of the images, between whose pixels stand dilation - 1 zeros.

    Returns:
      (B, H', W', O), of the wider of both dtypes, or as `products.arithmetic` has it.
    """
    convolution = _ordered if jax.default_backend() == "cpu" else _native
    return of_layer(lambda one, other: convolution(one, other, stride, padding, dilation), images, kernel)


def _native(images, kernel, stride, padding, dilation=1):
    return lax.conv_general_dilated(
        images,
        kernel,
        (stride, stride),
        padding,
        lhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _by_places(images, kernel, stride, padding, dilation):
    """As `_native`, without the products of zeros: outputs of each place are computed apart and interleaved."""
    if dilation == 1 or stride > 1:
        return _native(images, kernel, stride, padding, dilation)
    axes = zip(images.shape[1:3], kernel.shape[:2], padding, strict=True)
    (height, rows), (width, columns) = (_places(*axis, dilation) for axis in axes)
    outputs = (_added if kernel.shape[3] <= FEW else _convolved)(images, kernel, rows, columns)
    made = jnp.stack([jnp.stack([outputs(row, column) for column in columns], axis=3) for row in rows], axis=2)
    made = made.reshape(len(images), rows[0].num_outputs * dilation, columns[0].num_outputs * dilation, kernel.shape[3])
    return made[:, :height, :width]


def _convolved(images, kernel, rows, columns):
    """The outputs of a place by a convolution of its own."""

    def outputs(row, column):
        taps = kernel[row.first :: len(rows), column.first :: len(columns)]
        if taps.size:
            return _native(images, taps, 1, (row.padding, column.padding))
        return jnp.zeros((len(images), row.num_outputs, column.num_outputs, kernel.shape[3]), images.dtype)

    return outputs


def _added(images, kernel, rows, columns):
    """The outputs of a place as sums of what pixels give to its taps, all of which one matrix product makes."""
    num_rows, num_columns, read, made = kernel.shape
    every = kernel.transpose(2, 0, 1, 3).reshape(1, 1, read, num_rows * num_columns * made)
    zeros = tuple(
        tuple(max(0, *(place.padding[side] for place in places)) for side in (0, 1)) for places in (rows, columns)
    )
    given = _native(images, every, 1, zeros)
    given = given.reshape(*given.shape[:3], num_rows, num_columns, made)

    def met(place, taps, num_places, first):
        """Of the taps of a place: each, and the pixels that it meets."""
        for number, tap in enumerate(range(place.first, taps, num_places)):
            start = first - place.padding[0] + number
            yield slice(start, start + place.num_outputs), tap

    def outputs(row, column):
        parts = [
            given[:, down, across, tap_down, tap_across]
            for down, tap_down in met(row, num_rows, len(rows), zeros[0][0])
            for across, tap_across in met(column, num_columns, len(columns), zeros[1][0])
        ]
        if parts:
            return sum(parts[1:], parts[0])
        return jnp.zeros((len(images), row.num_outputs, column.num_outputs, made), images.dtype)

    return outputs


class _Place(NamedTuple):
    """One place: the first of its taps, zeros before and after the pixels that they meet, and number of outputs."""

    first: int
    padding: tuple[int, int]
    num_outputs: int


def _places(size: int, taps: int, padding: tuple[int, int], dilation: int) -> tuple[int, list[_Place]]:
    """How many outputs an axis has, and its places: output dilation · m + p is output m of place p.

    All places have as many outputs as the first, which has most.
    """
    before, after = padding
    length = dilation * (size - 1) + 1 + before + after - taps + 1
    count = -(-length // dilation)
    places = []
    for place in range(dilation):
        first = (before - place) % dilation
        zeros = (before - place - first) // dilation
        places.append(_Place(first, (zeros, count - 1 + len(range(first, taps, dilation)) - zeros - size), count))
    return length, places


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _ordered(images, kernel, stride, padding, dilation):
    return _by_places(images, kernel, stride, padding, dilation)


def _forward(images, kernel, stride, padding, dilation):
    """Keeps the images if there is a gradient by the kernel, which frozen networks have none of; else their shape."""
    kept = images.value if kernel.perturbed else images.value[:0]
    return _by_places(images.value, kernel.value, stride, padding, dilation), (kept, kernel.value)


def _backward(stride, padding, dilation, residuals, cotangent):
    """What the stride left out, zeros fill, and the other way round; output m met input m · stride - before + tap."""
    images, kernel = residuals
    sizes = zip(images.shape[1:3], cotangent.shape[1:3], kernel.shape, padding, strict=False)
    pads = tuple(
        (taps - 1 - before, dilation * (inputs - 1) + before - stride * (outputs - 1))
        for inputs, outputs, taps, (before, _) in sizes
    )
    flipped = kernel[::-1, ::-1].swapaxes(2, 3)
    image_cotangent = _by_places(cotangent, flipped, dilation, pads, stride)
    if not len(images):
        return image_cotangent, None
    _, pullback = jax.vjp(lambda kernel: _native(images, kernel, stride, padding, dilation), kernel)
    return image_cotangent, *pullback(cotangent)


_ordered.defvjp(_forward, _backward, symbolic_zeros=True)
