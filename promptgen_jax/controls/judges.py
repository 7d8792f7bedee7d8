"""One wish by several classifiers: what one of them alone can be fooled into, the others may contradict."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax.numpy as jnp
from flax import struct

from promptgen_jax import checks
from promptgen_jax.controls import classifier
from promptgen_jax.controls.classifier import ClassifierControl
from promptgen_jax.models.network import Network
from promptgen_jax.types import Aim, Array, Sample, Spec, spec_field

COMBINED: dict[str, Callable] = {"mean": jnp.mean, "worst": jnp.max, "product": jnp.sum}  # of energies, over judges


@struct.dataclass
class JudgesControl:
    """E(x) of E_j(x) = -log P_j(target | x), nats: their mean, the largest of them ("worst"), or their sum ("product").

    The product takes the judges to be independent, so it is as sure as all of them together.
    """

    judges: tuple[ClassifierControl, ...]
    weight: float
    name: str = struct.field(pytree_node=False)
    combine: str = struct.field(pytree_node=False, default="mean")
    needs_reference: bool = struct.field(pytree_node=False, default=False)
    spec: Spec | None = spec_field()

    @property
    def aims(self) -> tuple[Aim, ...]:
        """Those of all judges."""
        return tuple(aim for judge in self.judges for aim in judge.aims)

    @property
    def networks(self) -> tuple[Network, ...]:
        """Those of all judges."""
        return tuple(judge.network for judge in self.judges)

    def __call__(self, key: Array, sample: Sample) -> Array:
        """Energies (B,) in nats, 0 is certainty. `key` is not used."""
        return COMBINED[self.combine](jnp.stack([judge(key, sample) for judge in self.judges]), axis=0)


def build(
    *,
    judges: Sequence[Sequence],
    combine: str = "mean",
    weight: float = 1.0,
    mirror: bool = False,
    name: str = "",
    precision: str = "",
) -> JudgesControl:
    """Loads several classifiers, each aiming at the label that means the wish to it.

    Args:
      judges: (network, attribute, target) each, with targets as in `classifier`.
      combine: "mean", "worst" or "product".
      weight: the paper's lambda.
      mirror: judge the mirror image too.
      name: of the control; the target of the first judge by default.
      precision: of the network's products, see `load_network`.

    Raises:
      FileNotFoundError, ValueError: fewer than two judges, an unknown network, attribute, target or combination (with
        the nearest match).
    """
    asked = [tuple(judge) for judge in judges]
    if len(asked) < 2 or not all(len(judge) == 3 for judge in asked):
        raise ValueError(
            f"control {name or 'judges'}: judges are {asked}; expected at least two, each (network, attribute, "
            "target). For one use kind='classifier'."
        )
    name = name or asked[0][2]
    checks.check_known(f"control {name}: combine", combine, COMBINED)
    made = tuple(
        classifier.build(network=network, attribute=attribute, target=target, mirror=mirror, precision=precision)
        for network, attribute, target in asked
    )
    return JudgesControl(made, jnp.float32(weight), name, combine)


def tiny():
    """One for tests: happy faces, by two judges."""
    return build(judges=(("emotion", "emotion", "happy"), ("faceapi_expression", "expression", "happy")))
