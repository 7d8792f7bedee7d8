"""What there is to use: generators, controls, configs, and the weights that are present, missing or damaged."""

from __future__ import annotations

import ast
from pathlib import Path

from promptgen_jax import parts
from promptgen_jax.models import pretrained
from promptgen_jax.store import catalogue, hub, weights


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
        "Weights": _weights(),
        "Models in the cache of the Hugging Face Hub": [
            (name, pretrained.describe(folder)) for name, folder in hub.cached()
        ],
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
    folders = {
        path.parent.name: path.parent
        for root in reversed(weights.weight_roots())
        for path in sorted(root.glob(f"*/{weights.CONFIG}"))
    }
    present = [(name, _state(folder)) for name, folder in sorted(folders.items())]
    missing = [
        (name, f"missing: {checkpoint.command(name)}  # {checkpoint.file} from {checkpoint.url}")
        for name, checkpoint in catalogue.CHECKPOINTS.items()
        if name not in folders
    ]
    return present + missing


def _state(folder: Path) -> str:
    try:
        config = weights.read_config(folder)
        weights.check_sha256(folder / weights.TENSORS, config["sha256"])
    except (ValueError, KeyError, FileNotFoundError) as error:
        return f"damaged: {error}"
    size = (folder / weights.TENSORS).stat().st_size / 2**20
    return f"present: {config['kind']}, {size:.1f} MiB, licence {config.get('license') or 'not stated'}"
