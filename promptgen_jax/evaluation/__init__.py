"""What a trained prompt is worth: shares and diversity, and the exactness certificate."""

from promptgen_jax.evaluation.bias import diversity, kl_to_target, shares
from promptgen_jax.evaluation.exactness import exactness, log_weights, resample

__all__ = ["diversity", "exactness", "kl_to_target", "log_weights", "resample", "shares"]
