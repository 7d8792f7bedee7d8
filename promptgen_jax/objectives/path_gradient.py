"""Reverse KL by the path gradient alone ("sticking the landing")."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax

from promptgen_jax.ebm import LatentEBM
from promptgen_jax.objectives._shared import Stateless, draw, reference, sharding_field, summary
from promptgen_jax.objectives.reverse_kl import ReverseKL
from promptgen_jax.types import Array, Density, PyTree, Spec, spec_field


@dataclasses.dataclass(frozen=True)
class PathGradient(Stateless):
    """Reverse KL whose gradient is taken along the path of the samples only.

        grad E_ε[log q(f(ε); θ stopped) - log p_z(f(ε)) + E_C(G(f(ε)))]

    The part that is left out, E_q[∇_θ log q(z)], is zero in expectation, and only noise: at q = target the gradient of
    every single sample is zero. It needs no more noise vectors than energies, and one inverse of the flow.

    Attributes:
      batch_size: noise vectors, whose energy is computed.
      sharding: of the batch axis over devices; set by the trainer.

    Source: G. Roeder, Y. Wu, D. Duvenaud, Sticking the Landing, arXiv 1703.09194; for flows arXiv 2207.08219.
    """

    needs_fixed_target: ClassVar[bool] = False
    tells_moments: ClassVar[bool] = True

    batch_size: int
    sharding: Any = sharding_field()
    spec: Spec | None = spec_field()

    def __call__(self, params: PyTree, key: Array, ebm: LatentEBM, flow: Density) -> tuple[Array, dict]:
        """Returns the loss (), and its terms by name."""
        return self.seen(params, key, ebm, flow)[0]

    def seen(
        self, params: PyTree, key: Array, ebm: LatentEBM, flow: Density
    ) -> tuple[tuple[Array, dict], tuple[Array, Array | None, Array, Array]]:
        """As a call, and the samples it was made of: z (B, D), conditions, log q (B,) and E_C (B,)."""
        key_eps, key_ebm = jax.random.split(key)
        prior = ebm.generator.prior
        eps = draw(self, key_eps, prior, self.batch_size)
        cond = ebm.draw_cond(jax.random.fold_in(key_eps, 1), self.batch_size)
        z, log_dets = flow.forward_and_log_dets(params, eps, cond)
        log_q = flow.log_prob(jax.lax.stop_gradient(params), z, cond)
        energies = ebm.energies(key_ebm, z, cond, reference(params, ebm, flow, eps, cond))
        terms = summary(ebm, energies, cond, log_q - prior.log_prob(z), z, log_dets)
        return terms, (z, cond, log_q, ebm.total(energies, cond))

    held_out, score = ReverseKL.held_out, staticmethod(ReverseKL.score)


def build(*, batch_size: int) -> PathGradient:
    """The objective of these options, see `PathGradient`."""
    return PathGradient(batch_size=batch_size)
