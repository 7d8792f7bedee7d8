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
    """Within it, compiled programs are written to the folder and read from there, unless JAX has a place for them.

    All of them: JAX leaves out what it compiled within a second, which on a fast machine is all there is.
    """
    if jax.config.jax_compilation_cache_dir:
        yield
        return
    seconds = jax.config.jax_persistent_cache_min_compile_time_secs
    _use(str(folder / CACHE), 0.0)
    try:
        yield
    finally:
        _use(None, seconds)


def _use(folder: str | None, seconds: float) -> None:
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", seconds)
    compilation_cache.reset_cache()  # JAX looks at the option only once
