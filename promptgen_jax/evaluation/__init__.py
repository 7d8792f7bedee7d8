"""What a trained prompt is worth: shares and diversity, and the exactness certificate."""

from promptgen_jax.evaluation.bias import distance_to_target, diversity, kl_to_target, shares
from promptgen_jax.evaluation.exactness import exactness, log_weights, resample

__all__ = ["distance_to_target", "diversity", "exactness", "kl_to_target", "log_weights", "resample", "shares"]
