"""StyleNeRF as a generator: standard normal latents, seen by a camera, to pictures."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from promptgen_jax import checks
from promptgen_jax.generators._frozen import Frozen, load_fields, random_weights
from promptgen_jax.models import stylenerf
from promptgen_jax.ops import products
from promptgen_jax.types import Array, Prior


@struct.dataclass(kw_only=True)
class StyleNeRF(Frozen):
    """A frozen StyleNeRF: `x = G(z)`, z standard normal; camera and background are no part of z.

    PromptGen trains at psi 1 and makes pictures at 0.7: `generator.replace(truncation_psi=0.7)`.

    Attributes:
      prior: N(0, I) on R^D.
      truncation_psi: from 0, the mean latent for every z, to 1, no truncation.
      camera: "random", drawn from the key for every sample; or two angles in radians, around the vertical axis and
        from it, (0, pi / 2) from the front.
      block_gradient: no gradient through the volume rendering, as in the official code.
    """

    truncation_psi: float = struct.field(pytree_node=False, default=1.0)
    camera: str | tuple[float, float] = struct.field(pytree_node=False, default="random")
    block_gradient: bool = struct.field(pytree_node=False, default=False)

    def __post_init__(self):
        """Checks the options, also those of `replace`."""
        super().__post_init__()
        if isinstance(self.camera, list):  # as configurations are read from files
            object.__setattr__(self, "camera", tuple(self.camera))
        checks.check_number(f"{self.name}: truncation_psi", self.truncation_psi, 0, 1)
        camera = self.camera
        angles = isinstance(camera, tuple) and len(camera) == 2 and all(isinstance(a, (int, float)) for a in camera)
        if camera != "random" and not (angles and np.all(np.isfinite(camera)) and 0 < camera[1] < np.pi):
            raise ValueError(
                f"{self.name}: camera is {camera!r}; expected 'random' or two angles in radians, the second between 0 "
                "and pi, e.g. (0.0, 1.57)."
            )
        if not isinstance(self.block_gradient, bool):
            raise ValueError(f"{self.name}: block_gradient is {self.block_gradient!r}; expected True or False.")

    def __call__(self, key: Array, z: Array) -> Array:
        """Images (B, S, S, 3), nominally in [0, 1], of latents (B, D).

        Args:
          key: draws the background of every sample, and its camera if that is random.
          z: (B, D) latents.

        Raises:
          ValueError, TypeError: latents of another shape or dtype, or not finite.
        """
        checks.check_latents(self.name, z, self.prior.dim)
        key_camera, key_code = jax.random.split(key)
        if self.camera == "random":
            mean, std = jnp.asarray(self.module.camera_mean), jnp.asarray(self.module.camera_std)
            angles = mean + std * jax.random.normal(key_camera, (len(z), 2), jnp.float32)
        else:
            angles = jnp.tile(jnp.asarray(self.camera), (len(z), 1))
        code = jax.random.normal(key_code, (len(z), self.module.background_dim), jnp.float32)
        options = {"truncation_psi": self.truncation_psi, "block_gradient": self.block_gradient}
        with products.arithmetic(self.precision):
            return self.module.apply(self.weights, z, angles, code, **options)


def build(
    *,
    weights: str = "stylenerf_ffhq1024",
    truncation_psi: float = 1.0,
    camera: str | tuple[float, float] = "random",
    block_gradient: bool = False,
    precision: str = "float32",
) -> StyleNeRF:
    """Loads a converted StyleNeRF.

    Args:
      weights: name under ported_weights, or a folder. Names of `catalogue.CHECKPOINTS` that are missing are answered
        with where to get them.
      truncation_psi: from 0 to 1.
      camera: "random", or two angles in radians.
      block_gradient: as in the official code.
      precision: of its products, see `ops.products.arithmetic`: "float32", "tf32" or "bfloat16".

    Raises:
      FileNotFoundError, ValueError: as `frozen.load_fields`; a wrong option.
    """
    fields = load_fields(weights, adapter="stylenerf", title="StyleNeRF", precision=precision)
    return StyleNeRF(**fields, truncation_psi=truncation_psi, camera=camera, block_gradient=block_gradient)


def tiny() -> StyleNeRF:
    """A small one with random weights, for tests: 6 latents to 8 x 8 pixels."""
    sizes = {"foreground": (8, 2), "background": (4, 1), "background_dim": 2, "feature_dim": 8, "num_frequencies": 3}
    module = stylenerf.StyleNeRF(channels=(8,), style_dim=8, mapping_layers=2, volume_size=4, num_samples=4, **sizes)
    prior = Prior.standard(6)
    tree = random_weights(module, prior.dim, scale=0.5)
    return StyleNeRF(weights=tree, prior=prior, module=module, name="tiny_stylenerf", image_size=8)
