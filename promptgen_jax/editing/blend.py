"""Between two prompts of one generator: the same noise, led from what the one makes of it to what the other does."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from promptgen_jax.prompt import Prompt
from promptgen_jax.types import Array


def blend(
    first: Prompt,
    second: Prompt,
    eps: Array,
    weight: float | Array,
    *,
    cond_first: Array | None = None,
    cond_second: Array | None = None,
) -> Array:
    """Latents (B, D) of the innermost generator between those of two prompts.

        z = loc + (1 - w) d_1 + w d_2, rescaled to the norm (1 - w) ‖d_1‖ + w ‖d_2‖,  with d_i = z_i - loc

    The weights 0 and 1 are the prompts themselves, to the last bit.

    Args:
      first: of weight 0.
      second: of weight 1, on the same generator.
      eps: (B, D) noise of both.
      weight: w from 0 to 1, of all or (B,).
      cond_first: (B, A) conditions of the first prompt, if it is conditional.
      cond_second: likewise.

    Raises:
      ValueError: the prompts are of two generators, or a weight outside 0 to 1.
    """
    generators = [prompt.stack()[1] for prompt in (first, second)]
    told = [(each.name, each.checksum, each.prior.dim) for each in generators]
    if told[0] != told[1]:
        raise ValueError(
            f"blend: {first.name} is a prompt of {told[0][0]} and {second.name} of {told[1][0]}, with other weights. "
            "Blend prompts of one generator."
        )
    if not isinstance(weight, jax.core.Tracer) and not np.all((np.asarray(weight) >= 0) & (np.asarray(weight) <= 1)):
        raise ValueError(f"blend: weight is {weight}; expected numbers from 0 to 1.")
    loc = generators[0].prior.loc
    weight = jnp.reshape(jnp.asarray(weight, jnp.float32), (-1, 1))
    ends = [_innermost(first, eps, cond_first), _innermost(second, eps, cond_second)]
    ways = [z - loc for z in ends]
    norms = [jnp.linalg.norm(way, axis=1, keepdims=True) for way in ways]
    between = (1 - weight) * ways[0] + weight * ways[1]
    length = jnp.linalg.norm(between, axis=1, keepdims=True)
    between *= ((1 - weight) * norms[0] + weight * norms[1]) / jnp.where(length > 0, length, 1)
    return jnp.where(weight == 0, ends[0], jnp.where(weight == 1, ends[1], loc + between))


def _innermost(prompt: Prompt, eps: Array, cond: Array | None) -> Array:
    z = prompt.latents(eps, cond)
    return _innermost(prompt.generator, z, None) if isinstance(prompt.generator, Prompt) else z
