"""Importance resampling: draws of the prior, weighted for the target, and chosen by weight."""

from __future__ import annotations

import jax
from flax import struct

from promptgen_jax import checks
from promptgen_jax.draws import Draws
from promptgen_jax.draws import importance as weigh
from promptgen_jax.ebm import LatentEBM
from promptgen_jax.samplers import _chains
from promptgen_jax.types import Array, Spec, spec_field


@struct.dataclass
class Importance:
    """Weights w = exp(-E_C(G(z))) on draws of the prior, or target over density on those of a prompt.

    A weight is that of a latent and its condition: where conditions vary, those of a large Z weigh more.

    Attributes:
      num_candidates: draws that are weighed for each that is kept; with 1 all are kept, with their weights, with more
        they are chosen with repetition by weight and then weigh the same.
    """

    num_candidates: int = struct.field(pytree_node=False)
    name: str = struct.field(pytree_node=False, default="importance")
    spec: Spec | None = spec_field()

    def __call__(self, key: Array, ebm: LatentEBM, num_samples: int, *, start: Draws | None = None) -> Draws:
        """Weighted draws, or equally weighted ones that were chosen.

        Raises:
          TypeError, ValueError: a raw key, a count below 1, a target that moves with the flow, or draws to start from
            that are not num_samples times num_candidates.
        """
        draws = _chains.start(self.name, key, ebm, num_samples * self.num_candidates, start)
        with _chains.stopwatch() as seconds:
            draws = weigh(draws, ebm)
        draws = draws.replace(cost=draws.cost._replace(seconds=draws.cost.seconds + seconds()))
        return draws if self.num_candidates == 1 else draws.resampled(jax.random.fold_in(key, 2), num_samples)


def build(*, num_candidates: int = 1) -> Importance:
    """The sampler of these options, see `Importance`.

    Raises:
      ValueError: no candidates.
    """
    checks.check_count("importance: num_candidates", num_candidates)
    return Importance(num_candidates)


def tiny() -> Importance:
    """A short one for tests."""
    return build()
