"""Langevin dynamics with a Metropolis test, whose steps every chain adapts to itself (blackjax)."""

from __future__ import annotations

import blackjax
from flax import struct

from promptgen_jax import checks
from promptgen_jax.draws import Draws
from promptgen_jax.ebm import LatentEBM
from promptgen_jax.samplers import _adapted, _chains
from promptgen_jax.types import Array, Spec, spec_field

ACCEPTANCE = 0.574  # optimal in many dimensions (Roberts and Rosenthal 1998)


@struct.dataclass
class Mala:
    """Metropolis-adjusted Langevin dynamics: it leaves the target exactly as it is, whatever the step.

    Attributes:
      num_warmup: steps in which the step size is adapted, which are thrown away.
      num_steps: steps after that, at that step size.
      step_size: to begin with.
      acceptance: mean of the Metropolis test that the step size is adapted to.
    """

    num_warmup: int = struct.field(pytree_node=False)
    num_steps: int = struct.field(pytree_node=False)
    step_size: float
    acceptance: float
    name: str = struct.field(pytree_node=False, default="mala")
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
        steps = 1 + self.num_warmup + self.num_steps
        return _chains.moved(draws, found.z, seconds, gradient_calls=steps * num_samples)


def _walk(
    sampler: Mala, ebm: LatentEBM, chain_key: Array, key: Array, z: Array, cond: Array | None = None
) -> _adapted.Chain:
    def log_prob(z):
        return _chains.log_target(ebm, key, z, cond)

    kernel = blackjax.mala.build_kernel()

    def step(key, state, step_size):
        state, info = kernel(key, state, log_prob, step_size)
        return state, info.acceptance_rate

    return _adapted.walk(sampler, step, blackjax.mala.init(z, log_prob), chain_key)


def build(
    *, num_warmup: int = 50, num_steps: int = 100, step_size: float = 0.1, acceptance: float = ACCEPTANCE
) -> Mala:
    """The sampler of these options, see `Mala`.

    Raises:
      ValueError: no steps, a step size that is not positive, or an acceptance outside (0, 1).
    """
    checks.check_count("mala: num_warmup", num_warmup, minimum=0)
    checks.check_count("mala: num_steps", num_steps)
    _adapted.check("mala", step_size, acceptance)
    return Mala(num_warmup, num_steps, step_size, acceptance)


def tiny() -> Mala:
    """A short one for tests."""
    return build(num_warmup=3, num_steps=3)
