"""Energies on the points of `generators.synthetic`, whose targets are known exactly (see `evaluation.closed_forms`)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from promptgen_jax import checks
from promptgen_jax.controls.classifier import ClassifierControl
from promptgen_jax.controls.moment import MomentControl, constrain
from promptgen_jax.generators.synthetic import to_points
from promptgen_jax.types import Aim, Array, Sample, Spec, spec_field

ENERGIES = ("classifier", "moment", "quadratic", "wells")
ATTRIBUTE, WELL = "mode", "well"
LABELS = {ATTRIBUTE: ("a_1", "a_2"), WELL: ("upper right", "lower right", "upper left", "lower left")}
WELLS = ((2.0, 2.0), (2.0, -2.0), (-2.0, 2.0), (-2.0, -2.0))
WELL_SCALE = 0.35


@struct.dataclass
class PointClassifier:
    """The exact classifier of points: of mixture2d by "mode", of the wells by "well".

    p(a_1 | x) = N_1 / (N_1 + N_2) = sigmoid(6 (x1 + x2)); P(well k | x) ∝ exp(-½ |(x - centre_k) / scale|²).
    Stands in for a `Network` in controls and judges.
    """

    name: str = struct.field(pytree_node=False, default="synthetic")

    def __call__(self, images: Array) -> dict[str, Array]:
        """Logits (B, 2) of "mode" and (B, 4) of "well" of points (B, 1, 1, 3)."""
        points = to_points(images, 2)
        logit = 6 * jnp.sum(points, axis=1)
        error = (points[:, None] - jnp.asarray(WELLS)) / WELL_SCALE
        return {ATTRIBUTE: jnp.stack([logit, jnp.zeros_like(logit)], 1), WELL: -0.5 * jnp.sum(error**2, axis=-1)}

    def labels(self, attribute: str) -> tuple[str, ...]:
        """The labels of "mode" or "well"."""
        checks.check_known(f"{self.name}: attribute", attribute, LABELS)
        return LABELS[attribute]

    def label_index(self, attribute: str, label: str) -> int:
        """The column of a label."""
        labels = self.labels(attribute)
        checks.check_known(f"{self.name}: label of {attribute}", label, labels)
        return labels.index(label)

    def log_probs(self, images: Array, attribute: str) -> Array:
        """Log-probabilities log P(label | x), (B, labels), of points (B, 1, 1, 3)."""
        self.labels(attribute)
        return jax.nn.log_softmax(self(images)[attribute], axis=-1)


@struct.dataclass
class QuadraticControl:
    """E(x) = ½ |(x - target) / scale|², the noisy observation of a point."""

    target: Array
    scale: Array
    weight: float
    name: str = struct.field(pytree_node=False, default="quadratic")
    needs_reference: bool = struct.field(pytree_node=False, default=False)
    spec: Spec | None = spec_field()

    def __call__(self, key: Array, sample: Sample) -> Array:
        """Energies (B,), nats; 0 at the target. `key` is not used."""
        del key
        error = (to_points(sample.images, self.target.shape[0]) - self.target) / self.scale
        return 0.5 * jnp.sum(error**2, axis=1)


@struct.dataclass
class WellsControl:
    """E(x) = -log Σ_k exp(-½ |(x - centre_k) / scale|²), separated wells of equal depth."""

    centres: Array
    scale: Array
    weight: float
    name: str = struct.field(pytree_node=False, default="wells")
    network: PointClassifier = PointClassifier()
    attribute: str = struct.field(pytree_node=False, default=WELL)
    needs_reference: bool = struct.field(pytree_node=False, default=False)
    spec: Spec | None = spec_field()

    @property
    def aims(self) -> tuple[Aim, ...]:
        """Which well a point is in; none is asked for more than another."""
        return (Aim(self.network, self.attribute, unit="share"),)

    def __call__(self, key: Array, sample: Sample) -> Array:
        """Energies (B,), nats; about 0 at a centre. `key` is not used."""
        del key
        error = (to_points(sample.images, self.centres.shape[1])[:, None] - self.centres) / self.scale
        return -jax.nn.logsumexp(-0.5 * jnp.sum(error**2, axis=-1), axis=1)


def build(
    *,
    energy: str,
    target: Any = None,
    mu: Any = "uniform",
    count: str = "soft",
    temperature: float = 1.0,
    scale: float = 0.0,
    weight: float = 1.0,
    name: str = "",
) -> ClassifierControl | MomentControl | QuadraticControl | WellsControl:
    """An energy with a known solution.

    Args:
      energy: "classifier" or "moment" for mixture2d, "quadratic" for linear, "wells" for wells.
      target: label of "classifier" ("a_1" by default); coordinates of "quadratic".
      mu: "moment" only: shares of a_1 and a_2 by label, or "uniform". Fit beta with `training.fit_moments`.
      count: "moment" only: "soft" or "hard", see `controls.moment`.
      temperature: of "hard" only, see there.
      scale: of "quadratic" (0 means 0.5) and "wells" (0 means 0.35).
      weight: the paper's lambda.
      name: of the control; the energy by default.

    Raises:
      ValueError: unknown energy, label or count (with the nearest match), mu, temperature or scale out of range, no
        target.
    """
    checks.check_known("synthetic: energy", energy, ENERGIES)
    name, weight, classifier = name or energy, jnp.float32(weight), PointClassifier()
    if scale < 0:
        raise ValueError(f"control {name}: scale is {scale}; expected a positive number, or 0 for the default.")
    if energy == "classifier":
        target = target or LABELS[ATTRIBUTE][0]
        classifier.label_index(ATTRIBUTE, target)
        judge: Any = classifier  # it reads as a network does
        return ClassifierControl(network=judge, weight=weight, name=name, attribute=ATTRIBUTE, target=target)
    if energy == "moment":
        return constrain(classifier, ATTRIBUTE, mu, weight, count, temperature, name)
    if energy == "quadratic":
        if target is None:
            raise ValueError(f"control {name}: no target; pass the coordinates of a point.")
        return QuadraticControl(jnp.asarray(target, jnp.float32), jnp.float32(scale or 0.5), weight, name)
    return WellsControl(jnp.asarray(WELLS), jnp.float32(scale or WELL_SCALE), weight, name)


def tiny() -> QuadraticControl:
    """One for tests: points near (0.5, ...) in nine dimensions."""
    return QuadraticControl(jnp.full(9, 0.5), jnp.float32(0.7), 1.0, "quadratic")
