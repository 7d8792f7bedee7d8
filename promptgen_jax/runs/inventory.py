"""What there is to use: generators, controls, configs, and the weights that are present, missing or damaged."""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Mapping
from pathlib import Path

from promptgen_jax import parts
from promptgen_jax.store import catalogue, weights

WIDTH = 120


def describe(configs: str | Path = "configs") -> str:
    """The lists as text, a line each.

    Args:
      configs: folder of config files, whose docstrings are quoted.
    """
    sections = {
        "Generators": _adapters("generators"),
        "Controls": _adapters("controls"),
        "Configs": [
            (path.name, _first_line(path)) for path in sorted(Path(configs).glob("*.py")) if path.stem != "pieces"
        ],
        "Labels": _labels(),
        "Weights": _weights(),
    }
    return "\n\n".join(
        "\n".join([title, *(f"  {name:24} {text}" for name, text in rows)]) for title, rows in sections.items() if rows
    )


def _adapters(package: str) -> list[tuple[str, str]]:
    folder = Path(__file__).parents[1] / package
    return [(name, _first_line(folder / f"{name}.py")) for name in parts.available(package)]


def _first_line(path: Path) -> str:
    """Of the docstring of a Python file, which is not run."""
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]


def _weights() -> list[tuple[str, str]]:
    folders = _folders()
    present = [(name, _state(folder)) for name, folder in sorted(folders.items())]
    missing = [
        (name, f"missing: {checkpoint.command(name)}  # {checkpoint.file} from {checkpoint.url}")
        for name, checkpoint in catalogue.CHECKPOINTS.items()
        if name not in folders
    ]
    return present + missing


def _folders() -> dict[str, Path]:
    """The weight folders by name."""
    return {
        path.parent.name: path.parent
        for root in reversed(weights.weight_roots())
        for path in sorted(root.glob(f"*/{weights.CONFIG}"))
    }


def _labels() -> list[tuple[str, str]]:
    """What every classifier tells apart, present or not: a row an attribute."""
    published = {name: checkpoint.attributes for name, checkpoint in catalogue.CHECKPOINTS.items()}
    found = published | {name: _attributes(folder) for name, folder in _folders().items()}
    margin = len(f"  {'':24} ")
    width, indent = WIDTH - margin, "\n" + " " * margin
    return [
        (name, indent.join(textwrap.wrap(f"{attribute}: {_listed(labels)}", width, break_on_hyphens=False)))
        for name, attributes in sorted(found.items())
        for attribute, labels in attributes.items()
    ]


def _attributes(folder: Path) -> Mapping:
    try:
        return weights.read_config(folder).get("attributes", {})
    except (ValueError, FileNotFoundError):
        return {}  # which is told among the weights


def _listed(labels: list[str]) -> str:
    """Labels with commas between them; of years in a row the ends."""
    if len(labels) > 3 and all(str(label).isdigit() for label in labels):
        return f"{labels[0]} to {labels[-1]}"
    return ", ".join(labels)


def _state(folder: Path) -> str:
    try:
        config = weights.read_config(folder)
        weights.check_sha256(folder / weights.TENSORS, config["sha256"])
    except (ValueError, KeyError, FileNotFoundError) as error:
        return f"damaged: {error}"
    size = (folder / weights.TENSORS).stat().st_size / 2**20
    return f"present: {config['kind']}, {size:.1f} MiB, licence {config.get('license') or 'not stated'}"
