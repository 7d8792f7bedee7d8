"""FAB: samples that annealed importance sampling leads from the flow to where it is too thin."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import struct

from promptgen_jax import checks
from promptgen_jax.ebm import LatentEBM
from promptgen_jax.objectives._annealed import annealed
from promptgen_jax.objectives._buffer import Buffer
from promptgen_jax.objectives._shared import draw, sharding_field
from promptgen_jax.objectives.forward_kl import ForwardKL
from promptgen_jax.types import Array, Density, PyTree, Spec, spec_field

LARGEST_CORRECTION = 10.0


class Memory(struct.PyTreeNode):
    """What FAB carries: its buffer, the step size () of its moves, and how many updates it has seen ()."""

    buffer: Buffer
    step_size: Array
    updates: Array


@dataclasses.dataclass(frozen=True)
class FAB:
    """Minimises the alpha-divergence of α = 2, ∫ p²/q, the variance of the importance weights.

    Annealed importance sampling leads samples of the flow through g_k ∝ q^(1 - b_k) (p²/q)^(b_k), b_k = k / K, by
    Hamiltonian moves, to g = p²/q, which is large where the flow is too thin. They and their weights go into a buffer.
    Each update draws from it by weight and follows

        -mean w_k log q(z_k),   w_k = q_old(z_k) / q(z_k) without gradient, at most 10,

    q_old the flow when the weight was last corrected; then the weights in the buffer take the same factor.

    Attributes:
      batch_size: samples that are led at a time.
      distributions: K, how many g_k; each costs `leapfrog` gradients of the energy.
      leapfrog: steps of a Hamiltonian move.
      step_size: of the first move; it then follows the share of accepted moves, 0.65 being wanted.
      every: updates from one refill of the buffer to the next, which share the cost of it.
      forward_batch: samples of the buffer in an update.
      buffer_size: samples that it holds.
      sharding: of the batch axis over devices; set by the trainer.

    `loss` among the metrics is -mean w log q, `ess` the effective number of samples in the buffer, and `accepted` the
    share of accepted moves, 0 between refills.
    Source: L. Midgley et al., Flow Annealed Importance Sampling Bootstrap, arXiv 2208.01893, algorithm 1.
    """

    needs_fixed_target: ClassVar[bool] = True
    tells_moments: ClassVar[bool] = False

    batch_size: int
    distributions: int = 4
    leapfrog: int = 3
    step_size: float = 0.1
    every: int = 4
    forward_batch: int = 256
    buffer_size: int = 8192
    sharding: Any = sharding_field()
    spec: Spec | None = spec_field()

    def __post_init__(self) -> None:
        """Raises ValueError for counts out of range."""
        for name in ("distributions", "leapfrog", "every", "forward_batch", "buffer_size"):
            checks.check_count(f"fab: {name}", getattr(self, name))
        if not self.step_size > 0:
            raise ValueError(f"fab: step_size is {self.step_size}; expected a positive number. Raise it.")

    def init(self, ebm: LatentEBM, flow: Density, params: PyTree) -> Memory:
        """An empty buffer, filled at the first update."""
        return Memory(Buffer.empty(ebm, self.buffer_size), jnp.float32(self.step_size), jnp.zeros((), jnp.int32))

    def loss(
        self, params: PyTree, memory: Memory, key: Array, ebm: LatentEBM, flow: Density
    ) -> tuple[Array, tuple[Memory, dict]]:
        """The loss (), and what is carried with the terms by name."""
        key_fill, key_rows = jax.random.split(key)
        due = memory.updates % self.every == 0
        frozen = jax.lax.stop_gradient(params)
        memory, accepted = jax.lax.cond(
            due,
            lambda memory: self._refill(frozen, memory, key_fill, ebm, flow),
            lambda memory: (memory, jnp.zeros(())),
            memory,
        )
        buffer = memory.buffer
        rows = buffer.choose(key_rows, self.forward_batch)
        z, cond = buffer.rows(rows)
        log_q = flow.log_prob(params, z, cond)
        correction = jax.lax.stop_gradient(buffer.log_q[rows] - log_q)
        weight = jnp.exp(jnp.minimum(correction, jnp.log(LARGEST_CORRECTION)))
        loss = -jnp.mean(weight * log_q)
        buffer = buffer.replace(
            log_weight=buffer.log_weight.at[rows].set(buffer.log_weight[rows] + correction),
            log_q=buffer.log_q.at[rows].set(jax.lax.stop_gradient(log_q)),
        )
        metrics = {"loss": loss, "ess": buffer.ess(), "step_size": memory.step_size, "accepted": accepted}
        return loss, (memory.replace(buffer=buffer, updates=memory.updates + 1), metrics)

    def _refill(
        self, params: PyTree, memory: Memory, key: Array, ebm: LatentEBM, flow: Density
    ) -> tuple[Memory, Array]:
        """The buffer with a batch led to p²/q, and the share of accepted moves ()."""
        key_eps, key_ebm, key_moves = jax.random.split(key, 3)
        cond = ebm.draw_cond(jax.random.fold_in(key_eps, 1), self.batch_size)
        eps = draw(self, key_eps, ebm.generator.prior, self.batch_size)
        z, _ = flow.forward_and_log_det(params, eps, cond)

        def densities(z: Array) -> tuple[Array, Array]:
            log_p, log_q = ebm.log_prob(key_ebm, z, cond), flow.log_prob(params, z, cond)
            return log_q, 2 * log_p - log_q

        steps = {"distributions": self.distributions, "leapfrog": self.leapfrog}
        z, log_weight, step_size, accepted = annealed(densities, key_moves, z, memory.step_size, **steps)
        buffer = memory.buffer.add(z, cond, log_weight, flow.log_prob(params, z, cond))
        return memory.replace(buffer=buffer, step_size=step_size), accepted

    held_out, score = ForwardKL.held_out, staticmethod(ForwardKL.score)


def build(
    *,
    batch_size: int,
    distributions: int = 4,
    leapfrog: int = 3,
    step_size: float = 0.1,
    every: int = 4,
    forward_batch: int = 256,
    buffer_size: int = 8192,
) -> FAB:
    """The objective of these options, see `FAB`."""
    return FAB(batch_size, distributions, leapfrog, step_size, every, forward_batch, buffer_size)
