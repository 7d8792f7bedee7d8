"""Programs as `jax.export` writes and reads them: StableHLO without code of ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.export

SUFFIX = ".stablehlo"
PLATFORMS = ("cpu", "cuda", "tpu")


def written(program: Callable[..., Any], inputs: Mapping[str, jax.ShapeDtypeStruct], platforms: Sequence[str]) -> bytes:
    """The file of a program of these inputs, which says where it runs."""
    import flatbuffers  # noqa: F401  which jax.export writes with

    return bytes(jax.export.export(jax.jit(program), platforms=platforms)(*inputs.values()).serialize())
