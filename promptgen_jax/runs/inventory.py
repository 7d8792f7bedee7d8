"""What there is to use: generators, controls, configs, and the weights that are present, missing or damaged."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path

from promptgen_jax import parts
from promptgen_jax.models import pretrained
from promptgen_jax.store import catalogue, home, hub, weights

WIDTH, MARGIN = 120, 27  # of a line, and of what stands before the text in it


def take() -> dict[str, list[dict]]:
    """What there is, as JSON: name and text of each generator, control, sampler, config, and weight folder.

    Weights also have a `state`: present, missing or damaged. `labels` has what every classifier tells apart, present or
    not, an entry for each `attribute`.
    """
    return {
        "generators": _adapters("generators"),
        "controls": _adapters("controls"),
        "samplers": _adapters("samplers"),
        "configs": [{"name": path.name, "text": _first_line(path)} for path in home.configs().values()],
        "labels": _labels(),
        "weights": _weights(),
        "models in the cache of the Hugging Face Hub": [
            {"name": name, "text": pretrained.describe(folder)} for name, folder in hub.cached()
        ],
    }


def describe(found: dict[str, list[dict]]) -> str:
    """The lists of `take` as text, a line each."""
    return "\n\n".join(
        "\n".join([title.capitalize(), *(f"  {row['name']:24} {_told(row)}" for row in rows)])
        for title, rows in found.items()
        if rows
    )


def needed(config: dict) -> tuple[list[str], list[str]]:
    """Weight folders of published checkpoints and of shipped networks that a config names, and those that are missing.

    Options that it leaves out count too: a part that reads the weights of its default needs them.

    Args:
      config: nested dict, as `train_and_evaluate` takes it.

    Returns:
      (needed, missing), by name.
    """
    options = [_complete("generators", config["generator"], "name")]
    for stage in config["stages"].values():
        options += [_complete("controls", control, "kind") for control in stage["controls"].values()]
    words = set(_words([options, config.get("evaluation"), config.get("mixtures")]))
    present = set(weights.available_weights())
    return sorted(words & {*present, *catalogue.CHECKPOINTS}), sorted(words & {*catalogue.CHECKPOINTS} - present)


def _complete(package: str, options: dict, kind: str) -> dict:
    """Options of a part, with the defaults of those that are left out."""
    if options.get(kind) not in parts.available(package):
        return options
    known = inspect.signature(parts.find(package, options[kind]).build).parameters
    return {name: each.default for name, each in known.items()} | options


def _words(value) -> Iterator[str]:
    """All texts in nested dicts and lists, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _words([*value, *value.values()])
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _words(each)


def _told(row: dict) -> str:
    if "labels" in row:
        text = f"{row['attribute']}: {_listed(row['labels'])}"
        return ("\n" + " " * MARGIN).join(textwrap.wrap(text, WIDTH - MARGIN, break_on_hyphens=False))
    return f"{row['state']}: {row['text']}" if "state" in row else row["text"]


def _adapters(package: str) -> list[dict]:
    folder = Path(__file__).parents[1] / package
    return [{"name": name, "text": _first_line(folder / f"{name}.py")} for name in parts.available(package)]


def _first_line(path: Path) -> str:
    """Of the docstring of a Python file, which is not run."""
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]


def _weights() -> list[dict]:
    folders = _folders()
    present = [{"name": name, **_state(folder)} for name, folder in sorted(folders.items())]
    missing = [
        {
            "name": name,
            "state": "missing",
            "text": f"{checkpoint.command(name)}  # {checkpoint.file} from {checkpoint.url}",
        }
        for name, checkpoint in catalogue.CHECKPOINTS.items()
        if name not in folders
    ]
    return present + missing


def _folders() -> dict[str, Path]:
    """The weight folders by name."""
    return {folder.name: folder for root in reversed(weights.weight_roots()) for folder in weights.folders_in(root)}


def _labels() -> list[dict]:
    """What every classifier tells apart, present or not: a row an attribute."""
    published = {name: checkpoint.attributes for name, checkpoint in catalogue.CHECKPOINTS.items()}
    found = published | {name: _attributes(folder) for name, folder in _folders().items()}
    return [
        {"name": name, "attribute": attribute, "labels": list(labels)}
        for name, attributes in sorted(found.items())
        for attribute, labels in attributes.items()
    ]


def _attributes(folder: Path) -> Mapping:
    try:
        return weights.read_config(folder).get("attributes", {})
    except (ValueError, OSError):
        return {}  # which is told among the weights


def _listed(labels: list[str]) -> str:
    """Labels with commas between them; of years in a row the ends."""
    if len(labels) > 3 and all(str(label).isdigit() for label in labels):
        return f"{labels[0]} to {labels[-1]}"
    return ", ".join(map(str, labels))


def _state(folder: Path) -> dict:
    try:
        config = weights.read_config(folder)
        weights.check_sha256(folder / weights.TENSORS, config["sha256"])
    except (ValueError, OSError) as error:
        return {"state": "damaged", "text": str(error)}
    size = (folder / weights.TENSORS).stat().st_size / 2**20
    license = config.get("license") or "not stated"
    return {"state": "present", "text": f"{config['kind']}, {size:.1f} MiB, licence {license}"}
