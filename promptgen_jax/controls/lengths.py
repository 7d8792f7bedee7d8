"""Lengths on a face mesh: distances between landmarks to asked values (an energy of appendix E of the paper)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import struct

from promptgen_jax.types import Array, Sample, Spec, spec_field

NUM_LANDMARKS = 68


@struct.dataclass
class LengthsControl:
    """E(x) = 1/2 Σ_k ((|p_i - p_j| - d_k) / sigma)² over pairs k = (i, j) of the 68 landmarks, in metres.

    Attributes:
      lengths: (K,) d_k.
      pairs: landmarks of every length, numbered from 0 as in the 68 of iBUG: 48 and 54 are the corners of the mouth.
    """

    weight: float
    lengths: Array
    sigma: float
    name: str = struct.field(pytree_node=False)
    pairs: tuple[tuple[int, int], ...] = struct.field(pytree_node=False)
    needs_reference: bool = struct.field(pytree_node=False, default=False)
    spec: Spec | None = spec_field()

    def __call__(self, key: Array, sample: Sample) -> Array:
        """Energies (B,), nats. `key` is not used.

        Raises:
          ValueError: images that are no meshes of `generators.flame`.
        """
        del key
        return 0.5 * jnp.sum(((self.measure(sample.images) - self.lengths) / self.sigma) ** 2, axis=1)

    def measure(self, images: Array) -> Array:
        """The lengths (B, K), metres, of pictures of points (B, V + 68, 1, 3)."""
        if images.ndim != 4 or images.shape[2:] != (1, 3) or images.shape[1] <= NUM_LANDMARKS:
            raise ValueError(
                f"control {self.name}: images are {images.shape}; expected (batch, vertices + 68, 1, 3). Use the "
                "generator flame."
            )
        points = images[:, -NUM_LANDMARKS:, 0]
        first, second = np.array(self.pairs).T
        return jnp.sqrt(jnp.sum((points[:, first] - points[:, second]) ** 2, axis=-1) + 1e-12)


def build(
    *,
    pairs: Sequence[Sequence[int]],
    lengths: Sequence[float],
    sigma: float = 0.002,
    weight: float = 1.0,
    name: str = "lengths",
) -> LengthsControl:
    """Asks for distances between landmarks.

    Args:
      pairs: two landmarks each, 0 to 67.
      lengths: metres, one a pair.
      sigma: metres by which they may be missed.
      weight: the paper's lambda.
      name: of the control.

    Raises:
      ValueError: pairs, lengths or sigma out of range, or not as many lengths as pairs.
    """
    checked: Any = tuple(tuple(pair) for pair in pairs)
    for pair in checked:
        if len(pair) != 2 or pair[0] == pair[1] or not all(p in range(NUM_LANDMARKS) for p in pair):
            raise ValueError(f"control {name}: pair {pair}; expected two different landmarks from 0 to 67.")
    if not checked or len(lengths) != len(checked) or not (np.all(np.asarray(lengths) > 0) and sigma > 0):
        raise ValueError(
            f"control {name}: {len(checked)} pairs, lengths {tuple(lengths)} and sigma {sigma}; expected one positive "
            "length a pair and a positive sigma, in metres."
        )
    return LengthsControl(
        weight=jnp.float32(weight),
        lengths=jnp.asarray(lengths, jnp.float32),
        sigma=jnp.float32(sigma),
        name=name,
        pairs=checked,
    )


def tiny() -> LengthsControl:
    """One for tests: two lengths."""
    return build(pairs=((0, 1), (2, 3)), lengths=(0.1, 0.2))
