"""Where configs, converters and shipped weights are, in a clone or beside the installed library; how to call them."""

from __future__ import annotations

import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def in_clone() -> bool:
    """Whether the library is used from a clone, where main.py, configs/ and convert/ lie beside it."""
    return all((PACKAGE.parent / name).exists() for name in ("main.py", "configs", "convert"))


def folder() -> Path:
    """The folder that holds configs/, convert/ and ported_weights/: the clone, or `home` in the installed library."""
    return PACKAGE.parent if in_clone() else PACKAGE / "home"


def configs() -> dict[str, Path]:
    """The config files that come with the library, by name."""
    return {path.stem: path for path in sorted((folder() / "configs").glob("*.py")) if path.stem != "pieces"}


def converters() -> dict[str, str]:
    """The modules of the converters, by the name of what they convert."""
    found = sorted((folder() / "convert").glob("*_to_flax.py"))
    return {path.stem.removesuffix("_to_flax"): f"convert.{path.stem}" for path in found}


def make_importable() -> None:
    """Lets config files say `from configs import pieces`, and converters `from convert import reading`."""
    if str(folder()) not in sys.path:
        sys.path.insert(0, str(folder()))


def by_script() -> bool:
    """Whether messages name `main.py`: in a clone, unless this process was started as the installed command."""
    script = Path(sys.argv[0])
    return in_clone() and script.stem != "promptgen" and script.parent != PACKAGE


def command(mode: str) -> str:
    """How to call a mode of the command here, for messages: `main.py --mode=train`, or `promptgen train`."""
    return f"main.py --mode={mode}" if by_script() else f"promptgen {mode}"


def converter(script: str) -> str:
    """How to call a converter here: `python convert/clip_to_flax.py`, or `promptgen convert clip`."""
    return f"python convert/{script}" if by_script() else f"promptgen convert {script.removesuffix('_to_flax.py')}"
