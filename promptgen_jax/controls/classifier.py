"""Classifier energy: -log P(target | x), for any attribute of any ported classifier (section 3.1 of the paper)."""

from __future__ import annotations

import jax
from flax import struct

from promptgen_jax.network import Network, load_network
from promptgen_jax.types import Array, Sample


@struct.dataclass
class ClassifierControl:
    """E(x) = -log P(target | x) in nats, by log-softmax, so it has no floor and no dead gradient.

    With `mirror`, the mean of that over the image and its mirror image: a small classifier judges the two quite
    differently, and what only one of them shows is its noise, which no flow can follow.
    """

    network: Network
    weight: float
    name: str = struct.field(pytree_node=False)
    attribute: str = struct.field(pytree_node=False)
    target: str = struct.field(pytree_node=False)
    mirror: bool = struct.field(pytree_node=False, default=False)
    needs_reference: bool = struct.field(pytree_node=False, default=False)

    def __call__(self, key: Array, sample: Sample) -> Array:
        """Energies (B,) in nats, 0 is certainty. `key` is not used."""
        del key
        index = self.network.label_index(self.attribute, self.target)
        views = (sample.images, sample.images[:, :, ::-1]) if self.mirror else (sample.images,)
        return -sum(self.network.log_probs(view, self.attribute)[:, index] for view in views) / len(views)


def build(
    *, network: str, attribute: str, target: str, weight: float = 1.0, mirror: bool = False, name: str = ""
) -> ClassifierControl:
    """Loads the classifier and aims at one of its labels.

    Args:
      network: name under ported_weights, or a folder.
      attribute: one of its attributes.
      target: label to aim at.
      weight: the paper's lambda.
      mirror: judge the mirror image too; for attributes that do not depend on left and right.
      name: of the control; the target by default.

    Raises:
      FileNotFoundError, ValueError: unknown network, attribute or target (with the nearest match), damaged weights.
    """
    loaded = load_network(network)
    loaded.label_index(attribute, target)
    return ClassifierControl(
        network=loaded,
        weight=jax.numpy.float32(weight),
        name=name or target,
        attribute=attribute,
        target=target,
        mirror=mirror,
    )
