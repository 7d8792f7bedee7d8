"""Reverse KL, the objective of the paper (Eq. 9, 10)."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from promptgen_jax.ebm import LatentEBM
from promptgen_jax.objectives._shared import Stateless, draw, reference, sharding_field, spread, summary
from promptgen_jax.types import Array, Density, PyTree, Spec, spec_field


@dataclasses.dataclass(frozen=True)
class ReverseKL(Stateless):
    """The paper's objective, Eq. 10, by the path gradient through generator and controls.

    Attributes:
      batch_size: noise vectors whose energy is computed.
      kl_batch_size: noise vectors for the cheap terms -log_det - log p_z, at least batch_size; more of them remove
        gradient noise at almost no cost. 0 means batch_size.
      sharding: of the batch axis over devices; set by the trainer.
    """

    needs_fixed_target: ClassVar[bool] = False
    tells_moments: ClassVar[bool] = True

    batch_size: int
    kl_batch_size: int = 0
    sharding: Any = sharding_field()
    spec: Spec | None = spec_field()

    def __call__(self, params: PyTree, key: Array, ebm: LatentEBM, flow: Density) -> tuple[Array, dict]:
        """Returns the loss () and its terms by name."""
        key_eps, key_ebm = jax.random.split(key)
        eps = draw(self, key_eps, ebm.generator.prior, max(self.kl_batch_size, self.batch_size))
        cond = ebm.draw_cond(jax.random.fold_in(key_eps, 1), eps.shape[0])
        z, log_dets = flow.forward_and_log_dets(params, eps, cond)
        prior = ebm.generator.prior
        kl_prior = prior.log_prob(eps) - sum(log_dets) - prior.log_prob(z)
        small, small_eps, cond = jax.tree.map(functools.partial(spread, self, self.batch_size), (z, eps, cond))
        energies = ebm.energies(key_ebm, small, cond, reference(params, ebm, flow, small_eps, cond))
        return summary(ebm, energies, cond, kl_prior, z, log_dets)

    def held_out(self, params: PyTree, key: Array, ebm: LatentEBM, flow: Density) -> Array:
        """The full loss () on frozen noise; the kept parameters are those of its smallest mean."""
        return ReverseKL(batch_size=self.batch_size, sharding=self.sharding)(params, key, ebm, flow)[0]

    @staticmethod
    def score(held_out: list[Array]) -> Array:
        """Mean loss () of what `held_out` returned for several keys, in nats."""
        return jnp.mean(jnp.stack(held_out))


def build(*, batch_size: int, kl_batch_size: int = 0) -> ReverseKL:
    """The objective of these options, see `ReverseKL`."""
    return ReverseKL(batch_size=batch_size, kl_batch_size=kl_batch_size)
