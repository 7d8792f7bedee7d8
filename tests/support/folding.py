"""Finds small constants that XLA loses: it compiles (1 - p) + 1e-8 as (1 + 1e-8) - p, and 1 + 1e-8 is 1 in float32."""

import jax
import numpy as np

KEEPS = ("broadcast_in_dim", "reshape", "convert_element_type", "squeeze", "copy", "stop_gradient", "transpose")


def lost_constants(function, *arguments):
    """Pairs (constant, small constant) of a traced function that XLA adds up, which loses the small one.

    Nested functions are looked at one by one; a sum across their border is not seen.
    """
    return _lost(jax.make_jaxpr(function)(*arguments).jaxpr)


def _lost(jaxpr):
    constants, sums, found = {}, {}, []

    def constant_of(variable):
        if isinstance(variable, jax.extend.core.Literal):
            value = np.asarray(variable.val)
            return float(value) if value.size == 1 and value.dtype.kind == "f" else None
        return constants.get(variable)

    for equation in jaxpr.eqns:
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(inner):
                found += _lost(getattr(inner, "jaxpr", inner))
        if not equation.outvars:
            continue
        name, operands, out = equation.primitive.name, equation.invars, equation.outvars[0]
        if name in KEEPS:
            constants[out] = constant_of(operands[0])
            sums[out] = sums.get(operands[0]) if not isinstance(operands[0], jax.extend.core.Literal) else None
        if name not in ("add", "sub") or out.aval.dtype.kind != "f":
            continue
        known = [constant_of(each) for each in operands]
        if (known[0] is None) == (known[1] is None):
            continue
        constant, varying = (known[0], operands[1]) if known[1] is None else (known[1], operands[0])
        before = sums.get(varying)
        if before and constant:
            small, large = sorted(map(abs, (constant, before)))
            if small and np.float32(large) + np.float32(small) == np.float32(large):
                found.append((large, small))
        sums[out] = constant
    return found


def _is_jaxpr(value):
    return isinstance(value, (jax.extend.core.Jaxpr, jax.extend.core.ClosedJaxpr))
