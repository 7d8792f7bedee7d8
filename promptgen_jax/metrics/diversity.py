"""How different samples are from one another: figures that fall if all come to look alike."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from promptgen_jax import checks
from promptgen_jax.metrics._figures import Estimate, Figure
from promptgen_jax.metrics._intervals import normalised
from promptgen_jax.metrics._observed import About, Observed
from promptgen_jax.types import makes


def measure(seen: Mapping[str, Observed], about: About) -> tuple[Figure, ...]:
    """Of pixels, and of the first network that gives an `embedding`; nothing of points, which are no pictures."""
    if makes(about.ebm.generator) != "images":
        return ()
    rows: dict = {}
    for draws, found in seen.items():
        embeddings = next((out["embedding"] for out in found.outputs.values() if "embedding" in out), None)
        for name, value in diversity(found.images, embeddings, weights=found.weights()).items():
            rows.setdefault(name, {})[draws] = Estimate(value)
    return tuple(Figure(name, values) for name, values in rows.items())


def diversity(images, embeddings=None, *, weights=None) -> dict[str, float]:
    """How different the samples are from one another.

    Args:
      images: (N, H, W, 3) in [0, 1], N at least 2.
      embeddings: (N, E) features of an identity or content network.
      weights: (N,) importance weights, not negative, any scale; default equal.

    Returns:
      {"pixel_std"}: standard deviation over samples, averaged over pixels and channels; larger is more
      diverse. With embeddings also {"embedding_cosine"}: mean cosine over all pairs, in [-1, 1]; smaller is
      more diverse.

    Raises:
      ValueError, TypeError: bad images or fewer than two, embeddings of another length, zero or not finite.
    """
    checks.check_images("diversity", images)
    images = np.asarray(images)
    if len(images) < 2:
        raise ValueError("diversity: got one image; expected at least two. Sample more.")
    importance = None if weights is None else normalised(weights, len(images))
    # row by row, so that no double-precision copy of the whole batch is made
    rows = [_std(images[:, row], importance).mean() for row in range(images.shape[1])]
    result = {"pixel_std": float(np.mean(rows))}
    if embeddings is not None:
        result["embedding_cosine"] = _mean_pairwise_cosine(np.asarray(embeddings, np.float64), len(images), importance)
    return result


def _std(values: np.ndarray, importance: np.ndarray | None) -> np.ndarray:
    """Standard deviation over the first axis."""
    if importance is None:
        return values.std(axis=0, dtype=np.float64)
    mean = np.tensordot(importance, values, 1)
    return np.sqrt(np.tensordot(importance, (values - mean) ** 2, 1))


def _mean_pairwise_cosine(embeddings: np.ndarray, num: int, importance: np.ndarray | None) -> float:
    """The mean over pairs without forming them.

    (|Σ w u|² − Σ w²) / ((Σ w)² − Σ w²), unit vectors u; with w = 1 (|Σ u|² − N) / (N (N − 1))
    """
    norms = np.linalg.norm(embeddings, axis=-1, keepdims=True)
    if embeddings.ndim != 2 or len(embeddings) != num or not np.all((norms > 0) & np.isfinite(norms)):
        raise ValueError(
            f"diversity: embeddings are {embeddings.shape}; expected ({num}, features), finite and not zero. "
            "Pass one row per image."
        )
    importance = np.ones(num) if importance is None else importance
    total, squares = np.sum(importance[:, None] * embeddings / norms, axis=0), np.sum(importance**2)
    pairs = importance.sum() ** 2 - squares
    return float((total @ total - squares) / pairs) if pairs > 0 else 1.0  # one weight alone is like itself
