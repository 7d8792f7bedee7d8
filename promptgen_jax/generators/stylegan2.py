"""StyleGAN2 as a generator: standard normal latents to images of 256, 512 or 1024 pixels, or any size of a folder."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from promptgen_jax import checks
from promptgen_jax.generators._frozen import Frozen, load_fields, random_weights
from promptgen_jax.models import stylegan2
from promptgen_jax.ops import products
from promptgen_jax.types import FOLLOWS, Array, Prior

NOISES = ("random", "const", "none")


@struct.dataclass(kw_only=True)
class StyleGAN2(Frozen):
    """A frozen StyleGAN2: `x = G(z)`, z standard normal, with noise at every layer.

    PromptGen trains at psi 1 and makes pictures at 0.7: `generator.replace(truncation_psi=0.7)`.

    Attributes:
      prior: N(0, I) on R^D.
      truncation_psi: from 0, the mean latent for every z, to 1, no truncation.
      noise: "random", drawn from the key for every sample; "const", the stored maps, if there are any; or "none".
      remat_from: pixels; from this resolution on, a gradient computes features again instead of keeping them, which
        saves memory of accelerators at the price of time, see docs/generators.md. None: it keeps all.
    """

    truncation_psi: float = struct.field(pytree_node=False, default=1.0)
    noise: str = struct.field(pytree_node=False, default="random")
    remat_from: int | None = struct.field(pytree_node=False, default=None, metadata={FOLLOWS: True})

    def __post_init__(self):
        """Checks the options, also those of `replace`."""
        super().__post_init__()
        checks.check_number(f"{self.name}: truncation_psi", self.truncation_psi, 0, 1)
        checks.check_known(f"{self.name}: noise", self.noise, NOISES)
        if self.remat_from is not None:
            checks.check_count(f"{self.name}: remat_from", self.remat_from)
        if self.noise == "const":
            self.module.check_stored(self.name)

    def __call__(self, key: Array, z: Array) -> Array:
        """Images (B, S, S, 3), nominally in [0, 1], of latents (B, D).

        Args:
          key: draws the noise maps if `noise` is "random".
          z: (B, D) latents.

        Raises:
          ValueError, TypeError: latents of another shape or dtype, or not finite.
        """
        checks.check_latents(self.name, z, self.prior.dim)
        noise: Any = {"const": "const", "none": ()}.get(self.noise)
        if noise is None:
            noise = [
                jax.random.normal(jax.random.fold_in(key, index), (len(z), *shape), jnp.float32)
                for index, shape in enumerate(self.module.noise_shapes)
            ]
        with products.arithmetic(self.precision):
            options = {"truncation_psi": self.truncation_psi, "noise": noise, "remat_from": self.remat_from}
            return self.module.apply(self.weights, z, **options)


def build(
    *,
    weights: str = "stylegan2_ffhq",
    truncation_psi: float = 1.0,
    noise: str = "random",
    remat_from: int | None = None,
    precision: str = "float32",
) -> StyleGAN2:
    """Loads a converted StyleGAN2.

    Args:
      weights: name under ported_weights, or a folder. Names of `catalogue.CHECKPOINTS` that are missing are answered
        with where to get them.
      truncation_psi: from 0 to 1.
      noise: "random", "const" or "none".
      remat_from: pixels, or None, see `StyleGAN2`.
      precision: of its products, see `ops.products.arithmetic`: "float32", "tf32" or "bfloat16".

    Raises:
      FileNotFoundError, ValueError: as `frozen.load_fields`; a wrong option.
    """
    fields = load_fields(weights, adapter="stylegan2", title="StyleGAN2", precision=precision)
    return StyleGAN2(**fields, truncation_psi=truncation_psi, noise=noise, remat_from=remat_from)


def tiny() -> StyleGAN2:
    """A small one with random weights, for tests: 6 latents to 16 x 16 pixels."""
    module = stylegan2.StyleGAN2(channels=(8, 8, 4), style_dim=8, mapping_layers=2)
    prior = Prior.standard(6)
    tree = random_weights(module, prior.dim, scale=0.3)
    return StyleGAN2(weights=tree, prior=prior, module=module, name="tiny_stylegan2", image_size=16)
