"""`Draws`: latents with their weights and keys, as the prior, a prompt, reweighting and every sampler yield them.

Every sample has a key of its own, made of the key of the call and the sample's number. So its image is a function of
its own draw alone, in any batch, on any number of devices and hosts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.typing import ArrayLike

from promptgen_jax import checks, devices
from promptgen_jax.ebm import LatentEBM
from promptgen_jax.types import Array, Density, Generator, Prior, PyTree

if TYPE_CHECKING:
    from promptgen_jax.prompt import Prompt

GENERATOR = "threefry2x32"  # of random numbers


class Cost(NamedTuple):
    """What draws have cost.

    Attributes:
      energy_calls: energies of single samples.
      gradient_calls: gradients of them.
      seconds: of computing, without compilation; 0 where it was not timed.
    """

    energy_calls: int = 0
    gradient_calls: int = 0
    seconds: float = 0.0


class Draws(struct.PyTreeNode):
    """Samples of a distribution on the latents of a generator.

    Attributes:
      z: (N, D) latents.
      log_weight: (N,) nats, up to a constant; zero for exact draws.
      key: (N,) typed keys, for the noise of the generator and the draws of controls.
      cond: (N, A) conditions, or None.
      log_prob: (N,) log density, nats, that z was drawn with before it was weighted, or None where nobody knows it.
      cost: what it took.
    """

    z: Array
    log_weight: Array
    key: Array
    cond: Array | None = None
    log_prob: Array | None = None
    cost: Cost = Cost()

    @classmethod
    def of_noise(cls, prior: Prior, eps: Array, key: Array, cond: Array | None = None) -> Draws:
        """Given draws (N, D) of a prior, sample n with the key of number n."""
        return cls(
            z=eps,
            log_weight=jnp.zeros(len(eps)),
            key=sample_keys(key, np.arange(len(eps))),
            cond=cond,
            log_prob=prior.log_prob(eps),
        )

    @classmethod
    def of_prior(cls, prior: Prior, key: Array, num_samples: int, *, cond: Array | None = None) -> Draws:
        """Draws of a prior: sample n has the noise that `Prompt.sample` gives it under the same key, whatever N.

        Raises:
          TypeError, ValueError: a raw key, a count below 1.
        """
        checks.check_key("draws", key)
        checks.check_count("draws: num_samples", num_samples)
        numbers = np.arange(num_samples)
        return cls.of_noise(prior, noise(prior, key, numbers), key, cond)

    def through(self, prompt: Prompt) -> Draws:
        """The same noise, once it has passed the flow of a prompt: exact draws of the prompt.

        Raises:
          ValueError: the density of these draws is not known, so they are no noise.
        """
        if self.log_prob is None:
            raise ValueError("draws: their density is not known, so they are no noise for a flow. Use Draws.of_prior.")
        arrays, batch_size = (self.z, *devices.filter_none(self.cond)), devices.latents_at_a_time(self.z.shape[1])
        z, log_det = devices.map_batches(_move, batch_size, *arrays, shared=(prompt.flow, prompt.params))
        return self.replace(z=z, log_prob=np.asarray(self.log_prob) - log_det)

    def weighted(self, log_weight: Any) -> Draws:
        """The same draws with other log weights (N,), nats."""
        return self.replace(log_weight=jnp.asarray(log_weight, jnp.float32))

    def weights(self) -> np.ndarray | None:
        """Importance weights (N,) in float64, the largest 1, or None if all are equal."""
        return weights_of(self.log_weight)

    def ess(self) -> float:
        """Effective sample size (Σ w)² / Σ w², from 1 to N."""
        weights = self.weights()
        return float(len(self.z) if weights is None else weights.sum() ** 2 / np.sum(weights**2))

    def take(self, rows: Any) -> Draws:
        """Some of the draws, by number or slice."""
        return jax.tree.map(lambda leaf: leaf[rows] if np.ndim(leaf) else leaf, self)

    def resampled(self, key: Array, num_samples: int) -> Draws:
        """Equally weighted draws, chosen with repetition by weight; each keeps its own key."""
        checks.check_key("draws.resampled", key)
        checks.check_count("draws.resampled: num_samples", num_samples)
        chosen = self.take(chosen_rows(key, self.log_weight, num_samples))
        return chosen.replace(log_weight=jnp.zeros(num_samples), log_prob=None)


class Sampler(Protocol):
    """A way to draw from a target without training: an object that a file of `samplers` builds.

    Sample n has the key of its number, so it is the same in any batch, on any number of devices.
    """

    @property
    def name(self) -> str:
        """Name for messages, that of its file."""

    def __call__(self, key: Array, ebm: LatentEBM, num_samples: int) -> Draws:
        """Draws of the target, weighted or not, with what they cost."""


def importance(draws: Draws, ebm: LatentEBM, *, batch_size: int | None = None) -> Draws:
    """Draws weighted for the target: log w = log p_z(z) - E_C(G(z)) - log q(z), with log q their `log_prob`.

    Args:
      draws: of a prior or a prompt, equally weighted.
      ebm: the target, a `LatentEBM` whose latents these are.
      batch_size: samples per device at a time; None for what `devices.seen_at_a_time` says.

    Raises:
      ValueError: a control compares with an image that the flow itself makes, the density is not known, or energies are
        NaN or all infinite.
    """
    if ebm.needs_reference:
        names = ", ".join(control.name for control in ebm.controls if control.needs_reference)
        raise ValueError(
            f"importance: {names} compares with an image that the flow itself makes, so there is no fixed target. "
            "Weigh without it: ebm.replace(controls=...)."
        )
    if draws.log_prob is None:
        raise ValueError("importance: the density of these draws is not known. Weigh draws of a prior or a prompt.")
    arrays = (draws.key, draws.z, *devices.filter_none(draws.cond))
    batch_size = devices.seen_at_a_time(ebm.generator.image_size, batch_size)
    target = devices.map_batches(_log_target, batch_size, *arrays, shared=(ebm,))
    checks.check_met("importance", target)
    cost = draws.cost._replace(energy_calls=draws.cost.energy_calls + len(draws.z))
    return draws.weighted(target - np.asarray(draws.log_prob)).replace(cost=cost)


def weights_of(log_weight: ArrayLike) -> np.ndarray | None:
    """Weights (N,) in float64 of log weights (N,), the largest 1, or None if all are equal."""
    log_weight = np.asarray(log_weight, np.float64)
    return None if np.ptp(log_weight) == 0 else np.exp(log_weight - log_weight.max())


def chosen_rows(key: Array, log_weight: ArrayLike, count: int) -> np.ndarray:
    """Rows (count,) drawn with repetition in proportion to the weights, by the inverse of their running sum.

    Raises:
      ValueError: weights that are NaN, or all 0.
    """
    log_weight = np.asarray(log_weight, np.float64)
    checks.check_met("resampling", log_weight)
    total = np.cumsum(np.exp(log_weight - log_weight.max()))
    ticks = np.asarray(jax.random.uniform(key, (count,)), np.float64) * total[-1]
    return np.minimum(np.searchsorted(total, ticks, side="right"), len(total) - 1)


def seeded(seed: int) -> Array:
    """The key of a seed, whatever `jax_default_prng_impl` says: numbers of others depend on the batch."""
    return jax.random.key(seed, impl=GENERATOR)


def settings() -> dict:
    """Settings of JAX that change the numbers, where they are not the usual ones; claims of folders hold them."""
    usual = {"jax_enable_x64": False, "jax_threefry_partitionable": True}
    return {name: value for name in usual if (value := getattr(jax.config, name)) != usual[name]}


def sample_keys(key: Array, numbers: ArrayLike) -> Array:
    """The keys (N,) of the samples of these numbers (N,), for all but their noise."""
    return _split(_fixed(key), jnp.asarray(numbers))[1]


def noise(prior: Prior, key: Array, numbers: ArrayLike) -> Array:
    """The noise eps (N, D) of the samples of these numbers (N,)."""
    keys, _ = _split(_fixed(key), jnp.asarray(numbers))
    return jax.vmap(lambda key: prior.sample(key, 1)[0])(keys)


def truncated(prior: Prior, eps: Array, truncation: ArrayLike) -> Array:
    """Noise (N, D) at `truncation` times its distance to the mean: below 1 samples are more typical and more alike."""
    return prior.loc + truncation * (eps - prior.loc)


def _fixed(key: Array) -> Array:
    """The key of the same seed for the generator that does not depend on the batch."""
    if str(jax.random.key_impl(key)) == GENERATOR:
        return key
    return jax.random.wrap_key_data(jax.random.key_data(key)[..., :2], impl=GENERATOR)


@jax.jit
def _split(key: Array, numbers: Array) -> tuple[Array, Array]:
    """Of samples (N,): the keys of their noise, and those of everything else."""
    pairs = jax.vmap(lambda number: jax.random.split(jax.random.fold_in(key, number)))(numbers)
    return pairs[:, 0], pairs[:, 1]


@jax.jit
def images_of(generator: Generator, key: Array, z: Array, *cond: Array) -> Array:
    """Images (B, H, W, 3) of latents (B, D) under keys (B,): each sample alone."""

    def one(key: Array, *rows: Array) -> Array:
        return generator(key, *(row[None] for row in rows))[0]

    return jax.vmap(one)(key, z, *cond)


@jax.jit
def images_by_number(generator: Generator, key: Array, numbers: Array, *cond: Array) -> Array:
    """Images (B, H, W, 3) of the samples of these numbers (B,)."""
    return images_of(generator, sample_keys(key, numbers), noise(generator.prior, key, numbers), *cond)


def images_of_numbers(generator: Generator, z: Array, *rest: Array) -> Array:
    """`images_of` for programs without keys of JAX: the last of `rest` are the two numbers (B, 2) of each key."""
    *cond, key_data = rest
    return images_of(generator, jax.random.wrap_key_data(key_data, impl=GENERATOR), z, *cond)


@jax.jit
def _move(flow: Density, params: PyTree, eps: Array, cond: Array | None = None) -> tuple[Array, Array]:
    return flow.forward_and_log_det(params, eps, cond)


@jax.jit
def _log_target(ebm: LatentEBM, key: Array, z: Array, cond: Array | None = None) -> Array:
    return ebm.log_prob(key, z, cond)
