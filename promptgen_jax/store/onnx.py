"""Programs as ONNX, by jax2onnx, the extra `onnx`.

jax2onnx puts functions of its own in place of those of jax.numpy while it traces, which distrax does not stand, and has
no rule for some operations of newer versions of JAX. So it gets a program that is traced already: calls written out,
what depends on weights alone computed, and what the images do not need left out. What comes out is run and compared.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

SUFFIX = ".onnx"
TOLERANCE = 1e-3  # of the comparison, relative to the largest number; rounding is far below
CALLS = {  # what a call is made of, by its name
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}


def check_installed() -> None:
    """Raises ImportError without the converter, saying what to install."""
    if importlib.util.find_spec("jax2onnx") is None:
        raise ImportError(
            "export: an .onnx file is written by jax2onnx, which is not installed: pip install 'promptgen_jax[onnx]'."
        )


def written(program: Callable[..., Any], inputs: Mapping[str, jax.ShapeDtypeStruct]) -> bytes:
    """The file of a program of these inputs, by name; its one output is `images`.

    Raises:
      ValueError: the program draws random numbers, has an operation that jax2onnx does not know, is beyond 2 GB, or
        what was written computes something else.
    """
    shapes = list(inputs.values())
    traced = jax.make_jaxpr(program)(*shapes)
    plain = jax.make_jaxpr(lambda *rows: _evaluated(traced, rows))(*shapes)
    if any(equation.primitive.name.startswith(("random_", "threefry")) for equation in _needed(plain.jaxpr)):
        raise ValueError(
            "export: the generator draws noise of its own, which ONNX cannot repeat. Load it without, as StyleGAN2 "
            "with noise='const', or name the file .stablehlo."
        )
    rng = np.random.default_rng(0)
    rows = {name: rng.normal(size=(3, *each.shape[1:])).astype(each.dtype) for name, each in inputs.items()}
    with jax.default_matmul_precision("highest"):
        wanted = np.asarray(jax.jit(program)(*rows.values()))
    with _quiet():
        import jax2onnx
        import onnxruntime

        try:
            model = jax2onnx.to_onnx(
                lambda *rows: _evaluated(plain, rows)[0],
                inputs=shapes,
                model_name="promptgen_jax",
                input_names=list(inputs),
                output_names=["images"],
            ).SerializeToString()
            silent = onnxruntime.SessionOptions()
            silent.log_severity_level = 4
            (made,) = onnxruntime.InferenceSession(model, silent).run(None, rows)
        except Exception as error:  # of many kinds
            raise ValueError(
                f"export: jax2onnx cannot write this prompt ({error}). Name the file .stablehlo instead."
            ) from error
    if made.shape != wanted.shape or not np.max(np.abs(made - wanted)) <= TOLERANCE * max(1, np.max(np.abs(wanted))):
        raise ValueError("export: what jax2onnx wrote makes other images. Name the file .stablehlo instead.")
    return model


def _evaluated(closed: Any, arguments: Sequence[Any]) -> list[Any]:
    """The outputs of a traced function (`core.ClosedJaxpr`), by single operations."""
    jaxpr = closed.jaxpr
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*closed.consts, *arguments], strict=True))

    def value(variable: Any) -> Any:
        return variable.val if isinstance(variable, core.Literal) else values[variable]

    for equation in _needed(jaxpr):
        given = [value(each) for each in equation.invars]
        with jax.ensure_compile_time_eval() if _is_constant(equation, given) else contextlib.nullcontext():
            values |= zip(equation.outvars, _applied(equation, given), strict=True)
    return [value(each) for each in jaxpr.outvars]


def _applied(equation: Any, given: list[Any]) -> list[Any]:
    """The outputs of one equation: calls written out, and other words for what converter or runtime lacks."""
    name, parameters = equation.primitive.name, equation.params
    if name in CALLS:
        return _evaluated(parameters[CALLS[name]], given)
    if name == "stack":
        axis = parameters["axis"]
        return [jax.lax.concatenate([jax.lax.expand_dims(each, (axis,)) for each in given], axis)]
    if name == "select_n" and equation.outvars[0].aval.dtype == bool and len(given) == 3:
        which, no, yes = map(jnp.asarray, given)
        return [(which & yes) | (~which & no)]
    if name == "pad" and all(min(width) >= 0 == width[2] for width in parameters["padding_config"]):
        return [_padded(given[0], given[1], parameters["padding_config"])]
    made = equation.primitive.bind(*given, **parameters)
    return made if equation.primitive.multiple_results else [made]


def _padded(array: Any, value: Any, widths: Sequence[tuple[int, int, int]]) -> Any:
    """An array between fills of a value, of (before, after, 0) entries an axis."""
    for axis, (before, after, _) in enumerate(widths):
        shapes = [(*array.shape[:axis], width, *array.shape[axis + 1 :]) for width in (before, after)]
        fills = [jax.lax.broadcast(value, shape) for shape in shapes]
        parts = zip((before, 1, after), (fills[0], array, fills[1]), strict=True)
        array = jax.lax.concatenate([part for width, part in parts if width], axis)
    return array


def _is_constant(equation: Any, given: list[Any]) -> bool:
    """Whether an equation depends neither on inputs nor on the size of the batch."""
    sizes = [size for each in equation.outvars for size in each.aval.shape]
    return not any(isinstance(each, jax.core.Tracer) for each in given) and all(isinstance(each, int) for each in sizes)


def _needed(jaxpr: Any) -> list[Any]:
    """The equations that outputs depend on, in order."""
    wanted = {each for each in jaxpr.outvars if not isinstance(each, core.Literal)}
    found = []
    for equation in reversed(jaxpr.eqns):
        if wanted & set(equation.outvars):
            found.append(equation)
            wanted |= {each for each in equation.invars if not isinstance(each, core.Literal)}
    return found[::-1]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what converters log about rules for other libraries, and about types that they leave out."""
    loggers = [logging.getLogger(name) for name in ("jax2onnx", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
