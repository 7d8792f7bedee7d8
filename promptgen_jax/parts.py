"""Finding parts, in the library or in any importable module, and telling them apart.

The file name is the registry: `load_control("pose", ...)` calls `build` of `promptgen_jax.controls.pose`, and
`load_control("mypackage.bright", ...)` that of the module `mypackage.bright`.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import importlib
import inspect
import pkgutil
import sys
import sysconfig
import types
from collections.abc import Iterable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from promptgen_jax import checks
from promptgen_jax.store import catalogue, weights
from promptgen_jax.types import FOLLOWS, Spec

PLAIN = (bool, int, float, complex, str, bytes, enum.Enum, slice, range, types.EllipsisType)
INSTALLED = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))


def available(package: str) -> list[str]:
    """Names of the adapters in `promptgen_jax.<package>`."""
    module = importlib.import_module(f"promptgen_jax.{package}")
    return sorted(info.name for info in pkgutil.iter_modules(module.__path__) if not info.name.startswith("_"))


def load_generator(name: str, **options):
    """A frozen generator by adapter (`dcgan`), by its folder of weights (`dcgan_digiface`), or by a module of its own.

    Raises:
      FileNotFoundError: a known checkpoint that has not been converted yet, with the command to do so.
      ValueError: unknown name, with the nearest match; damaged weights; unknown options.
    """
    if not _is_module(name):
        checks.check_known("generator", name, known_generators())
        if name not in available("generators"):
            name, options = weights.read_config(name)["adapter"], {"weights": name, **options}
    return load("generators", name, **options)


def known_generators() -> set[str]:
    """Adapters, installed weight folders, and published checkpoints that a converter reads."""
    published = {name for name, checkpoint in catalogue.CHECKPOINTS.items() if checkpoint.kind == "generator"}
    return {*available("generators"), *weights.available_weights("generator"), *published}


def load_control(kind: str, **options):
    """A control by the name of its file, e.g. `load_control("classifier", network=..., attribute=..., target=...)`.

    Raises:
      ValueError: unknown kind, with the nearest match; unknown options of it.
    """
    return load("controls", kind, **options)


def load(package: str, kind: str, **options):
    """What `build(**options)` of a file makes, with its `Spec` if it has a place for one.

    Args:
      package: "generators", "controls" and so on.
      kind: name of a file in it, or with a dot the name of a module outside the library, which is imported.
      **options: of `build`.

    Raises:
      ValueError: unknown kind or option, with the nearest match; a module that cannot be imported or has no `build`.
    """
    module = find(package, kind)
    known = inspect.signature(module.build).parameters
    for option in options:
        checks.check_known(f"{kind}: option", option, known)
    if missing := [name for name, each in known.items() if each.default is each.empty and name not in options]:
        raise ValueError(
            f"{kind}: option {', '.join(missing)} is missing. Give it, as in {kind}(..., {missing[0]}=...)."
        )
    part = module.build(**options)
    complete = {name: options.get(name, each.default) for name, each in known.items()}
    if not dataclasses.is_dataclass(part) or "spec" not in {field.name for field in dataclasses.fields(part)}:
        return part
    return part.replace(spec=Spec.of(kind, complete))


def find(package: str, kind: str):
    """The module that makes parts of a kind.

    Raises:
      ValueError: as `load`.
    """
    what = package.removesuffix("s")
    if _is_module(kind):
        try:
            module = importlib.import_module(kind)
        except ImportError as error:
            raise ValueError(
                f"{what} {kind}: cannot be imported ({error}). Put {kind.partition('.')[0]} on PYTHONPATH."
            ) from None
        hint = f"Define build(**options) in {module.__file__}."
    else:
        checks.check_known(what, kind, available(package))
        module = importlib.import_module(f"promptgen_jax.{package}.{kind}")
        hint = f"It wraps own code. Make it with promptgen_jax.Function{what.capitalize()}."
    if not hasattr(module, "build"):
        raise ValueError(f"{what} {kind}: the module has no build. {hint}")
    return module


def _is_module(kind: str) -> bool:
    return "." in kind and all(word.isidentifier() for word in kind.split("."))


def check_trusted(where: str, kinds: Iterable[str], trust: Iterable[str]) -> None:
    """Raises ValueError if a saved file names parts of packages that the user has not agreed to import.

    Args:
      where: the file.
      kinds: of the parts that it names.
      trust: packages outside the library, by name.
    """
    packages = {kind.partition(".")[0] for kind in kinds if "." in kind}
    for package in sorted(packages - {trust} if isinstance(trust, str) else packages - set(trust)):
        raise ValueError(
            f"{where}: names a part of the package {package!r}, whose code would run. If you trust it, pass "
            f"trust={package!r}, on the command line --trust={package}."
        )


def describe(part) -> dict:
    """What a part is, as JSON: its spec, or of own code the class and its plain fields."""
    if spec := getattr(part, "spec", None):
        return spec.to_json()
    own = {field.name: getattr(part, field.name) for field in _fields(part)}
    plain = {name: value for name, value in own.items() if isinstance(value, (bool, int, float, str)) and value != ""}
    return {"kind": type(part).__name__, "options": plain}


def fingerprint(part) -> str:
    """A checksum of what a part computes: class, fields, arrays, and the code of own functions.

    It is the same in every process. What a moment constraint has been fitted to is left out: it follows from the rest.

    Raises:
      ValueError: own code holds something that cannot be told apart from another of its kind.
    """
    digest = hashlib.sha256()
    _update(digest, part, type(part).__name__, set())
    return digest.hexdigest()


def _fields(value) -> list[dataclasses.Field]:
    """The fields that say what is computed: not those marked as following from others or as remarks."""
    fields = [field for field in dataclasses.fields(value) if not field.metadata.get(FOLLOWS)]
    return [field for field in fields if not (isinstance(value, nn.Module) and field.name in ("parent", "name"))]


def _update(digest, value, where: str, seen: set[int]) -> None:
    """Adds a value to a digest, with everything that it refers to."""

    def tell(*words) -> None:
        digest.update("\0".join(map(str, words)).encode() + b"\1")

    def inside(values: Iterable, where: str) -> None:
        for each in values:
            _update(digest, each, where, seen)

    if value is None or isinstance(
        value, (bool, int, float, complex, str, bytes, enum.Enum, slice, range, types.EllipsisType)
    ):
        tell(type(value).__name__, repr(value))
    elif isinstance(value, (np.ndarray, np.generic, jax.Array)):
        if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            value = jax.random.key_data(value)
        array = np.asarray(value)
        tell("array", array.dtype, array.shape)
        digest.update(np.ascontiguousarray(array).tobytes())
    elif isinstance(value, (np.dtype, np.random.RandomState)):
        tell(repr(value))
    elif isinstance(value, types.ModuleType):
        tell("module", value.__name__)
    elif isinstance(value, type):
        tell("class", value.__module__, value.__qualname__)
    elif id(value) in seen:
        tell("seen")  # a function that calls itself
    elif isinstance(value, (list, tuple)):
        tell(type(value).__name__, len(value))
        inside(value, where)
    elif isinstance(value, (set, frozenset)):
        tell("set", sorted(map(repr, value)))
    elif isinstance(value, Mapping):
        tell("mapping", len(value))
        for name in sorted(value, key=repr):
            inside((name, value[name]), f"{where}.{name}")
    elif isinstance(value, functools.partial):  # jax.tree_util.Partial is one
        inside((value.func, value.args, value.keywords), where)
    elif isinstance(value, types.MethodType):
        inside((value.__self__, value.__func__), where)
    elif isinstance(value, types.FunctionType) and _is_installed(value):
        tell("callable", value.__module__, value.__qualname__)
    elif isinstance(value, types.FunctionType):
        seen.add(id(value))
        tell("function", value.__qualname__)
        _update_code(digest, value.__code__, where, seen)
        inside((value.__defaults__, value.__kwdefaults__), where)
        inside((cell.cell_contents for cell in value.__closure__ or ()), f"a variable around {value.__name__}")
        names = sorted(set(_names(value.__code__)) & value.__globals__.keys())
        inside((value.__globals__[name] for name in names), f"a global of {value.__name__}")
    elif isinstance(value, types.CodeType):
        _update_code(digest, value, where, seen)
    elif hasattr(value, "__wrapped__"):  # jitted functions
        inside((value.__wrapped__,), where)
    elif dataclasses.is_dataclass(value):
        tell("object", type(value).__module__, type(value).__qualname__)
        for field in _fields(value):
            inside((field.name, getattr(value, field.name)), f"{where}.{field.name}")
    elif callable(value) and _importable(value):
        tell("callable", value.__module__, value.__qualname__)
    else:
        raise ValueError(
            f"{where} is a {type(value).__name__}, of which it cannot be told whether it is the same in another run. "
            "Give arrays, numbers and functions, or pass weights by jax.tree_util.Partial."
        )


def _update_code(digest, code: types.CodeType, where: str, seen: set[int]) -> None:
    digest.update(code.co_code)
    _update(digest, (code.co_names, code.co_varnames, code.co_freevars), where, seen)
    _update(digest, code.co_consts, where, seen)


def _names(code: types.CodeType) -> Iterable[str]:
    """Names that a function and the functions inside it read from outside."""
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield from _names(inner)


def _is_installed(function: types.FunctionType) -> bool:
    """Whether a function is one of Python's, of an installed package or of this library, which its name tells apart."""
    file = getattr(sys.modules.get(function.__module__), "__file__", None) or ""
    if "<locals>" in function.__qualname__:  # what is around it matters
        return False
    return function.__module__.startswith("promptgen_jax.") or file.startswith(INSTALLED)


def _importable(value) -> bool:
    """Whether a callable of compiled code is found again under its own name."""
    found = sys.modules.get(getattr(value, "__module__", None) or "")
    for name in getattr(value, "__qualname__", "").split("."):
        found = getattr(found, name, None)
    return found is value
