"""Along a path of settings: log Z by thermodynamic integration, whether it agrees, and the knee, in NumPy."""

from __future__ import annotations

import numpy as np

SPREADS, COARSE = 4.0, 0.25  # standard errors, and share of the integral's correction, within which log Z agrees


def integrate(coefficients: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Thermodynamic integration of d log Z = -E[F] · dw along a path, by the trapezoid rule corrected at its ends.

        ∫ f dt = (f_0 + f_1) / 2 + (f_0' - f_1') / 12,   f = -Δw · E[F],   f' = Δw · Cov(F) Δw

    Args:
      coefficients: (K, F) w at each setting.
      mean: (K, ..., F) of F over the target there.
      covariance: (K, ..., F, F) likewise.

    Returns:
      (log Z less that of the first setting, (K, ...); how much of it the correction is, likewise, adding up sizes).
    """
    steps = np.diff(coefficients, axis=0)
    first = [-mean[k + end] @ step for k, step in enumerate(steps) for end in (0, 1)]
    second = [(covariance[k + end] @ step) @ step for k, step in enumerate(steps) for end in (0, 1)]
    value, slope = (np.reshape(each, (len(steps), 2, *np.shape(each[0]))) for each in (first, second))
    corrections = (slope[:, 0] - slope[:, 1]) / 12
    summed = [np.cumsum(each, axis=0) for each in (value.mean(axis=1) + corrections, np.abs(corrections))]
    nothing = np.zeros_like(summed[0][:1])
    return np.concatenate([nothing, summed[0]]), np.concatenate([nothing, summed[1]])


def agreement(log_z: np.ndarray, integrated: np.ndarray, corrections: np.ndarray) -> np.ndarray:
    """Whether log Z and its integral, (K, R) with a bootstrap in the columns, agree at each setting, (K,).

    That is within four standard errors of their difference and a quarter of the integral's correction.
    """
    difference = integrated - log_z
    allowed = SPREADS * difference[:, 1:].std(axis=1) + COARSE * corrections[:, 0] + 1e-3
    return np.abs(difference[:, 0]) <= allowed


def knee_of(way: np.ndarray, energy: np.ndarray) -> int | None:
    """Number of the setting that lies furthest below the straight line from the first to the last one.

    Args:
      way: (K,) how far each setting is on the path.
      energy: (K,) there.

    Returns:
      The number, or None where there are fewer than three settings or energy does not fall below that line.
    """
    if len(way) < 3 or not energy[-1] < energy[0]:
        return None
    line = energy[0] + (energy[-1] - energy[0]) * (way - way[0]) / (way[-1] - way[0])
    below = line - energy
    return int(below.argmax()) if below.max() > 0.05 * (energy[0] - energy[-1]) else None
