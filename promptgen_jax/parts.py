"""Finding parts, in the library or in any importable module, and saying what they are.

The file name is the registry: `load_control("pose", ...)` calls `build` of `promptgen_jax.controls.pose`, and
`load_control("mypackage.bright", ...)` that of the module `mypackage.bright`.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from flax.core import FrozenDict

from promptgen_jax import checks
from promptgen_jax.store import catalogue, weights
from promptgen_jax.store.fingerprint import fields_told, fingerprint  # noqa: F401  parts.fingerprint, of all who use it
from promptgen_jax.types import Control, Generator, Spec, plain, said

FEW = 64  # numbers that a spec remembers one by one
MAKES = {"metrics": "measure(seen, about)"}  # what a module of a package defines; else build(**options)


def available(package: str) -> list[str]:
    """Names of the adapters in `promptgen_jax.<package>`."""
    module = importlib.import_module(f"promptgen_jax.{package}")
    return sorted(info.name for info in pkgutil.iter_modules(module.__path__) if not info.name.startswith("_"))


def load_generator(name: str, **options: Any) -> Generator:
    """A frozen generator by adapter (`dcgan`), by its folder of weights (`dcgan_digiface`), or by a module of its own.

    Raises:
      FileNotFoundError: a known checkpoint that has not been converted yet, with the command to do so.
      ValueError: unknown name, with the nearest match; damaged weights; unknown options.
    """
    if not isinstance(name, str) or not _is_module(name):
        checks.check_known("generator", name, known_generators())
        if name not in available("generators"):
            name, options = weights.read_config(name)["adapter"], {"weights": name, **options}
    return load("generators", name, **options)


def known_generators() -> set[str]:
    """Adapters, installed weight folders, and published checkpoints that a converter reads."""
    published = {name for name, checkpoint in catalogue.CHECKPOINTS.items() if checkpoint.kind == "generator"}
    return {*available("generators"), *weights.available_weights("generator"), *published}


def load_control(kind: str, **options: Any) -> Control:
    """A control by the name of its file, e.g. `load_control("classifier", network=..., attribute=..., target=...)`.

    Raises:
      ValueError: unknown kind, with the nearest match; unknown options of it; a weight that is text.
    """
    if isinstance(weight := options.get("weight"), str):
        raise ValueError(f"control {kind}: weight is {weight!r}; expected a number.")
    return load("controls", kind, **options)


def load_sampler(kind: str, **options: Any) -> Any:
    """A sampler by the name of its file, e.g. `load_sampler("langevin", num_steps=50)`, or by a module of its own.

    Raises:
      ValueError: unknown kind, with the nearest match; unknown options of it.
    """
    return load("samplers", kind, **options)


def load(package: str, kind: str, **options: Any) -> Any:
    """What `build(**options)` of a file makes, with its `Spec` if it has a place for one.

    Args:
      package: "generators", "controls" and so on.
      kind: name of a file in it, or with a dot the name of a module outside the library, which is imported.
      **options: of `build`.

    Raises:
      ValueError: unknown kind or option, with the nearest match; a module that cannot be imported or has no `build`.
      TypeError: options of another type than it takes.
    """
    module = find(package, kind)
    known = inspect.signature(module.build).parameters
    for option in options:
        checks.check_known(f"{kind}: option", option, known)
    if missing := [name for name, each in known.items() if each.default is each.empty and name not in options]:
        raise ValueError(
            f"{kind}: option {', '.join(missing)} is missing. Give it, as in {kind}(..., {missing[0]}=...)."
        )
    try:
        part = module.build(**options)
    except (TypeError, KeyError, IndexError, AttributeError) as error:  # what of a wrong type ends in, deep inside
        given = ", ".join(f"{name}={reprlib.repr(value)}" for name, value in options.items())
        raise TypeError(f"{package.removesuffix('s')} {kind}: {error} Check its options: {given}.") from error
    complete = {name: options.get(name, each.default) for name, each in known.items()}
    has_place = dataclasses.is_dataclass(part) and "spec" in {field.name for field in dataclasses.fields(part)}
    return dataclasses.replace(part, spec=Spec(kind, plain(complete), built=_told(part))) if has_place else part


def find(package: str, kind: str) -> ModuleType:
    """The module that makes parts of a kind.

    Raises:
      ValueError: as `load`.
    """
    what, wanted = package.removesuffix("s"), MAKES.get(package, "build(**options)")
    if not isinstance(kind, str):
        raise TypeError(f"{what}: its kind is {kind!r}; expected a name. Name one of {', '.join(available(package))}.")
    if _is_module(kind):
        try:
            module = importlib.import_module(kind)
        except ImportError as error:
            raise ValueError(
                f"{what} {kind}: cannot be imported ({error}). Put {kind.partition('.')[0]} on PYTHONPATH."
            ) from None
        hint = f"Define {wanted} in {module.__file__}."
    else:
        checks.check_known(what, kind, available(package))
        module = importlib.import_module(f"promptgen_jax.{package}.{kind}")
        hint = f"It wraps own code. Make it with promptgen_jax.Function{what.capitalize()}."
    function = wanted.partition("(")[0]
    if not hasattr(module, function):
        raise ValueError(f"{what} {kind}: the module has no {function}. {hint}")
    return module


def _is_module(kind: str) -> bool:
    return "." in kind and all(word.isidentifier() for word in kind.split("."))


def check_trusted(where: str | Path, kinds: Iterable[str], trust: str | Iterable[str] = ()) -> None:
    """Raises ValueError if a saved file names parts of packages that the user has not agreed to import.

    Args:
      where: the file.
      kinds: of the parts that it names.
      trust: packages outside the library, by name.
    """
    for package in sorted(packages(kinds) - ({trust} if isinstance(trust, str) else set(trust))):
        raise ValueError(
            f"{where}: names a part of the package {package!r}, whose code would run. If you trust it, pass "
            f"trust={package!r}, on the command line --trust={package}."
        )


def packages(kinds: Iterable[str]) -> set[str]:
    """The packages outside the library that dotted kinds are of."""
    return {kind.partition(".")[0] for kind in kinds if "." in kind}


def kinds_in(config: Any, key: str = "") -> Iterator[str]:
    """Names of parts outside the library in the config of a run: generators, kinds, objectives, metrics.

    Args:
      config: nested mappings and lists, of any form.
      key: under which it stands.
    """
    if isinstance(config, Mapping):
        for name, value in config.items():
            yield from kinds_in(value, "kind" if (key, name) == ("generator", "name") else str(name))
    elif isinstance(config, (list, tuple)):
        for value in config:
            yield from kinds_in(value, key)
    elif isinstance(config, str) and key in ("kind", "objective", "metrics") and _is_module(config):
        yield config


def describe(part: Any) -> dict:
    """What a part is, as JSON: its spec, or of own code the class and its plain fields."""
    if spec := spec_of(part):
        return spec.to_json()
    own = {each.name: getattr(part, each.name) for each in fields_told(part)} if dataclasses.is_dataclass(part) else {}
    shown = {name: value for name, value in own.items() if isinstance(value, (bool, int, float, str)) and value != ""}
    return {"kind": type(part).__name__, "options": shown}


def bare(part: Any) -> Any:
    """The same part without its spec, so that parts which differ in numbers alone share a compiled program."""
    has_place = dataclasses.is_dataclass(part) and "spec" in {field.name for field in dataclasses.fields(part)}
    return dataclasses.replace(part, spec=None) if has_place else part  # type: ignore[type-var]


def spec_of(part: Any) -> Spec | None:
    """The spec of a part as it is now: where `replace` gave an option another value, with that one.

    None of a part without, and of one in which something was replaced that no option says.
    """
    spec = said(part, "spec")
    if spec is None or not spec.built:
        return spec
    replaced = {name: value for name, value in _told(part).items() if not _agree(spec.built.get(name), value)}
    fixed = {each.name for each in fields_told(part) if not each.metadata.get("pytree_node", True)}
    for name, value in replaced.items():
        if name not in spec.options or not (name in fixed or isinstance(value, (bool, int, float))):
            return None
    return dataclasses.replace(spec, options=plain({**spec.options, **replaced}))


def _told(part: Any) -> FrozenDict:
    """The fields of a part as plain values or checksums; weights go by the checksum that the part has of them."""
    values = {each.name: getattr(part, each.name) for each in fields_told(part)}
    return FrozenDict({name: _token(value) for name, value in values.items() if not isinstance(value, Mapping)})


def _token(value: Any) -> Any:
    few = value is None or isinstance(value, (bool, int, float, str)) or np.size(value) <= FEW
    try:
        if said(value, "checksum") or (few and not dataclasses.is_dataclass(value) and not callable(value)):
            return plain(value)
        return fingerprint(value)
    except (TypeError, ValueError):
        return type(value).__name__  # own code of which nothing better can be told


def _agree(built: Any, now: Any) -> bool:
    """Whether a field has the value with which it was built; what was NaN was left to be filled."""
    if isinstance(built, tuple) and isinstance(now, tuple):
        return len(built) == len(now) and all(map(_agree, built, now))
    return built == now or built != built
