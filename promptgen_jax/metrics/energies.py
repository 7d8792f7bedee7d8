"""Energies of every control, unweighted, as Table 4 of the paper compares them."""

from __future__ import annotations

from collections.abc import Mapping

from promptgen_jax.metrics._figures import Figure
from promptgen_jax.metrics._intervals import mean_estimate
from promptgen_jax.metrics._observed import About, Observed


def measure(seen: Mapping[str, Observed], about: About) -> tuple[Figure, ...]:
    """One figure a control; nothing where a control compares with an image that the flow itself makes."""
    return tuple(
        Figure(
            f"energy of {control.name}",
            {draws: mean_estimate(found.energies[control.name], found.weights()) for draws, found in seen.items()},
        )
        for control in about.ebm.controls
        if all(control.name in found.energies for found in seen.values())
    )
