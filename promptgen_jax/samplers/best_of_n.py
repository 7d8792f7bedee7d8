"""Best of n: of n draws of the prior the one of lowest energy. Cheap, popular, and not a sample of the target."""

from __future__ import annotations

from typing import Any

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
class BestOfN:
    """The draw with the lowest energy of `num_candidates` of the prior, for every sample."""

    num_candidates: int = struct.field(pytree_node=False)
    name: str = struct.field(pytree_node=False, default="best_of_n")
    spec: Spec | None = spec_field()

    def __call__(self, key: Array, ebm: LatentEBM, num_samples: int, *, start: Draws | None = None) -> Draws:
        """The best candidates.

        Raises:
          TypeError, ValueError: a raw key, a count below 1, a target that moves with the flow, or draws to start from
            that are not num_samples times num_candidates.
        """
        draws = _chains.start(self.name, key, ebm, num_samples * self.num_candidates, start)
        if start is None and draws.cond is not None:  # candidates of a sample differ in their latents alone
            cond: Any = ebm.draw_cond(jax.random.fold_in(key, 1), num_samples)
            draws = draws.replace(cond=jnp.repeat(cond, self.num_candidates, axis=0))
        energy, seconds = _chains.energies(ebm, draws)
        best = np.argmin(energy.reshape(num_samples, -1), axis=1) + np.arange(num_samples) * self.num_candidates
        chosen = draws.take(jnp.asarray(best))
        return _chains.moved(chosen, chosen.z, seconds, energy_calls=len(draws.z))


def build(*, num_candidates: int = 16) -> BestOfN:
    """The sampler of these options, see `BestOfN`.

    Raises:
      ValueError: no candidates.
    """
    checks.check_count("best_of_n: num_candidates", num_candidates)
    return BestOfN(num_candidates)


def tiny() -> BestOfN:
    """A short one for tests."""
    return build(num_candidates=2)
