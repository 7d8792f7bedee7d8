"""`Conditions`: what a conditional flow is told, how people write it, and what is drawn in training.

A component is an angle, a strength, a dial that scales the energy of the control of its name, or a share, the wanted
mean of the probability of the label of its name.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from promptgen_jax import checks
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


FULL = 0.5  # share of the draws in which all dials are at an end of their range


class Conditions(struct.PyTreeNode):
    """Distribution of conditions on a box of R^A, e.g. of head poses; the canonical condition is 0.

    It is uniform, but for an atom of strengths: of uniform draws few come near full strength, where most is asked of
    the flow. The share `corners` of all draws has its strengths at a corner of their box other than the lowest, each
    as often as the others: of one dial at full strength, of two at (0, 1), (1, 0) and (1, 1).

    Attributes:
      low: (A,) one corner of the box, in the units in which flows take them: angles in radians.
      high: (A,) the other; equal to `low` where a component is fixed.
      names: A names for people.
      kinds: A keys of `KINDS`; all are angles if left out.
      corners: share of the draws at the corners of the strengths, from 0 to 1.
      texts: sentences whose embeddings are drawn, of `Sentences` alone.
    """

    low: Array
    high: Array
    names: tuple[str, ...] = struct.field(pytree_node=False, default=())
    kinds: tuple[str, ...] = struct.field(pytree_node=False, default=())
    corners: float = struct.field(pytree_node=False, default=FULL)
    texts: tuple[str, ...] = struct.field(pytree_node=False, default=())

    @classmethod
    def of(cls, ranges: Mapping[str, Sequence], *, corners: float = FULL) -> Conditions:
        """From ranges as people write them, e.g. `{"turn": (-20, 20, "angle"), "smile": (0, 1, "strength")}`.

        Args:
          ranges: by name (low, high, kind), a kind of `KINDS` in its unit; (low, high) is that of an angle.
          corners: share of the draws at the corners of the strengths.

        Raises:
          ValueError: no range, one that is not from low to high, an unknown kind, a share outside 0 to 1, a strength
            below 0, corners outside 0 to 1.
        """
        checks.check_number("conditions: corners", corners, 0, 1)
        if not ranges:
            raise ValueError("conditions: no ranges; give at least one, e.g. {'turn': (-20, 20, 'angle')} in degrees.")
        rows = {name: _checked_range(name, written) for name, written in ranges.items()}
        low, high = (
            np.array([KINDS[row[2]].read(np.float32(row[end])) for row in rows.values()], np.float32) for end in (0, 1)
        )
        kinds = tuple(kind for _, _, kind in rows.values())
        return cls(low=jnp.asarray(low), high=jnp.asarray(high), names=tuple(rows), kinds=kinds, corners=corners)

    @classmethod
    def of_angles(cls, degrees: Mapping[str, Sequence[float]]) -> Conditions:
        """From ranges of angles in degrees by name, e.g. `{"nod": (-20, 20), "turn": (-20, 20)}`; raises as `of`."""
        return cls.of(degrees)

    @classmethod
    def of_strengths(cls, ranges: Mapping[str, Sequence[float]], *, corners: float = FULL) -> Conditions:
        """From ranges of strengths by name of the control, e.g. `{"smile": (0, 1)}`; otherwise as `of`."""
        return cls.of(_with_kind(ranges, "strength"), corners=corners)

    @classmethod
    def of_shares(cls, ranges: Mapping[str, Sequence[float]]) -> Conditions:
        """From ranges of shares by label, e.g. `{"female": (0.3, 0.9)}`; raises as `of`."""
        return cls.of(_with_kind(ranges, "share"))

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

    @property
    def moves_log_z(self) -> bool:
        """Whether log Z may differ between draws: of more than one value, and not of shares, whose energy has it."""
        varies = bool(self.texts) or bool(np.any(np.asarray(self.low) < np.asarray(self.high)))
        return varies and {kind for _, kind in self.components} != {"share"}

    def of_kind(self, kind: str) -> dict[str, int]:
        """The components of a kind: their places by name."""
        return {name: place for place, (name, each) in enumerate(self.components) if each == kind}

    def fixed_at(self, kind: str, value: float) -> Conditions:
        """The same with all components of a kind at one value, in the units of flows."""
        places = np.array(list(self.of_kind(kind).values()), int)
        return self.replace(low=self.low.at[places].set(value), high=self.high.at[places].set(value))

    def sample(self, key: Array, num_samples: int) -> Array:
        """Draws (num_samples, A) conditions."""
        drawn = jax.random.uniform(key, (num_samples, self.dim), jnp.float32, self.low, self.high)
        places = np.array(list(self.of_kind("strength").values()), int)
        if not (places.size and self.corners):
            return drawn
        key_at, key_which = jax.random.split(jax.random.fold_in(key, 1))
        number = jax.random.randint(key_which, (num_samples, 1), 1, 2**places.size)  # its bits are the corner
        corner = jnp.where(number >> np.arange(places.size) & 1, self.high[places], self.low[places])
        at = jax.random.bernoulli(key_at, self.corners, (num_samples, 1))
        return drawn.at[:, places].set(jnp.where(at, corner, drawn[:, places]))

    def grid(self, size: int = 3) -> np.ndarray:
        """(size^V, A) conditions evenly spread over the V components that vary, the last one fastest."""
        low, high = np.asarray(self.low), np.asarray(self.high)
        axes = [np.linspace(a, b, size if a < b else 1) for a, b in zip(low, high, strict=True)]
        return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, self.dim).astype(np.float32)

    def named(self, where: str, values: Mapping[str, Any]) -> np.ndarray:
        """A condition (A,), or one each (N, A), from numbers or (N,) of them by name, in the units of people.

        Strengths that are left out are 0, their controls off; angles are 0 too.

        Args:
          where: start of messages.
          values: by name of the component.

        Raises:
          ValueError: an unknown name, a strength or share that is missing, no number or outside what was trained.
        """
        for name in values:
            checks.check_known(where, name, dict(self.components))
        columns = [_checked_values(where, name, told, values) for name, told in self.ranges().items()]
        kinds = [kind for _, kind in self.components]
        rows = [KINDS[kind].read(column) for kind, column in zip(kinds, columns, strict=True)]
        return np.stack(np.broadcast_arrays(*rows), axis=-1).astype(np.float32)

    def read(self, texts: Sequence[str]) -> np.ndarray:
        """A condition (A,) from what people write: a number a component in its unit, or `name=number` as `named` reads.

        Raises:
          ValueError: not A finite numbers; else as `named`.
        """
        if any("=" in text for text in texts):
            return self.named("condition", dict(map(_read_pair, texts)))
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

    def varying(self) -> list[str]:
        """The components whose range is wider than a point, with their ranges in words."""
        fixed = np.asarray(self.low) == np.asarray(self.high)
        return [f"{name} {text}" for (name, text), one in zip(self.told().items(), fixed, strict=True) if not one]

    def beyond(self, cond: Any) -> list[str]:
        """The components in which some of the conditions (N, A) are out of their range, with it in words."""
        out = np.any(cond < np.asarray(self.low) - 1e-6, axis=0) | np.any(cond > np.asarray(self.high) + 1e-6, axis=0)
        return [f"{name} {text}" for (name, text), one in zip(self.told().items(), out, strict=True) if one]

    def in_words(self, cond: Array) -> str:
        """A condition (A,) in words, e.g. "nod -20, turn 0"."""
        pairs = zip(self.components, self.write(jnp.asarray(cond)), strict=True)
        return ", ".join(f"{name} {value:.3g}" for (name, _), value in pairs)

    def to_json(self) -> dict[str, Any]:
        """What `read_conditions` of flows.sentences reads."""
        return dict(self.ranges())


def _with_kind(ranges: Mapping[str, Sequence[float]], kind: str) -> dict[str, Any]:
    """Ranges of one kind; what is no range is left to `_checked_range`."""
    return {
        name: (*ends, kind) if isinstance(ends, (tuple, list, np.ndarray)) else ends for name, ends in ranges.items()
    }


def _checked_range(name: str, written: Sequence) -> tuple[float, float, str]:
    if isinstance(written, str) or not isinstance(written, (Sequence, np.ndarray)):
        raise ValueError(f"condition {name}: range is {written!r}; expected (low, high), or (low, high, kind).")
    *ends, kind = written if len(written) == 3 else (*written, "angle")
    if kind not in KINDS:
        raise ValueError(f"condition {name}: kind is {kind!r}; expected one of {', '.join(KINDS)}.")
    unit = f" in {KINDS[kind].unit}" if KINDS[kind].unit else ""
    plain = all(isinstance(end := checks.plain_number(each), (int, float)) and np.isfinite(end) for each in ends)
    if len(ends) != 2 or not plain or not ends[0] <= ends[1]:
        raise ValueError(f"condition {name}: range is {written}; expected (low, high){unit}, low at most high.")
    if kind == "strength" and ends[0] < 0:
        raise ValueError(f"condition {name}: range is {written}; expected strengths of at least 0, as 0 to 1.")
    if kind == "share" and not 0 <= ends[0] <= ends[1] <= 1:
        raise ValueError(f"condition {name}: range is {written}; expected shares from 0 to 1.")
    return (*ends, kind)


def _checked_values(where: str, name: str, told: tuple[float, float, str], values: Mapping[str, Any]) -> np.ndarray:
    """The numbers () or (N,) of a component, in the unit of people; `told` is its entry of `ranges`."""
    low, high, kind = told
    if name not in values and kind in ("share", "embedding"):
        raise ValueError(f"{where}: {kind} {name} is missing; give one from {low:g} to {high:g}.")
    given = values.get(name, 0.0)
    try:
        found = np.asarray(given, np.float64)
    except (TypeError, ValueError):
        found = np.array(np.nan)
    least = min(low, 0.0) if kind == "strength" else low  # a control may always be off
    beyond = kind in ("strength", "share") and not np.all((found >= least - 1e-6) & (found <= high + 1e-6))
    if found.ndim > 1 or not np.isfinite(found).all() or beyond:
        expected = f"from {least:g} to {high:g}, as it was trained" if beyond else "a number, or one each"
        raise ValueError(f"{where}: {kind} {name} is {given}; expected {expected}.")
    return found


def _read_pair(text: str) -> tuple[str, float]:
    name, equals, value = text.partition("=")
    try:
        return name.strip(), float(value if equals else "")
    except ValueError:
        raise ValueError(f"condition={text}: expected name=number for each, e.g. smile=0.5.") from None


def asked(
    name: str, conditions: Conditions | None, strength: Mapping | None, shares: Mapping | None, text: Any = None
) -> np.ndarray:
    """The condition (A,) or (N, A) of strengths, shares by name, or sentences, of the prompt of this name.

    Raises:
      ValueError: the prompt was trained without such conditions, or without this one, or values out of range.
    """
    if text is not None and (conditions is None or not conditions.texts):
        raise ValueError(f"prompt {name}: text={text!r}, but it was trained without sentences. Leave it out.")
    values: dict[str, Any] = {}
    for kind, argument, given in (("strength", "strength", strength), ("share", "shares", shares)):
        if given is None:
            continue
        known = conditions.of_kind(kind) if conditions else {}
        if not known:
            raise ValueError(f"prompt {name}: {argument}={given}, but it was trained without any {kind}. Leave it out.")
        if not isinstance(given, Mapping):
            raise ValueError(
                f"prompt {name}: {argument}={given}; expected numbers by name, as {{{next(iter(known))!r}: 1}}."
            )
        for each in given:
            checks.check_known(f"prompt {name}: {kind}", each, known)
        values |= given
    if text is not None:
        values["text"] = text
    if conditions is None:
        raise ValueError(f"prompt {name}: it takes no strength and no share. Leave them out.")
    return conditions.named(f"prompt {name}", values)


def warn_beyond(name: str, conditions: Conditions | None, cond: Any) -> None:
    """Warns of conditions (N, A) outside those that the prompt of this name was trained on."""
    if cond is None or conditions is None:
        return
    if ranges := conditions.beyond(cond):
        warnings.warn(f"condition beyond what {name} was trained on: {', '.join(ranges)}.", stacklevel=3)
