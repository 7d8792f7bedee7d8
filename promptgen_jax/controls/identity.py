"""Identity of a face: distance of face embeddings to the reference image (Eq. 12), or to photographs of one person."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from promptgen_jax.models.network import Network, load_network
from promptgen_jax.store.images import load_image
from promptgen_jax.types import Aim, Array, Sample, Spec, spec_field


class IdentityControl(struct.PyTreeNode):
    """E(x) = 1 - cos(e(x), e(x0)) with x0 the reference of the same noise; gradients flow through both.

    With photographs, of embeddings (N, F) of length 1, E(x) = 1 - mean_n cos(e(x), e_n), and no reference is needed.
    """

    network: Network
    weight: float
    photographs: Array | None = struct.field(repr=False)
    name: str = struct.field(pytree_node=False)
    spec: Spec | None = spec_field()

    @property
    def needs_reference(self) -> bool:
        """Whether it compares with the reference image: unless photographs are given."""
        return self.photographs is None

    @property
    def aims(self) -> tuple[Aim, ...]:
        """The embedding that tells faces apart."""
        return (Aim(self.network, "embedding"),)

    @property
    def networks(self) -> tuple[Network, ...]:
        """The network that it is made of."""
        return (self.network,)

    def __call__(self, key: Array, sample: Sample) -> Array:
        """Energies (B,), 0 is the same face, from 0 to 2. `key` is not used.

        Raises:
          ValueError: neither reference nor photographs.
        """
        del key
        if self.photographs is not None:
            return 1 - jnp.sum(self.embed(sample.images) * jnp.mean(self.photographs, axis=0), axis=-1)
        if sample.reference is None:
            raise ValueError(
                f"control {self.name}: the sample has no reference image. Give photographs, or a reference."
            )
        return 1 - jnp.sum(self.embed(sample.images) * self.embed(sample.reference), axis=-1)

    def embed(self, images: Array) -> Array:
        """Embeddings (B, F) of length 1."""
        return unit(self.network(images)["embedding"])


def unit(embeddings: Array) -> Array:
    """Embeddings (..., F) scaled to length 1."""
    return embeddings * jax.lax.rsqrt(jnp.sum(embeddings**2, axis=-1, keepdims=True) + 1e-12)


def build(
    *,
    network: str | Network = "faceres",
    options: dict | None = None,
    photographs: Sequence[str | Path] = (),
    weight: float = 1.0,
    name: str = "identity",
    precision: str = "",
) -> IdentityControl:
    """Keeps a face the same: that of the reference, or that of given photographs.

    Args:
      network: one that gives an `embedding`: `faceres` or `irse50`, by name or folder, or loaded.
      options: of that network, see `load_network`: `{"input_size": 112}` makes faceres five times faster.
      photographs: square picture files of one person, the face filling the frame as in the generator's images.
      weight: the paper's lambda.
      name: of the control.
      precision: of the network's products, see `load_network`.

    Raises:
      FileNotFoundError, ValueError: unknown or damaged network, or one without embedding; a picture missing, damaged,
        or not square.
    """
    loaded = load_network(network, precision=precision, **(options or {})).that_returns("embedding")
    control = IdentityControl(network=loaded, weight=jnp.float32(weight), photographs=None, name=name)
    if not photographs:
        return control
    embed = jax.jit(lambda control, image: control.embed(image))
    found = [embed(control, _photograph(path)[None]) for path in photographs]
    return control.replace(photographs=jnp.concatenate(found))


def _photograph(path: str | Path) -> np.ndarray:
    image = load_image(path)
    height, width, _ = image.shape
    if height != width:
        raise ValueError(
            f"{path}: {width} x {height} pixels, not square; the network would squeeze the face. Crop it to a square "
            "that the face fills as in the generator's images."
        )
    return image


def tiny() -> IdentityControl:
    """One for tests: faces read at 112 pixels."""
    return build(options={"input_size": 112})
