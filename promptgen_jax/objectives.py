"""Training objectives behind one signature: `objective(params, key, ebm, flow) -> (loss, metrics)`.

The loss is a variational free energy in nats: Eq. 10 of arXiv 2209.06970 minus the constant entropy of the base,

    loss = E_q[log q(z) - log p_z(z) + E_C(G(z))] = KL(q || p(z|C)) - log Z,

so its smallest possible value is -log Z. Metrics: `loss`, `energy/<name>` (unweighted), `prior` = -log p_z(z),
`log_det`, `kl_prior` = KL(q || p_z); with several blocks also the `log_det/<block>` of each flow (Eq. 11).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from promptgen_jax.ebm import LatentEBM
from promptgen_jax.flows.base import Flow
from promptgen_jax.types import Array, PyTree


@dataclasses.dataclass(frozen=True)
class ReverseKL:
    """The paper's objective, Eq. 10, by the path gradient through generator and controls.

    Attributes:
      batch_size: noise vectors whose energy is computed.
      kl_batch_size: noise vectors for the cheap terms -log_det - log p_z, at least batch_size; more of them remove
        gradient noise at almost no cost. 0 means batch_size.
      sharding: of the batch axis over devices; set by the trainer.
    """

    batch_size: int
    kl_batch_size: int = 0
    sharding: Any = None

    def __call__(self, params: PyTree, key: Array, ebm: LatentEBM, flow: Flow) -> tuple[Array, dict]:
        """Returns the loss () and its terms by name."""
        key_eps, key_ebm = jax.random.split(key)
        eps = _draw(self, key_eps, ebm.generator.prior, max(self.kl_batch_size, self.batch_size))
        cond = ebm.draw_cond(jax.random.fold_in(key_eps, 1), eps.shape[0])
        z, log_dets = flow.forward_and_log_dets(params, eps, cond)
        prior = ebm.generator.prior
        kl_prior = prior.log_prob(eps) - sum(log_dets) - prior.log_prob(z)
        small, cond = _shard(self, z[: self.batch_size]), None if cond is None else cond[: self.batch_size]
        reference_z = _reference(params, ebm, flow, eps[: self.batch_size], cond)
        energies = ebm.energies(key_ebm, small, cond, reference_z)
        return _summary(ebm, energies, kl_prior, z, log_dets)


@dataclasses.dataclass(frozen=True)
class ScoreFunction:
    """Reverse KL by the score-function estimator with a leave-one-out baseline.

    grad = E_q[(f(z) - mean of the others' f) grad log q(z)], f = log q - log p_z + E_C. It needs energy values only,
    so it works for energies without a (useful) gradient, and its variance vanishes as q reaches the target.
    Source: arXiv 2510.10020 for the use on moment constraints; leave-one-out baseline of Kool et al. 2019.
    """

    batch_size: int
    sharding: Any = None

    def __call__(self, params: PyTree, key: Array, ebm: LatentEBM, flow: Flow) -> tuple[Array, dict]:
        """Returns the loss (), whose gradient is the estimator, and its terms by name."""
        key_eps, key_ebm = jax.random.split(key)
        prior = ebm.generator.prior
        eps = _draw(self, key_eps, prior, self.batch_size)
        cond = ebm.draw_cond(jax.random.fold_in(key_eps, 1), self.batch_size)
        z, log_dets = jax.lax.stop_gradient(flow.forward_and_log_dets(params, eps, cond))
        energies = ebm.energies(key_ebm, z, cond)
        kl_prior = prior.log_prob(eps) - sum(log_dets) - prior.log_prob(z)
        loss, metrics = _summary(ebm, energies, kl_prior, z, log_dets)
        free_energy = jax.lax.stop_gradient(kl_prior + ebm.total(energies))
        advantage = (free_energy - jnp.mean(free_energy)) * self.batch_size / (self.batch_size - 1)
        surrogate = jnp.mean(advantage * flow.log_prob(params, z, cond))
        return loss + surrogate - jax.lax.stop_gradient(surrogate), metrics


@dataclasses.dataclass(frozen=True)
class ForwardKL:
    """Forward KL(p(z|C) || q) by self-normalised importance weights.

    Proposals come half from the prior and half from the flow (a defensive mixture), so every region of the prior stays
    in view. `loss` is -Σ w log q, not the free energy; `free_energy` is reported beside it.
    """

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
        z = _shard(self, jax.lax.stop_gradient(z))
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


OBJECTIVES = {"reverse_kl": ReverseKL, "score_function": ScoreFunction, "forward_kl": ForwardKL}


def _summary(ebm: LatentEBM, energies: dict, kl_prior: Array, z: Array, log_dets: tuple) -> tuple[Array, dict]:
    metrics = {f"energy/{name}": jnp.mean(value) for name, value in energies.items()}
    loss = jnp.mean(kl_prior) + jnp.mean(ebm.total(energies))
    metrics |= {
        "loss": loss,
        "prior": -jnp.mean(ebm.generator.prior.log_prob(z)),
        "log_det": jnp.mean(sum(log_dets)),
        "kl_prior": jnp.mean(kl_prior),
    }
    if len(log_dets) > 1:
        metrics |= {f"log_det/{index}": jnp.mean(log_det) for index, log_det in enumerate(log_dets)}
    return loss, metrics


def _shard(objective, batch: Array) -> Array:
    return batch if objective.sharding is None else jax.lax.with_sharding_constraint(batch, objective.sharding)


def _draw(objective, key: Array, prior, num_samples: int) -> Array:
    return _shard(objective, prior.sample(key, num_samples))


def _reference(params: PyTree, ebm: LatentEBM, flow: Flow, eps: Array, cond: Array | None) -> Array | None:
    """Latents of the same eps at the canonical condition, which is zero (Eq. 12), or if there is none, eps itself."""
    if not ebm.needs_reference:
        return None
    return eps if cond is None else flow.forward_and_log_det(params, eps, jnp.zeros_like(cond))[0]
