"""Own code as a generator: any function from latents to images."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct

from promptgen_jax import checks
from promptgen_jax.types import OUTPUTS, Array, Prior, Spec, spec_field


@struct.dataclass
class FunctionGenerator:
    """`x = function(z)`, (B, D) latents to (B, H, W, 3) images in [0, 1].

    Weights that are given apart, `jax.tree_util.Partial(function, weights)`, stay arguments of compiled code; those
    that the function closes over become constants of it. `makes` is a key of `types.OUTPUTS`.
    """

    prior: Prior
    function: Callable
    image_size: int = struct.field(pytree_node=False, default=0)
    name: str = struct.field(pytree_node=False, default="function")
    checksum: str = struct.field(pytree_node=False, default="")
    makes: str = struct.field(pytree_node=False, default="images")
    spec: Spec | None = spec_field()

    def __post_init__(self):
        """Makes a plain function a pytree without leaves. Raises ValueError for an unknown `makes`."""
        checks.check_known(f"{self.name}: makes", self.makes, OUTPUTS)
        if not isinstance(self.function, jax.tree_util.Partial):
            object.__setattr__(self, "function", jax.tree_util.Partial(self.function))

    def __call__(self, key: Array, z: Array) -> Array:
        """Images of latents; `key` is not used."""
        del key
        checks.check_latents(self.name, z, self.prior.dim)
        return self.function(z)


def tiny() -> FunctionGenerator:
    """A small one for tests: 5 latents to stripes of 5 x 5 pixels."""
    return FunctionGenerator(
        prior=Prior.standard(5), function=lambda z: jnp.tile(z[:, None, :, None], (1, 5, 1, 3)), image_size=5
    )
