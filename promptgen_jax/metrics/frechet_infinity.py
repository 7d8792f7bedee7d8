"""Fréchet distance without the bias of few samples: what it tends to as their number grows.

    d²_N ≈ d²_∞ + c / N,

so d² of growing parts of the samples, over 1 / N, meets the axis at d²_∞. Source: arXiv 1911.07023 (FID_∞).
"""

from __future__ import annotations

import numpy as np
from scipy.special import stdtrit

from promptgen_jax.metrics._figures import Estimate
from promptgen_jax.metrics.frechet import Accumulator, Statistics, frechet_distance

POINTS, SMALLEST = 8, 0.25  # parts that are measured, and the smallest of them as a share of all


def frechet_infinity(
    features, reference: Statistics, *, log_weight=None, seed: int = 0, num_points: int = POINTS
) -> Estimate:
    """The extrapolated distance d²_∞ with the 95 % interval of the line's end.

    The interval is that of the line; parts share samples, so it is narrower than the error of a second set.

    Args:
      features: (N, F), N more than four times F.
      reference: of the other side, of so many samples that its own bias does not count.
      log_weight: (N,) nats, up to a constant; the part's effective number stands for N.
      seed: of the parts.
      num_points: parts, at least 3.

    Raises:
      ValueError: too few samples for a covariance of the smallest part, or features of another network than the
        reference.
    """
    rows = np.asarray(features)
    log_weight = np.zeros(len(rows)) if log_weight is None else np.asarray(log_weight, np.float64)
    if rows.ndim != 2 or num_points < 3 or SMALLEST * len(rows) <= rows.shape[1]:
        raise ValueError(
            f"frechet_infinity: features are {rows.shape} in {num_points} parts; expected (N, F) with N above "
            f"{1 / SMALLEST:g} F, in 3 or more. Take more samples."
        )
    rng, inverse, distance = np.random.default_rng(seed), [], []
    for size in np.linspace(SMALLEST * len(rows), len(rows), num_points).astype(int):
        part = rng.permutation(len(rows))[:size]
        found = Accumulator(reference.features).add(rows[part], log_weight[part]).statistics()
        inverse.append(1 / found.num_samples)  # type: ignore[operator]
        distance.append(frechet_distance(reference, found))
    x, y = np.array(inverse), np.array(distance)
    spread = np.sum((x - x.mean()) ** 2)
    slope = np.sum((x - x.mean()) * (y - y.mean())) / spread
    end = float(y.mean() - slope * x.mean())
    left = y - end - slope * x
    error = np.sqrt(left @ left / (num_points - 2) * (1 / num_points + x.mean() ** 2 / spread))
    half = float(stdtrit(num_points - 2, 0.975) * error)
    return Estimate(end, None, end - half, end + half)
