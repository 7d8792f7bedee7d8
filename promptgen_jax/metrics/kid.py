"""Kernel distance of features, as KID is with those of InceptionV3: unbiased, so it is fit for few samples.

    MMD² = E k(x, x') + E k(y, y') - 2 E k(x, y),    k(x, y) = (x·y / F + 1)³

over pairs of different samples. Source: arXiv 1801.01401.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from promptgen_jax.metrics._figures import Estimate, Figure, Figures
from promptgen_jax.metrics._intervals import BLOCKS, jackknife_estimate, leaving_out, normalised
from promptgen_jax.metrics._observed import About, Observed, embeddings
from promptgen_jax.metrics.frechet import called

DEGREE = 3
SAMPLES = 4096  # of each draws that are compared, as the time goes with the square of it
TEXT = (
    "Squared distance of features to those of {reference} in the space of a polynomial kernel: 0 on average where both "
    "are samples of one distribution, so it may be below 0."
)


def measure(seen: Mapping[str, Observed], about: About) -> Figures | None:
    """Distance of all draws to the reference, by every network that gives an `embedding`, of the first 4,096.

    Nothing without such a network.
    """
    seen = {name: found.first(SAMPLES) for name, found in seen.items()}
    reference = seen.get(about.reference)
    if reference is None:
        return None
    rows = []
    for network, features in embeddings(seen).items():
        values = {
            name: kid(features[name], features[about.reference], weights=found.weights(), other=reference.weights())
            for name, found in seen.items()
            if name != about.reference
        }
        rows.append(Figure(called("K", about.networks.get(network), network), values))
    return Figures("Kernel distance", tuple(rows), TEXT.format(reference=about.reference)) if rows else None


def kid(x, y, *, weights=None, other=None) -> Estimate:
    """The unbiased squared distance MMD² of features, with the interval of a jackknife over blocks of samples.

    Args:
      x: (N, F) features, N at least 2.
      y: (M, F) features, M at least 2.
      weights: (N,) of x, any scale; equal by default. Weighted, it is unbiased up to the error of the weights' sum.
        With one above 0 alone there is no pair, and no distance.
      other: (M,) weights of y.

    Raises:
      ValueError: fewer than two samples, another number of features, or weights that are negative or all zero.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise ValueError(
            f"kid: features are {x.shape} and {y.shape}; expected (N, F) and (M, F), at least two rows each. Use one "
            "network for both."
        )
    sides = [(x, normalised(np.ones(len(x)) if weights is None else weights, len(x)))]
    sides += [(y, normalised(np.ones(len(y)) if other is None else other, len(y)))]
    count = min(BLOCKS, len(x) // 2, len(y) // 2)
    blocks = [[(rows[i::count], w[i::count]) for i in range(count)] for rows, w in sides]
    within = [_pairs(side, side, same=True) for side in blocks]
    between = _pairs(*blocks, same=False)
    keep = leaving_out(count)
    return jackknife_estimate(sum(_mean(keep, *pairs) for pairs in within) - 2 * _mean(keep, *between))


def _pairs(one: list, other: list, *, same: bool) -> tuple[np.ndarray, np.ndarray]:
    """By pair of blocks: the sum of the weighted kernel over pairs of samples, and of the weights."""
    sums, totals = np.empty((2, len(one), len(other)))
    for i, (x, w) in enumerate(one):
        for j, (y, v) in enumerate(other):
            kernel, weight = (x @ y.T / x.shape[1] + 1) ** DEGREE, np.outer(w, v)
            if same and i == j:
                np.fill_diagonal(weight, 0)
            sums[i, j], totals[i, j] = np.sum(kernel * weight), weight.sum()
    return sums, totals


def _mean(keep: np.ndarray, sums: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """Means of the kernel over pairs of the blocks that are kept, one a row of `keep`."""
    total = np.einsum("ri,ij,rj->r", keep, totals, keep)
    return np.einsum("ri,ij,rj->r", keep, sums, keep) / np.where(total > 0, total, np.nan)
