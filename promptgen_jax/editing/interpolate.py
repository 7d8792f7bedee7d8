"""From one noise to another along the sphere on which noise lies."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from promptgen_jax import checks, devices
from promptgen_jax.draws import images_of
from promptgen_jax.prompt import Prompt
from promptgen_jax.types import Array, Prior

OPPOSITE = 1e-3  # radians that two directions may miss a half turn by and still have no way between them


def interpolate(
    prompt: Prompt, eps_a: Any, eps_b: Any, num: int, key: Array, *, cond: Any = None, batch_size: int | None = None
) -> np.ndarray:
    """Images (num, H, W, 3) on the way from one noise to another, both ends included.

    `promptgen_jax.store.images.save_film` writes them as a strip or a GIF.

    Args:
      prompt: trained.
      eps_a: (D,) noise where it starts.
      eps_b: (D,) noise where it ends.
      num: images, at least 2.
      key: of the generator's own noise, which is the same in all images.
      cond: (A,) condition of a conditional prompt for all images, or (num, A) one each, which may move too.
      batch_size: images per device at a time; None for what `devices.images_at_a_time` says.

    Raises:
      TypeError, ValueError: as `spherical`; a raw key, conditions of a wrong shape.
    """
    checks.check_key("interpolate", key)
    batch_size = devices.images_at_a_time(prompt.image_size, batch_size)
    checks.check_count("interpolate: batch_size", batch_size)
    eps = spherical(prompt.prior, eps_a, eps_b, num)
    cond = checks.rows_of("interpolate", cond, prompt.flow.cond_dim, num)
    keys = jnp.broadcast_to(key, (num,))
    return devices.map_batches(images_of, batch_size, keys, eps, *devices.filter_none(cond), shared=(prompt,))


def spherical(prior: Prior, eps_a: Any, eps_b: Any, num: int) -> Array:
    """Noise (num, D) on the way from `eps_a` (D,) to `eps_b` (D,), as far from the prior's mean as they are.

    The directions turn evenly, by sin((1 - t) w) / sin w and sin(t w) / sin w with the angle w between them, and the
    norms go evenly from one to the other. On a straight line the middle would be nearer to the mean than noise ever is.

    Raises:
      TypeError, ValueError: noise of a wrong shape or not finite, fewer than 2, noise at the mean itself, or opposite
        ends, between which no way is shorter than others.
    """
    checks.check_count("interpolate: num", num, minimum=2)
    rows = [np.asarray(eps)[None] for eps in (eps_a, eps_b)]
    for row in rows:
        checks.check_latents("interpolate", row, prior.dim)
    loc, scale = np.asarray(prior.loc, np.float64), np.asarray(prior.scale, np.float64)
    ends = (np.concatenate(rows) - loc) / scale
    norms = np.linalg.norm(ends, axis=1, keepdims=True)
    if not norms.all():
        raise ValueError("interpolate: one end is the mean of the prior, which has no direction. Draw it instead.")
    first, last = ends / norms
    angle = 2 * np.arctan2(np.linalg.norm(first - last), np.linalg.norm(first + last))
    if angle > np.pi - OPPOSITE:
        raise ValueError("interpolate: the ends are opposite, with no one way between them. Go by way of a third.")
    t = np.linspace(0, 1, num)[:, None]
    directions = (1 - t) * first + t * last
    if angle > 0:
        directions = (np.sin((1 - t) * angle) * first + np.sin(t * angle) * last) / np.sin(angle)
    between = directions * ((1 - t) * norms[0] + t * norms[1])
    return jnp.asarray(loc + scale * between, jnp.float32)
