"""NVAE as a generator: its first groups of latents are controlled, the others are drawn from the key."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from promptgen_jax import checks
from promptgen_jax.generators._frozen import Frozen, load_fields, random_weights
from promptgen_jax.models import nvae
from promptgen_jax.ops import products
from promptgen_jax.types import Array, Prior

RULES, OUTPUTS = ("exact", "truncated"), ("mean", "sample")
UNIFORM: dict = {"dtype": jnp.float32, "minval": 1e-5, "maxval": 1 - 1e-5}


@struct.dataclass(kw_only=True)
class NVAE(Frozen):
    """A frozen NVAE: `x = G(z)`, z the standard normal noise behind the first groups, coarse to fine.

    Attributes:
      prior: N(0, I) of the controlled groups.
      temperature: factor of the standard deviation of every group.
      rule: "exact", the official sampler for all groups; or "truncated", for the controlled groups that of the
        authors' later wrapper: z clamped to ±1.25, where the gradient ends, and no soft clamps.
      output: "mean", the official mean of the output mixture; or "sample", a draw from it.
    """

    control_groups: int = struct.field(pytree_node=False)
    temperature: float = struct.field(pytree_node=False, default=0.8)
    rule: str = struct.field(pytree_node=False, default="exact")
    output: str = struct.field(pytree_node=False, default="mean")

    def __post_init__(self):
        """Checks the options, also those of `replace`."""
        super().__post_init__()
        checks.check_number(f"{self.name}: temperature", self.temperature, 0, 2, above=True)
        checks.check_known(f"{self.name}: rule", self.rule, RULES)
        checks.check_known(f"{self.name}: output", self.output, OUTPUTS)

    def __call__(self, key: Array, z: Array) -> Array:
        """Images (B, S, S, 3) in [0, 1] of latents (B, D).

        Args:
          key: draws the groups that are not controlled, and the pixels if `output` is "sample".
          z: (B, D) latents, group after group, each flattened channel, row, column.

        Raises:
          ValueError, TypeError: latents of another shape or dtype, or not finite.
        """
        checks.check_latents(self.name, z, self.prior.dim)
        key_latent, key_mixture, key_colour = jax.random.split(key, 3)
        rest = sum(self.module.group_sizes) - self.prior.dim
        eps = jnp.concatenate([z, jax.random.normal(key_latent, (len(z), rest), jnp.float32)], axis=1)
        truncated = self.control_groups if self.rule == "truncated" else 0
        with products.arithmetic(self.precision):
            logits = self.module.apply(self.weights, eps, temperature=self.temperature, num_truncated=truncated)
        if self.output == "mean":
            return nvae.mean_image(logits)
        shape = logits.shape[:-1]
        u_mixture = jax.random.uniform(key_mixture, (*shape, self.module.num_mixture), **UNIFORM)
        u_colour = jax.random.uniform(key_colour, (*shape, nvae.COLOURS), **UNIFORM)
        return nvae.sample_image(logits, u_mixture, u_colour)


def build(
    *,
    weights: str = "nvae_ffhq256",
    control_groups: int | str = 1,
    temperature: float = 0.8,
    rule: str = "exact",
    output: str = "mean",
    precision: str = "float32",
) -> NVAE:
    """Loads a converted NVAE.

    Args:
      weights: name under ported_weights, or a folder. Names of `catalogue.CHECKPOINTS` that are missing are answered
        with where to get them.
      control_groups: how many of the first groups z holds, or "all".
      temperature: above 0, at most 2.
      rule: "exact" or "truncated".
      output: "mean" or "sample".
      precision: of its products, see `ops.products.arithmetic`: "float32", "tf32" or "bfloat16".

    Raises:
      FileNotFoundError, ValueError: as `frozen.load_fields`; a wrong option.
    """
    fields = load_fields(weights, adapter="nvae", title="NVAE", precision=precision)
    sizes = fields["module"].group_sizes
    count = len(sizes) if control_groups == "all" else control_groups
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= len(sizes):
        raise ValueError(f"{weights}: control_groups is {control_groups!r}; expected 1 to {len(sizes)}, or 'all'.")
    fields["prior"] = Prior.standard(sum(sizes[:count]))
    return NVAE(**fields, control_groups=count, temperature=temperature, rule=rule, output=output)


def tiny() -> NVAE:
    """A small one with random weights, for tests: 32 latents to 16 x 16 pixels."""
    small: Any = {"groups": (1, 2), "num_cells": 1, "num_post_cells": 1, "num_mixture": 2}
    module = nvae.NVAE(channels=16, latent_channels=2, base_size=4, **small)
    sizes = module.group_sizes
    tree = random_weights(module, sum(sizes), scale=0.3)
    tree["buffers"] = jax.tree.map(lambda leaf: jnp.abs(leaf) + 0.2, tree["buffers"])
    fields: Any = {"weights": tree, "prior": Prior.standard(sizes[0]), "module": module, "image_size": 16}
    return NVAE(**fields, name="tiny_nvae", control_groups=1)
