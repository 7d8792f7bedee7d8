"""Flows by the name that they have in earlier notebooks; they live in `promptgen_jax.flows`."""

from promptgen_jax.flows.base import Flow, build_module, init_flow, load_flow, save_flow

__all__ = ["Flow", "build_module", "init_flow", "load_flow", "save_flow"]
