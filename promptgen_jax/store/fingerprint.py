"""Fingerprints: checksums of what a part computes, the same in every process, so that parts can be told apart."""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import os
import sys
import sysconfig
import types
from collections.abc import Iterable, Mapping
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from promptgen_jax.types import FOLLOWS, SILENT, Stack

PLAIN = (bool, int, float, complex, str, bytes, enum.Enum, slice, range, types.EllipsisType)
TOLD = (types.FunctionType, np.ndarray, jax.Array, tuple, list, Mapping, *PLAIN)  # members of classes looked at
INSTALLED = tuple(sysconfig.get_paths()[name] + os.sep for name in ("stdlib", "platstdlib", "purelib", "platlib"))
LIBRARY = str(Path(__file__).parents[1]) + os.sep


def fingerprint(part) -> str:
    """A checksum of what a part computes: class, fields, arrays, and the code of own functions and classes.

    It is the same in every process. What a moment constraint has been fitted to is left out: it follows from the rest.
    Code of this library and of installed packages enters by its name.

    Raises:
      ValueError: own code holds something that cannot be told apart from another of its kind.
    """
    digest = hashlib.sha256()
    _update(digest, part, type(part).__name__, {})
    return digest.hexdigest()


def fields_told(value) -> list[dataclasses.Field]:
    """The fields that say what is computed: not those marked as following from others or as remarks."""
    fields = [field for field in dataclasses.fields(value) if not field.metadata.get(FOLLOWS)]
    return [field for field in fields if not (isinstance(value, nn.Module) and field.name in ("parent", "name"))]


def _update(digest, value, where: str, seen: dict[int, int]) -> None:
    """Adds a value to a digest, with everything that it refers to; `seen` numbers the functions and classes in it."""

    def tell(*words) -> None:
        digest.update("\0".join(map(str, words)).encode() + b"\1")

    def inside(values: Iterable, where: str) -> None:
        for each in values:
            _update(digest, each, where, seen)

    value = np.asarray(value.whole()) if isinstance(value, Stack) else value
    if value is None or isinstance(value, PLAIN):
        tell(type(value).__name__, repr(value))
    elif isinstance(value, (np.ndarray, np.generic, jax.Array)) and value.dtype != object:
        if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            value = jax.random.key_data(jnp.asarray(value))
        array = np.asarray(value)
        tell("array", array.dtype, array.shape)
        digest.update(np.ascontiguousarray(array).tobytes())
    elif isinstance(value, np.dtype):
        tell(repr(value))
    elif isinstance(value, types.ModuleType):
        tell("module", value.__name__)
    elif id(value) in seen:
        tell("seen", seen[id(value)])  # a function that calls itself, or one met twice
    elif isinstance(value, type):
        tell("class", value.__module__, value.__qualname__)
        if not _is_installed(value):
            seen[id(value)] = len(seen)
            inside(value.__bases__, where)
            inside(_members(value), f"class {value.__qualname__}")
    elif isinstance(value, (list, tuple)):
        tell(type(value).__name__, len(value))
        inside(value, where)
    elif isinstance(value, (set, frozenset)):
        tell("set", *sorted(_digest_of(each, where, seen) for each in value))
    elif isinstance(value, Mapping):
        tell("mapping", len(value))
        for name in sorted(value, key=lambda name: _digest_of(name, where, seen)):
            inside((name, value[name]), f"{where}.{name}")
    elif isinstance(value, functools.partial):  # jax.tree_util.Partial is one
        inside((value.func, value.args, value.keywords), where)
    elif isinstance(value, types.MethodType):
        inside((value.__self__, value.__func__), where)
    elif isinstance(value, types.FunctionType):
        seen[id(value)] = len(seen)
        tell("function", value.__module__, value.__qualname__)
        around = [cell.cell_contents for cell in value.__closure__ or ()]
        inside((value.__defaults__, value.__kwdefaults__), where)
        inside(around, f"a variable around {value.__name__}")
        if not _is_installed(value):
            _update_code(digest, value.__code__, where, seen)
            names = sorted(set(_names(value.__code__)))
            used = [value.__globals__[name] for name in names if name in value.__globals__]
            inside(used, f"a global of {value.__name__}")
            inside(_read_from_modules([*around, *used], names), f"what {value.__name__} takes of a module")
    elif isinstance(value, types.CodeType):
        _update_code(digest, value, where, seen)
    elif hasattr(value, "__wrapped__"):  # jitted functions
        inside((value.__wrapped__,), where)
    elif dataclasses.is_dataclass(value):
        inside((type(value),), where)
        for field in fields_told(value):
            if field.metadata.get(SILENT) and getattr(value, field.name) == field.default:
                continue
            inside((field.name, getattr(value, field.name)), f"{where}.{field.name}")
    elif callable(value) and _importable(value):
        tell("callable", value.__module__, value.__qualname__)
    else:
        raise ValueError(
            f"{where} is a {type(value).__name__}, of which it cannot be told whether it is the same in another run. "
            "Give arrays, numbers and functions, or pass weights by jax.tree_util.Partial."
        )


