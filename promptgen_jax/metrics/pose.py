"""Head pose: mean angles in degrees, of every network that reads a `pose`."""

from __future__ import annotations

from collections.abc import Mapping

from promptgen_jax.controls.pose import ANGLES
from promptgen_jax.metrics._figures import Figure
from promptgen_jax.metrics._intervals import mean_estimate
from promptgen_jax.metrics._observed import About, Observed


def measure(seen: Mapping[str, Observed], about: About) -> tuple[Figure, ...]:
    """One figure an angle and network, beside what was asked for."""
    readers = [name for name, outputs in next(iter(seen.values())).outputs.items() if "pose" in outputs]
    return tuple(
        Figure(
            angle,
            {d: mean_estimate(found.outputs[name]["pose"][:, i], found.weights()) for d, found in seen.items()},
            unit="degrees",
            target=about.target(name, "pose").get(angle),
        )
        for name in readers
        for i, angle in enumerate(ANGLES)
    )
