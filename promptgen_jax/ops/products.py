"""The arithmetic of a network's products: matrix products, contractions and convolutions, and nothing else.

In "bfloat16" the factors are rounded to it, sums are float32, and so is all that lies between products: norms, softmax,
demodulation, activations, depthwise convolutions, and what asks for `precision="highest"`, such as energies. So are
layers of a few channels and those that make styles: they cost little, and most of the error of images, answers and
gradients would come from them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from promptgen_jax import checks

# what jax_default_matmul_precision becomes, by which jit and the like tell programs apart
SETTINGS = {"tf32": "tensorfloat32", "bfloat16": "bfloat16"}
PRECISIONS = ("float32", *SETTINGS)
FINER = ("float32", "tf32")  # those of networks whose gradients by pixels bfloat16 turns, cosine below 0.99
# layers, by name, from z to styles, and of volumes: they cost little, and gradients pass them all
EXACT = ("mapping", "style", "foreground", "background")
FEW = 32  # channels: layers that read or give no more, as pixels, colours and answers are, stay float32


def check(where: str, precision: Any, weights: Any, *, taken: Sequence[str] = PRECISIONS) -> None:
    """Checks the precision of a network.

    Args:
      where: its name, for messages.
      precision: as in `arithmetic`.
      weights: of it.
      taken: those that its answers and gradients allow.

    Raises:
      ValueError: an unknown precision, with the nearest match, one that it does not take, or one above that of stored
        weights.
    """
    checks.check_known(f"{where}: precision", precision, PRECISIONS)
    if precision not in taken:
        raise ValueError(
            f"{where}: does not take precision {precision!r}, which would change its answers or gradients too much. "
            f"Give {' or '.join(map(repr, taken))}, or leave it out."
        )
    if precision != "bfloat16" and any(_is_half(leaf) for leaf in jax.tree.leaves(weights)):
        raise ValueError(
            f"{where}: precision is {precision!r}, but its weights were rounded to bfloat16 when they were loaded. "
            f"Load it again with precision={precision!r}."
        )


def arithmetic(precision: str) -> contextlib.AbstractContextManager:
    """Within it networks compute in a precision.

    Args:
      precision: "float32", float32 as JAX is set, so on accelerators as exact as `jax_default_matmul_precision` says;
        "tf32", factors of 10 bits on GPUs that have it, NVIDIA's from Ampere on, and float32 on CPUs; or "bfloat16",
        factors of 7 bits everywhere.
    """
    setting = SETTINGS.get(precision)
    return jax.default_matmul_precision(setting) if setting else contextlib.nullcontext()


def exact() -> contextlib.AbstractContextManager:
    """Within it, products are float32 also in the arithmetic bfloat16."""
    return jax.default_matmul_precision("float32") if _half() else contextlib.nullcontext()


def rounded(one: jax.Array, other: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Both factors of a product in one dtype: that of the wider, or bfloat16 within that `arithmetic`."""
    dtype = jnp.bfloat16 if _half() else jnp.promote_types(one.dtype, other.dtype)
    return one.astype(dtype), other.astype(dtype)


def of_layer(product: Callable[..., jax.Array], one: jax.Array, kernel: jax.Array) -> jax.Array:
    """`product(one, kernel)` of a layer with a kernel (..., I, O), in full within the arithmetic bfloat16 if few."""
    if _half() and min(kernel.shape[-2:]) <= FEW:
        with exact():
            return product(one, kernel.astype(one.dtype))
    return widened(product(*rounded(one, kernel)))


def widened(product: jax.Array) -> jax.Array:
    """A product of rounded factors, float32 within the arithmetic bfloat16."""
    return product.astype(jnp.float32) if _half() else product


def einsum(formula: str, one: jax.Array, other: jax.Array) -> jax.Array:
    """Contracts two arrays."""
    return widened(jnp.einsum(formula, *rounded(one, other)))


def matmul(one: jax.Array, other: jax.Array) -> jax.Array:
    """Matrix product over the last axis of one and the last but one of the other."""
    return widened(jnp.matmul(*rounded(one, other)))


def dot_general(one: jax.Array, kernel: jax.Array, dimensions: Any, **options: Any) -> jax.Array:
    """As that of `lax`, for layers of Flax."""
    return of_layer(lambda one, kernel: lax.dot_general(one, kernel, dimensions, **options), one, kernel)


def halved(tree: Any) -> Any:
    """Weights whose kernels of products are stored in bfloat16; depthwise kernels, norms and the like stay float32."""
    return jax.tree.map_with_path(
        lambda path, leaf: leaf.astype(jnp.bfloat16) if _is_factor(path, leaf) else leaf, tree
    )


def _is_half(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and leaf.dtype == jnp.bfloat16


def _half() -> bool:
    return jax.config.jax_default_matmul_precision == SETTINGS["bfloat16"]  # type: ignore[attr-defined]


def _is_factor(path: tuple, leaf: jax.Array) -> bool:
    names = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
    is_kernel = names[-1].endswith("kernel") and leaf.ndim > 1 and not set(names) & set(EXACT)
    return is_kernel and min(leaf.shape[-2:]) > FEW
