"""Intervals of means and shares, of equally weighted and of weighted samples, in NumPy."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import stdtrit

from promptgen_jax.metrics._figures import Estimate

Z_95 = 1.959963984540054  # two-sided 95 % quantile of the standard normal
RESAMPLES = 400  # of a bootstrap
BLOCKS = 16  # of a jackknife, at most


def wilson_interval(share: float, num_samples: float) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion, which neither leaves [0, 1] nor collapses at its ends.

        (p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n)

    Args:
      share: p in [0, 1].
      num_samples: n > 0; an effective number need not be whole.

    Returns:
      (low, high).
    Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference, 1927.
    """
    ratio = Z_95**2 / num_samples
    centre = share + ratio / 2
    half = math.sqrt(ratio * share * (1 - share) + ratio**2 / 4)
    return max(0.0, (centre - half) / (1 + ratio)), min(1.0, (centre + half) / (1 + ratio))


def effective_sample_size(importance) -> float:
    """(Σ w)² / Σ w² of weights (N,): N if all are equal, near 1 if a single one dominates.

    Raises:
      ValueError: weights that are negative, not finite or all zero.
    """
    importance = normalised(importance, np.size(importance))
    return float(1 / np.sum(importance**2))


def normalised(importance, num: int) -> np.ndarray:
    """Weights (num,) in float64 that add up to 1. Raises ValueError for negative, infinite or all zero ones."""
    importance = np.asarray(importance, np.float64)
    total = importance.sum()
    if importance.shape != (num,) or not np.all(importance >= 0) or not (0 < total < np.inf):
        raise ValueError(
            f"weights are {importance.shape} with sum {total:.4g}; expected ({num},) finite numbers of at least "
            "0, not all 0. Subtract the largest log-weight before taking exp."
        )
    return importance / total


def mean_interval(values: np.ndarray, importance: np.ndarray, ess: float) -> tuple[float, float, float]:
    """Mean of values in [0, 1] with Student's interval: (mean, low, high), weights adding up to 1."""
    mean = float(importance @ values)
    freedom = ess - 1
    if freedom < 1e-9:  # one sample says nothing of the spread
        return mean, 0.0, 1.0
    error = math.sqrt(np.sum((importance * (values - mean)) ** 2) * ess / freedom)
    half = float(stdtrit(freedom, 0.975)) * error if error else 0.0
    return mean, max(0.0, mean - half), min(1.0, mean + half)


def share_interval(chosen: np.ndarray, importance: np.ndarray, ess: float) -> tuple[float, float, float]:
    """Share of the ones in `chosen` with Wilson's interval: (share, low, high)."""
    share = float(np.clip(importance @ chosen, 0, 1))
    variance = float(np.sum((importance * (chosen - share)) ** 2))
    equal_weight = share * (1 - share) / variance if variance > 0 else ess
    return share, *wilson_interval(share, min(ess, max(equal_weight, 1.0)))


def mean_estimate(values, importance: np.ndarray | None = None) -> Estimate:
    """Mean of values (N,) with the interval of the normal approximation, and their standard deviation."""
    values = np.asarray(values, np.float64)
    if importance is None:
        mean, std = float(values.mean()), float(values.std())
        half = Z_95 * std / np.sqrt(len(values))
    else:
        importance = normalised(importance, len(values))
        mean = float(importance @ values)
        std = float(np.sqrt(importance @ (values - mean) ** 2))
        half = Z_95 * float(np.sqrt(np.sum((importance * (values - mean)) ** 2)))
    return Estimate(mean, std, float(mean - half), float(mean + half))


def jackknife_estimate(values: np.ndarray) -> Estimate:
    """The first of values (1 + K,), of all samples, with the interval of the others, each without one of K blocks.

    There is none of a single block, nor where a block holds all the weight, so that nothing is left without it.
    """
    mean, left = float(values[0]), values[1:]
    if np.isnan(mean):
        return Estimate(None)
    if len(left) < 2 or np.isnan(left).any():
        return Estimate(mean)
    half = Z_95 * float(np.sqrt((len(left) - 1) * np.mean((left - left.mean()) ** 2)))
    return Estimate(mean, None, mean - half, mean + half)


def leaving_out(num_blocks: int) -> np.ndarray:
    """Which of K blocks are kept, (1 + K, K): all, and then all but one."""
    return np.concatenate([np.ones((1, num_blocks)), 1 - np.eye(num_blocks)])
