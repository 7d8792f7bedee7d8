"""`Conditions`: what a conditional flow is told, how people write it, and what is drawn in training."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from promptgen_jax.types import Array


class Kind(NamedTuple):
    """What a component of a condition is.

    Attributes:
      unit: in which people write it, "" for none.
      unit_inside: in which flows and controls take it.
      read, write: from the one to the other, and back.
    """

    unit: str = ""
    unit_inside: str = ""
    read: Callable = np.positive
    write: Callable = np.positive


KINDS = {
    "angle": Kind("degrees", "radians", np.radians, np.degrees),
    "strength": Kind(),
    "share": Kind(),
    "embedding": Kind(),
}


class Conditions(struct.PyTreeNode):
    """Uniform distribution of conditions on a box of R^A, e.g. of head poses; the canonical condition is 0.

    Attributes:
      low: (A,) one corner of the box, in the units in which flows take them: angles in radians.
      high: (A,) the other; equal to `low` where a component is fixed.
      names: A names for people.
      kinds: A keys of `KINDS`; all are angles if left out.
    """

    low: Array
    high: Array
    names: tuple[str, ...] = struct.field(pytree_node=False, default=())
    kinds: tuple[str, ...] = struct.field(pytree_node=False, default=())

    @classmethod
    def of(cls, ranges: Mapping[str, Sequence]) -> Conditions:
        """From ranges as people write them, e.g. `{"turn": (-20, 20, "angle"), "smile": (0, 1, "strength")}`.

        Args:
          ranges: by name (low, high, kind), a kind of `KINDS` in its unit; (low, high) is that of an angle.

        Raises:
          ValueError: no range, one that is not from low to high, an unknown kind, a share outside 0 to 1.
        """
        if not ranges:
            raise ValueError("conditions: no ranges; give at least one, e.g. {'turn': (-20, 20, 'angle')} in degrees.")
        rows = {name: _checked_range(name, written) for name, written in ranges.items()}
        low, high = (
            np.array([KINDS[row[2]].read(np.float32(row[end])) for row in rows.values()], np.float32) for end in (0, 1)
        )
        kinds = tuple(kind for _, _, kind in rows.values())
        return cls(low=jnp.asarray(low), high=jnp.asarray(high), names=tuple(rows), kinds=kinds)

    @classmethod
    def of_angles(cls, degrees: Mapping[str, Sequence[float]]) -> Conditions:
        """From ranges of angles in degrees by name, e.g. `{"nod": (-20, 20), "turn": (-20, 20)}`; raises as `of`."""
        return cls.of(degrees)

    @classmethod
    def of_strengths(cls, ranges: Mapping[str, Sequence[float]]) -> Conditions:
        """From ranges of strengths by name, e.g. `{"smile": (0, 1)}`, which have no unit; raises as `of`."""
        return cls.of({name: (*ends, "strength") for name, ends in ranges.items()})

    @property
    def dim(self) -> int:
        """A, the length of a condition."""
        return self.low.shape[0]

    @property
    def components(self) -> tuple[tuple[str, str], ...]:
        """Name and kind of each."""
        kinds = self.kinds or self.dim * ("angle",)
        names = self.names or [f"{kind} {index}" for index, kind in enumerate(kinds)]
        return tuple(zip(names, kinds, strict=True))

    @property
    def units(self) -> tuple[str, ...]:
        """In which people write each component, "" for none."""
        return tuple(KINDS[kind].unit for _, kind in self.components)

    @property
    def units_inside(self) -> tuple[str, ...]:
        """In which flows and controls take each component, "" for none."""
        return tuple(KINDS[kind].unit_inside for _, kind in self.components)

    def sample(self, key: Array, num_samples: int) -> Array:
        """Draws (num_samples, A) conditions."""
        return jax.random.uniform(key, (num_samples, self.dim), jnp.float32, self.low, self.high)

    def grid(self, size: int = 3) -> np.ndarray:
        """(size^V, A) conditions evenly spread over the V components that vary, the last one fastest."""
        low, high = np.asarray(self.low), np.asarray(self.high)
        axes = [np.linspace(a, b, size if a < b else 1) for a, b in zip(low, high, strict=True)]
        return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, self.dim).astype(np.float32)

    def read(self, texts: Sequence[str]) -> np.ndarray:
        """A condition (A,) from what people write, a number a component in its unit.

        Raises:
          ValueError: not A finite numbers.
        """
        try:
            values = np.array(texts, np.float32)
        except ValueError:
            values = np.array(np.nan)
        if values.shape != (self.dim,) or not np.isfinite(values).all():
            wanted = ", ".join(f"{name} in {KINDS[kind].unit or 'no unit'}" for name, kind in self.components)
            example = ",".join(f"{value:.4g}" for value in self.write(self.high))
            raise ValueError(
                f"condition={','.join(map(str, texts))}: expected {self.dim} number(s): {wanted}; e.g. {example}."
            )
        pairs = zip(values, self.components, strict=True)
        return np.array([KINDS[kind].read(value) for value, (_, kind) in pairs], np.float32)

    def write(self, cond: Array) -> np.ndarray:
        """Conditions (..., A) as numbers (..., A) in the units of people, float64."""
        columns = np.moveaxis(np.asarray(cond, np.float64), -1, 0)
        return np.stack([KINDS[kind].write(c) for c, (_, kind) in zip(columns, self.components, strict=True)], -1)

    def ranges(self) -> dict[str, tuple[float, float, str]]:
        """What `of` reads: low, high and kind by name, in the units of people, to six digits."""
        ends = np.stack([self.write(self.low), self.write(self.high)], axis=1)
        return {
            name: (float(f"{low:.6g}"), float(f"{high:.6g}"), kind)
            for (low, high), (name, kind) in zip(ends, self.components, strict=True)
        }

    def told(self) -> dict[str, str]:
        """The ranges in words by name, e.g. "-20 to 20 degrees"."""
        return {
            name: " ".join(filter(None, (f"{low:.4g} to {high:.4g}", KINDS[kind].unit)))
            for name, (low, high, kind) in self.ranges().items()
        }


def _checked_range(name: str, written: Sequence) -> tuple[float, float, str]:
    *ends, kind = written if len(written) == 3 else (*written, "angle")
    if kind not in KINDS:
        raise ValueError(f"condition {name}: kind is {kind!r}; expected one of {', '.join(KINDS)}.")
    unit = f" in {KINDS[kind].unit}" if KINDS[kind].unit else ""
    if len(ends) != 2 or not ends[0] <= ends[1]:
        raise ValueError(f"condition {name}: range is {written}; expected (low, high){unit}, low at most high.")
    if kind == "share" and not 0 <= ends[0] <= ends[1] <= 1:
        raise ValueError(f"condition {name}: range is {written}; expected shares from 0 to 1.")
    return (*ends, kind)


def warn_beyond(name: str, conditions: Conditions | None, cond: Any) -> None:
    """Warns of conditions (N, A) outside those that the prompt of this name was trained on."""
    if cond is None or conditions is None:
        return
    low, high = np.asarray(conditions.low), np.asarray(conditions.high)
    beyond = np.any(cond < low - 1e-6, axis=0) | np.any(cond > high + 1e-6, axis=0)
    told = conditions.told().items()
    ranges = [f"{name} {text}" for (name, text), out in zip(told, beyond, strict=True) if out]
    if ranges:
        warnings.warn(f"condition beyond what {name} was trained on: {', '.join(ranges)}.", stacklevel=3)
