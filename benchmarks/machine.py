"""What a measurement was made on: processor, threads, versions, and what the machine reaches at best."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from pathlib import Path

DISTRIBUTIONS = ("jax", "jaxlib", "torch", "numpy")
PRODUCT, COPIED = 4096, 1 << 26  # rows of the square matrices; numbers that are copied


def processor() -> str:
    """Name of the processor."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if "model name" in line] if info.exists() else []
    return names[0].partition(":")[2].strip() if names else platform.processor()


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def use_threads(count: int) -> None:
    """Gives XLA, torch and BLAS of this process and its children so many threads; before they are imported."""
    for name in ("NPROC", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(count)


def where(threads: int) -> dict:
    """Hardware and versions, as a record keeps them."""
    versions = {name: importlib.metadata.version(name) for name in DISTRIBUTIONS if _installed(name)}
    return {"processor": processor(), "threads": threads, "python": platform.python_version()} | versions


def _installed(name: str) -> bool:
    try:
        return bool(importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return False


def best(dtype: str = "float32", *, rows: int = PRODUCT, numbers: int = COPIED, repeats: int = 3) -> dict[str, float]:
    """What the first device of JAX reaches: {"gflops": of a matrix product, "gbytes": read and written a second}."""
    import jax
    import jax.numpy as jnp

    square = jax.random.normal(jax.random.key(0), (rows, rows)).astype(dtype)
    long = jnp.ones(numbers, jnp.float32)
    product, copy = jax.jit(lambda x: x @ x), jax.jit(lambda x: x + 1)
    return {
        "gflops": 2e-9 * rows**3 / _fastest(product, square, repeats),
        "gbytes": 8e-9 * numbers / _fastest(copy, long, repeats),
    }


def _fastest(function, argument, repeats: int) -> float:
    import jax

    jax.block_until_ready(function(argument))
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function(argument))
        seconds.append(time.perf_counter() - start)
    return min(seconds)
