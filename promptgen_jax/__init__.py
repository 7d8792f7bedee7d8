"""Generative Visual Prompt in JAX: control what distribution a frozen generator samples from."""

from promptgen_jax import evaluation
from promptgen_jax.controls.function import FunctionControl
from promptgen_jax.ebm import LatentEBM
from promptgen_jax.flow import init_flow, load_flow
from promptgen_jax.generators.function import FunctionGenerator
from promptgen_jax.network import load_network
from promptgen_jax.parts import load_control, load_generator
from promptgen_jax.prompt import Prompt
from promptgen_jax.sampling import write_samples
from promptgen_jax.training import fit, fit_moments
from promptgen_jax.types import Conditions, Prior, Sample

__all__ = [
    "Conditions",
    "FunctionControl",
    "FunctionGenerator",
    "LatentEBM",
    "Prior",
    "Prompt",
    "Sample",
    "evaluation",
    "fit",
    "fit_moments",
    "init_flow",
    "load_control",
    "load_flow",
    "load_generator",
    "load_network",
    "write_samples",
]
