"""CMMD: kernel distance of CLIP features of any distribution, where FID takes them for normal.

    1000 (E k(x, x') + E k(y, y') - 2 E k(x, y)),    k(x, y) = exp(-|x - y|² / 2σ²),  σ = 10,

of features of unit length; pairs of a sample with itself count, as in the published numbers. Source: arXiv 2401.09603
and google-research/cmmd (Apache-2.0), distance.py.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from promptgen_jax.metrics._figures import Estimate, Figure, Figures
from promptgen_jax.metrics._intervals import normalised
from promptgen_jax.metrics._observed import EMBEDDING, About, Observed
from promptgen_jax.models import clip, siglip

SIGMA, SCALE, BLOCK = 10.0, 1000.0, 1024
TEXT = (
    "Squared kernel distance of CLIP features to those of {reference}, times 1,000. Published numbers are by ViT-L/14 "
    "at 336 pixels. It takes no form of the distribution for granted, and few samples will do."
)


def measure(seen: Mapping[str, Observed], about: About) -> Figures | None:
    """Distance of all draws to the reference, by every image tower of a CLIP or SigLIP that judges; else nothing."""
    reference, rows = seen.get(about.reference), []
    for name, network in about.networks.items():
        if reference is None or not isinstance(network.module, (clip.VisionTower, siglip.VisionTower)):
            continue
        features = reference.outputs[name][EMBEDDING]
        values = {
            draws: Estimate(
                cmmd(found.outputs[name][EMBEDDING], features, weights=found.weights(), other=reference.weights())
            )
            for draws, found in seen.items()
            if draws != about.reference
        }
        rows.append(Figure(f"CMMD ({name})", values))
    return Figures("CLIP kernel distance", tuple(rows), TEXT.format(reference=about.reference)) if rows else None


def cmmd(x, y, *, weights=None, other=None) -> float:
    """The distance of features, at least 0; in memory of the features and a block of the kernel.

    Args:
      x: (N, F) features of any length, which becomes 1.
      y: (M, F) features.
      weights: (N,) of x, any scale; equal by default.
      other: (M,) weights of y.

    Raises:
      ValueError: no samples, another number of features, a feature of length 0, or bad weights.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    lengths = [np.linalg.norm(rows, axis=-1, keepdims=True) for rows in (x, y)]
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or not all(each.size and each.all() for each in lengths):
        raise ValueError(
            f"cmmd: features are {x.shape} and {y.shape}; expected (N, F) and (M, F), none of them 0. Use one network "
            "for both."
        )
    sides = [
        (rows / length, normalised(np.ones(len(rows)) if weight is None else weight, len(rows)))
        for rows, length, weight in zip((x, y), lengths, (weights, other), strict=True)
    ]
    one, two = sides
    return SCALE * (_mean(one, one) + _mean(two, two) - 2 * _mean(one, two))


def _mean(one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]) -> float:
    """Weighted mean of the kernel over all pairs of rows of unit length, block by block."""
    (x, w), (y, v) = one, other
    total = 0.0
    for start in range(0, len(x), BLOCK):
        kernel = np.exp((x[start : start + BLOCK] @ y.T - 1) / SIGMA**2)  # |x - y|² = 2 - 2 x·y
        total += float(w[start : start + BLOCK] @ kernel @ v)
    return total
