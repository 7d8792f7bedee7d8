"""Diffusion autoencoder as a generator: the noise of its latent, or of latent and picture, to pictures."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from promptgen_jax import checks
from promptgen_jax.generators._frozen import Frozen, load_fields, random_weights
from promptgen_jax.models import diffae, diffusion
from promptgen_jax.ops import products
from promptgen_jax.types import Array, Prior


@struct.dataclass(kw_only=True)
class DiffAE(Frozen):
    """A frozen diffusion autoencoder: `x = G(z)`, z the standard normal noise that its samplers start from.

    The gradient goes through all steps of both samplers, each of which is computed again on the way back. PromptGen
    trains with few steps and makes pictures with many: `generator.replace(latent_steps=1000, image_steps=100)`.

    Attributes:
      prior: N(0, I), of the latent's noise, or of that and the picture's.
      latent_steps: of the sampler of latents; 1000 divided by a stride and rounded up.
      image_steps: of the sampler of pictures.
    """

    latent_steps: int = struct.field(pytree_node=False, default=5)
    image_steps: int = struct.field(pytree_node=False, default=5)

    def __post_init__(self):
        """Checks the options, also those of `replace`."""
        super().__post_init__()
        for option in ("latent_steps", "image_steps"):
            checks.check_count(f"{self.name}: {option}", getattr(self, option))
            try:
                diffusion.make_schedule(diffusion.linear_betas(), getattr(self, option))
            except ValueError as error:
                raise ValueError(f"{self.name}: {option} is {error}") from None

    def __call__(self, key: Array, z: Array) -> Array:
        """Images (B, S, S, 3) in [0, 1] of latents (B, D).

        Args:
          key: draws the noise of the pictures unless z holds it.
          z: (B, D) latents: noise of the latent, then, if it is controlled, of the picture, flattened channel, row,
            column.

        Raises:
          ValueError, TypeError: latents of another shape or dtype, or not finite.
        """
        checks.check_latents(self.name, z, self.prior.dim)
        z, noise = jnp.split(z, [self.module.style_dim], axis=1)
        if noise.shape[1]:
            noise = noise.reshape(len(z), 3, self.image_size, self.image_size).transpose(0, 2, 3, 1)
        else:
            noise = jax.random.normal(key, (len(z), self.image_size, self.image_size, 3), jnp.float32)
        steps = {"latent_steps": self.latent_steps, "image_steps": self.image_steps}
        with products.arithmetic(self.precision):
            return diffae.generate(self.module, self.weights, z, noise, **steps)


def build(
    *,
    weights: str = "diffae_ffhq256",
    latent_only: bool = True,
    latent_steps: int = 5,
    image_steps: int = 5,
    precision: str = "float32",
) -> DiffAE:
    """Loads a converted diffusion autoencoder.

    Args:
      weights: name under ported_weights, or a folder. Names of `catalogue.CHECKPOINTS` that are missing are answered
        with where to get them.
      latent_only: whether z is the noise of the latent alone; else that of the picture follows it.
      latent_steps: of the sampler of latents.
      image_steps: of the sampler of pictures.
      precision: of its products, see `ops.products.arithmetic`: "float32", "tf32" or "bfloat16".

    Raises:
      FileNotFoundError, ValueError: as `frozen.load_fields`; a wrong option.
    """
    fields = load_fields(weights, adapter="diffae", title="diffusion autoencoder", precision=precision)
    fields["prior"] = make_prior(fields["module"], latent_only)
    return DiffAE(**fields, latent_steps=latent_steps, image_steps=image_steps)


def make_prior(module: diffae.DiffAE, latent_only: bool) -> Prior:
    """N(0, I) of the latent's noise, or of that and the picture's, in one block as the official code has it."""
    return Prior.standard(module.style_dim + (0 if latent_only else 3 * module.image_size**2))


def tiny() -> DiffAE:
    """A small one with random weights, for tests: 6 latents to 16 x 16 pixels."""
    sizes = {"base_channels": 32, "style_dim": 6, "latent_layers": 3, "latent_width": 8}
    module = diffae.DiffAE(image_size=16, multipliers=(1,), **sizes)
    tree = random_weights(module, 6, scale=0.1)
    tree["buffers"]["std"] = jnp.ones(6)
    fields: Any = {"weights": tree, "prior": make_prior(module, True), "module": module, "image_size": 16}
    return DiffAE(**fields, name="tiny_diffae", latent_steps=2, image_steps=2)
