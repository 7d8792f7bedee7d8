"""CLIP score: how well pictures fit a text, 100 max(cos(CLIP_image(x), CLIP_text(t)), 0), on average.

Numbers of one CLIP do not compare with those of another, so it is named after it. By the CLIP of the control itself it
is no independent judgement. Source: arXiv 2104.08718, without its factor of 2.5.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from promptgen_jax.controls.clip import ClipControl
from promptgen_jax.metrics._figures import Estimate, Figure
from promptgen_jax.metrics._intervals import mean_estimate
from promptgen_jax.metrics._observed import EMBEDDING, About, Observed

SCALE = 100.0


def measure(seen: Mapping[str, Observed], about: About) -> tuple[Figure, ...]:
    """One figure for each text control, here or below, whose CLIP also judges; pictures go in whole, not augmented."""
    rows = []
    for control in (*about.earlier, *about.ebm.controls):
        if not isinstance(control, ClipControl) or control.network.name not in about.networks:
            continue
        name = control.network.name
        values = {
            draws: clip_score(
                found.outputs[name][EMBEDDING], control.text_features, control.text_weights, weights=found.weights()
            )
            for draws, found in seen.items()
        }
        rows.append(Figure(f"CLIP score of {control.name} ({name})", values))
    return tuple(rows)


def clip_score(images, texts, text_weights=None, *, weights=None) -> Estimate:
    """The mean score of image features, in [0, 100], with its interval.

    Args:
      images: (N, F) features of pictures, of any length.
      texts: (T, F) features of one text, or of several.
      text_weights: (T,) of several; equal by default.
      weights: (N,) importance weights, any scale; equal by default.

    Raises:
      ValueError: features of another number.
    """
    images, texts = (np.atleast_2d(np.asarray(each, np.float64)) for each in (images, texts))
    if images.shape[1] != texts.shape[1]:
        raise ValueError(
            f"clip_score: features are {images.shape} of pictures and {texts.shape} of texts; expected one number of "
            "them. Use one CLIP for both."
        )
    images, texts = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (images, texts))
    shares = np.ones(len(texts)) if text_weights is None else np.asarray(text_weights, np.float64)
    scores = SCALE * np.maximum(images @ texts.T, 0) @ (shares / shares.sum())
    return mean_estimate(scores, weights)
