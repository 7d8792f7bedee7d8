"""Forward and reverse KL together: likely things only, and all of them."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from promptgen_jax import checks
from promptgen_jax.draws import Draws
from promptgen_jax.ebm import LatentEBM
from promptgen_jax.objectives._annealed import annealed
from promptgen_jax.objectives._buffer import Buffer
from promptgen_jax.objectives._shared import draw, sharding_field
from promptgen_jax.objectives.forward_kl import ForwardKL, log_mixture
from promptgen_jax.objectives.path_gradient import PathGradient
from promptgen_jax.types import Array, Density, PyTree, Spec, spec_field

FIRST_STEP = 0.1  # of the Hamiltonian moves, which then follows the share that is accepted


class Led(Buffer):
    """A buffer, and the step size () of the moves by which some of its samples were led there."""

    step_size: Array


@dataclasses.dataclass(frozen=True)
class Mixed:
    """a KL(p(z|C) || q) + (1 - a) KL(q || p(z|C)): the first punishes what is missed, the second what is made up.

    The reverse part is the path gradient. Its samples, with energies that are known anyway, and `prior_batch` fresh
    ones of the prior are weighed by the balance heuristic, w = p_z exp(-E_C) / m with m the mixture of both, and kept
    in a buffer that is refilled step by step. The forward part is -log q on `forward_batch` samples drawn from it by
    weight, which costs no image. Where modes are far apart the reverse part may lose one early: then forward_kl,
    annealed or fab find more of them.

    Where weights are poor, `tempered` samples of the mixture are led from it to the target by annealed importance
    sampling before they enter the buffer: as long as fewer samples are effective there than are drawn from it.

    Attributes:
      batch_size: samples of the flow whose energy and its gradient are computed.
      forward_share: a, from 0 to 1.
      prior_batch: fresh samples of the prior whose energy is computed; 0 for as many as batch_size.
      forward_batch: samples of the buffer.
      buffer_size: samples that it holds.
      tempered: of the samples of a step, how many are led to the target where weights are poor; 0 for none.
      distributions: K, steps on their way, each of which costs 1 + `leapfrog` gradients of the energy of each.
      leapfrog: steps of a Hamiltonian move.
      sharding: of the batch axis over devices; set by the trainer.

    `loss` among the metrics is the free energy, as for reverse KL, `forward` the cross-entropy E_target[-log q], and
    `ess` the effective number of samples in the buffer; `accepted` the share of accepted moves, 0 where none was made.
    """

    needs_fixed_target: ClassVar[bool] = True
    tells_moments: ClassVar[bool] = False

    batch_size: int
    forward_share: float = 0.5
    prior_batch: int = 0
    forward_batch: int = 256
    buffer_size: int = 8192
    tempered: int = 0
    distributions: int = 4
    leapfrog: int = 3
    sharding: Any = sharding_field()
    spec: Spec | None = spec_field()

    def __post_init__(self) -> None:
        """Raises ValueError for counts and shares out of range."""
        checks.check_number("mixed: forward_share", self.forward_share, 0, 1)
        for name in ("prior_batch", "tempered"):
            checks.check_count(f"mixed: {name}", getattr(self, name), minimum=0)
        for name in ("forward_batch", "buffer_size", "distributions", "leapfrog"):
            checks.check_count(f"mixed: {name}", getattr(self, name))
        if self.tempered > self.batch_size:
            raise ValueError(f"mixed: tempered is {self.tempered}, of a batch of {self.batch_size} samples. Lower it.")

    def init(self, ebm: LatentEBM, flow: Density, params: PyTree) -> Buffer:
        """An empty buffer."""
        if self.tempered:
            return Led.empty(ebm, self.buffer_size, step_size=jnp.float32(FIRST_STEP))
        return Buffer.empty(ebm, self.buffer_size)

    def receive(self, buffer: Buffer, draws: Draws) -> Buffer:
        """The buffer with weighted samples of the prior, whose energies somebody has paid for already."""
        weight, log_prob = (jnp.asarray(np.asarray(each)) for each in (draws.log_weight, draws.log_prob))
        return buffer.add(jnp.asarray(draws.z), draws.cond, weight, log_prob)

    def loss(
        self, params: PyTree, buffer: Buffer, key: Array, ebm: LatentEBM, flow: Density
    ) -> tuple[Array, tuple[Buffer, dict]]:
        """The loss (), and the refilled buffer with the terms by name."""
        key_flow, key_prior, key_ebm, key_rows = jax.random.split(key, 4)
        prior = ebm.generator.prior
        reverse = PathGradient(batch_size=self.batch_size, sharding=self.sharding)
        (free_energy, metrics), seen = reverse.seen(params, key_flow, ebm, flow)

        fresh = draw(self, key_prior, prior, self.prior_batch or self.batch_size)
        cond = ebm.draw_cond(jax.random.fold_in(key_prior, 1), len(fresh))
        log_q = flow.log_prob(jax.lax.stop_gradient(params), fresh, cond)
        both = (seen, (fresh, cond, log_q, ebm.energy(key_ebm, fresh, cond)))
        z, cond, log_q, energy = jax.lax.stop_gradient(jax.tree.map(lambda *each: jnp.concatenate(each), *both))
        log_prior = prior.log_prob(z)
        share = len(fresh) / len(z)
        log_weight = log_prior - energy - log_mixture(share, log_prior, log_q)
        if isinstance(buffer, Led):
            (z, log_weight, log_q), buffer, accepted = self._led(
                jax.lax.stop_gradient(params), (z, cond, log_weight, log_q), buffer, share, key, ebm, flow
            )
            metrics |= {"accepted": accepted}
        buffer = buffer.add(z, cond, log_weight, log_q)

        z, cond = buffer.rows(buffer.choose(key_rows, self.forward_batch))
        forward = -jnp.mean(flow.log_prob(params, z, cond))
        metrics |= {"forward": forward, "ess": buffer.ess()}
        return self.forward_share * forward + (1 - self.forward_share) * free_energy, (buffer, metrics)

    def _led(
        self, params: PyTree, samples: tuple, buffer: Led, share: float, key: Array, ebm: LatentEBM, flow: Density
    ) -> tuple[tuple[Array, Array, Array], Led, Array]:
        """z, log weights and log q of the mixture's samples, some of them led to the target where weights are poor."""
        key_rows, key_moves, key_ebm = jax.random.split(jax.random.fold_in(key, 1), 3)
        z, cond, log_weight, log_q = samples
        rows = jax.random.permutation(key_rows, len(z))[: self.tempered]
        some = None if cond is None else cond[rows]

        def densities(z: Array) -> tuple[Array, Array]:
            log_prior = ebm.generator.prior.log_prob(z)
            mixture = log_mixture(share, log_prior, flow.log_prob(params, z, some))
            return mixture, log_prior - ebm.energy(key_ebm, z, some)

        def lead(step_size: Array) -> tuple[tuple[Array, Array, Array], Array, Array]:
            steps = {"distributions": self.distributions, "leapfrog": self.leapfrog}
            moved, weight, step_size, accepted = annealed(densities, key_moves, z[rows], step_size, **steps)
            led = z.at[rows].set(moved), log_weight.at[rows].set(weight)
            return (*led, log_q.at[rows].set(flow.log_prob(params, moved, some))), step_size, accepted

        def leave(step_size: Array) -> tuple[tuple[Array, Array, Array], Array, Array]:
            return (z, log_weight, log_q), step_size, jnp.zeros(())

        poor = buffer.ess() < self.forward_batch
        samples, step_size, accepted = jax.lax.cond(poor, lead, leave, buffer.step_size)
        return jax.lax.stop_gradient(samples), buffer.replace(step_size=step_size), accepted

    held_out, score = ForwardKL.held_out, staticmethod(ForwardKL.score)


def build(
    *,
    batch_size: int,
    forward_share: float = 0.5,
    prior_batch: int = 0,
    forward_batch: int = 256,
    buffer_size: int = 8192,
    tempered: int = 0,
    distributions: int = 4,
    leapfrog: int = 3,
) -> Mixed:
    """The objective of these options, see `Mixed`."""
    return Mixed(batch_size, forward_share, prior_batch, forward_batch, buffer_size, tempered, distributions, leapfrog)
