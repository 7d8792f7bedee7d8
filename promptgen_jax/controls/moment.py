"""Moment constraint: the energy -beta·gamma(x) whose beta makes E[gamma] = mu (Eq. 5-7 of the paper)."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import struct

from promptgen_jax.controls._shares import asked_shares
from promptgen_jax.models.network import Network, load_network
from promptgen_jax.types import FOLLOWS, Aim, Array, Sample, Spec, spec_field


@struct.dataclass
class MomentControl:
    """E(x) = -beta · gamma(x), gamma the classifier's probabilities.

    Attributes:
      beta: (K,) fitted by `moments.fit_beta`; zeros until then.
      mu: (K,) the asked mean of gamma; NaN where labels share what is left, until `training.fit_moments`.
    """

    network: Network
    weight: float
    beta: Array = struct.field(metadata={FOLLOWS: True})
    mu: Array
    name: str = struct.field(pytree_node=False)
    attribute: str = struct.field(pytree_node=False)
    needs_reference: bool = struct.field(pytree_node=False, default=False)
    spec: Spec | None = spec_field()

    @property
    def aims(self) -> tuple[Aim, ...]:
        """The share of every label, as its classifier sees it."""
        labels = self.network.labels(self.attribute)
        target = tuple(zip(labels, np.asarray(self.mu).tolist(), strict=True))
        return (Aim(self.network, self.attribute, labels=labels, target=target, unit="share"),)

    @property
    def networks(self) -> tuple[Network, ...]:
        """The network that it is made of."""
        return (self.network,)

    def gamma(self, images: Array) -> Array:
        """P(label | image), (B, K)."""
        return jnp.exp(self.network.log_probs(images, self.attribute))

    def __call__(self, key: Array, sample: Sample) -> Array:
        """Energies (B,), nats, up to a constant. `key` is not used."""
        del key
        return -jnp.sum(self.gamma(sample.images) * self.beta, axis=1)


def build(
    *, network: str | Network, attribute: str, mu: Any = "uniform", weight: float = 1.0, name: str = ""
) -> MomentControl:
    """A constraint with beta still to be fitted.

    Args:
      network: classifier by name or folder, or a `Network` that is loaded.
      attribute: whose probabilities are constrained.
      mu: shares by label, such as {"female": 0.7}, or "uniform". Labels without one share what is left as they do in
        the generator. K numbers in the order of the labels are read too, and answered with what they mean.
      weight: the paper's lambda on beta; anything but 1 overshoots the moment on purpose.
      name: name of the control; the attribute by default.

    Raises:
      FileNotFoundError, ValueError: unknown network, attribute or label (with the nearest match), shares out of range.
    """
    loaded = load_network(network)
    labels = loaded.labels(attribute)
    mu = asked_shares(f"control {name or attribute}", mu, labels)
    return MomentControl(
        network=loaded,
        weight=jnp.float32(weight),
        beta=jnp.zeros(len(labels)),
        mu=jnp.asarray(mu, jnp.float32),
        name=name or attribute,
        attribute=attribute,
    )
