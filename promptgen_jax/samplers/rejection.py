"""Rejection sampling: draws of the prior, kept with probability exp(bound - E). Exact, and slow for rare targets."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from promptgen_jax import checks
from promptgen_jax.draws import Draws
from promptgen_jax.ebm import LatentEBM
from promptgen_jax.samplers import _chains
from promptgen_jax.types import Array, Spec, spec_field


@struct.dataclass
class Rejection:
    """Exact and independent samples of the target, from draws of the prior, and of the conditions together with them.

    Attributes:
      bound: nats that the energy E_C is never below. 0 holds for every classifier control, -log P, with a weight of at
        least 0; the greatest bound that holds keeps the most draws.
      max_candidates: energies per sample asked for, after which it gives up.
    """

    bound: float = struct.field(pytree_node=False)
    max_candidates: int = struct.field(pytree_node=False)
    name: str = struct.field(pytree_node=False, default="rejection")
    spec: Spec | None = spec_field()

    def __call__(self, key: Array, ebm: LatentEBM, num_samples: int) -> Draws:
        """Accepted draws of the prior.

        Raises:
          TypeError, ValueError: a raw key, a count below 1, a target that moves with the flow, an energy below the
            bound, or too few draws accepted.
        """
        kept, count, seconds, calls = [], 0, 0.0, 0
        for number in range(self.max_candidates):
            key_draws, key_accept = jax.random.split(jax.random.fold_in(key, number))
            draws = _chains.start(self.name, key_draws, ebm, num_samples)
            energy, took = _chains.energies(ebm, draws)
            if energy.min() < self.bound:
                raise ValueError(
                    f"rejection: an energy of {energy.min():.4g} nats lies below the bound {self.bound:g}, so the "
                    f"samples would not be those of the target. Pass a bound that holds, below {energy.min():.4g}."
                )
            accepted = np.log(np.asarray(jax.random.uniform(key_accept, energy.shape))) < self.bound - energy
            kept.append(draws.take(jnp.asarray(np.flatnonzero(accepted))))
            count, seconds, calls = count + int(accepted.sum()), seconds + took, calls + num_samples
            if count >= num_samples:
                whole = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *(d.replace(cost=()) for d in kept))
                whole = whole.take(np.arange(num_samples)).replace(cost=draws.cost)
                return _chains.moved(whole, whole.z, seconds, energy_calls=calls)
        raise ValueError(
            f"rejection: {count} of {calls} draws of the prior were accepted, {num_samples} were asked for. Use "
            "sampler smc, which tempers, or more max_candidates."
        )


def build(*, bound: float = 0.0, max_candidates: int = 1000) -> Rejection:
    """The sampler of these options, see `Rejection`.

    Raises:
      ValueError: no candidates, or a bound that is no number.
    """
    checks.check_count("rejection: max_candidates", max_candidates)
    if not np.isfinite(bound):
        raise ValueError(f"rejection: bound is {bound}; expected nats that the energy is never below, such as 0.")
    return Rejection(float(bound), max_candidates)


def tiny() -> Rejection:
    """A short one for tests."""
    return build()
