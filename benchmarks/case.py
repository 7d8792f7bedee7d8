"""A case: one computation, done by two sides that have to give the same numbers."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from benchmarks import parts

TOLERANCE = 1e-2  # of the norm of each array: float32 sums in another order, and corners of ReLU met from either side


@dataclasses.dataclass(frozen=True)
class Side:
    """One side, ready to run: weights loaded, programs compiled.

    Attributes:
      run: one call; it returns when the results are there.
      facts: numbers of any kind by name, such as seconds of compilation.
      numbers: what `run` returned, as NumPy arrays by name, to be compared with the other side's.
      peak: MiB that the last call took at most, where it ran in a process of its own.
    """

    run: Callable[[], Any]
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    numbers: Callable[[Any], dict[str, np.ndarray]] = lambda result: arrays(result)
    peak: Callable[[], float] | None = None


@dataclasses.dataclass(frozen=True)
class Case:
    """What is measured.

    Attributes:
      name: part and size, as `clip/256`.
      title: for people.
      ours: makes our side.
      other: makes the other side.
      label: what the other side is.
      tolerance: norm of the largest difference, as a share of the norm of an array.
    """

    name: str
    title: str
    ours: Callable[[], Side]
    other: Callable[[], Side]
    label: str = "torch"
    tolerance: float = TOLERANCE


def part_names() -> list[str]:
    """All parts, the files of `benchmarks/parts`; first the one whose figures others are compared with."""
    return sorted((each.name for each in pkgutil.iter_modules(parts.__path__)), key=lambda name: (name != "peak", name))


def cases(part: str, *, quick: bool) -> list[Case]:
    """The cases of a part, small ones if `quick`. Their modules import JAX or torch only when a side is made."""
    module = importlib.import_module(f"benchmarks.parts.{part}")
    return module.cases(quick) if hasattr(module, "cases") else []


def measure_of(part: str) -> Callable[[bool], Iterable[dict]] | None:
    """What measures a part that has no two sides: `measure(quick)` of its file, which gives records."""
    return getattr(importlib.import_module(f"benchmarks.parts.{part}"), "measure", None)


def find(part: str, name: str, *, quick: bool) -> Case:
    """The case of that name."""
    return next(each for each in cases(part, quick=quick) if each.name == name)


def arrays(result: Any) -> dict[str, np.ndarray]:
    """A dict of arrays of JAX or torch as NumPy arrays."""
    return {name: np.asarray(value) for name, value in result.items()}


def compiled(function: Callable[..., dict], *arguments: Any) -> Side:
    """A side of ours: a function of JAX that returns arrays by name, compiled, with what was counted in it."""
    import jax

    from benchmarks import counting

    start = time.perf_counter()
    traced = jax.jit(function).trace(*arguments)
    program = traced.lower().compile()
    seconds = time.perf_counter() - start
    cost = program.cost_analysis()
    facts = {
        "compile_seconds": seconds,
        "gflop": counting.gflop(traced),
        "xla_gflop": 1e-9 * cost.get("flops", 0.0),
        "xla_gbytes": 1e-9 * cost.get("bytes accessed", 0.0),
        "equations": counting.equations(traced),
        **counting.memory(program),
    }
    return Side(lambda: jax.block_until_ready(program(*arguments)), facts)


def seeded(shapes: Any, seed: int = 0) -> Any:
    """A tree of weights that carries signals through a deep network: kernels keep the variance, the rest is small.

    Args:
      shapes: the tree, of anything with a shape.
      seed: of the draw.
    """
    import jax
    import jax.numpy as jnp

    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        names = [getattr(key, "key", str(key)) for key in path]
        value = rng.standard_normal(leaf.shape, np.float32)
        if names[-1] == "kernel":
            value *= np.float32(1 / np.sqrt(max(1, np.prod(leaf.shape[:-1]))))
        elif names[-1] == "scale" or names[-2:] == ["style", "bias"]:
            value = 1 + np.float32(0.05) * value
        elif names[-1] != "constant" and not names[-1].startswith("noise_"):
            value *= np.float32(0.05)
        return jnp.asarray(value)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def flat_tree(tree: Any) -> dict[str, Any]:
    """A tree of arrays by path, a/b/c."""
    import jax

    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {"/".join(str(getattr(key, "key", key)) for key in path): leaf for path, leaf in leaves}


def trained(params: Any, seed: int = 0) -> Any:
    """Parameters of a new flow, moved as training moves them, so that no gradient is rounding around zero."""
    import jax

    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: leaf + rng.normal(0, 0.05, leaf.shape).astype(np.float32), params)
