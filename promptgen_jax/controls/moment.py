"""Moment constraint: the energy -beta·gamma(x) whose beta makes E[gamma] = mu (Eq. 5-7 of the paper)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from promptgen_jax import checks
from promptgen_jax.controls._shares import asked_shares
from promptgen_jax.models.network import Network, load_network
from promptgen_jax.types import FOLLOWS, Aim, Array, Sample, Spec, spec_field

COUNTS = ("soft", "hard")


@struct.dataclass
class MomentControl:
    """E(x) = -beta · gamma(x), gamma the classifier's probabilities, or which label it puts first.

    First choices, `count="hard"`, are steps, whose derivative is zero: fit, certificate and score function take them
    as they are. For gradients by the image the probabilities at a temperature T stand in, which is not the gradient of
    the energy:

        forward:  gamma_k = [k = argmax_j p_j]        backward:  d gamma = d softmax(log p / T)

    Attributes:
      beta: (K,) fitted by `moments.fit_beta`; zeros until then.
      mu: (K,) the asked mean of gamma; NaN where labels share what is left, until `training.fit_moments`.
      count: "soft" for mean probabilities, "hard" for shares of first choices.
      temperature: T, of "hard" only; larger where the classifier is so sure that its probabilities have no slope.

    Source: Eq. 6; the straight-through estimator of arXiv 1308.3432 for the gradient of first choices.
    """

    network: Network
    weight: float
    beta: Array = struct.field(metadata={FOLLOWS: True})
    mu: Array
    name: str = struct.field(pytree_node=False)
    attribute: str = struct.field(pytree_node=False)
    count: str = struct.field(pytree_node=False, default="soft")
    temperature: float = struct.field(pytree_node=False, default=1.0)
    needs_reference: bool = struct.field(pytree_node=False, default=False)
    spec: Spec | None = spec_field()

    @property
    def aims(self) -> tuple[Aim, ...]:
        """The share of every label, as its classifier sees it."""
        labels = self.network.labels(self.attribute)
        target = tuple(zip(labels, np.asarray(self.mu).tolist(), strict=True))
        return (Aim(self.network, self.attribute, labels=labels, target=target, unit="share", count=self.count),)

    @property
    def networks(self) -> tuple[Network, ...]:
        """The network that it is made of, or all of them."""
        return getattr(self.network, "networks", (self.network,))

    def gamma(self, images: Array) -> Array:
        """P(label | image), (B, K), or 1 for the most probable label and 0 for the others."""
        log_probs = self.network.log_probs(images, self.attribute)
        if self.count == "soft":
            return jnp.exp(log_probs)
        chosen = jax.nn.one_hot(jnp.argmax(log_probs, axis=1), log_probs.shape[1])
        stand_in = jax.nn.softmax(log_probs / self.temperature)
        return chosen + (stand_in - jax.lax.stop_gradient(stand_in))  # the bracket is zero but for its gradient

    def __call__(self, key: Array, sample: Sample) -> Array:
        """Energies (B,), nats, up to a constant. `key` is not used."""
        del key
        return -jnp.sum(self.gamma(sample.images) * self.beta, axis=1)


def build(
    *,
    network: str | Network,
    attribute: str,
    mu: Any = "uniform",
    weight: float = 1.0,
    count: str = "soft",
    temperature: float = 1.0,
    name: str = "",
    precision: str = "",
) -> MomentControl:
    """A constraint with beta still to be fitted.

    Args:
      network: classifier by name or folder, or a `Network` that is loaded.
      attribute: whose labels are constrained.
      mu: shares by label, such as {"female": 0.7}, or "uniform". Labels without one share what is left as they do in
        the generator. K numbers in the order of the labels are read too, and answered with what they mean.
      weight: the paper's lambda on beta; anything but 1 overshoots the moment on purpose.
      count: what is a share: "soft", the mean probability of a label, or "hard", how often it is the first choice.
      temperature: of "hard" only: of the softmax whose gradient stands in for that of first choices.
      name: name of the control; the attribute by default.
      precision: of the network's products, see `load_network`.

    Raises:
      FileNotFoundError, ValueError: unknown network, attribute, label or count (with the nearest match), shares or
        temperature out of range.
    """
    return constrain(
        load_network(network, precision=precision), attribute, mu, weight, count, temperature, name or attribute
    )


def constrain(
    network: Any, attribute: str, mu: Any, weight: float, count: str, temperature: float, name: str
) -> MomentControl:
    """A constraint on a network that is loaded; arguments and errors as of `build`."""
    checks.check_known(f"control {name}: count", count, COUNTS)
    checks.check_number(f"control {name}: temperature", temperature, 0, 1e6, above=True)
    labels = network.labels(attribute)
    mu = asked_shares(f"control {name}", mu, labels)
    return MomentControl(
        network=network,
        weight=jnp.float32(weight),
        beta=jnp.zeros(len(labels)),
        mu=jnp.asarray(mu, jnp.float32),
        name=name,
        attribute=attribute,
        count=count,
        temperature=float(temperature),
    )


def tiny() -> MomentControl:
    """One for tests: seven expressions, with betas of its own."""
    control: Any = build(network="faceapi_expression", attribute="expression")
    return control.replace(beta=jnp.linspace(-1, 1, 7))
