"""What samplers share: where they start, running a function over all samples, and counting what it costs."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np

from promptgen_jax import checks, devices
from promptgen_jax.draws import Cost, Draws, sample_keys
from promptgen_jax.ebm import LatentEBM
from promptgen_jax.types import Array

BATCH_SIZE = 64  # chains per device at a time


def start(who: str, key: Array, ebm: LatentEBM, num_samples: int, given: Draws | None = None) -> Draws:
    """Draws of the prior, with conditions if the target has any, or those that were given.

    Raises:
      TypeError, ValueError: a raw key, a count below 1, another number of given draws, or a target that moves with the
        flow, so that it cannot be sampled.
    """
    checks.check_key(who, key)
    checks.check_count(f"{who}: num_samples", num_samples)
    if ebm.needs_reference:
        names = ", ".join(control.name for control in ebm.controls if control.needs_reference)
        raise ValueError(
            f"{who}: {names} compares with an image that the flow itself makes, so there is no fixed target to sample. "
            "Sample without it: ebm.replace(controls=...)."
        )
    if given is None:
        cond = ebm.draw_cond(jax.random.fold_in(key, 1), num_samples)
        return Draws.of_prior(ebm.generator.prior, key, num_samples, cond=cond)
    if len(given.z) != num_samples:
        raise ValueError(f"{who}: start has {len(given.z)} draws; expected {num_samples}. Draw as many.")
    return given


def log_target(ebm: LatentEBM, key: Array, z: Array, cond: Array | None = None) -> Array:
    """Log p_z(z) - E_C(G(z)) () of one latent (D,), nats, under a key of its own."""
    return ebm.log_prob(key, z[None], None if cond is None else cond[None])[0]


def run(walk: Callable, sampler: Any, ebm: LatentEBM, draws: Draws, key: Array) -> tuple[Any, float]:
    """`walk(sampler, ebm, chain_key, key, z, cond)` of one sample, for every one of some draws.

    Args:
      walk: of one sample, with two keys of its own, of its chain and of the noise of its target, and z (D,).
      sampler: its options, a pytree.
      ebm: the target.
      draws: where they start.
      key: of the chains, each of which has one of its own by its number.

    Returns:
      (tree of NumPy arrays with a row per sample, seconds without compilation)
    """
    chain_keys = sample_keys(jax.random.fold_in(key, 2), np.arange(len(draws.z)))
    arrays = (chain_keys, draws.key, draws.z, *devices.filter_none(draws.cond))
    with stopwatch() as seconds:
        made = devices.map_batches(_mapped(walk), BATCH_SIZE, *arrays, shared=(sampler, ebm))
    return made, seconds()


def energies(ebm: LatentEBM, draws: Draws) -> tuple[np.ndarray, float]:
    """E_C(G(z)) (N,), nats, of draws, and the seconds it took.

    Raises:
      ValueError: NaN among them.
    """
    found, seconds = run(_energy, (), ebm, draws, jax.random.key(0))  # which it does not use
    checks.check_density("sampler", -found)
    return found, seconds


def energy(z: Array, ebm: LatentEBM, key: Array, cond: Array | None = None) -> Array:
    """E_C(G(z)) () of one latent (D,), nats, under a key of its own."""
    return ebm.energy(key, z[None], None if cond is None else cond[None])[0]


def _energy(_, ebm: LatentEBM, chain_key: Array, key: Array, z: Array, cond: Array | None = None) -> Array:
    del chain_key
    return energy(z, ebm, key, cond)


def moved(draws: Draws, z: Array, seconds: float, *, energy_calls: int = 0, gradient_calls: int = 0) -> Draws:
    """Draws at other latents, equally weighted, whose density nobody knows; the cost is added.

    Raises:
      ValueError: latents that are NaN or infinite, as of chains whose steps are too large.
    """
    if bad := int(np.sum(~np.isfinite(np.asarray(z)).all(axis=1))):
        raise ValueError(f"sampler: {bad} of {len(z)} samples became NaN or infinite. Take smaller steps.")
    before = draws.cost
    cost = Cost(before.energy_calls + energy_calls, before.gradient_calls + gradient_calls, before.seconds + seconds)
    return draws.replace(z=jnp.asarray(z), log_weight=jnp.zeros(len(z)), log_prob=None, cost=cost)


@contextlib.contextmanager
def stopwatch() -> Iterator[Callable[[], float]]:
    """Measures seconds from its start, less those in which JAX traced and compiled."""
    compiling, began = [0.0], time.perf_counter()

    def listen(event: str, duration_secs: float, **_: Any) -> None:
        if event.startswith("/jax/core/compile/"):
            compiling[0] += duration_secs

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield lambda: max(0.0, time.perf_counter() - began - compiling[0])
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


@functools.cache
def _mapped(walk: Callable) -> Callable:
    """The function of many samples, compiled once for each walk."""

    def every(sampler, ebm, chains, keys, z, *cond):
        return jax.vmap(lambda *rows: walk(sampler, ebm, *rows))(chains, keys, z, *cond)

    return jax.jit(every)
