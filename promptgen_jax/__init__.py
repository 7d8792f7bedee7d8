"""Generative Visual Prompt in JAX: control what distribution a frozen generator samples from."""

import importlib

from promptgen_jax import evaluation
from promptgen_jax.controls.function import FunctionControl
from promptgen_jax.draws import Draws, Sampler
from promptgen_jax.ebm import LatentEBM
from promptgen_jax.flows.base import Flow, init_flow, load_flow
from promptgen_jax.flows.mixture import MixtureFlow
from promptgen_jax.generators.function import FunctionGenerator
from promptgen_jax.metrics.certificate import Certificate, certify
from promptgen_jax.models.network import Network, load_network
from promptgen_jax.objectives import FAB, CGMRelax, ForwardKL, Mixed, Objective, PathGradient, ReverseKL, ScoreFunction
from promptgen_jax.parts import load_control, load_generator, load_sampler
from promptgen_jax.prompt import Prompt
from promptgen_jax.runs.sampling import write_samples
from promptgen_jax.samplers._refine import refine
from promptgen_jax.training import TrainConfig, fit, fit_moments
from promptgen_jax.training.moments import MomentFit
from promptgen_jax.types import (
    Aim,
    Conditions,
    Constraint,
    Control,
    Density,
    Generator,
    Invertible,
    Prior,
    Sample,
    Spec,
)

__version__ = "0.2.0.dev0"  # pyproject.toml reads it

__all__ = [
    "Aim",
    "CGMRelax",
    "Certificate",
    "Conditions",
    "Constraint",
    "Control",
    "Density",
    "Draws",
    "FAB",
    "Flow",
    "ForwardKL",
    "FunctionControl",
    "FunctionGenerator",
    "Generator",
    "Invertible",
    "LatentEBM",
    "MixtureFlow",
    "Mixed",
    "MomentFit",
    "Network",
    "Objective",
    "PathGradient",
    "Prior",
    "Prompt",
    "ReverseKL",
    "Sample",
    "Sampler",
    "ScoreFunction",
    "Spec",
    "TrainConfig",
    "certify",
    "evaluation",
    "fit",
    "fit_moments",
    "init_flow",
    "load_control",
    "load_flow",
    "load_generator",
    "load_network",
    "load_sampler",
    "refine",
    "write_samples",
]

_MOVED = {  # modules by the names that notebooks of version 0.1.0 import
    "catalogue": "store.catalogue",
    "images": "store.images",
    "logs": "store.logs",
    "moments": "training.moments",
    "network": "models.network",
    "run": "runs.run",
    "sampling": "runs.sampling",
    "sharding": "devices",
    "weights": "store.weights",
}


def __getattr__(name: str):
    """A module by its earlier name."""
    if name in _MOVED:
        return importlib.import_module(f"promptgen_jax.{_MOVED[name]}")
    raise AttributeError(f"module 'promptgen_jax' has no attribute {name!r}")
