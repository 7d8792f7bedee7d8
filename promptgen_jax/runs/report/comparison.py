"""The page of a comparison: methods side by side on one target."""

from __future__ import annotations

from pathlib import Path

from promptgen_jax.evaluation.compare import Comparison
from promptgen_jax.metrics import Figures
from promptgen_jax.runs.report import pictures, sections
from promptgen_jax.runs.report.markup import Html, element, interval, number, table
from promptgen_jax.runs.report.page import document, header, write_rendered

INPUT, OUTPUT = "comparison.json", "comparison.html"
TEXT = (
    "Mean energy alone does not rank methods: the target has one mean energy, that of the reference, and a method "
    "below it has gone too far. KL and effective share are known where the density of the samples is. Costs are per "
    "effective sample, compilation left out. Small print is the 95 % interval."
)


def write_comparison(folder: str | Path) -> Path:
    """Renders `comparison.json` of a folder to `comparison.html`, written atomically; returns its path.

    Raises:
      FileNotFoundError: no such file; ValueError: it is damaged.
    """
    return write_rendered(folder, INPUT, OUTPUT, render, "which a comparison writes. Compare first.")


def render(folder: Path, about: dict) -> str:
    """The HTML text of a comparison."""
    found = Comparison.from_json(about)
    parts = [
        ("Method by method", sections.figures(Figures("", found.figures, TEXT))),
        ("Normaliser of the target", _log_z(found)),
        ("Samples", pictures.images(folder, about.get("images"))),
        ("Who appears how often", sections.shares(found.shares)),
        ("Notes", sections.notes(found.notes)),
    ]
    main = element(
        "main",
        header(about),
        sections.measured_line({**found.options, "seed": about.get("seed")}),
        [element("section", element("h2", title), content, class_="part") for title, content in parts if content],
        element("footer", f"Made by promptgen_jax from {INPUT}."),
    )
    return document(about["title"], main)


def _log_z(found: Comparison) -> Html | None:
    names = {"pooled": "flow and prior together", "reference": "sequential Monte Carlo"}
    rows = [
        [names.get(name, name), [number(value.mean), interval(value.low, value.high)]]
        for name, value in found.log_z.items()
    ]
    text = "Two independent estimates of log Z, in nats; the KL above uses the first. If they disagree, trust neither."
    return element("div", element("p", text), table(["log Z by", "Estimate"], rows)) if rows else None
