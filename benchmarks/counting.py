"""What a program costs, counted and not timed: operations in the traced program, memory and messages in the compiled.

XLA's own `cost_analysis` counts the body of a loop once, and what it counts depends on how it fused; operations are
counted in the jaxpr, where a scan says how many rounds it takes, and depend on nothing but the code.
"""

from __future__ import annotations

import math
import re
from typing import Any

import jax
from jax.extend.core import Var
from jax.interpreters.partial_eval import dce_jaxpr

WIDTHS = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f64": 8, "s64": 8, "u64": 8}
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")
COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(COLLECTIVES)})(-start)?\(")


def gflop(traced: Any) -> float:
    """Of the matrix products and convolutions that a traced program (`jax.jit(f).trace(...)`) needs, 1e9 operations.

    Two a multiplication with addition, every round of its loops, also what is computed again on the way back; without
    what no result depends on.
    """
    needed, _ = dce_jaxpr(traced.jaxpr.jaxpr, [True] * len(traced.jaxpr.out_avals))
    return _gflop(needed)


def _gflop(jaxpr: Any) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        rounds = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        total += rounds * sum(map(_gflop, inner_jaxprs(equation)))
        size = equation.outvars[0].aval.size if equation.outvars else 0
        if equation.primitive.name == "dot_general":
            ((contracted, _), _) = equation.params["dimension_numbers"]
            total += 2e-9 * size * math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
        elif equation.primitive.name == "conv_general_dilated":
            kernel, numbers = equation.invars[1].aval, equation.params["dimension_numbers"]
            sums = kernel.size / kernel.shape[numbers.rhs_spec[0]] / math.prod(equation.params["lhs_dilation"])
            total += 2e-9 * size * sums
    return total


def equations(traced: Any) -> int:
    """Number of equations in a traced program, those inside others included: what compiling it grows with."""
    return _equations(traced.jaxpr.jaxpr)


def _equations(jaxpr: Any) -> int:
    return len(jaxpr.eqns) + sum(_equations(inner) for equation in jaxpr.eqns for inner in inner_jaxprs(equation))


def inner_jaxprs(equation: Any) -> list[Any]:
    """The programs that an equation holds: bodies of loops, branches, what is called."""
    leaves = jax.tree.leaves(list(equation.params.values()), is_leaf=lambda each: hasattr(each, "eqns"))
    inner = [getattr(leaf, "jaxpr", leaf) for leaf in leaves]
    return [each for each in inner if hasattr(each, "eqns")]


def memory(compiled: Any) -> dict[str, float]:
    """MiB on each device: what a call holds beyond its arguments, and the arguments."""
    found = compiled.memory_analysis()
    sizes = {"temporary_mib": found.temp_size_in_bytes, "argument_mib": found.argument_size_in_bytes}
    return {name: size / 2**20 for name, size in sizes.items()}


def kept_mib(function: Any, *arguments: Any) -> float:
    """MiB that a gradient by the first argument keeps of the way there for the way back, beside all arguments."""

    def there(first: Any, *rest: Any) -> Any:
        return jax.vjp(lambda each: function(each, *rest), first)

    program = jax.make_jaxpr(there)(*arguments).jaxpr
    made = {each for equation in program.eqns for each in equation.outvars}
    kept = {each for each in program.outvars if isinstance(each, Var) and each in made}
    return sum(each.aval.size * each.aval.dtype.itemsize for each in kept) / 2**20


def messages(compiled: Any) -> dict[str, dict[str, int]]:
    """What devices tell each other in one call of a compiled program: {kind: {"count", "bytes"}}, loop bodies once."""
    found: dict[str, dict[str, int]] = {}
    for shapes, kind, _ in COLLECTIVE.findall(compiled.as_text()):
        entry = found.setdefault(kind, {"count": 0, "bytes": 0})
        entry["count"] += 1
        entry["bytes"] += sum(_bytes(*shape) for shape in SHAPE.findall(shapes))
    return found


def _bytes(dtype: str, sides: str) -> int:
    return WIDTHS.get(dtype, 4) * math.prod(int(side) for side in sides.split(",") if side)
