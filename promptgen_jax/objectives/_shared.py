"""What objectives have in common: their contract, draws, the terms of Eq. 10, and a base for those without a state."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from promptgen_jax.ebm import LatentEBM
from promptgen_jax.types import FOLLOWS, Array, Density, Prior, PyTree

CONTRACT = ("init", "loss", "needs_fixed_target", "tells_moments")


class Objective(Protocol):
    """What a flow is trained by. One that can also choose the kept parameters has `held_out` and `score` besides."""

    @property
    def needs_fixed_target(self) -> bool:
        """Whether it cannot train on a target that moves with the flow."""

    @property
    def tells_moments(self) -> bool:
        """Whether the gradient of its loss by beta is -weight times the flow's moments."""

    def init(self, ebm: LatentEBM, flow: Density, params: PyTree) -> PyTree:
        """What it remembers between steps, a replay buffer or a baseline, or ()."""

    def loss(
        self, params: PyTree, state: PyTree, key: Array, ebm: LatentEBM, flow: Density
    ) -> tuple[Array, tuple[PyTree, dict[str, Array]]]:
        """The loss (), and the new state with the terms by name."""


class Stateless:
    """A base for objectives without a state: they define `objective(params, key, ebm, flow) -> (loss, metrics)`."""

    __call__: Callable[..., tuple[Array, dict[str, Array]]]

    def init(self, ebm: LatentEBM, flow: Density, params: PyTree) -> tuple:
        """No state."""
        return ()

    def loss(
        self, params: PyTree, state: tuple, key: Array, ebm: LatentEBM, flow: Density
    ) -> tuple[Array, tuple[tuple, dict[str, Array]]]:
        """The loss (), and the state as it was with the terms by name."""
        value, metrics = self(params, key, ebm, flow)
        return value, (state, metrics)


def missing(objective: object) -> list[str]:
    """What an object lacks to be an objective."""
    return [name for name in CONTRACT if not hasattr(objective, name)]


def can_choose(objective: object) -> bool:
    """Whether an objective has a figure on frozen keys by which parameters can be chosen."""
    return hasattr(objective, "held_out")


def receive(objective: Any, memory: PyTree, draws: Any) -> PyTree:
    """What an objective remembers, with weighted samples of the prior, if it has a place for them."""
    return objective.receive(memory, draws) if draws is not None and hasattr(objective, "receive") else memory


def sharding_field() -> Any:
    """The field of an objective in which the trainer writes how the batch is split; no part of what it is."""
    return dataclasses.field(default=None, repr=False, metadata={FOLLOWS: True})


def sharded(objective: Any, sharding: jax.sharding.Sharding) -> Any:
    """The same objective with its batch split over devices, if it has a place to say so."""
    has_place = dataclasses.is_dataclass(objective) and hasattr(objective, "sharding")
    return dataclasses.replace(objective, sharding=sharding) if has_place else objective


def summary(
    ebm: LatentEBM,
    energies: dict[str, Array],
    cond: Array | None,
    kl_prior: Array,
    z: Array,
    log_dets: tuple[Array, ...],
) -> tuple[Array, dict[str, Array]]:
    """The free energy () of Eq. 10, and its terms by name; `energies` are those under the conditions `cond`."""
    metrics = {f"energy/{name}": jnp.mean(value) for name, value in energies.items()}
    loss = jnp.mean(kl_prior) + jnp.mean(ebm.total(energies, cond))
    metrics |= {
        "loss": loss,
        "prior": -jnp.mean(ebm.generator.prior.log_prob(z)),
        "log_det": jnp.mean(sum(log_dets, start=jnp.zeros(()))),
        "kl_prior": jnp.mean(kl_prior),
    }
    if len(log_dets) > 1:
        metrics |= {f"log_det/{index}": jnp.mean(log_det) for index, log_det in enumerate(log_dets)}
    return loss, metrics


def shard(objective: Any, batch: Array) -> Array:
    """A batch split over the devices that the objective was given."""
    return batch if objective.sharding is None else jax.lax.with_sharding_constraint(batch, objective.sharding)


def spread(objective: Any, num_rows: int, batch: Array) -> Array:
    """So many rows of a batch at equal distances: as it is split over devices, every device has its own already."""
    distance = len(batch) // num_rows
    rows = batch[: num_rows * distance].reshape(num_rows, distance, *batch.shape[1:])
    return shard(objective, rows[:, 0])


def draw(objective: Any, key: Array, prior: Prior, num_samples: int) -> Array:
    """Noise (num_samples, D), split over the devices."""
    return shard(objective, prior.sample(key, num_samples))


def reference(params: PyTree, ebm: LatentEBM, flow: Density, eps: Array, cond: Array | None) -> Array | None:
    """Latents of the same eps at the canonical condition, which is zero (Eq. 12), or if there is none, eps itself."""
    if not ebm.needs_reference:
        return None
    return eps if cond is None else flow.forward_and_log_det(params, eps, jnp.zeros_like(cond))[0]
