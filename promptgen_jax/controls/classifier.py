"""Classifier energy: -log P(target | x), for any attribute of any ported classifier (section 3.1 of the paper)."""

from __future__ import annotations

import jax
from flax import struct

from promptgen_jax.network import Network, load_network
from promptgen_jax.types import Array, Sample


@struct.dataclass
class ClassifierControl:
    """E(x) = -log P(target | x) in nats, by log-softmax, so it has no floor and no dead gradient."""

    network: Network
    weight: float
    name: str = struct.field(pytree_node=False)
    attribute: str = struct.field(pytree_node=False)
    target: str = struct.field(pytree_node=False)
    needs_reference: bool = struct.field(pytree_node=False, default=False)

    def __call__(self, key: Array, sample: Sample) -> Array:
        """Energies (B,) in nats, 0 is certainty. `key` is not used."""
        del key
        index = self.network.label_index(self.attribute, self.target)
        return -self.network.log_probs(sample.images, self.attribute)[:, index]


def build(*, network: str, attribute: str, target: str, weight: float = 1.0, name: str = "") -> ClassifierControl:
    """Loads the classifier and aims at one of its labels.

    Raises:
      FileNotFoundError, ValueError: unknown network, attribute or target (with the nearest match), damaged weights.
    """
    loaded = load_network(network)
    loaded.label_index(attribute, target)
    return ClassifierControl(
        network=loaded, weight=jax.numpy.float32(weight), name=name or target, attribute=attribute, target=target
    )
