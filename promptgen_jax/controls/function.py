"""Own code as a control: any function of images."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct

from promptgen_jax.types import Array, Sample, Spec, spec_field


@struct.dataclass
class FunctionControl:
    """E(x) = function(images), (B, H, W, 3) to (B,) nats; weights as in `FunctionGenerator`."""

    function: Callable
    name: str = struct.field(pytree_node=False, default="function")
    weight: float = 1.0
    needs_reference: bool = struct.field(pytree_node=False, default=False)
    spec: Spec | None = spec_field()

    def __post_init__(self):
        """Makes a plain function a pytree without leaves."""
        if not isinstance(self.function, jax.tree_util.Partial):
            object.__setattr__(self, "function", jax.tree_util.Partial(self.function))

    def __call__(self, key: Array, sample: Sample) -> Array:
        """Energies (B,). `key` is not used."""
        del key
        return self.function(sample.images)


def tiny() -> FunctionControl:
    """One for tests: dark images."""
    return FunctionControl(lambda images: jnp.mean(images, axis=(1, 2, 3)))
