"""Cameras, rays and volume rendering on the unit sphere, as StyleNeRF does them.

Rays are (B, N, 3) from centres (B, 3) and are not normalised. Source: arXiv 2110.08985; facebookresearch/StyleNeRF,
training/stylenerf.py and dnnlib/camera.py; background: arXiv 2010.07492.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def look_at_origin(angles: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Rotations (B, 3, 3), from camera to world, and centres (B, 3) of cameras at angles (B, 2), radians.

    The first angle turns around the vertical axis z, the second is the distance from it; half of pi is level.
    """
    theta, phi = angles[:, 0], angles[:, 1]
    forward = jnp.stack([jnp.sin(phi) * jnp.cos(theta), jnp.sin(phi) * jnp.sin(theta), jnp.cos(phi)], axis=1)
    right = _unit(jnp.cross(jnp.array([0.0, 0.0, 1.0]), forward))
    return jnp.stack([right, _unit(jnp.cross(forward, right)), forward], axis=2), forward


def pixel_grid(size: int, image_size: int, align_corner: bool) -> np.ndarray:
    """Camera coordinates (size², 2) of the rays in [-1, 1], row by row from the top.

    With `align_corner` they are every few of the pixels of the finished picture, beginning with the first, and so not
    symmetric; else they are centres of cells.
    """
    if align_corner:
        steps = np.linspace(-1, 1, image_size)[:: image_size // size]
    else:
        steps = np.linspace(-(1 - 1 / size), 1 - 1 / size, size)
    x, y = np.meshgrid(steps, -steps)
    return np.stack([x, y], axis=-1).reshape(-1, 2).astype(np.float32)


def cast_rays(rotation: jax.Array, grid: np.ndarray, fov: float) -> jax.Array:
    """Rays (B, N, 3) through grid points (N, 2) at distance 1, for a field of view in degrees.

    At full float32: `encode` multiplies points by up to 2^9 pi, and any rounding with them.
    """
    spread = np.tan(np.deg2rad(fov) / 2)
    points = np.concatenate([spread * grid, -np.ones((len(grid), 1))], axis=1).astype(np.float32)
    return jnp.einsum("bij,nj->bni", rotation, points, precision="highest")


def encode(points: jax.Array, num_frequencies: int) -> jax.Array:
    """(..., 2 · D · num_frequencies): sines, then cosines, of points (..., D) times pi, 2 pi, 4 pi, ..."""
    angles = [2.0**i * np.pi * points for i in range(num_frequencies)]
    return jnp.concatenate([f(angle) for angle in angles for f in (jnp.sin, jnp.cos)], axis=-1)


def composite(opacity: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What every sample adds to a ray, (..., S), and what is left at the last of them, (...), of opacities (..., S)."""
    clear = jnp.cumprod(jnp.maximum(1 - opacity, 0) + 1e-10, axis=-1)  # else XLA adds the 1e-10 to the 1 first
    seen = jnp.concatenate([jnp.ones_like(clear[..., :1]), clear[..., :-1]], axis=-1)
    return opacity * seen, seen[..., -1]


def opacity(density: jax.Array, depth: jax.Array, length: jax.Array) -> jax.Array:
    """Opacities (B, N, S) of raw densities at depths (B, N, S); the last is 0, since the background follows.

    Args:
      density: (B, N, S), negative ones count as 0.
      depth: (B, N, S), rising.
      length: (B, N, 1) of the rays.
    """
    steps = jnp.diff(depth, axis=-1) * length
    steps = jnp.concatenate([steps, jnp.zeros_like(steps[..., :1])], axis=-1)
    return 1 - jnp.exp(-jnp.maximum(density, 0) * steps)


def finer(positions: np.ndarray, weights: jax.Array) -> jax.Array:
    """As many further positions (B, N, S), more of them where the weights (B, N, S) are large; without gradient.

    The inverse of the distribution function of the weights, which is linear between midpoints of positions (S,).
    """
    weights = jax.lax.stop_gradient(weights)[..., 1:-1] + 1e-5
    share = weights / jnp.sum(weights, axis=-1, keepdims=True)
    total = jnp.concatenate([jnp.zeros_like(share[..., :1]), jnp.cumsum(share, axis=-1)], axis=-1)
    middles = jnp.broadcast_to((positions[1:] + positions[:-1]) / 2, total.shape)
    wanted = jnp.linspace(0.0, 1.0, len(positions))
    above = jnp.sum(total[..., None, :] < wanted[:, None], axis=-1)  # the first entry that is not below
    below = jnp.maximum(above - 1, 0)
    above = jnp.minimum(above, len(positions) - 2)

    def at(values, index):
        return jnp.take_along_axis(values, index, axis=-1)

    step = at(total, above) - at(total, below)
    fraction = (wanted - at(total, below)) / jnp.where(step < 1e-5, 1.0, step)
    return at(middles, below) + fraction * (at(middles, above) - at(middles, below))


def background_points(centres: jax.Array, rays: jax.Array, inverse_depths: np.ndarray) -> jax.Array:
    """Directions seen from the origin and inverse depths, (B, N, S, 4), of points beyond the unit sphere."""
    rays = _unit(rays)
    centres = jnp.broadcast_to(centres[:, None], rays.shape)
    along = -jnp.sum(rays * centres, axis=-1, keepdims=True)
    nearest = centres + along * rays
    distance = jnp.linalg.norm(nearest, axis=-1, keepdims=True)
    sphere = centres + (along + jnp.sqrt(1 - distance**2)) * rays
    axis = _unit(jnp.cross(centres, sphere))[:, :, None]
    angle = (jnp.arcsin(distance) - jnp.arcsin(distance * inverse_depths))[..., None]  # (B, N, S, 1)
    sphere = sphere[:, :, None]
    turned = (
        sphere * jnp.cos(angle)
        + jnp.cross(axis, sphere) * jnp.sin(angle)
        + axis * jnp.sum(axis * sphere, axis=-1, keepdims=True) * (1 - jnp.cos(angle))
    )
    depths = jnp.broadcast_to(inverse_depths[:, None], (*turned.shape[:-1], 1))
    return jnp.concatenate([_unit(turned), depths], axis=-1)


def _unit(vectors):
    return vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True)
