"""Hamiltonian Monte Carlo, and its trajectories without U-turns (NUTS), by blackjax."""

from __future__ import annotations

import blackjax
import jax.numpy as jnp
from flax import struct

from promptgen_jax import checks
from promptgen_jax.draws import Draws
from promptgen_jax.ebm import LatentEBM
from promptgen_jax.samplers import _adapted, _chains
from promptgen_jax.types import Array, Spec, spec_field

ACCEPTANCE = 0.8


@struct.dataclass
class Hmc:
    """Hamiltonian Monte Carlo with unit masses, exact as `mala`, with longer trajectories.

    Attributes:
      num_warmup: steps in which the step size is adapted, which are thrown away.
      num_steps: steps after that, at that step size.
      num_leaps: leapfrog steps of a trajectory; 0 lets NUTS end each where it would turn back.
      step_size: to begin with.
      acceptance: mean of the Metropolis test that the step size is adapted to.
    """

    num_warmup: int = struct.field(pytree_node=False)
    num_steps: int = struct.field(pytree_node=False)
    num_leaps: int = struct.field(pytree_node=False)
    step_size: float
    acceptance: float
    name: str = struct.field(pytree_node=False, default="hmc")
    spec: Spec | None = spec_field()

    def __call__(self, key: Array, ebm: LatentEBM, num_samples: int, *, start: Draws | None = None) -> Draws:
        """Draws of the last step, one chain each, from draws of the prior or those that were given.

        Raises:
          TypeError, ValueError: a raw key, a count below 1, a target that moves with the flow, or chains that began
            where its density is 0.
        """
        draws = _chains.start(self.name, key, ebm, num_samples, start)
        found, seconds = _chains.run(_walk, self, ebm, draws, key)
        _adapted.check_left(self.name, found.log_prob)
        calls = num_samples + int(found.leaps.sum())
        return _chains.moved(draws, found.z, seconds, gradient_calls=calls)


def _walk(
    sampler: Hmc, ebm: LatentEBM, chain_key: Array, key: Array, z: Array, cond: Array | None = None
) -> _adapted.Chain:
    def log_prob(z):
        return _chains.log_target(ebm, key, z, cond)

    masses = jnp.ones(z.shape)
    kernel = blackjax.hmc.build_kernel() if sampler.num_leaps else blackjax.nuts.build_kernel()
    leaps = {"num_integration_steps": sampler.num_leaps} if sampler.num_leaps else {}

    def step(key, state, step_size):
        state, info = kernel(key, state, log_prob, step_size, masses, **leaps)
        return state, info.acceptance_rate, info.num_integration_steps

    return _adapted.walk(sampler, step, blackjax.hmc.init(z, log_prob), chain_key)


def build(
    *,
    num_warmup: int = 50,
    num_steps: int = 20,
    num_leaps: int = 0,
    step_size: float = 0.1,
    acceptance: float = ACCEPTANCE,
) -> Hmc:
    """The sampler of these options, see `Hmc`.

    Raises:
      ValueError: no steps, a step size that is not positive, or an acceptance outside (0, 1).
    """
    checks.check_count("hmc: num_warmup", num_warmup, minimum=0)
    checks.check_count("hmc: num_steps", num_steps)
    checks.check_count("hmc: num_leaps", num_leaps, minimum=0)
    _adapted.check("hmc", step_size, acceptance)
    return Hmc(num_warmup, num_steps, num_leaps, step_size, acceptance)


def tiny() -> Hmc:
    """A short one for tests."""
    return build(num_warmup=3, num_steps=2, num_leaps=2)