def _digest_of(value, where: str, seen: dict[int, int]) -> str:
    """A checksum of one member of what has no order."""
    digest = hashlib.sha256()
    _update(digest, value, where, dict(seen))
    return digest.hexdigest()


def _update_code(digest, code: types.CodeType, where: str, seen: dict[int, int]) -> None:
    digest.update(code.co_code)
    _update(digest, (code.co_names, code.co_varnames, code.co_freevars), where, seen)
    _update(digest, code.co_consts, where, seen)


def _names(code: types.CodeType) -> Iterable[str]:
    """Names that a function and the functions inside it read from outside."""
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield from _names(inner)


def _members(cls: type) -> Iterable:
    """Names, methods and plain values of an own class, but for what Python writes into it."""
    for name, value in sorted(vars(cls).items()):
        if isinstance(value, (staticmethod, classmethod)):
            value = value.__func__
        methods = (value.fget, value.fset) if isinstance(value, property) else (value,)
        written = name.startswith("__") and name != "__call__" and name != "__post_init__"
        told = all(each is None or isinstance(each, TOLD) or hasattr(each, "__wrapped__") for each in methods)
        if told and not written:
            yield from (name, *methods)


def _read_from_modules(values: Iterable, names: Iterable[str]) -> Iterable:
    """What code that reads these names can take of own modules, and of own modules in them."""
    waiting, met = list(values), set()
    while waiting:
        module = waiting.pop(0)
        if isinstance(module, types.ModuleType) and id(module) not in met and not _in_installed(module.__name__):
            met.add(id(module))
            found = [vars(module)[name] for name in names if name in vars(module)]
            yield from found
            waiting += found


def _is_installed(value) -> bool:
    """Whether a function or class is Python's, of an installed package or of this library: its name tells it apart.

    A decorator of a package leaves the name of what it decorates; so of functions the file of the code decides.
    """
    if isinstance(value, types.FunctionType):
        file = value.__code__.co_filename
        return file.startswith((*INSTALLED, LIBRARY, "<frozen")) or (
            file == "<string>" and _in_installed(value.__module__)
        )
    return _in_installed(value.__module__)


def _in_installed(name: str | None) -> bool:
    """Whether a module is Python's, of an installed package or of this library."""
    top = sys.modules.get((name or "").partition(".")[0])
    if top is None or name == "__main__":
        return False
    file = getattr(top, "__file__", None) or next(iter(getattr(top, "__path__", ())), "")
    return top.__name__ in sys.builtin_module_names or file.startswith((*INSTALLED, LIBRARY))


def _importable(value) -> bool:
    """Whether a callable of compiled code is found again under its own name."""
    found = sys.modules.get(getattr(value, "__module__", None) or "")
    for name in getattr(value, "__qualname__", "").split("."):
        found = getattr(found, name, None)
    return found is value
