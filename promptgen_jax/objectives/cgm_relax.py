"""Moment constraints as a penalty, by the score function."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from promptgen_jax import checks
from promptgen_jax.ebm import LatentEBM
from promptgen_jax.objectives._shared import Stateless, draw, sharding_field, summary
from promptgen_jax.types import Array, Density, PyTree, Sample, Spec, constraints_of, spec_field


@dataclasses.dataclass(frozen=True)
class CGMRelax(Stateless):
    """Σ_c (E_q[γ_c] - μ_c)² + λ (KL(q to p_z) + E_q[E_other]), which asks for the moments themselves.

    The other controls count as they do in the target, `beta` does not count at all. The optimum is the target with
    another β, -2 (E_q[γ] - μ) / λ, so a moment is missed by λ/2 times the size of β: choose λ small. The square is
    estimated without bias from pairs of different samples, its gradient by the score function with a leave-one-out
    baseline, so saturated classes and energies without a gradient are no obstacle.

    Attributes:
      batch_size: samples whose energy is computed, no gradient of it.
      relaxation: λ.
      sharding: of the batch axis over devices; set by the trainer.

    Metrics: as for reverse KL; `moment_gap/<name>` is the largest distance of E_q[γ] from μ in the batch. `loss` is the
    free energy with the betas that the controls have.
    Source: H. Smith et al., Calibrating Generative Models to Distributional Constraints, arXiv 2510.10020, CGM-relax.
    """

    needs_fixed_target: ClassVar[bool] = True
    tells_moments: ClassVar[bool] = False

    batch_size: int
    relaxation: float = 1e-2
    sharding: Any = sharding_field()
    spec: Spec | None = spec_field()

    def __post_init__(self) -> None:
        """Raises ValueError for a batch without a baseline, or no relaxation."""
        if self.batch_size < 2:
            raise ValueError("training.batch_size: cgm_relax needs at least 2 for its pairs of samples.")
        if not self.relaxation > 0:
            raise ValueError(f"cgm_relax: relaxation is {self.relaxation}; expected a positive number. Raise it.")

    def init(self, ebm: LatentEBM, flow: Density, params: PyTree) -> tuple:
        """No state. Raises ValueError for a target without moment constraints."""
        if not constraints_of(ebm.controls):
            raise ValueError("cgm_relax: there is no moment constraint to relax. Use another objective, such as mixed.")
        return ()

    def __call__(self, params: PyTree, key: Array, ebm: LatentEBM, flow: Density) -> tuple[Array, dict]:
        """Returns the loss (), whose gradient is the estimator, and its terms by name."""
        key_eps, key_ebm = jax.random.split(key)
        prior, count = ebm.generator.prior, self.batch_size
        eps = draw(self, key_eps, prior, count)
        cond = ebm.draw_cond(jax.random.fold_in(key_eps, 1), count)
        z, log_dets = jax.lax.stop_gradient(flow.forward_and_log_dets(params, eps, cond))
        images = ebm.images(key_ebm, z)
        energies = ebm.energies_of(key_ebm, Sample(images=images, z=z, cond=cond))
        log_q = flow.log_prob(params, z, cond)
        kl_prior = jax.lax.stop_gradient(log_q) - prior.log_prob(z)
        _, metrics = summary(ebm, energies, cond, kl_prior, z, log_dets)

        moments = constraints_of(ebm.controls)
        weights = ebm.weights(cond)
        names = [control.name for control in moments]
        others = sum(weights[name] * value for name, value in energies.items() if name not in names)
        penalty, slope = jnp.zeros(()), jnp.zeros(())  # of the loss, and what a sample adds to it
        for control in moments:
            off = control.gamma(images) - control.mu
            pairs = (jnp.sum(jnp.sum(off, axis=0) ** 2) - jnp.sum(off**2)) / (count * (count - 1))
            others_mean = (jnp.sum(off, axis=0) - off) / (count - 1)
            penalty, slope = penalty + pairs, slope + 2 * jnp.sum(off * others_mean, axis=1)
            metrics[f"moment_gap/{control.name}"] = jnp.max(jnp.abs(jnp.mean(off, axis=0)))
        each = jax.lax.stop_gradient(slope + self.relaxation * (kl_prior + others))
        advantage = (each - jnp.mean(each)) * count / (count - 1)
        surrogate = jnp.mean(advantage * log_q)
        value = jax.lax.stop_gradient(penalty + self.relaxation * jnp.mean(kl_prior + others))
        return value + surrogate - jax.lax.stop_gradient(surrogate), metrics

    def held_out(self, params: PyTree, key: Array, ebm: LatentEBM, flow: Density) -> Array:
        """The loss () on frozen noise; the kept parameters are those of its smallest mean."""
        return self(params, key, ebm, flow)[0]

    @staticmethod
    def score(held_out: list[Array]) -> Array:
        """Mean loss () of what `held_out` returned for several keys."""
        return jnp.mean(jnp.stack(held_out))


def build(*, batch_size: int, relaxation: float = 1e-2) -> CGMRelax:
    """The objective of these options, see `CGMRelax`."""
    checks.check_number("cgm_relax: relaxation", relaxation, 0, 1e6)
    return CGMRelax(batch_size=batch_size, relaxation=relaxation)
