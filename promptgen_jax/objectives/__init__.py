"""Training objectives, one a file, behind one contract.

    init(ebm, flow, params) -> state                                   a replay buffer, a baseline, or ()
    loss(params, state, key, ebm, flow) -> (loss, (state, metrics))
    held_out(params, key, ebm, flow) -> anything, and score([anything, ...]) -> number: the kept parameters are those
      of the smallest score on frozen keys; needed with `eval_every` only
    receive(state, draws) -> state, if it can begin with weighted samples of the prior
    needs_fixed_target: whether it cannot train on a target that moves with the flow
    tells_moments: whether the gradient of its loss by beta is -weight times the flow's moments
    build(*, batch_size, ...) of its file: its options, with defaults; in `TrainConfig` they are `objective_options`

The loss is a variational free energy in nats: Eq. 10 of arXiv 2209.06970 minus the constant entropy of the base,

    loss = E_q[log q(z) - log p_z(z) + E_C(G(z))] = KL(q || p(z|C)) - log Z,

so its smallest possible value is -log Z. Metrics: `loss`, `energy/<name>` (unweighted), `prior` = -log p_z(z),
`log_det`, `kl_prior` = KL(q || p_z); with several blocks also the `log_det/<block>` of each flow (Eq. 11).
"""

from promptgen_jax.objectives._shared import Objective
from promptgen_jax.objectives.cgm_relax import CGMRelax
from promptgen_jax.objectives.fab import FAB
from promptgen_jax.objectives.forward_kl import ForwardKL
from promptgen_jax.objectives.mixed import Mixed
from promptgen_jax.objectives.path_gradient import PathGradient
from promptgen_jax.objectives.reverse_kl import ReverseKL
from promptgen_jax.objectives.score_function import ScoreFunction

__all__ = ["FAB", "CGMRelax", "ForwardKL", "Mixed", "Objective", "PathGradient", "ReverseKL", "ScoreFunction"]
