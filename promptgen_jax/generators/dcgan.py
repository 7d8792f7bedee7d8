"""DCGAN as a generator: standard normal latents to small face images."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from promptgen_jax import checks, network
from promptgen_jax import weights as weight_folders
from promptgen_jax.models import dcgan
from promptgen_jax.types import Array, Prior


@struct.dataclass
class DCGAN:
    """A frozen DCGAN: `x = G(z)`, z standard normal.

    Attributes:
      weights: parameters of `module`.
      prior: N(0, I) on R^D.
    """

    weights: Any
    prior: Prior
    module: nn.Module = struct.field(pytree_node=False)
    name: str = struct.field(pytree_node=False)
    checksum: str = struct.field(pytree_node=False)
    image_size: int = struct.field(pytree_node=False)
    license: str = struct.field(pytree_node=False, default="")

    def __call__(self, key: Array, z: Array) -> Array:
        """Images (B, S, S, 3) in [0, 1] of latents (B, D).

        Args:
          key: not used; this network has no noise of its own.
          z: (B, D) latents.

        Raises:
          ValueError, TypeError: latents of another shape or dtype, or not finite.
        """
        del key
        checks.check_latents(self.name, z, self.prior.dim)
        return self.module.apply({"params": self.weights}, z)


def build(*, weights: str = "dcgan_digiface") -> DCGAN:
    """Loads a converted DCGAN.

    Args:
      weights: name under ported_weights, or a folder.

    Raises:
      FileNotFoundError, ValueError: as `network.load_params`.
    """
    latent_dim = weight_folders.read_config(weights)["latent_dim"]
    example = jax.ShapeDtypeStruct((1, latent_dim), jnp.float32)
    module, tree, config = network.load_params(weights, kind="generator", example=example)
    return DCGAN(
        weights=tree,
        prior=Prior.standard(latent_dim),
        module=module,
        name=config["name"],
        checksum=config["sha256"],
        image_size=config["image_size"],
        license=config["license"],
    )


def tiny() -> DCGAN:
    """A small one with random weights, for tests: 6 latents to 16 x 16 pixels."""
    module = dcgan.DCGAN(features=(8, 8))
    prior = Prior.standard(6)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, prior.dim)))["params"]
    rng = np.random.default_rng(0)
    tree = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.2, leaf.shape), jnp.float32), shapes)
    return DCGAN(weights=tree, prior=prior, module=module, name="tiny_dcgan", checksum="", image_size=16)
