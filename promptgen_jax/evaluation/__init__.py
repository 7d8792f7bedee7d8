"""What a trained prompt is worth: shares and diversity, pose and identity, and the exactness certificate."""

from promptgen_jax.evaluation.bias import distance_to_target, diversity, kl_to_target, shares
from promptgen_jax.evaluation.conditions import evaluate_conditions, identity_distances
from promptgen_jax.evaluation.exactness import exactness, log_weights, resample

__all__ = [
    "distance_to_target",
    "diversity",
    "evaluate_conditions",
    "exactness",
    "identity_distances",
    "kl_to_target",
    "log_weights",
    "resample",
    "shares",
]
