"""Measurements of a trained prompt: shares and diversity, pose and identity, and the exactness certificate."""

import importlib

from promptgen_jax.evaluation.exactness import exactness, log_weights, resample
from promptgen_jax.evaluation.stage import Measured, evaluate, measure
from promptgen_jax.metrics import (
    About,
    Estimate,
    Figure,
    Figures,
    Headline,
    JudgedShares,
    Metric,
    Observed,
    Share,
    observe,
)
from promptgen_jax.metrics.conditions import evaluate_conditions, identity_distances
from promptgen_jax.metrics.diversity import diversity
from promptgen_jax.metrics.shares import distance_to_target, kl_to_target, shares

__all__ = [
    "About",
    "Estimate",
    "Figure",
    "Figures",
    "Headline",
    "JudgedShares",
    "Measured",
    "Metric",
    "Observed",
    "Share",
    "distance_to_target",
    "diversity",
    "evaluate",
    "evaluate_conditions",
    "exactness",
    "identity_distances",
    "kl_to_target",
    "log_weights",
    "measure",
    "observe",
    "resample",
    "shares",
]

_MOVED = {  # modules of version 0.1.0
    "bias": "metrics.shares",
    "conditions": "metrics.conditions",
    "exact": "evaluation.closed_forms",
    "mixture": "metrics.mixture",
}


def __getattr__(name: str):
    """A module by its earlier name."""
    if name in _MOVED:
        return importlib.import_module(f"promptgen_jax.{_MOVED[name]}")
    raise AttributeError(f"module 'promptgen_jax.evaluation' has no attribute {name!r}")
