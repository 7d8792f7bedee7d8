"""Reverse KL by the score function, for energies without a useful gradient."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from promptgen_jax.ebm import LatentEBM
from promptgen_jax.objectives._shared import Stateless, draw, sharding_field, summary
from promptgen_jax.objectives.reverse_kl import ReverseKL
from promptgen_jax.types import Array, Density, PyTree, Spec, spec_field


@dataclasses.dataclass(frozen=True)
class ScoreFunction(Stateless):
    """Reverse KL by the score-function estimator with a leave-one-out baseline.

    grad = E_q[(f(z) - mean of the others' f) grad log q(z)], f = log q - log p_z + E_C. It needs energy values only,
    so it works for energies without a (useful) gradient, and its variance vanishes as q reaches the target.
    Source: arXiv 2510.10020 for the use on moment constraints; leave-one-out baseline of Kool et al. 2019.
    """

    needs_fixed_target: ClassVar[bool] = True
    tells_moments: ClassVar[bool] = True

    batch_size: int
    sharding: Any = sharding_field()
    spec: Spec | None = spec_field()

    def __post_init__(self) -> None:
        """Raises ValueError for a batch without a baseline."""
        if self.batch_size < 2:
            raise ValueError("training.batch_size: the score function needs at least 2 for its leave-one-out baseline.")

    def __call__(self, params: PyTree, key: Array, ebm: LatentEBM, flow: Density) -> tuple[Array, dict]:
        """Returns the loss (), whose gradient is the estimator, and its terms by name."""
        key_eps, key_ebm = jax.random.split(key)
        prior = ebm.generator.prior
        eps = draw(self, key_eps, prior, self.batch_size)
        cond = ebm.draw_cond(jax.random.fold_in(key_eps, 1), self.batch_size)
        z, log_dets = jax.lax.stop_gradient(flow.forward_and_log_dets(params, eps, cond))
        energies = ebm.energies(key_ebm, z, cond)
        kl_prior = prior.log_prob(eps) - sum(log_dets) - prior.log_prob(z)
        loss, metrics = summary(ebm, energies, cond, kl_prior, z, log_dets)
        free_energy = jax.lax.stop_gradient(kl_prior + ebm.total(energies, cond))
        advantage = (free_energy - jnp.mean(free_energy)) * self.batch_size / (self.batch_size - 1)
        surrogate = jnp.mean(advantage * flow.log_prob(params, z, cond))
        return loss + surrogate - jax.lax.stop_gradient(surrogate), metrics

    held_out, score = ReverseKL.held_out, staticmethod(ReverseKL.score)


def build(*, batch_size: int) -> ScoreFunction:
    """The objective of these options, see `ScoreFunction`."""
    return ScoreFunction(batch_size=batch_size)
