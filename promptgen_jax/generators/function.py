"""Own code as a generator: any function from latents to images."""

from __future__ import annotations

from collections.abc import Callable

from flax import struct

from promptgen_jax import checks
from promptgen_jax.types import Array, Prior


@struct.dataclass
class FunctionGenerator:
    """`x = function(z)`, (B, D) latents to (B, H, W, 3) images in [0, 1]."""

    prior: Prior
    function: Callable = struct.field(pytree_node=False)
    image_size: int = struct.field(pytree_node=False, default=0)
    name: str = struct.field(pytree_node=False, default="function")
    checksum: str = struct.field(pytree_node=False, default="")

    def __call__(self, key: Array, z: Array) -> Array:
        """Images of latents; `key` is not used."""
        del key
        checks.check_latents(self.name, z, self.prior.dim)
        return self.function(z)
