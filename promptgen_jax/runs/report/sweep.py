"""The page of a sweep: one key of a configuration at several values."""

from __future__ import annotations

from pathlib import Path

from promptgen_jax.evaluation.sweep import ENERGY, TO_GENERATOR
from promptgen_jax.metrics import Figure, Figures
from promptgen_jax.runs.report import sections
from promptgen_jax.runs.report.charts import trade_chart
from promptgen_jax.runs.report.markup import element
from promptgen_jax.runs.report.page import document, header, write_rendered

INPUT, OUTPUT = "sweep.json", "sweep.html"
TEXT = (
    "Energy is told by the weights of the configuration at every value, so that it compares. A flow that is close to "
    "its target has a KL to it near 0 and an effective share near 1. Small print is the 95 % interval."
)
CURVE = (
    "Mean energy over the distance to the generator; the ring is the knee. Every point is a value, with its intervals."
)


def write_sweep(folder: str | Path) -> Path:
    """Renders `sweep.json` of a folder to `sweep.html`, written atomically; returns its path.

    Raises:
      FileNotFoundError: no such file; ValueError: it is damaged.
    """
    return write_rendered(folder, INPUT, OUTPUT, render, "which a sweep writes. Sweep first.")


def render(folder: Path, about: dict) -> str:
    """The HTML text of a sweep."""
    rows = tuple(map(Figure.from_json, about["figures"]))
    table = {row.name: row.values for row in rows}
    points = [(value, table[TO_GENERATOR][value], found) for value, found in table[ENERGY].items()]
    chart = trade_chart("energy by distance to the generator", points, about.get("knee"), (TO_GENERATOR, ENERGY))
    parts = [
        ("What it buys", element("div", element("p", element("b", about["advice"])), chart, element("p", CURVE))),
        ("Value by value", sections.figures(Figures("", rows, TEXT))),
        ("Samples", sections.images(folder, about.get("images"))),
        ("Notes", sections.notes(tuple(about.get("notes") or ()))),
    ]
    main = element(
        "main",
        header(about),
        sections.measured_line(about.get("measured") or {}),
        [element("section", element("h2", title), content, class_="part") for title, content in parts if content],
        element("footer", f"Made by promptgen_jax from {INPUT}."),
    )
    return document(about["title"], main)
