"""Generative Visual Prompt in JAX: control what distribution a frozen generator samples from."""

import importlib
import pkgutil

import lazy_loader

__version__ = "0.2.0.dev0"  # pyproject.toml reads it

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


_public, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str):
    """A public name, imported when it is first asked for, or a module, also by its earlier name."""
    if name in _MOVED or name in {info.name for info in pkgutil.iter_modules(__path__)}:
        return importlib.import_module(f"promptgen_jax.{_MOVED.get(name, name)}")
    if name not in __all__:
        raise AttributeError(f"module 'promptgen_jax' has no attribute {name!r}")
    return _public(name)
