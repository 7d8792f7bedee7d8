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
from promptgen_jax.objectives._buffer import Buffer
from promptgen_jax.objectives._shared import draw, sharding_field
from promptgen_jax.objectives.forward_kl import ForwardKL, log_mixture
from promptgen_jax.objectives.path_gradient import PathGradient
from promptgen_jax.types import Array, Density, PyTree, Spec, spec_field


@dataclasses.dataclass(frozen=True)
class Mixed:
    """a KL(p(z|C) || q) + (1 - a) KL(q || p(z|C)): the first punishes what is missed, the second what is made up.

    The reverse part is the path gradient. Its samples, with energies that are known anyway, and `prior_batch` fresh
    ones of the prior are weighed by the balance heuristic, w = p_z exp(-E_C) / m with m the mixture of both, and kept
    in a buffer that is refilled step by step. The forward part is -log q on `forward_batch` samples drawn from it by
    weight, which costs no image. Where modes are far apart the reverse part may lose one early: then forward_kl,
    annealed or fab find more of them.

    Attributes:
      batch_size: samples of the flow whose energy and its gradient are computed.
      forward_share: a, from 0 to 1.
      prior_batch: fresh samples of the prior whose energy is computed; 0 for as many as batch_size.
      forward_batch: samples of the buffer.
      buffer_size: samples that it holds.
      sharding: of the batch axis over devices; set by the trainer.

    `loss` among the metrics is the free energy, as for reverse KL, `forward` the cross-entropy E_target[-log q], and
    `ess` the effective number of samples in the buffer.
    """

    needs_fixed_target: ClassVar[bool] = True
    tells_moments: ClassVar[bool] = False

    batch_size: int
    forward_share: float = 0.5
    prior_batch: int = 0
    forward_batch: int = 256
    buffer_size: int = 8192
    sharding: Any = sharding_field()
    spec: Spec | None = spec_field()

    def __post_init__(self) -> None:
        """Raises ValueError for counts and shares out of range."""
        checks.check_number("mixed: forward_share", self.forward_share, 0, 1)
        checks.check_count("mixed: prior_batch", self.prior_batch, minimum=0)
        for name in ("forward_batch", "buffer_size"):
            checks.check_count(f"mixed: {name}", getattr(self, name))

    def init(self, ebm: LatentEBM, flow: Density, params: PyTree) -> Buffer:
        """An empty buffer."""
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
        buffer = buffer.add(z, cond, log_prior - energy - log_mixture(share, log_prior, log_q), log_q)

        z, cond = buffer.rows(buffer.choose(key_rows, self.forward_batch))
        forward = -jnp.mean(flow.log_prob(params, z, cond))
        weight = jax.nn.softmax(buffer.log_weight)
        metrics |= {"forward": forward, "ess": 1 / jnp.sum(weight**2)}
        return self.forward_share * forward + (1 - self.forward_share) * free_energy, (buffer, metrics)

    held_out, score = ForwardKL.held_out, staticmethod(ForwardKL.score)


def build(
    *,
    batch_size: int,
    forward_share: float = 0.5,
    prior_batch: int = 0,
    forward_batch: int = 256,
    buffer_size: int = 8192,
) -> Mixed:
    """The objective of these options, see `Mixed`."""
    return Mixed(batch_size, forward_share, prior_batch, forward_batch, buffer_size)
