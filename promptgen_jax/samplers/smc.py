"""Sequential Monte Carlo from the prior to the target, in tempered steps, with log Z: the reference for others."""

from __future__ import annotations

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
from blackjax.smc import resampling, solver
from blackjax.smc.ess import ess_solver
from flax import struct
from scipy.special import logsumexp

from promptgen_jax import checks
from promptgen_jax.draws import Draws
from promptgen_jax.ebm import LatentEBM
from promptgen_jax.samplers import _chains
from promptgen_jax.types import Array, Spec, spec_field

ACCEPTANCE, MAX_TEMPERS = 0.574, 200


@struct.dataclass
class Smc:
    """Particles of p_z(z) exp(-t E_C(G(z))), t from 0 to 1, resampled at each t and moved by MALA.

    The next t is the one at which the weights leave `ess` of the particles (adaptive tempering; Del Moral et al. 2012).
    Each particle keeps its latent and the key of its noise together, so that also randomised energies have one target,
    the one of latent and noise, and of the condition: where conditions vary, those of a large Z come more often than
    they are drawn. The step size is adapted from t to t by the share of accepted moves.

    Attributes:
      num_moves: steps of MALA at each t.
      ess: effective share of the particles that a step of t leaves.
      step_size: of MALA to begin with.
    """

    num_moves: int = struct.field(pytree_node=False)
    ess: float = struct.field(pytree_node=False)
    step_size: float = struct.field(pytree_node=False)
    name: str = struct.field(pytree_node=False, default="smc")
    spec: Spec | None = spec_field()

    def __call__(self, key: Array, ebm: LatentEBM, num_samples: int) -> Draws:
        """Equally weighted particles of the target."""
        return self.sample_and_log_z(key, ebm, num_samples)[0]

    def sample_and_log_z(self, key: Array, ebm: LatentEBM, num_samples: int) -> tuple[Draws, float]:
        """Particles of the target, and the estimate of log Z, nats, whose exponential is unbiased for fixed tempering.

        Raises:
          TypeError, ValueError: a raw key, a count below 1, a target that moves with the flow, energies that are
            infinite at all particles, or no progress.
        """
        draws = _chains.start(self.name, key, ebm, num_samples)
        energy, seconds = _chains.energies(ebm, draws)
        draws = _chains.moved(draws, draws.z, seconds, energy_calls=num_samples)
        temper, log_z, step_size = 0.0, 0.0, self.step_size
        for number in range(MAX_TEMPERS):
            checks.check_met("smc", -energy)
            met = np.isfinite(energy)  # others weigh nothing at any t above 0
            step = float(_next_step(energy[met], self.ess, 1 - temper))
            log_weight = np.where(met, -step * np.where(met, energy, 0).astype(np.float64), -np.inf)
            log_z += float(logsumexp(log_weight) - np.log(num_samples))
            temper = 1.0 if temper + step > 1 - 1e-6 else temper + step
            key_chosen, key_moves = jax.random.split(jax.random.fold_in(key, number))
            importance = jax.nn.softmax(jnp.asarray(log_weight, jnp.float32))
            draws = draws.take(resampling.systematic(key_chosen, importance, num_samples))
            energy, draws, accepted = self._move(draws, ebm, temper, step_size, key_moves)
            step_size *= float(np.exp(accepted - ACCEPTANCE))
            if temper == 1:
                return draws, log_z
        raise ValueError(
            f"smc: only {temper:.2g} of the way to the target after {MAX_TEMPERS} steps of tempering. Lower the "
            "control's weight, take more samples, or a smaller ess."
        )

    def _move(self, draws: Draws, ebm: LatentEBM, temper: float, step_size: float, key: Array):
        """Energies (N,) and draws after some steps of MALA at t, and the mean acceptance."""
        options = _Moves(self.num_moves, jnp.float32(temper), jnp.float32(step_size))
        (z, energy, accepted), seconds = _chains.run(_walk, options, ebm, draws, key)
        calls = (1 + self.num_moves) * len(draws.z)
        moved = _chains.moved(draws, z, seconds, energy_calls=len(draws.z), gradient_calls=calls)
        return energy, moved, float(accepted.mean())


@struct.dataclass
class _Moves:
    """How particles are moved at one t."""

    num_moves: int = struct.field(pytree_node=False)
    temper: Array
    step_size: Array


def _walk(moves: _Moves, ebm: LatentEBM, chain_key: Array, key: Array, z: Array, cond: Array | None = None):
    def log_prob(z):
        return ebm.generator.prior.log_prob(z[None])[0] - moves.temper * _chains.energy(z, ebm, key, cond)

    kernel = blackjax.mala.build_kernel()

    def step(state, key):
        state, info = kernel(key, state, log_prob, moves.step_size)
        return state, jnp.nan_to_num(info.acceptance_rate)

    keys = jax.random.split(chain_key, moves.num_moves)
    state, accepted = jax.lax.scan(step, blackjax.mala.init(z, log_prob), keys)
    return state.position, _chains.energy(state.position, ebm, key, cond), jnp.mean(accepted)


@jax.jit
def _next_step(energy: Array, ess: Array, left: Array) -> Array:
    """The step of t that leaves a share `ess` of the particles, or all that is left."""
    return ess_solver(lambda energy: -energy, energy, ess, left, solver.dichotomy)


def build(*, num_moves: int = 5, ess: float = 0.5, step_size: float = 0.1) -> Smc:
    """The sampler of these options, see `Smc`.

    Raises:
      ValueError: no moves, an ess outside (0, 1), a step size that is not positive.
    """
    checks.check_count("smc: num_moves", num_moves)
    if not 0 < ess < 1:
        raise ValueError(f"smc: ess is {ess}; expected a share between 0 and 1, such as 0.5.")
    if not step_size > 0:
        raise ValueError(f"smc: step_size is {step_size}; expected a positive number, such as 0.1.")
    return Smc(num_moves, ess, step_size)


def tiny() -> Smc:
    """A short one for tests."""
    return build(num_moves=1)
