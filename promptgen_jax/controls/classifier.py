"""Classifier energy: -log P(target | x), for any attribute of any ported classifier (section 3.1 of the paper)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from promptgen_jax.models.network import Network, load_network
from promptgen_jax.models.pretrained import NOT
from promptgen_jax.types import Aim, Array, Sample, Spec, spec_field


@struct.dataclass
class ClassifierControl:
    """E(x) = -log P(target | x) in nats, by log-softmax, so it has no largest value and no dead gradient.

    A target such as "not happy" aims at all other labels: E(x) = -log(1 - P(happy | x)).

    With `mirror`, the mean of that over the image and its mirror image: a small classifier judges the two quite
    differently, and what only one of them shows is its noise, which no flow can follow.

    A `floor` above 0 gives the official form -log(P + floor), floor 1e-8 there, which ends at 18.4 nats: where 1 - P
    rounds to 0, its gradient is 0 and training stands still.
    """

    network: Network
    weight: float
    name: str = struct.field(pytree_node=False)
    attribute: str = struct.field(pytree_node=False)
    target: str = struct.field(pytree_node=False)
    mirror: bool = struct.field(pytree_node=False, default=False)
    floor: float = struct.field(pytree_node=False, default=0.0)
    needs_reference: bool = struct.field(pytree_node=False, default=False)
    spec: Spec | None = spec_field()

    @property
    def label(self) -> str:
        """The label that the target names, aimed at or avoided."""
        return self.target.removeprefix(NOT)

    @property
    def aims(self) -> tuple[Aim, ...]:
        """The label, as its classifier sees it."""
        return (Aim(self.network, self.attribute, labels=(self.label,), unit="share"),)

    @property
    def networks(self) -> tuple[Network, ...]:
        """The network that it is made of."""
        return (self.network,)

    def __call__(self, key: Array, sample: Sample) -> Array:
        """Energies (B,) in nats, 0 is certainty. `key` is not used."""
        del key
        images = sample.images
        if not self.mirror:
            return self.from_log_probs(self.network.log_probs(images, self.attribute))
        views = jnp.stack([images, images[:, :, ::-1]])  # one after the other: together they leave the cache
        energies = jax.lax.map(lambda view: self.from_log_probs(self.network.log_probs(view, self.attribute)), views)
        return jnp.mean(energies, axis=0)

    def from_log_probs(self, log_probs: Array) -> Array:
        """Energies (B,) of log P(label | image), (B, K) in nats."""
        index = self.network.label_index(self.attribute, self.label)
        avoided = self.target != self.label
        if self.floor:
            probability = jnp.exp(log_probs[:, index])
            rest = jnp.maximum(1 - probability, 0)  # the maximum keeps XLA from adding the floor to the 1 first
            return -jnp.log((rest if avoided else probability) + self.floor)
        if avoided:
            return -jax.nn.logsumexp(jnp.delete(log_probs, index, axis=1), axis=1)
        return -log_probs[:, index]


def build(
    *,
    network: str | Network,
    attribute: str = "",
    target: str,
    weight: float = 1.0,
    mirror: bool = False,
    floor: float = 0.0,
    name: str = "",
    precision: str = "",
) -> ClassifierControl:
    """Loads the classifier and aims at one of its labels, or at all but one.

    Args:
      network: name under ported_weights, a folder, ours or of transformers, "owner/name" on the Hugging Face Hub, or a
        network, see `load_network`.
      attribute: one of its attributes; that of the label if left out.
      target: label to aim at, or "not " and the label to avoid.
      weight: the paper's lambda.
      mirror: judge the mirror image too; for attributes that do not depend on left and right.
      floor: 0, or the official code's 1e-8.
      name: of the control; the target by default.
      precision: of the network's products, see `load_network`.

    Raises:
      FileNotFoundError, ValueError: unknown network, attribute or target (with the nearest match), damaged weights, a
        floor that is not in [0, 1).
    """
    if isinstance(floor, bool) or not 0 <= floor < 1:
        raise ValueError(f"control {name or target}: floor is {floor!r}; expected a number from 0, below 1, e.g. 1e-8.")
    loaded = load_network(network, precision=precision)
    attribute = attribute or loaded.attribute_of(target.removeprefix(NOT))
    loaded.label_index(attribute, target.removeprefix(NOT))
    return ClassifierControl(
        network=loaded,
        weight=jnp.float32(weight),
        name=name or target,
        attribute=attribute,
        target=target,
        mirror=mirror,
        floor=float(floor),
    )


def tiny() -> ClassifierControl:
    """One for tests: happy faces."""
    return build(network="emotion", attribute="emotion", target="happy")
