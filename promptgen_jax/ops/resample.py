"""Resizing images as two small matrices, one per axis: exact, linear and differentiable by einsum."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np


def legacy_bilinear_matrix(num_in: int, num_out: int) -> np.ndarray:
    """(num_out, num_in) interpolation weights of TensorFlow's legacy bilinear rule along one axis.

    Output i reads source coordinate i · num_in / num_out, between its floor and the next pixel, clamped at the border
    (align_corners=False, half_pixel_centers=False). Every row sums to 1.

    Source: documentation of tf.compat.v1.image.resize_bilinear.
    """
    position = np.arange(num_out, dtype=np.float32) * np.float32(num_in / num_out)
    lower = np.floor(position).astype(np.int64)
    fraction = position - lower
    return _place(num_in, lower, (1 - fraction, fraction))


def bilinear_matrix(num_in: int, num_out: int) -> np.ndarray:
    """(num_out, num_in) interpolation weights of PyTorch's bilinear rule (align_corners=False) along one axis.

    Output i reads source coordinate (i + 1/2) · num_in / num_out - 1/2 between its two neighbours, however much the
    image shrinks, the border pixel repeated; positions are float32, as PyTorch computes them.

    Source: torch.nn.functional.interpolate without antialias.
    """
    lower, fraction = _torch_positions(num_in, num_out)
    return _place(num_in, lower, (1 - fraction, fraction))


def aligned_matrix(num_in: int, num_out: int) -> np.ndarray:
    """(num_out, num_in) linear interpolation between pixel centres, the outermost of which are kept; num_out > 1.

    Source: torch.nn.functional.interpolate with align_corners=True.
    """
    position = np.arange(num_out) * (num_in - 1) / (num_out - 1)
    lower = np.floor(position).astype(np.int64)
    return _place(num_in, lower, (1 - (position - lower), position - lower))


def average_matrix(num_in: int, num_out: int) -> np.ndarray:
    """(num_out, num_in) weights of PyTorch's adaptive average pooling along one axis.

    Output i is the mean of inputs floor(i · num_in / num_out) up to, not including, ceil((i + 1) · num_in / num_out).
    Windows may overlap, and hold one pixel each where the image grows.

    Source: torch.nn.functional.adaptive_avg_pool2d.
    """
    index, column = np.arange(num_out)[:, None], np.arange(num_in)
    inside = (column >= index * num_in // num_out) & (column < -(-(index + 1) * num_in // num_out))
    return inside / inside.sum(axis=1, keepdims=True)


def bicubic_matrix(num_in: int, num_out: int, *, antialias: bool = False) -> np.ndarray:
    """(num_out, num_in) interpolation weights of PyTorch's bicubic rule (align_corners=False) along one axis.

    Output i reads around source coordinate (i + 1/2) · num_in / num_out - 1/2 with the kernel of Keys. Values may
    leave the range of the pixels.

    Plain: a = -0.75 and four taps however much the image shrinks, the border pixel repeated; positions are float32,
    as PyTorch computes them. Antialiased: a = -0.5, the kernel stretched by max(num_in / num_out, 1), taps outside
    dropped and each row normalised to sum 1; equal to jax.image.resize.

    Source: torch.nn.functional.interpolate; R. Keys, Cubic convolution interpolation (1981).
    """
    if antialias:
        return filter_matrix(num_in, num_out, "bicubic")
    lower, fraction = _torch_positions(num_in, num_out)
    return _place(num_in, lower - 1, [_keys_kernel(fraction - tap, -0.75) for tap in (-1, 0, 1, 2)])


def filter_matrix(num_in: int, num_out: int, name: str) -> np.ndarray:
    """(num_out, num_in) weights of Pillow's resize along one axis, in floating point.

    Output i reads around source coordinate (i + 1/2) · num_in / num_out - 1/2 with a kernel that is stretched by
    max(num_in / num_out, 1); taps outside are dropped and each row normalised to sum 1. "nearest" reads one pixel.
    Bilinear and bicubic are also torch.nn.functional.interpolate with antialias=True.

    Args:
      num_in: pixels.
      num_out: pixels.
      name: a key of `FILTERS`.

    Source: Pillow, src/libImaging/Resample.c, and for "nearest" Geometry.c.
    """
    scale = num_in / num_out
    if name == "nearest":
        return np.eye(num_in, dtype=np.float32)[np.int64((np.arange(num_out) + 0.5) * scale)]
    centre = (np.arange(num_out) + 0.5) * scale - 0.5
    weights = FILTERS[name]((np.arange(num_in) - centre[:, None]) / max(scale, 1.0))
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def resize(images: jax.Array, size: tuple[int, ...], name: str) -> jax.Array:
    """Resizes images (B, H, W, C) to (B, *size, C) as Pillow does, see `filter_matrix`, without its rounding to 8 bits.

    Values may leave the range of the pixels with "bicubic" and "lanczos".
    """
    return _resize(images, size, lambda num_in, num_out: filter_matrix(num_in, num_out, name))


def resize_bilinear_legacy(images: jax.Array, size: int) -> jax.Array:
    """Resizes images (B, H, W, C) to (B, size, size, C) by TensorFlow's legacy bilinear rule.

    Not `jax.image.resize`, whose pixel centres are half a pixel off: networks made with TensorFlow before 2.0, and
    their TensorFlow.js ports, were run with this rule.

    Source: documentation of tf.compat.v1.image.resize_bilinear.
    """
    return _resize(images, size, legacy_bilinear_matrix)


def resize_bilinear(images: jax.Array, size: int) -> jax.Array:
    """Resizes images (B, H, W, C) to (B, size, size, C) by PyTorch's bilinear rule, see `bilinear_matrix`.

    What torchvision's Resize does to tensors up to version 0.16, and later with antialias=False.
    """
    return _resize(images, size, bilinear_matrix)


def resize_aligned(images: jax.Array, size: int) -> jax.Array:
    """Bilinear resize of (B, H, W, C) whose corner pixels stay in the corners, as PyTorch's `align_corners`."""
    return _resize(images, size, aligned_matrix)


