"""DCGAN as a generator: standard normal latents to small face images."""

from __future__ import annotations

from flax import struct

from promptgen_jax import checks
from promptgen_jax.generators._frozen import Frozen, load_fields, random_weights
from promptgen_jax.models import dcgan
from promptgen_jax.ops import products
from promptgen_jax.types import Array, Prior


@struct.dataclass(kw_only=True)
class DCGAN(Frozen):
    """A frozen DCGAN: `x = G(z)`, z standard normal.

    Attributes:
      prior: N(0, I) on R^D.
    """

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
        with products.arithmetic(self.precision):
            return self.module.apply({"params": self.weights}, z)


def build(*, weights: str = "dcgan_digiface", precision: str = "float32") -> DCGAN:
    """Loads a converted DCGAN.

    Args:
      weights: name under ported_weights, or a folder.
      precision: of its products, see `ops.products.arithmetic`: "float32", "tf32" or "bfloat16".

    Raises:
      FileNotFoundError, ValueError: as `frozen.load_fields`.
    """
    return DCGAN(**load_fields(weights, adapter="dcgan", title="DCGAN", precision=precision))


def tiny() -> DCGAN:
    """A small one with random weights, for tests: 6 latents to 16 x 16 pixels."""
    module = dcgan.DCGAN(features=(8, 8))
    prior = Prior.standard(6)
    tree = random_weights(module, prior.dim, scale=0.2)
    return DCGAN(weights=tree, prior=prior, module=module, name="tiny_dcgan", image_size=16)
