"""A config from the command line: a file or the name of one that comes with the library, and --config.<key>=<value>."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import importlib.util
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from promptgen_jax import checks
from promptgen_jax.flows.realnvp import PRESETS
from promptgen_jax.runs.config import EvaluationConfig, RunConfig, StageConfig
from promptgen_jax.store import home
from promptgen_jax.training import TrainConfig

ANY = "*"
FIELDS = {  # of the typed parts of a config, which may leave some out
    (): RunConfig,
    ("evaluation",): EvaluationConfig,
    ("stages", ANY): StageConfig,
    ("stages", ANY, "training"): TrainConfig,
}
OPEN = (  # what may be added under any name: the part that takes it checks it
    ("generator", ANY),
    ("evaluation", "judges", ANY),
    ("evaluation", "pictures", ANY),
    ("evaluation", "real", ANY),
    ("evaluation", "samplers", ANY),
    ("evaluation", "samplers", ANY, ANY),
    ("stages", ANY, "below", ANY),
    ("stages", ANY, "condition", ANY),
    ("stages", ANY, "controls", ANY, ANY),
    ("stages", ANY, "flow", ANY),
    ("stages", ANY, "flow", ANY, ANY),
    ("stages", ANY, "training", "objective_options", ANY),
)
PRESET = ("stages", ANY, "flow", "preset")
TRUTH = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def load(name: str) -> ConfigDict:
    """A config by the path of its file or, of those that come with the library, by name; an argument follows a colon.

    The file is run, as configs are programs.

    Raises:
      FileNotFoundError: no such file, with the nearest name.
      ValueError: a folder, a file of another kind or without a `get_config`, or one that is no Python; what
        `get_config` says of its argument.
    """
    path, colon, argument = name.partition(":")
    file = _find(path, name)
    home.make_importable()
    spec: Any = importlib.util.spec_from_file_location("promptgen_config", file)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise ValueError(f"--config={path}: no Python, at line {error.lineno}: {error.msg}. Mend the file.") from None
    if not hasattr(module, "get_config"):
        raise ValueError("--config: this file is no config, it has no get_config. Choose another one of configs/.")
    config = module.get_config(argument) if colon else module.get_config()
    return config if isinstance(config, ConfigDict) else ConfigDict(config)


def _find(path: str, name: str) -> Path:
    known = home.configs()
    if path.endswith(".py") and Path(path).is_file():
        return Path(path)
    if path in known:
        return known[path]
    if os.path.exists(path):
        raise ValueError(f"--config={name}: a config is a file of Python, its name ends in .py. Give one of configs/.")
    names = known if Path(path).name == path.removesuffix(".py") else map(os.path.relpath, known.values())
    raise FileNotFoundError(f"--config={name}: no such file. {checks.nearest(path, names)}")


def override(config: ConfigDict, changes: Iterable[tuple[str, str]]) -> ConfigDict:
    """Sets keys of a config, in place, to what was written on the command line.

    A value has the type of the one before it; None, lists and mappings may stand everywhere. Keys may be added where a
    part has options that the file leaves out, and a whole control with its `kind`. The preset of a flow replaces the
    sizes that the file gives, but none of the command line.

    Args:
      config: as a config file makes it.
      changes: (flag, text), such as ("--config.seed", "3").

    Raises:
      ValueError: an unknown key, with the nearest; a value of another type.
    """
    split = [(flag, tuple(flag.split(".")[1:]), text) for flag, text in changes]
    paths = [path for _, path, _ in split]
    with config.unlocked():
        for flag, path, text in sorted(split, key=lambda change: not _matches(change[1], PRESET)):
            at = config
            for depth, key in enumerate(path[:-1], start=1):
                if at.get(key) is None and _may_add(path[:depth], paths):
                    at[key] = ConfigDict()
                elif not isinstance(_get(flag, at, key), Mapping | ConfigDict):
                    raise ValueError(f"{flag}: config.{'.'.join(path[:depth])} is {at[key]!r}, which has no keys.")
                at = at[key]
            old = at.get(path[-1]) if _may_add(path, paths) else _get(flag, at, path[-1])
            value = parse(f"{flag}={text}", text, old)
            with at.ignore_type():
                at[path[-1]] = value
            if _matches(path, PRESET):
                for replaced in set(PRESETS.get(str(value), ())) & set(at):
                    del at[replaced]
    return config


def _get(flag: str, config: ConfigDict, key: str):
    """The value of a key that must be there."""
    if key not in config:
        near = difflib.get_close_matches(key, list(config), n=1, cutoff=0.5)
        hint = f"Did you mean {near[0]!r}?" if near else "See its file."
        raise ValueError(f"{flag}: the config has no key {key!r}. {hint}")
    return config[key]


def _may_add(path: tuple[str, ...], paths: list[tuple[str, ...]]) -> bool:
    """Whether a config may get a key that it leaves out.

    Args:
      path: the key, with those above it.
      paths: of all changes; a control is new if one of them gives its kind.
    """
    kind = FIELDS.get(_pattern(path[:-1]))
    if kind is not None and path[-1] in {field.name for field in dataclasses.fields(kind)}:
        return True
    if _matches(path, ("stages", ANY, "controls", ANY)):
        return (*path, "kind") in paths
    return any(_matches(path, pattern) for pattern in OPEN)


def _pattern(path: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(ANY if index == 1 and path[0] == "stages" else key for index, key in enumerate(path))


def _matches(path: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    return len(path) == len(pattern) and all(want in (ANY, key) for key, want in zip(path, pattern, strict=True))


def parse(where: str, text: str, old: Any = None) -> Any:
    """A value from its text: of the type of the one that it replaces, or None, a list, a mapping.

    Args:
      where: flag and text, for messages.
      text: as it was written.
      old: the value before; without one, a number, True, False and so on are what they look like, all else is text.

    Raises:
      ValueError: a number, a truth value or a list was expected.
    """
    value = literal(text)
    if value is None or isinstance(value, (tuple, list, dict)):
        return value
    if isinstance(old, bool):
        return _expected(where, TRUTH.get(text.lower()), "True or False")
    if isinstance(old, str):
        return text
    if isinstance(old, int):
        return _expected(where, value if type(value) is int else None, "an integer")
    if isinstance(old, float):
        try:
            return float(text)
        except ValueError:
            return _expected(where, None, "a number")
    if isinstance(old, (tuple, list)):
        return _expected(where, None, "a list, such as ('a', 'b')")
    if isinstance(old, Mapping | ConfigDict):
        return _expected(where, None, "None, or keys and values, each as --config.<key>.<key>=<value>")
    return value


def literal(text: str) -> Any:
    """What a text is in Python, if it is a number, None, True, a list or the like; else the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def _expected(where: str, value: Any, what: str) -> Any:
    if value is None:
        raise ValueError(f"{where}: expected {what}.")
    return value
