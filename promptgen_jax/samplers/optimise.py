"""Gradient descent on every latent alone, as StyleCLIP (arXiv 2103.17249, section 4); not samples of the target."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import struct

from promptgen_jax import checks
from promptgen_jax.draws import Draws
from promptgen_jax.ebm import LatentEBM
from promptgen_jax.samplers import _chains
from promptgen_jax.types import Array, Spec, spec_field

RAMP_UP, RAMP_DOWN = 0.05, 0.25  # shares of the steps in which the learning rate rises, and falls


@struct.dataclass
class Optimise:
    """Adam on E_C(G(z)) + distance_weight |z - z_0|², from a draw z_0 of the prior each; see `descend`.

    Attributes:
      num_steps: of Adam.
      learning_rate: of Adam.
      distance_weight: of the squared distance to the start; StyleCLIP's is 0.008 beside a loss between 0 and 1.
    """

    num_steps: int = struct.field(pytree_node=False)
    learning_rate: float = struct.field(pytree_node=False)
    distance_weight: float
    name: str = struct.field(pytree_node=False, default="optimise")
    spec: Spec | None = spec_field()

    def __call__(self, key: Array, ebm: LatentEBM, num_samples: int, *, start: Draws | None = None) -> Draws:
        """Where the optimisation ends.

        Raises:
          TypeError, ValueError: a raw key, a count below 1, a target that moves with the flow.
        """
        draws = _chains.start(self.name, key, ebm, num_samples, start)
        z, seconds = _chains.run(_walk, self, ebm, draws, key)
        return _chains.moved(draws, z, seconds, gradient_calls=self.num_steps * num_samples)


def descend(loss: Callable[[Array], Array], z: Array, num_steps: int, learning_rate: float) -> Array:
    """Where Adam on `loss` ends (D,) that starts at z (D,).

    The learning rate rises linearly over the first twentieth of the steps and falls by a cosine over the last quarter.
    """

    def schedule(count: Array) -> Array:
        down = 0.5 - 0.5 * jnp.cos(jnp.pi * jnp.clip((1 - count / num_steps) / RAMP_DOWN, 0, 1))
        return learning_rate * down * jnp.clip((count + 1) / (RAMP_UP * num_steps), 0, 1)

    adam = optax.adam(schedule)

    def step(carried: tuple, _: None) -> tuple:
        moved, state = carried
        updates, state = adam.update(jax.grad(loss)(moved), state)
        return (moved + updates, state), None

    return jax.lax.scan(step, (z, adam.init(z)), length=num_steps)[0][0]


def _walk(
    sampler: Optimise, ebm: LatentEBM, chain_key: Array, key: Array, z: Array, cond: Array | None = None
) -> Array:
    del chain_key  # it draws nothing but its start

    def loss(moved: Array) -> Array:
        return _chains.energy(moved, ebm, key, cond) + sampler.distance_weight * jnp.sum((moved - z) ** 2)

    return descend(loss, z, sampler.num_steps, sampler.learning_rate)


def build(*, num_steps: int = 300, learning_rate: float = 0.1, distance_weight: float = 0.008) -> Optimise:
    """The sampler of these options, see `Optimise`.

    Raises:
      ValueError: no steps, a rate that is not positive, or a weight below 0.
    """
    checks.check_count("optimise: num_steps", num_steps)
    checks.check_number("optimise: learning_rate", learning_rate, 0, 1e6, above=True)
    checks.check_number("optimise: distance_weight", distance_weight, 0, 1e6)
    return Optimise(num_steps, learning_rate, distance_weight)


def tiny() -> Optimise:
    """A short one for tests."""
    return build(num_steps=3)
