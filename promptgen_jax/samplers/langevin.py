"""Langevin dynamics without rejection, as PPGM, which the paper compares with (Table 4)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from promptgen_jax import checks
from promptgen_jax.draws import Draws
from promptgen_jax.ebm import LatentEBM
from promptgen_jax.samplers import _chains
from promptgen_jax.types import Array, Spec, spec_field


@struct.dataclass
class Langevin:
    """z ← z + s/2 (a ∇log p_z(z) - b ∇E_C(G(z))) + c sqrt(s) n, n normal, `num_steps` times from draws of the prior.

    With a = b = c = 1 and small steps it samples the target once it has forgotten where it started: at s = 0.05 after
    10 steps 78 % of the start are left along a direction that the energy leaves alone, after 50 steps 28 %. Where the
    energy is curved by P, the variance is too large by 1 / (1 - s P / 4), and it diverges from s P = 4 on. Weights a, b
    and c: Plug & Play Generative Networks (Nguyen et al. 2017). LACE's Langevin dynamics (arXiv 2110.10873) is
    num_steps=100, step_size=0.02, noise_weight=0.0707: the temperature is 1/200, so nearly gradient descent.
    """

    num_steps: int = struct.field(pytree_node=False)
    step_size: float
    prior_weight: float
    energy_weight: float
    noise_weight: float
    name: str = struct.field(pytree_node=False, default="langevin")
    spec: Spec | None = spec_field()

    def __call__(self, key: Array, ebm: LatentEBM, num_samples: int, *, start: Draws | None = None) -> Draws:
        """Draws of the last step, one chain each.

        Raises:
          TypeError, ValueError: a raw key, a count below 1, a target that moves with the flow.
        """
        draws = _chains.start(self.name, key, ebm, num_samples, start)
        z, seconds = _chains.run(_walk, self, ebm, draws, key)
        return _chains.moved(draws, z, seconds, gradient_calls=self.num_steps * num_samples)


def _walk(
    sampler: Langevin, ebm: LatentEBM, chain_key: Array, key: Array, z: Array, cond: Array | None = None
) -> Array:
    def pull(z):
        log_prior = ebm.generator.prior.log_prob(z[None])[0]
        return sampler.prior_weight * log_prior - sampler.energy_weight * _chains.energy(z, ebm, key, cond)

    def step(z, key):
        noise = jnp.sqrt(sampler.step_size) * jax.random.normal(key, z.shape)
        return z + 0.5 * sampler.step_size * jax.grad(pull)(z) + sampler.noise_weight * noise, None

    return jax.lax.scan(step, z, jax.random.split(chain_key, sampler.num_steps))[0]


def build(
    *,
    num_steps: int = 50,
    step_size: float = 0.05,
    prior_weight: float = 1.0,
    energy_weight: float = 1.0,
    noise_weight: float = 1.0,
) -> Langevin:
    """The sampler of these options, see `Langevin`.

    Raises:
      ValueError: no steps, a step size that is not positive, or a weight below 0.
    """
    checks.check_count("langevin: num_steps", num_steps)
    if not step_size > 0:
        raise ValueError(f"langevin: step_size is {step_size}; expected a positive number, such as 0.05.")
    weights = {"prior_weight": prior_weight, "energy_weight": energy_weight, "noise_weight": noise_weight}
    for name, weight in weights.items():
        checks.check_number(f"langevin: {name}", weight, 0, 1e6)
    return Langevin(num_steps, step_size, prior_weight, energy_weight, noise_weight)


def tiny() -> Langevin:
    """A short one for tests."""
    return build(num_steps=3)
