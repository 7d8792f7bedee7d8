"""What a coupling does to one number: the elementwise distrax bijectors that a conditioner steers.

A transformer is a frozen dataclass whose fields are its options, with `num_params`, the arrays that it takes, and
`__call__(*raw)` from that many raw outputs (..., d) of the conditioner to an elementwise distrax bijector on (..., d).
Raw outputs of zero give the identity, so that a flow whose last linear layers start at zero starts as the identity.
A new one is a class here and its line in `TRANSFORMERS`, or outside the library a module with `build(**options)`.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import distrax
import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from promptgen_jax import checks, parts
from promptgen_jax.types import Spec

# Log-scale s of a coupling from the raw network output a; |s| <= 2, so exp(s) stays within [0.135, 7.39].
CLAMPS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "tanh": lambda a: 2 * jnp.tanh(a),
    "tanh_half": lambda a: 2 * jnp.tanh(a / 2),
}


@dataclasses.dataclass(frozen=True)
class Affine:
    """x exp(s) + t with s = clamp(a), from a and t.

    Attributes:
      clamp: one of `CLAMPS`.
    Source: RealNVP, arXiv 1605.08803, eq. 7; the soft clamp is that of FrEIA's AllInOneBlock.
    """

    clamp: str = "tanh"
    num_params = 2

    def __post_init__(self) -> None:
        """Raises ValueError for an unknown clamp, with the nearest match."""
        checks.check_known("flow clamp", self.clamp, CLAMPS)

    def __call__(self, raw_log_scale: jax.Array, shift: jax.Array) -> distrax.Bijector:
        """Raw log-scales and shifts (..., d) to the bijector."""
        return distrax.ScalarAffine(shift, log_scale=CLAMPS[self.clamp](raw_log_scale))


@dataclasses.dataclass(frozen=True)
class Spline:
    """A monotone rational-quadratic spline on [-bound, bound], linear outside.

    Bins are at least 5 % of a uniform one and slopes at the knots at least 0.05, so that float32 finds the way back.

    Attributes:
      num_bins: K, pieces of the spline.
      bound: half of its range, in standard deviations of the noise.
    Source: Durkan et al., Neural Spline Flows, arXiv 1906.04032.
    """

    num_bins: int = 8
    bound: float = 5.0

    def __post_init__(self) -> None:
        """Raises ValueError for no bin, or no range."""
        checks.check_count("flow transformer: num_bins", self.num_bins)
        checks.check_number("flow transformer: bound", self.bound, 0, 1e3, above=True)

    @property
    def num_params(self) -> int:
        """3 K + 1: widths and heights of the bins, slopes at the knots."""
        return 3 * self.num_bins + 1

    def __call__(self, *raw: jax.Array) -> distrax.Bijector:
        """Raw widths, heights and slopes (..., d) to the bijector."""
        return distrax.RationalQuadraticSpline(
            jnp.stack(raw, axis=-1),
            range_min=-self.bound,
            range_max=self.bound,
            min_bin_size=0.05 * 2 * self.bound / self.num_bins,
            min_knot_slope=0.05,
        )


TRANSFORMERS = {"affine": Affine, "spline": Spline}


def make_transformer(named: str | Mapping, **defaults: Any) -> Any:
    """A transformer by its name, or by a mapping with its `kind` and options, e.g. `{"kind": "spline", "num_bins": 4}`.

    Args:
      named: kind "affine" or "spline", or the dotted name of a module outside the library with `build(**options)`.
      **defaults: options of "affine" where `named` gives none.

    Raises:
      ValueError: unknown kind or option, with the nearest match; options out of range; a module that cannot be used.
    """
    kind, options = _read(named)
    if "." in kind:
        return parts.load("transformers", kind, **options)
    for option in options:
        checks.check_known(f"flow transformer {kind}: option", option, _signature(kind))
    return TRANSFORMERS[kind](**(defaults if kind == "affine" else {}) | options)


def complete(named: str | Mapping) -> str | FrozenDict:
    """What names a transformer, with the options that it leaves out; the paper's is plain "affine".

    Raises:
      ValueError: as `make_transformer`.
    """
    make_transformer(named)
    kind, options = _read(named)
    if kind == "affine" and not options:
        return kind
    left_out = {name: each.default for name, each in _signature(kind).items() if name not in options}
    return Spec.of(kind, {"kind": kind, **options, **left_out}).options


def _read(named: str | Mapping) -> tuple[str, dict]:
    options = dict(named) if isinstance(named, Mapping) else {"kind": named}
    kind = options.pop("kind", None)
    if not isinstance(kind, str) or (named == kind and "." in kind):
        raise ValueError(
            f"flow transformer is {named!r}. Name one of {', '.join(TRANSFORMERS)}, or give the kind, also that of an "
            "importable module, with its options, {'kind': 'spline', 'num_bins': 8}."
        )
    if "." not in kind:
        checks.check_known("flow transformer", kind, TRANSFORMERS)
    return kind, options


def _signature(kind: str) -> Mapping[str, inspect.Parameter]:
    made_by = parts.find("transformers", kind).build if "." in kind else TRANSFORMERS[kind]
    return inspect.signature(made_by).parameters
