"""Finding parts, in the library or in any importable module, and telling them apart.

The file name is the registry: `load_control("pose", ...)` calls `build` of `promptgen_jax.controls.pose`, and
`load_control("mypackage.bright", ...)` that of the module `mypackage.bright`.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
from collections.abc import Iterable

from promptgen_jax import checks
from promptgen_jax.store import catalogue, weights
from promptgen_jax.store.fingerprint import fields_told, fingerprint  # noqa: F401  parts.fingerprint, of all who use it
from promptgen_jax.types import Spec


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
    own = {field.name: getattr(part, field.name) for field in fields_told(part)}
    plain = {name: value for name, value in own.items() if isinstance(value, (bool, int, float, str)) and value != ""}
    return {"kind": type(part).__name__, "options": plain}
