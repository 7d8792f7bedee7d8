"""Precision and recall of features by nearest neighbours, and density and coverage, which outliers disturb less.

With B(y) the ball around a reference sample y as far as its k-th nearest other one, and B'(x) that of samples x:

    precision = share of x in some B(y)             recall = share of y in some B'(x)
    density = mean over x of the number of B(y) around it, over k       coverage = share of B(y) with some x in it

Source: arXiv 1904.06991 for precision and recall, arXiv 2002.09797 for density and coverage.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.spatial.distance import cdist

from promptgen_jax.metrics._figures import Estimate, Figure, Figures
from promptgen_jax.metrics._intervals import normalised
from promptgen_jax.metrics._observed import About, Observed, embeddings

NEIGHBOURS, ROWS = 5, 1024
NAMES = ("precision", "recall", "density", "coverage")
TEXT = (
    "Of features, beside those of {reference}: precision and density fall where samples are unlike any of it, recall "
    "and coverage where parts of it are missing. Samples of one distribution do not reach 1, but all draws here are of "
    "one number, so they can be compared."
)


def measure(seen: Mapping[str, Observed], about: About) -> Figures | None:
    """Of all draws against the reference, by every network that gives an `embedding`; nothing without one."""
    if about.reference not in seen:
        return None
    rows = []
    for network, features in embeddings(seen).items():
        if min(map(len, features.values())) <= NEIGHBOURS:
            continue
        real = features[about.reference]
        weights = {name: seen[name].weights() for name in features if name != about.reference}
        found = {
            name: manifold(features[name], real, weights=each)
            for name, each in weights.items()
            if each is None or np.sum(each > 0) > NEIGHBOURS
        }
        rows += [
            Figure(f"{what} ({network})", {name: Estimate(each[what]) for name, each in found.items()})
            for what in NAMES
        ]
    return Figures("Fidelity and coverage", tuple(rows), TEXT.format(reference=about.reference)) if rows else None


def manifold(samples, reference, *, neighbours: int = NEIGHBOURS, weights=None) -> dict[str, float]:
    """Precision, recall, density and coverage.

    Args:
      samples: (N, F) features, N more than `neighbours`.
      reference: (M, F) features, M more than `neighbours`.
      neighbours: k, of all four; 3 in the paper of precision and recall, 5 in that of density and coverage.
      weights: (N,) of the samples, any scale, for precision and density; recall and coverage ask where samples of a
        weight above 0 are.

    Raises:
      ValueError: too few samples, or another number of features.
    """
    samples, reference = np.asarray(samples, np.float64), np.asarray(reference, np.float64)
    weights = normalised(np.ones(len(samples)) if weights is None else weights, len(samples))
    samples, weights = samples[weights > 0], weights[weights > 0]
    if (
        samples.ndim != 2
        or reference.shape[1:] != samples.shape[1:]
        or min(map(len, (samples, reference))) <= neighbours
    ):
        raise ValueError(
            f"manifold: features are {samples.shape} and {reference.shape}; expected (N, F) and (M, F), more than "
            f"{neighbours} rows each. Take more samples."
        )
    radius, own = _radii(reference, neighbours), _radii(samples, neighbours)
    around, recalled, covered = np.empty(len(samples)), np.zeros(len(reference), bool), np.zeros(len(reference), bool)
    for start in range(0, len(samples), ROWS):
        rows = slice(start, start + ROWS)
        distance = cdist(samples[rows], reference)
        inside = distance <= radius
        around[rows] = inside.sum(axis=1)
        covered |= inside.any(axis=0)
        recalled |= (distance <= own[rows, None]).any(axis=0)
    return {
        "precision": float(weights @ (around > 0)),
        "recall": float(recalled.mean()),
        "density": float(weights @ around / neighbours),
        "coverage": float(covered.mean()),
    }


def _radii(features: np.ndarray, neighbours: int) -> np.ndarray:
    """Distance (N,) of each to its k-th nearest other."""
    pieces = [features[start : start + ROWS] for start in range(0, len(features), ROWS)]
    return np.concatenate([np.partition(cdist(rows, features), neighbours, axis=1)[:, neighbours] for rows in pieces])
