"""Programs with their weights as one file, which needs no code of ours: StableHLO or ONNX, by the file's suffix."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from promptgen_jax import checks
from promptgen_jax.store import disk, onnx, stablehlo

SUFFIXES = (stablehlo.SUFFIX, onnx.SUFFIX)


def check_path(path: str | Path) -> Path:
    """The path of a program that can be written.

    Raises:
      ValueError: another suffix, a folder, an address; PermissionError: its folder cannot be written.
    """
    path = disk.local_path("export: file", path)
    if path.is_dir():
        raise ValueError(f"export: {path} is a folder; expected a file. Name one in it, {path / f'face{SUFFIXES[0]}'}.")
    if path.suffix not in SUFFIXES:
        names = " or ".join(path.with_suffix(suffix).name for suffix in SUFFIXES)
        raise ValueError(f"export: {path} does not end in {' or '.join(SUFFIXES)}. Name it {names}.")
    return disk.open_folder("export: folder", path.parent) / path.name


def save_program(
    path: str | Path,
    function: Callable[..., Any],
    weights: Any,
    inputs: Mapping[str, jax.ShapeDtypeStruct],
    *,
    platforms: Sequence[str] = stablehlo.PLATFORMS,
) -> Path:
    """Writes `function(weights, *inputs)` with its weights, for batches of any size, atomically.

    Args:
      path: ends in .stablehlo or .onnx; folders on the way are made.
      function: of weights and of arrays with a row per sample.
      weights: tree of arrays, which become constants of the program.
      inputs: by name, shape and dtype of one row. The last one is left out if the function does not use it.
      platforms: where a .stablehlo file has to run.

    Returns:
      The path written.

    Raises:
      ImportError: .onnx without jax2onnx.
      ValueError, PermissionError: as `check_path`; an unknown platform; what ONNX cannot say.
    """
    path = check_path(path)
    for platform in platforms:
        checks.check_known("export: platform", platform, stablehlo.PLATFORMS)
    if path.suffix == onnx.SUFFIX:
        onnx.check_installed()
    needed = dict(inputs)
    unused = () if _uses_last(function, weights, tuple(inputs.values())) else (needed.popitem()[1],)
    constants = jax.tree.map(np.asarray, weights)  # of this host alone, wherever the arrays lie

    def program(*rows: jax.Array) -> Any:
        zeros = [jnp.zeros((rows[0].shape[0], *row.shape), row.dtype) for row in unused]
        return function(jax.tree.map(jnp.asarray, constants), *rows, *zeros)

    batches = dict(zip(needed, _batches(jax.export.symbolic_shape("batch")[0], needed.values()), strict=True))
    if path.suffix == onnx.SUFFIX:
        written = onnx.written(program, batches)
    else:
        written = stablehlo.written(program, batches, platforms)
    disk.write_bytes(path, written)
    return path


def _uses_last(function: Callable[..., Any], weights: Any, inputs: Sequence[jax.ShapeDtypeStruct]) -> bool:
    """Whether the output depends on the last input; of a fixed size, as else JAX keeps what is not used."""
    shapes = jax.eval_shape(lambda: weights)
    exported = jax.export.export(jax.jit(function))(shapes, *_batches(1, inputs))
    return len(exported.in_avals) - 1 in exported.module_kept_var_idx


def _batches(size: Any, rows: Any) -> list[jax.ShapeDtypeStruct]:
    return [jax.ShapeDtypeStruct((size, *row.shape), row.dtype) for row in rows]
