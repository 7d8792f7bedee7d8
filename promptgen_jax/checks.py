"""Checks of user input. Every message says where, what was got, what was expected and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

MEND = "Check the controls."
LONG = 16  # names that nobody wants to read through for a letter that was mistyped


def nearest(name: str, known: Iterable[str]) -> str:
    """A question that offers the closest known name, then all of them, or of many the few that are like it."""
    known = sorted(known)
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    guess = f"Did you mean {close[0]!r}? " if close else ""
    if close and len(known) > LONG:
        others = difflib.get_close_matches(str(name), known, n=4, cutoff=0.8)[1:]
        return (guess + (f"Or {', '.join(others)}?" if others else "")).strip()
    return f"{guess}Known: {', '.join(known)}."


def check_known(where: str, name: str, known: Iterable[str]) -> None:
    """Raises ValueError unless `name` is one of `known`."""
    known = list(known)
    if name not in known:
        raise ValueError(f"{where}: unknown name {name!r}. {nearest(name, known)}")


def plain_numbers(options: dict) -> dict:
    """Options with numbers of NumPy and JAX as those of Python, which JSON can hold."""
    return {name: plain_number(value) for name, value in options.items()}


def plain_number(value: Any) -> Any:
    """A number of NumPy or JAX, or an array that is one, as that of Python; anything else as it is."""
    is_number = isinstance(value, np.generic) or (isinstance(value, (np.ndarray, jax.Array)) and not value.shape)
    return value.item() if is_number else value


def check_key(where: str, key: Any) -> None:
    """Raises TypeError unless `key` is a single typed JAX key."""
    if not (isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)):
        raise TypeError(f"{where}: got {type(key).__name__} for key; expected a typed key. Use jax.random.key(seed).")
    if key.shape:
        raise ValueError(f"{where}: got a batch of keys {key.shape}; expected one key. Index or split it first.")


def check_count(where: str, value: Any, *, minimum: int = 1) -> None:
    """Raises ValueError unless `value` is an integer of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < minimum:
        raise ValueError(f"{where}: got {value!r}; expected an integer of at least {minimum}.")


def check_seed(where: str, value: Any) -> None:
    """Raises ValueError unless `value` is an integer of 32 bits, as jax.random.key forgets the bits beyond them."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not 0 <= value < 2**32:
        raise ValueError(f"{where}: got {value!r}; expected an integer from 0 to {2**32 - 1}.")


def check_number(where: str, value: Any, low: float, high: float, *, above: bool = False) -> None:
    """Raises ValueError unless `value` is a number from `low`, or above it, to `high`."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (number and low <= value <= high) or (above and value == low):
        expected = f"above {low}, at most {high}" if above else f"from {low} to {high}"
        raise ValueError(f"{where} is {value!r}; expected a number {expected}.")


def check_latents(where: str, z: Any, dim: int) -> None:
    """Raises unless `z` is a floating (B, dim) array; values are checked where they are known (outside jit)."""
    if getattr(z, "ndim", None) != 2 or z.shape[1] != dim:
        raise ValueError(
            f"{where}: latents are {getattr(z, 'shape', type(z).__name__)}; expected (batch, {dim}). "
            "Flatten them to one row per sample."
        )
    if not jnp.issubdtype(z.dtype, jnp.floating):
        raise TypeError(f"{where}: latents are {z.dtype}; expected float32. Use z.astype('float32').")
    check_finite(where, "latents", z)


def check_images(where: str, images: Any, *, minimum_size: int = 1) -> None:
    """Raises unless `images` are floating (B, H, W, 3) of at least `minimum_size` pixels a side.

    Outside jit, values are checked too: no NaN, and not in 0 to 255.
    """
    shape = getattr(images, "shape", None)
    if shape is None or len(shape) != 4 or shape[-1] != 3:
        hint = (
            "Transpose from NCHW first."
            if shape is not None and len(shape) == 4 and shape[1] == 3
            else "Add the missing axis."
        )
        raise ValueError(f"{where}: images are {shape}; expected (batch, height, width, 3) in [0, 1]. {hint}")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise TypeError(f"{where}: images are {images.dtype}; expected float32 in [0, 1]. Divide 8-bit images by 255.")
    if min(shape[1:3]) < minimum_size:
        raise ValueError(
            f"{where}: images are {shape[1]}x{shape[2]} pixels; expected at least {minimum_size}. Resize them."
        )
    if isinstance(images, jax.core.Tracer):
        return
    check_finite(where, "images", images)
    values = np.asarray(images)  # known here, but under jit an operation of JAX on them would not be
    reach = max(values.max(), -values.min()) if values.size else 0
    if reach > 16:
        raise ValueError(f"{where}: images reach {reach:.4g}; expected [0, 1]. Divide 8-bit images by 255.")


def check_cond(where: str, cond: Any, cond_dim: int, batch: int) -> None:
    """Raises ValueError unless `cond` is (batch, cond_dim) and finite, or None when `cond_dim` is 0."""
    if cond_dim == 0:
        if cond is not None:
            raise ValueError(
                f"{where}: got a condition {cond.shape}; this flow takes none (cond_dim=0). Leave cond out."
            )
    elif cond is None or cond.shape != (batch, cond_dim):
        got = "none" if cond is None else cond.shape
        raise ValueError(f"{where}: cond is {got}; expected ({batch}, {cond_dim}). Pass one row per sample.")
    else:
        check_finite(where, "cond", cond)


def rows_of(where: str, cond: Any, cond_dim: int, batch: int) -> np.ndarray | None:
    """Conditions (batch, A) of one (A,) for all or of one each, or None without; raises as `check_cond`."""
    rows = None if cond is None else np.asarray(cond, np.float32)
    if rows is not None and rows.ndim == 1:
        rows = np.broadcast_to(rows, (batch, rows.size))
    check_cond(where, rows, cond_dim, batch)
    return rows


def check_density(where: str, log_target: Any) -> None:
    """Raises ValueError for a log density that is NaN or plus infinity; minus infinity is where the target is not."""
    values = np.asarray(log_target)
    bad = int(np.sum(np.isnan(values) | (values == np.inf)))
    if bad:
        raise ValueError(f"{where}: the energy is NaN, or minus infinity, at {bad} of {values.size} samples. {MEND}")


def check_met(where: str, log_target: Any) -> None:
    """Raises ValueError where the target's density, as `check_density` reads it, is 0 at all samples."""
    check_density(where, log_target)
    if np.size(log_target) and np.max(log_target) == -np.inf:
        raise ValueError(f"{where}: the energy is infinite at all {np.size(log_target)} samples. {MEND}")


def check_finite(where: str, what: str, values: Any) -> None:
    """Raises ValueError if any of the values is NaN or infinite; inside jit they are not known."""
    if isinstance(values, jax.core.Tracer):
        return
    bad = int(np.sum(~np.isfinite(np.asarray(values))))
    if bad:
        raise ValueError(
            f"{where}: {bad} of {values.size} {what} values are NaN or infinite. Check where they came from."
        )
