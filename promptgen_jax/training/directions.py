"""The directions of the latent along which an energy changes most, within which a flow may stay.

A control sees little of what a generator can change: of the shipped faces, ten of a hundred directions carry 68 % of
the squared gradient of a smile. A flow that moves along few directions has less to learn from gradients as noisy as
ever; what it cannot reach is how the target differs from the prior across them.

Source: P. Constantine, E. Dow, Q. Wang, Active subspace methods in theory and practice, arXiv 1304.2070, section 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from promptgen_jax import devices
from promptgen_jax.draws import Draws
from promptgen_jax.ebm import LatentEBM
from promptgen_jax.flows.realnvp import DIRECTIONS
from promptgen_jax.types import Array, PyTree

NUM_GRADIENTS = 512


def active_directions(ebm: LatentEBM, key: Array, *, num_samples: int = NUM_GRADIENTS) -> np.ndarray:
    """All directions of the latent, (D, D) orthonormal columns, those along which the energy changes most first.

    They are the eigenvectors of E[g gᵀ], g the gradient of the energy by z in deviations of the prior, over samples of
    the prior.

    Args:
      ebm: the target, which may not move with the flow.
      key: draws the samples, and conditions if there are any.
      num_samples: each costs a gradient of the energy.

    Raises:
      ValueError: the gradient is zero at all samples, or NaN or infinite at some.
    """
    key_z, key_cond = jax.random.split(key)
    draws = Draws.of_prior(ebm.generator.prior, key_z, num_samples, cond=ebm.draw_cond(key_cond, num_samples))
    arrays = (draws.key, draws.z, *devices.filter_none(draws.cond))
    gradients = devices.map_batches(_gradient, devices.seen_at_a_time(ebm.generator.image_size), *arrays, shared=(ebm,))
    if bad := int(np.sum(~np.isfinite(gradients).all(axis=1))):
        raise ValueError(
            f"flow directions: the energy's gradient is NaN or infinite at {bad} of {num_samples} samples of the "
            "generator. Check the controls, or leave directions out."
        )
    if not gradients.any():
        raise ValueError(
            f"flow directions: the energy has no gradient at any of {num_samples} samples of the generator, so there "
            "are none. Leave directions out."
        )
    slopes = gradients.astype(np.float64) * np.asarray(ebm.generator.prior.scale)
    return np.linalg.eigh(slopes.T @ slopes)[1][:, ::-1].astype(np.float32)


def aimed(flow: Any, directions: np.ndarray) -> Any:
    """The flow with its directions replaced by the first of these, also in each part of a mixture."""

    def replaced(path: tuple, leaf: Array) -> Array:
        if not _is_named(path):
            return leaf
        return jnp.broadcast_to(jnp.asarray(directions[:, : leaf.shape[-1]]), leaf.shape)

    return flow.replace(buffers=jax.tree_util.tree_map_with_path(replaced, flow.buffers))


def asked_for(flow: Mapping[str, Any]) -> int:
    """How many directions the options of a flow ask for, also those of a mixture's parts; 0 for all of the latent."""
    part = flow.get("part")
    return flow.get(DIRECTIONS) or (part.get(DIRECTIONS, 0) if isinstance(part, Mapping) else 0)


def has_directions(buffers: PyTree) -> bool:
    """Whether a flow moves along directions that can be chosen."""
    return any(_is_named(path) for path, _ in jax.tree_util.tree_leaves_with_path(buffers))


def _is_named(path: tuple) -> bool:
    return jax.tree_util.keystr(path, simple=True, separator="/").split("/")[-1] == DIRECTIONS


@jax.jit
def _gradient(ebm: LatentEBM, key: Array, z: Array, cond: Array | None = None) -> Array:
    return jax.grad(lambda z: jnp.sum(ebm.energy(key, z, cond)))(z)
