"""Target shares of classes, by label."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np

from promptgen_jax import checks

SUM_TOLERANCE = 1e-4


def check_mu(where: str, mu, labels: Sequence[str]) -> np.ndarray:
    """The target shares as float64, summing to exactly one; NaN for labels that share what is left.

    Args:
      where: start of the message.
      mu: shares by label, "uniform", or one share per label in their order. What a mapping leaves is the share of the
        one label that it does not name; of several, it is shared out by `fill_shares` once the generator's own shares
        are known.
      labels: the classes, K of them.

    Raises:
      ValueError: unknown label, with the nearest match; wrong length, a negative or non-finite share, a sum further
        than 1e-4 from one, or nothing left for the other labels.
    """
    count = len(labels)
    if isinstance(mu, str):
        if mu != "uniform":
            raise ValueError(f"{where}: mu is {mu!r}; expected {count} shares or 'uniform'. Pass one of the two.")
        return np.full(count, 1 / count)
    if isinstance(mu, Mapping):
        return _by_label(where, mu, labels)
    mu = np.asarray(mu, np.float64)
    if mu.shape != (count,):
        raise ValueError(
            f"{where}: mu has shape {mu.shape}; expected ({count},). Pass one share for each of {', '.join(labels)}."
        )
    for label, share in zip(labels, mu, strict=True):
        if not (np.isfinite(share) and share >= 0):
            raise ValueError(f"{where}: mu of {label} is {share:.4g}; expected a share from 0 to 1. Correct it.")
    if abs(mu.sum() - 1) > SUM_TOLERANCE:
        raise ValueError(f"{where}: mu sums to {mu.sum():.6g}; expected 1. Divide it by its sum.")
    return mu / mu.sum()


def asked_shares(where: str, mu, labels: Sequence[str]) -> np.ndarray:
    """As `check_mu`, with a warning that says how shares without labels were read."""
    shares = check_mu(where, mu, labels)
    if not isinstance(mu, (str, Mapping)) and np.ptp(shares) > SUM_TOLERANCE:
        named = ", ".join(f"{label} {share:.4g}" for label, share in zip(labels, shares, strict=True))
        warnings.warn(
            f"{where}: mu={tuple(np.asarray(mu).tolist())} is read as {named}. Name the labels.", stacklevel=6
        )
    return shares


def _by_label(where: str, mu: Mapping, labels: Sequence[str]) -> np.ndarray:
    for label, share in mu.items():
        checks.check_known(f"{where}: label of mu", label, labels)
        checks.check_number(f"{where}: mu of {label}", share, 0, 1)
    named = sum(mu.values())
    shares = np.array([mu.get(label, np.nan) for label in labels], np.float64)
    others = [label for label in labels if label not in mu]
    if not others:
        return check_mu(where, "uniform", labels) if not mu else _whole(where, shares)
    if not named < 1 - SUM_TOLERANCE:
        raise ValueError(
            f"{where}: mu gives {named:.4g} to {', '.join(mu)} and leaves nothing for {', '.join(others)}; expected "
            "less than 1. Lower it, or name all labels."
        )
    return np.where(np.isnan(shares), 1 - named, shares) if len(others) == 1 else shares


def _whole(where: str, shares: np.ndarray) -> np.ndarray:
    if abs(shares.sum() - 1) > SUM_TOLERANCE:
        raise ValueError(
            f"{where}: mu sums to {shares.sum():.6g}; expected 1. Divide it by its sum, or leave labels out."
        )
    return shares / shares.sum()


def fill_shares(mu: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Target shares (K,) in which labels without one (NaN) share what is left as the generator's own shares (K,) do.

    They are rounded to four digits, so that they are the same on every machine.
    """
    mu, free = np.asarray(mu, np.float64), np.isnan(mu)
    if not free.any():
        return mu
    filled = np.where(free, np.round((1 - np.nansum(mu)) * own / own[free].sum(), 4), mu)
    largest = np.flatnonzero(free)[np.argmax(filled[free])]
    filled[largest] += 1 - filled.sum()
    return filled
