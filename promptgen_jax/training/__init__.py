"""Training: Algorithm 2, its optimiser, and the fit of moment constraints."""

from promptgen_jax.training.config import TrainConfig
from promptgen_jax.training.constraints import fit_moments, with_beta
from promptgen_jax.training.directions import active_directions
from promptgen_jax.training.start import weighted_draws
from promptgen_jax.training.train import CHECKPOINTS, fit, train_step

__all__ = [
    "CHECKPOINTS",
    "TrainConfig",
    "active_directions",
    "fit",
    "fit_moments",
    "train_step",
    "weighted_draws",
    "with_beta",
]
