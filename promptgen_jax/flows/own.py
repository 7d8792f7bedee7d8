"""Flows of modules outside the library: any distrax bijector whose parameters are a pytree.

The module `mypackage.chain` has `build(prior, **options)`, which makes an object with two methods:

    init(key) -> params        the arrays to train, any pytree; what is fixed follows from the options
    bijector(params)           the distrax bijector that they make, on vectors (D,) or single numbers, forward from
                               noise to latent, with an inverse

One whose `build` also takes `cond_dim`, the length A of a condition, may be trained with conditions: its method is then
`bijector(params, cond)` with cond (..., A).
"""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any, ClassVar

import distrax
import jax
import jax.numpy as jnp

from promptgen_jax import parts
from promptgen_jax.types import Array, Prior, PyTree, Spec


@dataclasses.dataclass(frozen=True, eq=False)
class Own:
    """What an own module built, as the networks of a `Flow`.

    Attributes:
      made: an object with `init` and `bijector`.
      spec: the module by its dotted name, and all options of its `build`.
      cond_dim: A, length of a condition; 0 if it takes none.
    """

    conditioning: ClassVar[str] = "own"

    made: Any
    spec: Spec
    cond_dim: int

    def draw(self, key: Array) -> dict[str, PyTree]:
        """New `params`; there are no `buffers`."""
        return {"params": self.made.init(key), "buffers": {}}

    def bijector(self, params: PyTree, buffers: PyTree, cond: Array | None) -> distrax.Bijector:
        """The bijector of these arrays, eps (..., D) to z (..., D)."""
        del buffers
        bijector = distrax.as_bijector(self.made.bijector(params, *([cond] if self.cond_dim else [])))
        return bijector if bijector.event_ndims_in else distrax.Block(bijector, 1)


def build_own(prior: Prior, *, kind: str, cond_dim: int, **options: Any) -> Own:
    """Builds a flow of an own module and tries it, in shapes alone.

    Args:
      prior: the generator's.
      kind: dotted name of the module.
      cond_dim: length of the condition, 0 for none.
      **options: of its `build`.

    Raises:
      ValueError: a module that cannot be imported or has no `build`; unknown options; a result without `init` or
        `bijector`; a bijector that has no inverse or is not one on vectors of the prior's length.
    """
    known = inspect.signature(parts.find("flows", kind).build).parameters
    for name in ("prior", *(["cond_dim"] if cond_dim else [])):
        if name not in known:
            wanted = "prior" if name == "prior" else "prior, *, cond_dim=0"
            raise ValueError(f"flow {kind}: its build takes no {name}. Write build({wanted}, ...).")
    made = parts.load("flows", kind, prior=prior, **({"cond_dim": cond_dim} if cond_dim else {}), **options)
    for method in ("init", "bijector"):
        if not callable(getattr(made, method, None)):
            raise ValueError(
                f"flow {kind}: its build made a {type(made).__name__} without {method}. Give it init(key), the arrays "
                "to train, and bijector(params), the distrax bijector that they make."
            )
    complete = {
        name: options.get(name, each.default) for name, each in known.items() if name not in ("prior", "cond_dim")
    }
    own = Own(made, Spec.of(kind, complete), cond_dim)
    _try(own, prior.dim)
    return own


def _try(own: Own, dim: int) -> None:
    """Raises ValueError unless the flow maps vectors of this length to such, and back."""

    def there_and_back(key: Array) -> tuple[Any, Any]:
        eps, cond = jnp.zeros((2, dim)), jnp.zeros((2, own.cond_dim)) if own.cond_dim else None
        bijector = own.bijector(own.draw(key)["params"], {}, cond)
        there = bijector.forward_and_log_det(eps)
        return there, bijector.inverse_and_log_det(there[0])

    where = f"flow {own.spec.kind}: its bijector"
    try:
        shapes = jax.eval_shape(there_and_back, jax.random.key(0))
    except NotImplementedError as error:
        raise ValueError(
            f"{where} lacks a direction ({error or 'not implemented'}). Both are needed: forward to sample, the "
            "inverse for the density."
        ) from None
    for z, log_det in shapes:
        if z.shape != (2, dim) or log_det.shape != (2,):
            raise ValueError(
                f"{where} maps (2, {dim}) to {z.shape} with log_det {log_det.shape}; expected (2, {dim}) and (2,). "
                "Make one on vectors: event_ndims_in=1."
            )
