"""Forward KL by self-normalised importance weights."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from promptgen_jax.ebm import LatentEBM
from promptgen_jax.flows.base import Flow
from promptgen_jax.objectives._shared import Stateless, shard
from promptgen_jax.types import Array, PyTree


@dataclasses.dataclass(frozen=True)
class ForwardKL(Stateless):
    """Forward KL(p(z|C) || q) by self-normalised importance weights.

    Proposals come half from the prior and half from the flow (a defensive mixture), so every region of the prior stays
    in view. `loss` is -Σ w log q, not the free energy; `free_energy` is reported beside it.
    """

    needs_fixed_target: ClassVar[bool] = True
    tells_moments: ClassVar[bool] = False

    batch_size: int
    prior_share: float = 0.5
    sharding: Any = None

    def __call__(self, params: PyTree, key: Array, ebm: LatentEBM, flow: Flow) -> tuple[Array, dict]:
        """Returns the loss () and its terms by name."""
        key_prior, key_flow, key_ebm = jax.random.split(key, 3)
        prior = ebm.generator.prior
        num_prior = round(self.batch_size * self.prior_share)
        cond = ebm.draw_cond(jax.random.fold_in(key_prior, 1), self.batch_size)
        eps = prior.sample(key_flow, self.batch_size - num_prior)
        cond_flow = None if cond is None else cond[num_prior:]
        from_flow, _ = flow.forward_and_log_det(params, eps, cond_flow)
        z = jnp.concatenate([prior.sample(key_prior, num_prior), from_flow])
        z = shard(self, jax.lax.stop_gradient(z))
        log_q = flow.log_prob(params, z, cond)
        energies = jax.lax.stop_gradient(ebm.energies(key_ebm, z, cond))
        log_prior = prior.log_prob(z)
        share = num_prior / self.batch_size
        log_proposal = jnp.logaddexp(
            jnp.log(share) + log_prior if share else jnp.full_like(log_prior, -jnp.inf),
            jnp.log1p(-share) + log_q if share < 1 else jnp.full_like(log_prior, -jnp.inf),
        )
        log_weight = jax.lax.stop_gradient(log_prior - ebm.total(energies) - log_proposal)
        weight = jax.nn.softmax(log_weight)
        loss = -jnp.sum(weight * log_q)
        metrics = {f"energy/{name}": jnp.sum(weight * value) for name, value in energies.items()}
        metrics |= {
            "loss": loss,
            "prior": -jnp.sum(weight * log_prior),
            "ess": 1 / jnp.sum(weight**2) / self.batch_size,
        }
        return loss, metrics

    def held_out(self, params: PyTree, key: Array, ebm: LatentEBM, flow: Flow) -> tuple[Array, Array]:
        """Log weights (B,) and log q (B,) of frozen samples of the prior, whose target does not move with the flow."""
        key_z, key_ebm = jax.random.split(key)
        prior = ebm.generator.prior
        z = shard(self, prior.sample(key_z, self.batch_size))
        cond = ebm.draw_cond(jax.random.fold_in(key_z, 1), self.batch_size)
        return -ebm.total(ebm.energies(key_ebm, z, cond)), flow.log_prob(params, z, cond)

    @staticmethod
    def score(held_out: list[tuple[Array, Array]]) -> Array:
        """-Σ w log q () over what `held_out` returned for several keys, in nats, w adding up to 1 over all of it."""
        log_weight, log_q = (jnp.concatenate(each) for each in zip(*held_out, strict=True))
        return -jnp.sum(jax.nn.softmax(log_weight) * log_q)


def build(*, batch_size: int, prior_share: float = 0.5) -> ForwardKL:
    """The objective of these options, see `ForwardKL`."""
    return ForwardKL(batch_size=batch_size, prior_share=prior_share)
