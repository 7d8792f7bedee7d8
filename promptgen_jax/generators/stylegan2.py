"""StyleGAN2 as a generator: standard normal latents to images of 256, 512 or 1024 pixels, or any size of a folder."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from promptgen_jax import checks, network
from promptgen_jax import weights as weight_folders
from promptgen_jax.models import stylegan2
from promptgen_jax.types import Array, Prior

NOISES = ("random", "const", "none")


@struct.dataclass
class StyleGAN2:
    """A frozen StyleGAN2: `x = G(z)`, z standard normal, with noise at every layer.

    PromptGen trains at psi 1 and makes pictures at 0.7: `generator.replace(truncation_psi=0.7)`.

    Attributes:
      weights: parameters and buffers of `module`.
      prior: N(0, I) on R^D.
      truncation_psi: from 0, the mean latent for every z, to 1, no truncation.
      noise: "random", drawn from the key for every sample; "const", the stored maps; or "none".
    """

    weights: Any
    prior: Prior
    module: nn.Module = struct.field(pytree_node=False)
    name: str = struct.field(pytree_node=False)
    checksum: str = struct.field(pytree_node=False)
    image_size: int = struct.field(pytree_node=False)
    truncation_psi: float = struct.field(pytree_node=False, default=1.0)
    noise: str = struct.field(pytree_node=False, default="random")
    license: str = struct.field(pytree_node=False, default="")

    def __post_init__(self):
        """Checks the options, also those of `replace`."""
        psi = self.truncation_psi
        if isinstance(psi, bool) or not isinstance(psi, (int, float)) or not 0 <= psi <= 1:
            raise ValueError(f"{self.name}: truncation_psi is {psi!r}; expected a number from 0 to 1.")
        checks.check_known(f"{self.name}: noise", self.noise, NOISES)

    def __call__(self, key: Array, z: Array) -> Array:
        """Images (B, S, S, 3), nominally in [0, 1], of latents (B, D).

        Args:
          key: draws the noise maps if `noise` is "random".
          z: (B, D) latents.

        Raises:
          ValueError, TypeError: latents of another shape or dtype, or not finite.
        """
        checks.check_latents(self.name, z, self.prior.dim)
        noise = {"const": "const", "none": ()}.get(self.noise)
        if noise is None:
            noise = [
                jax.random.normal(jax.random.fold_in(key, index), (len(z), *shape))
                for index, shape in enumerate(self.module.noise_shapes)
            ]
        return self.module.apply(self.weights, z, truncation_psi=self.truncation_psi, noise=noise)


def build(*, weights: str = "stylegan2_ffhq", truncation_psi: float = 1.0, noise: str = "random") -> StyleGAN2:
    """Loads a converted StyleGAN2.

    Args:
      weights: name under ported_weights, or a folder. Names of `catalogue.CHECKPOINTS` that are missing are answered
        with where to get them.
      truncation_psi: from 0 to 1.
      noise: "random", "const" or "none".

    Raises:
      FileNotFoundError, ValueError: as `network.load_params`; a wrong option.
    """
    config = weight_folders.read_config(weights)
    if config.get("adapter") != "stylegan2":
        raise ValueError(f"{weights}: holds no StyleGAN2 (adapter {config.get('adapter')!r}). Choose another folder.")
    latent_dim = config["latent_dim"]
    example = jax.ShapeDtypeStruct((1, latent_dim), jnp.float32)
    module, tree, config = network.load_params(weights, kind="generator", example=example)
    return StyleGAN2(
        weights=tree,
        prior=Prior.standard(latent_dim),
        module=module,
        name=config["name"],
        checksum=config["sha256"],
        image_size=config["image_size"],
        truncation_psi=truncation_psi,
        noise=noise,
        license=config["license"],
    )


def tiny() -> StyleGAN2:
    """A small one with random weights, for tests: 6 latents to 16 x 16 pixels."""
    module = stylegan2.StyleGAN2(channels=(8, 8, 4), style_dim=8, mapping_layers=2)
    prior = Prior.standard(6)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, prior.dim)))
    rng = np.random.default_rng(0)
    tree = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.3, leaf.shape), jnp.float32), shapes)
    return StyleGAN2(weights=tree, prior=prior, module=module, name="tiny_stylegan2", checksum="", image_size=16)
