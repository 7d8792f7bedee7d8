"""The probability-flow ODE of LACE (arXiv 2110.10873), by diffrax. It is no sampler of the target; see `LaceOde`."""

from __future__ import annotations

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from promptgen_jax.draws import Draws
from promptgen_jax.ebm import LatentEBM
from promptgen_jax.samplers import _chains
from promptgen_jax.types import Array, Spec, spec_field

BETA, TIMES = (0.1, 20.0), (1.0, 1e-3)  # of the variance-preserving process, and from when to when


@struct.dataclass
class LaceOde:
    """dz = ½ β(t) ∇E_C(G(z)) dt from t = 1 to 1e-3, β(t) = 0.1 + 19.9 t, from draws of the prior.

    The score of a standard normal prior cancels its drift, and the energy is the same at all t, so this is gradient
    descent on the energy for a time of 5: with N(0, 1) and the energy (z - m)² / 2 it ends at mean 0.993 m and variance
    4e-5, where the target has m / 2 and 0.5. Offered for comparisons.

    Attributes:
      tolerance: relative and absolute, of the steps of Dormand-Prince.
      max_steps: after which it gives up.
    """

    tolerance: float
    max_steps: int = struct.field(pytree_node=False)
    name: str = struct.field(pytree_node=False, default="lace_ode")
    spec: Spec | None = spec_field()

    def __call__(self, key: Array, ebm: LatentEBM, num_samples: int, *, start: Draws | None = None) -> Draws:
        """Where the ODE ends.

        Raises:
          TypeError, ValueError: a raw key, a count below 1, a target that moves with the flow, or paths that take more
            steps than they may.
        """
        draws = _chains.start(self.name, key, ebm, num_samples, start)
        (z, evaluations, arrived), seconds = _chains.run(_walk, self, ebm, draws, key)
        if lost := int(np.sum(~arrived)):
            raise ValueError(
                f"lace_ode: {lost} of {num_samples} paths did not end within max_steps={self.max_steps}. Give more, or "
                "a larger tolerance."
            )
        return _chains.moved(draws, z, seconds, gradient_calls=int(evaluations.sum()))


def _walk(sampler: LaceOde, ebm: LatentEBM, chain_key: Array, key: Array, z: Array, cond: Array | None = None):
    del chain_key  # it draws nothing but its start

    def drift(t, z, _):
        gradient = jax.grad(_chains.energy)(z, ebm, key, cond)
        return 0.5 * (BETA[0] + (BETA[1] - BETA[0]) * t) * gradient

    solved = diffrax.diffeqsolve(
        diffrax.ODETerm(drift),
        diffrax.Dopri5(),
        t0=TIMES[0],
        t1=TIMES[1],
        dt0=None,
        y0=z,
        stepsize_controller=diffrax.PIDController(rtol=sampler.tolerance, atol=sampler.tolerance),
        max_steps=sampler.max_steps,
        throw=False,
    )
    evaluations = jnp.asarray(1 + 6 * solved.stats["num_steps"])  # the seventh stage is the next step's first
    return solved.ys[0], evaluations, solved.result == diffrax.RESULTS.successful


def build(*, tolerance: float = 1e-3, max_steps: int = 4096) -> LaceOde:
    """The sampler of these options, see `LaceOde`.

    Raises:
      ValueError: a tolerance that is not positive.
    """
    if not tolerance > 0:
        raise ValueError(f"lace_ode: tolerance is {tolerance}; expected a positive number, such as 1e-3.")
    return LaceOde(tolerance, max_steps)


def tiny() -> LaceOde:
    """A short one for tests."""
    return build(tolerance=0.1)
