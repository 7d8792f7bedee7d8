"""Samples of the flow and of the prior weighed together, and the bootstrap over both, in NumPy."""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from promptgen_jax.metrics._intervals import RESAMPLES


class Side(NamedTuple):
    """Samples of one proposal, as NumPy (N,) in nats.

    Attributes:
      log_target: log p_z(z) - E_C(G(z)).
      log_prior: log p_z(z).
      log_q: log density of the flow.
    """

    log_target: np.ndarray
    log_prior: np.ndarray
    log_q: np.ndarray


def pooled(flow: Side, prior: Side) -> np.ndarray:
    """Log weights (N + M,) for the target by the balance heuristic, of the flow's samples and then the prior's."""
    n, m = len(flow.log_q), len(prior.log_q)
    log_target, log_prior, log_q = (np.concatenate(pair).astype(np.float64) for pair in zip(flow, prior, strict=True))
    return log_target - np.logaddexp(np.log(n) + log_q, np.log(m) + log_prior) + np.log(n + m)


@functools.lru_cache(maxsize=1)  # the settings of a dial share it
def resampled(n: int, m: int, *, seed: int = 0) -> np.ndarray:
    """How often each sample counts, (1 + resamples, N + M): all once, then the bootstrap of each side."""
    rng = np.random.default_rng(seed)
    rows = [rng.multinomial(size, np.full(size, 1 / size), RESAMPLES) for size in (n, m)]
    return np.concatenate([np.ones((1, n + m)), np.concatenate(rows, axis=1)])


def scaled(log_weight: np.ndarray) -> tuple[np.ndarray, float]:
    """Weights over their largest, at least e^-700 so that no resample weighs nothing, and the log of the largest."""
    largest = float(log_weight.max())
    if largest == -np.inf:
        return np.ones(len(log_weight)), largest
    return np.exp(np.maximum(log_weight - largest, -700.0)), largest


def quantiles(values: np.ndarray) -> tuple[float, float]:
    """Bootstrap interval of the first value, from the others; of the log of nothing, nothing."""
    if values[0] == -np.inf:
        return -np.inf, -np.inf
    low, high = np.quantile(values[1:], (0.025, 0.975))
    return min(float(low), float(values[0])), max(float(high), float(values[0]))


def ess(log_weight: np.ndarray) -> float:
    """Effective number of samples, 0 where all weigh nothing."""
    if log_weight.max() == -np.inf:
        return 0.0
    weight = np.exp(log_weight - log_weight.max())
    return float(weight.sum() ** 2 / np.sum(weight**2))
