"""Finding generators and controls: the file name is the registry."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

from promptgen_jax import checks
from promptgen_jax.store import catalogue, weights


def available(package: str) -> list[str]:
    """Names of the adapters in `promptgen_jax.<package>`."""
    module = importlib.import_module(f"promptgen_jax.{package}")
    return sorted(info.name for info in pkgutil.iter_modules(module.__path__) if not info.name.startswith("_"))


def load_generator(name: str, **options):
    """A frozen generator by adapter (`dcgan`) or by its folder of weights (`dcgan_digiface`).

    Raises:
      FileNotFoundError: a known checkpoint that has not been converted yet, with the command to do so.
      ValueError: unknown name, with the nearest match; damaged weights.
    """
    checks.check_known("generator", name, known_generators())
    if name not in available("generators"):
        name, options = weights.read_config(name)["adapter"], {"weights": name, **options}
    return _build("generators", name, options)


def known_generators() -> set[str]:
    """Adapters, installed weight folders, and published checkpoints that a converter reads."""
    published = {name for name, checkpoint in catalogue.CHECKPOINTS.items() if checkpoint.kind == "generator"}
    return {*available("generators"), *weights.available_weights("generator"), *published}


def load_control(kind: str, **options):
    """A control by the name of its file, e.g. `load_control("classifier", network=..., attribute=..., target=...)`.

    Raises:
      ValueError: unknown kind, with the nearest match; unknown options of it.
    """
    checks.check_known("control", kind, available("controls"))
    return _build("controls", kind, options)


def _build(package: str, name: str, options: dict):
    module = importlib.import_module(f"promptgen_jax.{package}.{name}")
    if not hasattr(module, "build"):
        raise ValueError(f"{name}: wraps own code. Make it with promptgen_jax.Function{package[:-1].capitalize()}.")
    for option in options:
        checks.check_known(f"{name}: option", option, inspect.signature(module.build).parameters)
    return module.build(**options)
