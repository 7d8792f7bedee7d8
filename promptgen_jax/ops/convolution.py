"""Convolution with a gradient that is fast on CPUs within loops too.

XLA's fast convolution for CPUs takes kernels as HWIO alone. JAX writes the gradient by the images with the kernel's
channels exchanged, which XLA puts in order in the main program but not in the body of a loop, such as the steps of a
sampler or the accumulation of gradients: there it falls back to plain loops. The gradient here is in order as written.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

Pairs = tuple[tuple[int, int], tuple[int, int]]


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
      (B, H', W', O), of the wider of both dtypes.
    """
    dtype = jnp.promote_types(images.dtype, kernel.dtype)
    images, kernel = images.astype(dtype), kernel.astype(dtype)
    if jax.default_backend() != "cpu":
        return _native(images, kernel, stride, padding, dilation)
    return _ordered(images, kernel, stride, padding, dilation)


def _native(images, kernel, stride, padding, dilation):
    return lax.conv_general_dilated(
        images,
        kernel,
        (stride, stride),
        padding,
        lhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _ordered(images, kernel, stride, padding, dilation):
    return _native(images, kernel, stride, padding, dilation)


def _forward(images, kernel, stride, padding, dilation):
    return _native(images, kernel, stride, padding, dilation), (images, kernel)


def _backward(stride, padding, dilation, residuals, cotangent):
    """What the stride left out, zeros fill, and the other way round; output m met input m · stride - before + tap."""
    images, kernel = residuals
    sizes = zip(images.shape[1:3], cotangent.shape[1:3], kernel.shape, padding, strict=False)
    pads = tuple(
        (taps - 1 - before, dilation * (inputs - 1) + before - stride * (outputs - 1))
        for inputs, outputs, taps, (before, _) in sizes
    )
    flipped = kernel[::-1, ::-1].swapaxes(2, 3)
    _, pullback = jax.vjp(lambda kernel: _native(images, kernel, stride, padding, dilation), kernel)
    return _native(cotangent, flipped, dilation, pads, stride), *pullback(cotangent)


_ordered.defvjp(_forward, _backward)
