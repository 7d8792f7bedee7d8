"""Forward KL by self-normalised importance weights."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from promptgen_jax import checks
from promptgen_jax.ebm import LatentEBM
from promptgen_jax.objectives._shared import Stateless, shard, sharding_field
from promptgen_jax.types import Array, Density, PyTree, Spec, spec_field

BISECTIONS = 20


@dataclasses.dataclass(frozen=True)
class ForwardKL(Stateless):
    """Forward KL(p(z|C) || q) by self-normalised importance weights.

    Proposals come half from the prior and half from the flow (a defensive mixture), so every region of the prior stays
    in view. `loss` is -Σ w log q, not the free energy.

    With `least_ess` the target is annealed, p_z(z) exp(-t E_C), where t in [0, 1] is the largest with which that share
    of the batch is effective. It rises to 1 by itself as the flow comes closer, see the metric `temper`.

    Attributes:
      batch_size: samples whose energy is computed, no gradient of it.
      prior_share: of them from the prior, from 0 to 1.
      least_ess: least effective share of the batch; 0 leaves the target as it is.
      sharding: of the batch axis over devices; set by the trainer.

    Source of the adaptive t: A. Jasra et al., Inference for Lévy-driven stochastic volatility models via adaptive
    sequential Monte Carlo, 2011.
    """

    needs_fixed_target: ClassVar[bool] = True
    tells_moments: ClassVar[bool] = False

    batch_size: int
    prior_share: float = 0.5
    least_ess: float = 0.0
    sharding: Any = sharding_field()
    spec: Spec | None = spec_field()

    def __post_init__(self) -> None:
        """Raises ValueError for shares out of range."""
        checks.check_number("forward_kl: prior_share", self.prior_share, 0, 1)
        checks.check_number("forward_kl: least_ess", self.least_ess, 0, 1)

    def __call__(self, params: PyTree, key: Array, ebm: LatentEBM, flow: Density) -> tuple[Array, dict]:
        """Returns the loss () and its terms by name."""
        key_prior, key_flow, key_ebm = jax.random.split(key, 3)
        prior = ebm.generator.prior
        num_prior = round(self.batch_size * self.prior_share)
        cond = ebm.draw_cond(jax.random.fold_in(key_prior, 1), self.batch_size)
        z = prior.sample(key_prior, num_prior)
        if num_prior < self.batch_size:
            cond_flow = None if cond is None else cond[num_prior:]
            count = self.batch_size - num_prior
            z = jnp.concatenate([z, flow.sample_and_log_prob(params, key_flow, count, cond_flow)[0]])
        z = shard(self, jax.lax.stop_gradient(z))
        log_q = flow.log_prob(params, z, cond)
        energies = jax.lax.stop_gradient(ebm.energies(key_ebm, z, cond))
        log_prior = prior.log_prob(z)
        share = num_prior / self.batch_size
        log_proposal = log_mixture(share, log_prior, log_q)
        log_base, energy = jax.lax.stop_gradient((log_prior - log_proposal, ebm.total(energies, cond)))
        temper = coldest(log_base, energy, self.least_ess * self.batch_size) if self.least_ess else jnp.ones(())
        weight = jax.nn.softmax(log_base - temper * energy)
        loss = -jnp.sum(weight * log_q)
        metrics = {f"energy/{name}": jnp.sum(weight * value) for name, value in energies.items()}
        metrics |= {
            "loss": loss,
            "prior": -jnp.sum(weight * log_prior),
            "ess": 1 / jnp.sum(weight**2) / self.batch_size,
        }
        metrics |= {"temper": temper} if self.least_ess else {}
        return loss, metrics

    def held_out(self, params: PyTree, key: Array, ebm: LatentEBM, flow: Density) -> tuple[Array, Array]:
        """Log weights (B,) and log q (B,) of frozen samples of the prior, whose target does not move with the flow."""
        key_z, key_ebm = jax.random.split(key)
        prior = ebm.generator.prior
        z = shard(self, prior.sample(key_z, self.batch_size))
        cond = ebm.draw_cond(jax.random.fold_in(key_z, 1), self.batch_size)
        return -ebm.total(ebm.energies(key_ebm, z, cond), cond), flow.log_prob(params, z, cond)

    @staticmethod
    def score(held_out: list[tuple[Array, Array]]) -> Array:
        """-Σ w log q () over what `held_out` returned for several keys, in nats, w adding up to 1 over all of it."""
        log_weight, log_q = (jnp.concatenate(each) for each in zip(*held_out, strict=True))
        return -jnp.sum(jax.nn.softmax(log_weight) * log_q)


def log_mixture(prior_share: float, log_prior: Array, log_q: Array) -> Array:
    """Log density (B,), nats, of a proposal that is the prior for this share and the flow for the rest."""
    none = jnp.full_like(log_prior, -jnp.inf)
    return jnp.logaddexp(
        jnp.log(prior_share) + log_prior if prior_share else none,
        jnp.log1p(-prior_share) + log_q if prior_share < 1 else none,
    )


def coldest(log_base: Array, energy: Array, least: float) -> Array:
    """The largest t () in [0, 1] for which log weights `log_base - t energy` (B,) have `least` effective samples."""

    def enough(t: Array | float) -> Array:
        weight = jax.nn.softmax(log_base - t * energy)
        return 1 / jnp.sum(weight**2) >= least

    def halve(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        return jnp.where(enough(middle), middle, low), jnp.where(enough(middle), high, middle)

    low, _ = jax.lax.fori_loop(0, BISECTIONS, halve, (jnp.zeros(()), jnp.ones(())))
    return jnp.where(enough(1.0), 1.0, low)


def build(*, batch_size: int, prior_share: float = 0.5) -> ForwardKL:
    """The objective of these options, see `ForwardKL`."""
    return ForwardKL(batch_size=batch_size, prior_share=prior_share)
