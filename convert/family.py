"""Tells official files apart by the names in them, so that a file for another converter is refused by name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from convert import reading
from convert.nvidia_pickle import Module
from promptgen_jax.store import home


class Family(NamedTuple):
    """How to know a file: `pattern` matches the start of some name in it, nested names joined by dots."""

    pattern: str
    converter: str


DEPTH = 3  # of names that tell a family

FAMILIES = {
    "StyleGAN2": Family(r"g_ema\.|input\.input$|G_ema\.synthesis\.b4\.", "stylegan2_to_flax.py"),
    "StyleNeRF": Family(r"G_ema\.synthesis\.fg_nerf\.", "stylenerf_to_flax.py"),
    "BigGAN-deep": Family(r"generator\.gen_z\.", "biggan_to_flax.py"),
    "NVAE": Family(r"(state_dict\.)?(module\.)?dec_tower\.", "nvae_to_flax.py"),
    "DiffAE": Family(r"(state_dict\.)?ema_model\.", "diffae_to_flax.py"),
    "CLIP": Family(r"(state_dict\.)?(module\.)?(visual\.transformer\.|text_model\.)", "clip_to_flax.py"),
}


def check_family(where: str | Path, content: dict, family: str) -> None:
    """Raises ValueError if what was read from a file is known to be of another family.

    A file of no known family passes: the recipe then says which tensors are missing.

    Args:
      where: the file, for messages.
      content: tensors or other values by name, nested dicts included.
      family: a key of `FAMILIES`.
    """
    found = _families(content)
    if found and family not in found:
        raise ValueError(
            f"{where}: this looks like a {found[0]} file, not {family}. Run "
            f"`{home.converter(FAMILIES[found[0]].converter)}`, or pass the other file."
        )


def recognise(path: str | Path) -> str | None:
    """The family of a file by its content, or None if it is of none or cannot be read; nothing in it is executed."""
    try:
        content = reading.read_checkpoint(path)
    except (ValueError, OSError):
        return None
    found = _families(content) if isinstance(content, dict) else []
    return found[0] if found else None


def _families(content: dict) -> list[str]:
    names = list(_names(content))
    return [name for name, each in FAMILIES.items() if any(re.match(each.pattern, entry) for entry in names)]


def _names(content: dict) -> Iterator[str]:
    pending, seen = [("", content)], {}
    while pending:
        prefix, found = pending.pop()
        if id(found) in seen:
            continue
        seen[id(found)] = found  # kept, so that nothing else gets its id
        for name, value in found.items():
            yield f"{prefix}{name}"
            value = value.tensors() if isinstance(value, Module) else value
            if isinstance(value, dict) and prefix.count(".") < DEPTH:
                pending.append((f"{prefix}{name}.", value))
