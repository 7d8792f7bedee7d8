"""Rotations of space: Euler angles, axis-angle vectors and matrices, and the angle between two rotations.

Matrices are right-handed and act on column vectors; angles are in radians. Everything takes leading batch axes, has
finite values and gradients everywhere, and keeps its input's precision.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

PRECISION = jax.lax.Precision.HIGHEST
LINEAR_FROM = 1 - 1e-4  # |cos| beyond which the official angle is a straight line


def from_euler_xyz(angles: Array) -> Array:
    """R = Rx(a0) Ry(a1) Rz(a2), (..., 3, 3), of angles (..., 3); `Rotation.from_euler("XYZ", angles)` of SciPy."""
    (cx, cy, cz), (sx, sy, sz) = (jnp.moveaxis(part(angles), -1, 0) for part in (jnp.cos, jnp.sin))
    entries = [
        [cy * cz, -cy * sz, sy],
        [cx * sz + sx * sy * cz, cx * cz - sx * sy * sz, -sx * cy],
        [sx * sz - cx * sy * cz, sx * cz + cx * sy * sz, cx * cy],
    ]
    return jnp.stack([jnp.stack(row, axis=-1) for row in entries], axis=-2)


def to_euler_xyz(matrix: Array) -> Array:
    """Angles (..., 3) of `from_euler_xyz`, the middle one within ±π/2; where that is ±π/2 the last one is 0."""
    locked = matrix[..., 0, 0] ** 2 + matrix[..., 0, 1] ** 2 < 1e-12
    cosine = jnp.sqrt(jnp.where(locked, 1.0, matrix[..., 0, 0] ** 2 + matrix[..., 0, 1] ** 2))
    first = jnp.arctan2(
        jnp.where(locked, matrix[..., 2, 1], -matrix[..., 1, 2]),
        jnp.where(locked, matrix[..., 1, 1], matrix[..., 2, 2]),
    )
    last = jnp.arctan2(-jnp.where(locked, 0.0, matrix[..., 0, 1]), jnp.where(locked, 1.0, matrix[..., 0, 0]))
    return jnp.stack([first, jnp.arctan2(matrix[..., 0, 2], jnp.where(locked, 0.0, cosine)), last], axis=-1)


def from_axis_angle(vectors: Array) -> Array:
    """R (..., 3, 3) of the vectors v (..., 3) along the axis, as long as the angle; any length.

    R = I + sin θ/θ [v]ₓ + (1 - cos θ)/θ² [v]ₓ², with series where θ < 0.01.
    """
    squared = jnp.sum(vectors**2, axis=-1)[..., None, None]
    small = squared < 1e-4
    angle = jnp.sqrt(jnp.where(small, 1.0, squared))
    sine = jnp.where(small, 1 - squared / 6 * (1 - squared / 20), jnp.sin(angle) / angle)
    half = jnp.sin(angle / 2) / angle
    versine = jnp.where(small, 0.5 - squared / 24 * (1 - squared / 30), 2 * half**2)
    cross = _cross_matrix(vectors)
    return jnp.eye(3, dtype=vectors.dtype) + sine * cross + versine * compose(cross, cross)


def compose(one: Array, other: Array) -> Array:
    """The rotation (..., 3, 3) that acts as `other` and then as `one`, at full float32 on accelerators too."""
    return jnp.matmul(one, other, precision=PRECISION)


def geodesic_angle(one: Array, other: Array) -> Array:
    """The angle (...,) in [0, π] of the rotation between two rotations (..., 3, 3): their distance on SO(3).

    θ = atan2(|w|, (trace(R) - 1) / 2) with R = one · otherᵀ and w half the vector of R - Rᵀ, exact to rounding from 0
    to π, where an arc cosine loses half the digits. Where w vanishes, its direction is taken from R + Rᵀ: the gradient
    has length 1 at π as well, and that of θ² is 0 at agreement only.
    """
    relative = compose(one, jnp.swapaxes(other, -1, -2))
    twist = jnp.stack([relative[..., i, j] - relative[..., j, i] for i, j in ((2, 1), (0, 2), (1, 0))], axis=-1) / 2
    sine = jnp.sum(jax.lax.stop_gradient(_direction(relative, twist)) * twist, axis=-1)
    return jnp.arctan2(sine, (jnp.trace(relative, axis1=-2, axis2=-1) - 1) / 2)


def official_angle(one: Array, other: Array) -> Array:
    """The angle (...,) as the paper's code has it, for parity: an arc cosine with straight ends.

    Below 0.014 and near π it is off by up to 0.007: two equal rotations are 0.00707 apart.
    Source: PyTorch3D from 0.5 on, so3_relative_angle.
    """
    cosine = (jnp.sum(one * other, axis=(-1, -2)) - 1) / 2
    inside = jnp.clip(cosine, -LINEAR_FROM, LINEAR_FROM)
    slope = -1 / (1 - LINEAR_FROM**2) ** 0.5
    return jnp.arccos(inside) + slope * (cosine - inside)


def _cross_matrix(vectors: Array) -> Array:
    x, y, z = jnp.moveaxis(vectors, -1, 0)
    zero = jnp.zeros_like(x)
    return jnp.stack([jnp.stack(row, axis=-1) for row in ([zero, -z, y], [z, zero, -x], [-y, x, zero])], axis=-2)


def _direction(relative: Array, twist: Array) -> Array:
    """The unit axis of a rotation: along the twist, or where that is rounding only, of R + Rᵀ - (trace R - 1) I."""
    length = jnp.linalg.norm(twist, axis=-1, keepdims=True)
    tiny = length < 4 * jnp.finfo(relative.dtype).eps
    trace = jnp.trace(relative, axis1=-2, axis2=-1)[..., None, None]
    axes = relative + jnp.swapaxes(relative, -1, -2) - (trace - 1) * jnp.eye(3, dtype=relative.dtype)
    longest = jnp.argmax(jnp.diagonal(axes, axis1=-2, axis2=-1), axis=-1)
    axis = jnp.take_along_axis(axes, longest[..., None, None], axis=-1)[..., 0]
    norm = jnp.linalg.norm(axis, axis=-1, keepdims=True)
    first = jnp.zeros_like(axis).at[..., 0].set(1.0)
    axis = jnp.where(norm > 1e-3, axis / jnp.where(norm > 1e-3, norm, 1.0), first)
    axis = jnp.where(jnp.sum(axis * twist, axis=-1, keepdims=True) < 0, -axis, axis)
    return jnp.where(tiny, axis, twist / jnp.where(tiny, 1.0, length))
