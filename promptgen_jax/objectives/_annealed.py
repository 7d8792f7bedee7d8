"""Annealed importance sampling: samples led from one density to another in steps, and their weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from promptgen_jax.types import Array

ACCEPTED, PACE = 0.65, 1.05  # wanted share of accepted moves, and the factor by which the step size follows it


def annealed(
    densities: Callable[[Array], tuple[Array, Array]],
    key: Array,
    z: Array,
    step_size: Array,
    *,
    distributions: int,
    leapfrog: int,
) -> tuple[Array, Array, Array, Array]:
    """Leads samples of p_0 through p_0^(1 - b) p_1^b, b = k / K, to p_1, by a Hamiltonian move at each k.

    Args:
      densities: of z (B, D) to log p_0 and log p_1, (B,) each, nats, up to constants.
      key: of the moves.
      z: (B, D), of p_0.
      step_size: () of the first move; it then follows the share of accepted ones.
      distributions: K.
      leapfrog: steps of a move.

    Returns:
      z (B, D); log weights (B,), nats, whose exponentials have the mean ∫ p_1 / ∫ p_0; the next step size (), and the
      share of accepted moves ().

    Source: R. Neal, Annealed importance sampling, arXiv physics/9803008.
    """

    def lead(carried: tuple[Array, Array, Array], number: Array) -> tuple[tuple[Array, Array, Array], Array]:
        z, log_weight, step_size = carried
        b = number / distributions
        before, after = densities(z)
        log_weight += (after - before) / distributions

        def between(z: Array) -> Array:
            before, after = densities(z)
            return (1 - b) * before + b * after

        moved, share = hamiltonian(between, jax.random.fold_in(key, number), z, step_size, leapfrog)
        step_size *= jnp.where(share > ACCEPTED, PACE, 1 / PACE)
        return (moved, log_weight, step_size), share

    start = z, jnp.zeros(len(z)), step_size
    (z, log_weight, step_size), shares = jax.lax.scan(lead, start, jnp.arange(1, distributions + 1))
    return z, log_weight, step_size, jnp.mean(shares)


def hamiltonian(
    log_density: Callable[[Array], Array], key: Array, z: Array, step_size: Array, num_steps: int
) -> tuple[Array, Array]:
    """One Hamiltonian move of every sample, accepted or refused alone.

    Args:
      log_density: of z (B, D) to (B,), nats, up to a constant.
      key: draws momenta and what is accepted.
      z: (B, D).
      step_size: () of the leapfrog.
      num_steps: of the leapfrog, each one gradient.

    Returns:
      z (B, D), and the share of accepted moves ().

    Source: R. Neal, MCMC using Hamiltonian dynamics, arXiv 1206.1901, figure 2.
    """
    key_momentum, key_accept = jax.random.split(key)
    slope = jax.value_and_grad(lambda z: (lambda each: (jnp.sum(each), each))(log_density(z)), has_aux=True)

    def leap(carried: Any, _: None) -> tuple[Any, None]:
        z, momentum, gradient, _ = carried
        momentum += 0.5 * step_size * gradient
        z += step_size * momentum
        (_, value), gradient = slope(z)
        return (z, momentum + 0.5 * step_size * gradient, gradient, value), None

    start = jax.random.normal(key_momentum, z.shape)
    (_, before), gradient = slope(z)
    (end, momentum, _, after), _ = jax.lax.scan(leap, (z, start, gradient, before), None, num_steps)
    gain = after - before - 0.5 * jnp.sum(momentum**2 - start**2, axis=1)
    accepted = jnp.log(jax.random.uniform(key_accept, gain.shape)) < gain  # NaN is refused
    return jnp.where(accepted[:, None], end, z), jnp.mean(accepted)
