"""Programs with their weights as one file, as `jax.export` writes and reads it: StableHLO without code of ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from promptgen_jax import checks
from promptgen_jax.store import disk

SUFFIX = ".stablehlo"
PLATFORMS = ("cpu", "cuda", "tpu")


def check_path(path: str | Path) -> Path:
    """The path of a program that can be written.

    Raises:
      ValueError: another suffix, a folder, an address; PermissionError: its folder cannot be written.
    """
    path = disk.local_path("export: file", path)
    if path.is_dir():
        raise ValueError(f"export: {path} is a folder; expected a file. Name one in it, {path / f'face{SUFFIX}'}.")
    if path.suffix != SUFFIX:
        raise ValueError(f"export: {path} does not end in {SUFFIX}. Name it {path.with_suffix(SUFFIX).name}.")
    return disk.open_folder("export: folder", path.parent) / path.name


def save_program(
    path: str | Path,
    function: Callable[..., Any],
    weights: Any,
    *inputs: jax.ShapeDtypeStruct,
    platforms: Sequence[str] = PLATFORMS,
) -> Path:
    """Writes `function(weights, *inputs)` with its weights, for batches of any size, atomically.

    Args:
      path: ends in .stablehlo; folders on the way are made.
      function: of weights and of arrays with a row per sample.
      weights: tree of arrays, which become constants of the program.
      *inputs: shape and dtype of one row each. The last one is left out if the function does not use it.
      platforms: where it has to run.

    Returns:
      The path written.

    Raises:
      ValueError, PermissionError: as `check_path`; an unknown platform.
    """
    import flatbuffers  # noqa: F401  which jax.export writes with

    path = check_path(path)
    for platform in platforms:
        checks.check_known("export: platform", platform, PLATFORMS)
    (batch,) = jax.export.symbolic_shape("batch")
    needed = len(inputs) if _uses_last(function, weights, inputs) else len(inputs) - 1
    constants = jax.tree.map(np.asarray, weights)  # of this host alone, wherever the arrays lie

    def program(*rows: jax.Array) -> Any:
        unused = [jnp.zeros(each.shape, each.dtype) for each in _batches(rows[0].shape[0], inputs[needed:])]
        return function(jax.tree.map(jnp.asarray, constants), *rows, *unused)

    exported = jax.export.export(jax.jit(program), platforms=platforms)(*_batches(batch, inputs[:needed]))
    disk.write_bytes(path, bytes(exported.serialize()))
    return path


def _uses_last(function: Callable[..., Any], weights: Any, inputs: tuple[jax.ShapeDtypeStruct, ...]) -> bool:
    """Whether the output depends on the last input; of a fixed size, as else JAX keeps what is not used."""
    shapes = jax.eval_shape(lambda: weights)
    exported = jax.export.export(jax.jit(function))(shapes, *_batches(1, inputs))
    return len(exported.in_avals) - 1 in exported.module_kept_var_idx


def _batches(size: Any, rows: Sequence[jax.ShapeDtypeStruct]) -> list[jax.ShapeDtypeStruct]:
    return [jax.ShapeDtypeStruct((size, *row.shape), row.dtype) for row in rows]
