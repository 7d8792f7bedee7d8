"""The official optimiser: AdamW of the transformers library without weight decay, linear decay, global clipping."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from promptgen_jax import checks
from promptgen_jax.types import PyTree


def official_adamw(
    learning_rate: float | Callable, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> optax.GradientTransformation:
    """Adam as in transformers' AdamW, weight decay 0.

        m_t, v_t as in Adam;  p -= lr sqrt(1 - b2^t) / (1 - b1^t) m_t / (sqrt(v_t) + eps),  t = 1, 2, ...

    eps joins the *uncorrected* sqrt(v), so it weighs 1 / sqrt(1 - b2^t) more than in `optax.adam`, 32 times at the
    first step; it matters only where gradients are near 1e-7.

    Args:
      learning_rate: a number, or a schedule of the 0-based step.
      b1: decay of the mean.
      b2: decay of the mean square.
      eps: added to the denominator.

    Source: transformers 4.16.2, optimization.py, the version that the official code pins.
    """

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return optax.ScaleByAdamState(count=jnp.zeros([], jnp.int32), mu=zeros, nu=zeros)

    def update(updates, state, params=None):
        del params
        count = state.count + 1
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, updates)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g**2, state.nu, updates)
        correction = jnp.sqrt(1 - b2**count) / (1 - b1**count)
        updates = jax.tree.map(lambda m, v: correction * m / (jnp.sqrt(v) + eps), mu, nu)
        return updates, optax.ScaleByAdamState(count=count, mu=mu, nu=nu)

    return optax.chain(optax.GradientTransformation(init, update), optax.scale_by_learning_rate(learning_rate))


def global_norm(gradient: PyTree) -> jax.Array:
    """The L2 norm () of all numbers of a tree together."""
    return jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradient)))


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """Scales all gradients by min(1, max_norm / (norm + 1e-6)), as torch.nn.utils.clip_grad_norm_ does."""

    def update(updates, state, params=None):
        del params
        factor = jnp.minimum(1.0, max_norm / (global_norm(updates) + 1e-6))
        return jax.tree.map(lambda g: factor * g, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def linear_decay(learning_rate: float, num_steps: int | jax.Array, warmup_steps: int = 0) -> Callable:
    """Schedule of the 0-based update k: lr k / warmup_steps while warming up, then linearly from lr to 0 at num_steps.

    Without warm-up update k uses lr (1 - k / num_steps). `num_steps` may be traced.
    """

    def schedule(step):
        warm = step / max(warmup_steps, 1)
        decay = (num_steps - step) / jnp.maximum(num_steps - warmup_steps, 1)
        return learning_rate * jnp.clip(jnp.where(step < warmup_steps, warm, decay), 0.0, 1.0)

    return schedule


def make_optimizer(
    *, learning_rate: float, num_steps: int, warmup_steps: int = 0, clip_norm: float = 1.0
) -> optax.GradientTransformation:
    """The optimiser of every published run: global clipping, `official_adamw`, linear decay to 0.

    Args:
      learning_rate: highest rate; 1e-3 for flows, 5e-2 for beta in the official runs.
      num_steps: number of updates T over which the rate falls to 0.
      warmup_steps: updates over which it first rises from 0; none in the official runs.
      clip_norm: largest global L2 norm of the gradients.

    Raises:
      ValueError: a rate or norm that is not positive, steps out of range.
    """
    checks.check_count("make_optimizer: num_steps", num_steps)
    checks.check_count("make_optimizer: warmup_steps", warmup_steps, minimum=0)
    for name, value in {"learning_rate": learning_rate, "clip_norm": clip_norm}.items():
        if not value > 0:
            raise ValueError(f"make_optimizer: {name} is {value!r}; expected a positive number. Raise it.")
    if warmup_steps >= num_steps:
        raise ValueError(
            f"make_optimizer: warmup_steps is {warmup_steps}; expected less than num_steps, {num_steps}. Lower it."
        )
    return scheduled(linear_decay(learning_rate, num_steps, warmup_steps), clip_norm)


def scheduled(schedule: Callable, clip_norm: float) -> optax.GradientTransformation:
    """That optimiser with a schedule of one's own."""
    return optax.chain(clip_by_global_norm(clip_norm), official_adamw(schedule))