def resize_average(images: jax.Array, size: int) -> jax.Array:
    """Resizes images (B, H, W, C) to (B, size, size, C) by adaptive average pooling, see `average_matrix`."""
    return _resize(images, size, average_matrix)


def resize_bicubic(images: jax.Array, size: int, *, antialias: bool = False) -> jax.Array:
    """Resizes images (B, H, W, C) to (B, size, size, C) by PyTorch's bicubic rule, see `bicubic_matrix`.

    Plain is what CLIP's preprocessing does to tensors with torchvision 0.12, antialiased what it does since 0.17.
    """
    return _resize(images, size, lambda num_in, num_out: bicubic_matrix(num_in, num_out, antialias=antialias))


def _torch_positions(num_in: int, num_out: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixel at or before the source coordinate of every output, and the distance from it."""
    position = (np.arange(num_out, dtype=np.float32) + np.float32(0.5)) * np.float32(num_in / num_out) - np.float32(0.5)
    lower = np.floor(position).astype(np.int64)
    return lower, position - lower.astype(np.float32)


def _keys_kernel(offset: np.ndarray, a: float) -> np.ndarray:
    """Cubic convolution kernel of support [-2, 2] with slope `a` at distance 1."""
    x = np.abs(offset)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0))


def _windowed_sinc(x: np.ndarray) -> np.ndarray:
    return np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0)


def _hamming(x: np.ndarray) -> np.ndarray:
    return np.where(np.abs(x) < 1, np.sinc(x) * (0.54 + 0.46 * np.cos(np.pi * x)), 0)


FILTERS: dict = {  # in the order of Pillow's numbers
    "nearest": None,
    "lanczos": _windowed_sinc,
    "bilinear": lambda x: np.maximum(1 - np.abs(x), 0),
    "bicubic": lambda x: _keys_kernel(x, -0.5),
    "box": lambda x: np.where((x > -0.5) & (x <= 0.5), 1.0, 0.0),
    "hamming": _hamming,
}


def _place(num_in: int, first: np.ndarray, taps) -> np.ndarray:
    """The matrix whose row i holds taps[k][i] at column first[i] + k, clamped to the border."""
    matrix = np.zeros((len(first), num_in), np.float32)
    for tap, weight in enumerate(taps):
        matrix[np.arange(len(first)), np.clip(first + tap, 0, num_in - 1)] += weight
    return matrix


def _resize(images: jax.Array, size: int | tuple[int, ...], rule: Callable[[int, int], np.ndarray]) -> jax.Array:
    (height, width), (rows, columns) = images.shape[1:3], (size, size) if isinstance(size, int) else size
    if height != rows:
        images = _apply("oh,bhwc->bowc", rule(height, rows), images)
    if width != columns:
        images = _apply("ow,bhwc->bhoc", rule(width, columns), images)
    return images


def _apply(equation: str, matrix: np.ndarray, images: jax.Array) -> jax.Array:
    return jnp.einsum(equation, matrix.astype(images.dtype), images, precision="highest")
