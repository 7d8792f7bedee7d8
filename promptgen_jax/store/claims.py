"""What a folder is of: written by the first who works in it, checked by everyone later."""

from __future__ import annotations

import json
from pathlib import Path

from promptgen_jax import devices
from promptgen_jax.store.disk import read_json, write_json


def claim(path: Path, about: dict, *, refusal: str) -> None:
    """Writes what a folder is of, or checks that it is of that already. Of several hosts the first one writes.

    Args:
      path: the JSON file in it that says so.
      about: the entries.
      refusal: the message if they differ, with {} for the folder and {} for what differs, and then what to do.

    Raises:
      ValueError: the file has other entries, which are named, or is damaged.
    """
    about = json.loads(json.dumps(about, default=float))  # numbers of NumPy too
    if path.exists():
        found = read_json(path, advice=refusal.partition(". ")[2])
        if differing := sorted(_differences(found, about)):
            raise ValueError(refusal.format(path.parent, ", ".join(differing[:5])))
    elif devices.is_first_host():
        write_json(path, about)
    devices.wait_for_hosts(path.name)


def _differences(one, other, prefix="") -> set[str]:
    """Names, joined by dots, of the entries in which two trees of JSON differ."""
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return set() if one == other else {prefix.rstrip(".")}
    return {
        name
        for key in one.keys() | other.keys()
        for name in _differences(one.get(key), other.get(key), f"{prefix}{key}.")
    }
