"""Resizing images as two small matrices, one per axis: exact, linear and differentiable by einsum."""

from __future__ import annotations

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
    lower = np.minimum(np.floor(position).astype(np.int64), num_in - 1)
    upper = np.minimum(lower + 1, num_in - 1)
    fraction = position - lower
    matrix = np.zeros((num_out, num_in), np.float32)
    rows = np.arange(num_out)
    matrix[rows, lower] += 1 - fraction
    matrix[rows, upper] += fraction
    return matrix


def resize_bilinear_legacy(images: jax.Array, size: int) -> jax.Array:
    """Resizes images (B, H, W, C) to (B, size, size, C) by TensorFlow's legacy bilinear rule.

    Not `jax.image.resize`, whose pixel centres are half a pixel off: networks made with TensorFlow before 2.0, and
    their TensorFlow.js ports, were run with this rule.

    Source: documentation of tf.compat.v1.image.resize_bilinear.
    """
    height, width = images.shape[1:3]
    if height != size:
        images = _apply("oh,bhwc->bowc", legacy_bilinear_matrix(height, size), images)
    if width != size:
        images = _apply("ow,bhwc->bhoc", legacy_bilinear_matrix(width, size), images)
    return images


def _apply(equation: str, matrix: np.ndarray, images: jax.Array) -> jax.Array:
    return jnp.einsum(equation, matrix.astype(images.dtype), images, precision="highest")
