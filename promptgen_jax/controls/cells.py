"""Shares of combinations as one constraint: gender and smile, say, 25 % each of the four (section 4.2, Table 2)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from promptgen_jax import checks
from promptgen_jax.controls.moment import MomentControl, constrain
from promptgen_jax.models.network import Network, load_network
from promptgen_jax.models.pretrained import NOT
from promptgen_jax.types import Array

AND = " & "


@struct.dataclass
class Cells:
    """Several attributes of several networks as one attribute of one network, whose labels are their combinations.

    P(cell | x) is the product of the probabilities of its labels, which are taken to be independent given the image.

    Attributes:
      networks: one for each question.
      questions: (attribute, label) each; without a label, "", all labels of the attribute are told apart, with one it
        and all others.
    """

    networks: tuple[Network, ...]
    questions: tuple[tuple[str, str], ...] = struct.field(pytree_node=False)

    @property
    def name(self) -> str:
        """Of all networks."""
        return " and ".join(dict.fromkeys(network.name for network in self.networks))

    @property
    def attribute(self) -> str:
        """The name of the only attribute."""
        return AND.join(label or attribute for attribute, label in self.questions)

    def __call__(self, images: Array) -> dict[str, Array]:
        """Log-probabilities (B, K) of the cells under the name of the attribute, in the order of their labels."""
        unique = {network.name: network for network in self.networks}
        outputs = {name: network(images) for name, network in unique.items()}
        cells = jnp.zeros((len(images), 1))
        for network, (attribute, label) in zip(self.networks, self.questions, strict=True):
            log_probs = jax.nn.log_softmax(outputs[network.name][attribute])
            if label:
                index = network.label_index(attribute, label)
                rest = jax.nn.logsumexp(jnp.delete(log_probs, index, axis=1), axis=1)
                log_probs = jnp.stack([log_probs[:, index], rest], axis=1)
            cells = (cells[:, :, None] + log_probs[:, None]).reshape(len(images), -1)
        return {self.attribute: cells}

    def labels(self, attribute: str) -> tuple[str, ...]:
        """The cells, such as "female & happy". Raises ValueError for another attribute."""
        checks.check_known(f"{self.name}: attribute", attribute, (self.attribute,))
        answers = [
            (label, f"{NOT}{label}") if label else network.labels(attribute)
            for network, (attribute, label) in zip(self.networks, self.questions, strict=True)
        ]
        return tuple(map(AND.join, itertools.product(*answers)))

    def label_index(self, attribute: str, label: str) -> int:
        """The column of a cell."""
        labels = self.labels(attribute)
        checks.check_known(f"{self.name}: label of {attribute}", label, labels)
        return labels.index(label)

    def log_probs(self, images: Array, attribute: str) -> Array:
        """Log P(cell | image), (B, K) in nats."""
        self.labels(attribute)
        return self(images)[attribute]


def build(
    *,
    attributes: Sequence[Sequence],
    mu: Any = "uniform",
    weight: float = 1.0,
    count: str = "soft",
    temperature: float = 1.0,
    name: str = "",
    precision: str = "",
) -> MomentControl:
    """A constraint on the cells of several attributes, with beta still to be fitted.

    Args:
      attributes: (network, attribute) each, for all its labels, or (network, attribute, label), for it and all others.
      mu: shares by cell, such as {"female & happy": 0.25, "female & not happy": 0.25}, or "uniform". Cells without one
        share what is left as they do in the generator.
      weight: as in `moment`.
      count: "soft" or "hard", as in `moment`.
      temperature: as in `moment`.
      name: of the control; the attributes by default.
      precision: of the network's products, see `load_network`.

    Raises:
      FileNotFoundError, ValueError: fewer than two attributes; an unknown network, attribute, label, cell or count,
        with the nearest match; shares out of range.
    """
    where = f"control {name or 'cells'}"
    asked = [tuple(each) for each in attributes]
    if len(asked) < 2 or not all(len(each) in (2, 3) for each in asked):
        raise ValueError(
            f"{where}: attributes are {asked}; expected at least two, each (network, attribute) or (network, "
            "attribute, label). For one attribute use kind='moment'."
        )
    networks = tuple(load_network(network, precision=precision) for network, *_ in asked)
    questions = tuple((attribute, label[0] if label else "") for _, attribute, *label in asked)
    for network, (attribute, label) in zip(networks, questions, strict=True):
        network.label_index(attribute, label) if label else network.labels(attribute)
    cells = Cells(networks, questions)
    if isinstance(mu, Mapping):
        mu = _by_cell(where, mu, cells.labels(cells.attribute))
    return constrain(cells, cells.attribute, mu, weight, count, temperature, name or cells.attribute)


def _by_cell(where: str, mu: Mapping[str, float], labels: Sequence[str]) -> dict[str, float]:
    """Shares by label of the cell, whose parts may be written in any order where only one cell has them.

    Raises:
      ValueError: one cell, written twice.
    """
    found: dict[str, float] = {}
    for written, share in mu.items():
        parts = [part.strip() for part in written.split("&")]
        alike = [label for label in labels if sorted(label.split(AND)) == sorted(parts)]
        cell = alike[0] if len(alike) == 1 else AND.join(parts)
        if cell in found:
            raise ValueError(f"{where}: mu has {cell!r} twice, once as {written!r}. Leave one out.")
        found[cell] = share
    return found


def tiny():
    """One for tests: gender by happiness, with betas of its own."""
    control: Any = build(attributes=(("faceapi_age_gender", "gender"), ("faceapi_expression", "expression", "happy")))
    return control.replace(beta=jnp.linspace(-1, 1, len(control.beta)))
