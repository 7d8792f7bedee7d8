"""A chain of a Metropolis kernel whose step size is adapted in a warm-up, by dual averaging (blackjax)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from blackjax.adaptation.step_size import dual_averaging_adaptation

from promptgen_jax.types import Array


class Chain(NamedTuple):
    """The end of a chain.

    Attributes:
      z: (D,) its latent.
      log_prob: () log density of the target there, up to log Z.
      acceptance, step_size: () mean and size after the warm-up.
      leaps: () leapfrog steps.
    """

    z: Array
    log_prob: Array
    acceptance: Array
    step_size: Array
    leaps: Array


def walk(sampler: Any, step: Callable, state: Any, key: Array) -> Chain:
    """Runs a warm-up and a chain.

    Args:
      sampler: `num_warmup`, `num_steps`, `step_size`, `acceptance`.
      step: (key, state, step size) to (state, acceptance[, leapfrog steps]).
      state: of blackjax, with `position` and `logdensity`.
      key: of the chain.
    """
    init, update, final = dual_averaging_adaptation(sampler.acceptance)
    warm, steady = jax.random.split(key)

    def adapt(carried, key):
        state, adaptation = carried
        state, acceptance, *leaps = step(key, state, jnp.exp(adaptation.log_step_size))
        acceptance = jnp.nan_to_num(acceptance)  # a diverged proposal is a refused one
        return (state, update(adaptation, acceptance)), leaps[0] if leaps else 1

    def advance(state, key):
        state, acceptance, *leaps = step(key, state, step_size)
        return state, (jnp.nan_to_num(acceptance), leaps[0] if leaps else 1)

    begun = (state, init(sampler.step_size))
    (state, adaptation), warm_leaps = jax.lax.scan(adapt, begun, jax.random.split(warm, sampler.num_warmup))
    step_size = final(adaptation) if sampler.num_warmup else jnp.asarray(sampler.step_size, jnp.float32)
    state, (acceptance, leaps) = jax.lax.scan(advance, state, jax.random.split(steady, sampler.num_steps))
    leaps = jnp.sum(warm_leaps) + jnp.sum(leaps)
    return Chain(state.position, state.logdensity, jnp.mean(acceptance), step_size, leaps)


def check_left(who: str, log_prob: np.ndarray) -> None:
    """Raises ValueError for chains (N,) that ended where they cannot have come, as they began there and were stuck."""
    stuck = int(np.sum(~np.isfinite(log_prob)))
    if stuck:
        raise ValueError(
            f"{who}: {stuck} of {len(log_prob)} chains began where the energy is NaN or infinite and never left, so "
            "they are no samples. Start from draws of smc, or take smc itself."
        )


def check(who: str, step_size: float, acceptance: float) -> None:
    """Raises ValueError for a step size that is not positive, or an acceptance outside (0, 1)."""
    if not step_size > 0:
        raise ValueError(f"{who}: step_size is {step_size}; expected a positive number, such as 0.1.")
    if not 0 < acceptance < 1:
        raise ValueError(f"{who}: acceptance is {acceptance}; expected a share between 0 and 1, such as 0.6.")
