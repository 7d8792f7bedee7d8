"""What objectives have in common: draws, the terms of Eq. 10, and a contract without a state of their own."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from promptgen_jax.ebm import LatentEBM
from promptgen_jax.flows.base import Flow
from promptgen_jax.types import Array, PyTree

CONTRACT = ("init", "loss", "needs_fixed_target", "tells_moments")


def missing(objective) -> list[str]:
    """What an object lacks to be an objective."""
    return [name for name in CONTRACT if not hasattr(objective, name)]


def can_choose(objective) -> bool:
    """Whether an objective has a figure on frozen keys by which parameters can be chosen."""
    return hasattr(objective, "held_out")


def received(objective, memory: PyTree, draws) -> PyTree:
    """The state of an objective once it has seen weighted samples of its target, if it has a use for any."""
    return objective.receive(memory, draws) if draws is not None and hasattr(objective, "receive") else memory


def sharded(objective, sharding):
    """The same objective with its batch split over devices, if it has a place to say so."""
    if not dataclasses.is_dataclass(objective) or not hasattr(objective, "sharding"):
        return objective
    return dataclasses.replace(objective, sharding=sharding)


class Stateless:
    """An objective without a state, from `objective(params, key, ebm, flow) -> (loss, metrics)`."""

    def init(self, ebm: LatentEBM, flow: Flow, params: PyTree) -> tuple:
        """No state."""
        return ()

    def loss(
        self, params: PyTree, state: tuple, key: Array, ebm: LatentEBM, flow: Flow
    ) -> tuple[Array, tuple[tuple, dict]]:
        """The loss (), and the state as it was with the terms by name."""
        value, metrics = self(params, key, ebm, flow)
        return value, (state, metrics)


def summary(ebm: LatentEBM, energies: dict, kl_prior: Array, z: Array, log_dets: tuple) -> tuple[Array, dict]:
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


def shard(objective, batch: Array) -> Array:
    return batch if objective.sharding is None else jax.lax.with_sharding_constraint(batch, objective.sharding)


def draw(objective, key: Array, prior, num_samples: int) -> Array:
    return shard(objective, prior.sample(key, num_samples))


def reference(params: PyTree, ebm: LatentEBM, flow: Flow, eps: Array, cond: Array | None) -> Array | None:
    """Latents of the same eps at the canonical condition, which is zero (Eq. 12), or if there is none, eps itself."""
    if not ebm.needs_reference:
        return None
    return eps if cond is None else flow.forward_and_log_det(params, eps, jnp.zeros_like(cond))[0]
