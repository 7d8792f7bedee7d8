"""Doubling the resolution with the binomial filter [1, 3, 3, 1], zeros outside the picture, as StyleGAN2 does.

The filter is applied axis after axis as shifted sums, which XLA fuses into one loop.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

from promptgen_jax.ops.convolution import convolve


def upsample(images: jax.Array) -> jax.Array:
    """(B, H, W, C) to (B, 2H, 2W, C): (x[i-1] + 3 x[i]) / 4 and (3 x[i] + x[i+1]) / 4 in turn along each axis.

    Inside the picture this is half-pixel bilinear; the outermost pixels are darker, since zeros lie outside.

    Source: arXiv 1912.04958, figure 7 (skip connections); `upsample_2d` of NVlabs/stylegan2.
    """
    for axis in (1, 2):
        before, here, after = _shifts(images, axis, 1, 3)
        pairs = jnp.stack([before + 3 * here, 3 * here + after], axis + 1) / 4
        shape = list(images.shape)
        shape[axis] *= 2
        images = pairs.reshape(shape)
    return images


def blur(images: jax.Array) -> jax.Array:
    """[1, 3, 3, 1] / 8 along both axes of (B, H, W, C); of the two taps in the middle the latter is at the pixel."""
    for axis in (1, 2):
        first, second, third, fourth = (each / 2 for each in _shifts(images, axis, 2, 4))
        images = (first + fourth + 3 * (second + third)) / 4
        images = lax.slice_in_dim(images, 0, images.shape[axis] - 1, axis=axis)
    return images


def upsample_conv(images: jax.Array, kernel: jax.Array) -> jax.Array:
    """Transposed 3x3 convolution of stride 2, then the filter: (B, H, W, I) to (B, 2H, 2W, O).

    There is no forward-mode derivative.

    Args:
      images: (B, H, W, I).
      kernel: (3, 3, I, O), correlated with the input that has zeros between its pixels; a kernel that a transposed
        convolution of PyTorch scatters is this one flipped in both axes.

    Source: `upsample_conv_2d` of NVlabs/stylegan2.
    """
    images = convolve(images, kernel, padding=((2, 2), (2, 2)), dilation=2)
    return _filter(_filter(images, 1, 1), 2, 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _filter(images: jax.Array, axis: int, padding: int) -> jax.Array:
    """[1, 3, 3, 1] / 4 along an axis, `padding` zeros on both sides."""
    first, second, third, fourth = _shifts(images, axis, padding, 4)
    return (first + fourth + 3 * (second + third)) / 4


def _filter_fwd(images, axis, padding):
    return _filter(images, axis, padding), None


def _filter_bwd(axis, padding, _, gradient):
    """The filter is symmetric, so its transpose is itself; left to XLA it would be four padded copies."""
    return (_filter(gradient, axis, 3 - padding),)


_filter.defvjp(_filter_fwd, _filter_bwd)


def _shifts(images: jax.Array, axis: int, zeros: int, count: int) -> list[jax.Array]:
    """The images, padded by zeros on both sides of an axis, from the first `count` offsets."""
    padding = [(0, 0)] * images.ndim
    padding[axis] = (zeros, zeros)
    padded = jnp.pad(images, padding)
    size = padded.shape[axis] - count + 1
    return [lax.slice_in_dim(padded, start, start + size, axis=axis) for start in range(count)]
