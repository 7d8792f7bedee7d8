"""What XLA compiled for a folder, kept in it, so that the next call there begins at once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

CACHE = "compilation_cache"


@contextlib.contextmanager
def kept_in(folder: Path) -> Iterator[None]:
    """Within it, compiled programs are written to the folder and read from there, unless JAX has a place for them."""
    before = jax.config.jax_compilation_cache_dir
    _use(before or str(folder / CACHE))
    try:
        yield
    finally:
        _use(before)


def _use(folder: str | None) -> None:
    jax.config.update("jax_compilation_cache_dir", folder)
    compilation_cache.reset_cache()  # JAX looks at the option only once
