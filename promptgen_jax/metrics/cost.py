"""What samples cost: energies, gradients of energies and seconds each, where a sampler counted them."""

from __future__ import annotations

from collections.abc import Mapping

from promptgen_jax.metrics._figures import Estimate, Figure, Figures
from promptgen_jax.metrics._observed import About, Observed

TEXT = (
    "Per sample. Energies and gradients are calls of the controls, each through the generator; seconds are without "
    "compilation. Samples of a prompt call no control."
)


def measure(seen: Mapping[str, Observed], about: About) -> Figures:
    """A row each of energies, gradients and seconds per sample."""
    rows = (("energies", "energy_calls", ""), ("gradients", "gradient_calls", ""), ("seconds", "seconds", "s"))
    counted = {name: found.draws for name, found in seen.items() if name != "weighted" and found.draws.cost.seconds}
    return Figures(
        "Cost of the samplers",
        tuple(
            Figure(title, {name: Estimate(getattr(d.cost, field) / len(d.z)) for name, d in counted.items()}, unit)
            for title, field, unit in rows
        ),
        text=TEXT,
    )
