"""FAB: samples that annealed importance sampling leads from the flow to where it is too thin."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import struct

from promptgen_jax import checks
from promptgen_jax.ebm import LatentEBM
from promptgen_jax.objectives._buffer import Buffer
from promptgen_jax.objectives._shared import draw, sharding_field
from promptgen_jax.objectives.forward_kl import ForwardKL
from promptgen_jax.types import Array, Density, PyTree, Spec, spec_field

ACCEPTED, PACE = 0.65, 1.05  # wanted share of accepted moves, and the factor by which the step size follows it
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
        share = jax.nn.softmax(buffer.log_weight)
        metrics = {"loss": loss, "ess": 1 / jnp.sum(share**2), "step_size": memory.step_size, "accepted": accepted}
        return loss, (memory.replace(buffer=buffer, updates=memory.updates + 1), metrics)

    def _refill(
        self, params: PyTree, memory: Memory, key: Array, ebm: LatentEBM, flow: Density
    ) -> tuple[Memory, Array]:
        """The buffer with a batch led to p²/q, and the share of accepted moves ()."""
        key_eps, key_ebm, key_moves = jax.random.split(key, 3)
        cond = ebm.draw_cond(jax.random.fold_in(key_eps, 1), self.batch_size)
        eps = draw(self, key_eps, ebm.generator.prior, self.batch_size)
        z, log_det = flow.forward_and_log_det(params, eps, cond)

        def both(z: Array) -> tuple[Array, Array]:
            return ebm.log_prob(key_ebm, z, cond), flow.log_prob(params, z, cond)

        def log_g(z: Array, b: Array) -> Array:
            log_p, log_q = both(z)
            return 2 * b * log_p + (1 - 2 * b) * log_q

        def lead(carried: tuple[Array, Array, Array], number: Array) -> tuple[tuple[Array, Array, Array], Array]:
            z, log_weight, step_size = carried
            b = number / self.distributions
            log_p, log_q = both(z)
            log_weight += 2 * (log_p - log_q) / self.distributions
            moved, share = hamiltonian(
                lambda z: log_g(z, b), jax.random.fold_in(key_moves, number), z, step_size, self.leapfrog
            )
            step_size *= jnp.where(share > ACCEPTED, PACE, 1 / PACE)
            return (moved, log_weight, step_size), share

        start = z, jnp.zeros(self.batch_size), memory.step_size
        (z, log_weight, step_size), shares = jax.lax.scan(lead, start, jnp.arange(1, self.distributions + 1))
        buffer = memory.buffer.add(z, cond, log_weight, flow.log_prob(params, z, cond))
        return memory.replace(buffer=buffer, step_size=step_size), jnp.mean(shares)

    held_out, score = ForwardKL.held_out, staticmethod(ForwardKL.score)


def hamiltonian(
    log_density: Callable[[Array], Array], key: Array, z: Array, step_size: Array, num_steps: int
) -> tuple[Array, Array]:
    """One Hamiltonian move of every sample, accepted or refused alone.

    Args:
      log_density: of z (B, D) to (B,), nats, up to a constant.
      key: draws momenta and what is accepted.
      z: (B, D).
      step_size: () of the leapfrog.
      num_steps: of the leapfrog, each one gradient.

    Returns:
      z (B, D), and the share of accepted moves ().

    Source: R. Neal, MCMC using Hamiltonian dynamics, arXiv 1206.1901, figure 2.
    """
    key_momentum, key_accept = jax.random.split(key)
    slope = jax.value_and_grad(lambda z: (lambda each: (jnp.sum(each), each))(log_density(z)), has_aux=True)

    def leap(carried: Any, _: None) -> tuple[Any, None]:
        z, momentum, gradient, _ = carried
        momentum += 0.5 * step_size * gradient
        z += step_size * momentum
        (_, value), gradient = slope(z)
        return (z, momentum + 0.5 * step_size * gradient, gradient, value), None

    start = jax.random.normal(key_momentum, z.shape)
    (_, before), gradient = slope(z)
    (end, momentum, _, after), _ = jax.lax.scan(leap, (z, start, gradient, before), None, num_steps)
    gain = after - before - 0.5 * jnp.sum(momentum**2 - start**2, axis=1)
    accepted = jnp.log(jax.random.uniform(key_accept, gain.shape)) < gain  # NaN is refused
    return jnp.where(accepted[:, None], end, z), jnp.mean(accepted)


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
