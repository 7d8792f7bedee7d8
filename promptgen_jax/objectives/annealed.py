"""Forward KL to a target that is as cold as the samples can bear."""

from __future__ import annotations

from promptgen_jax.objectives.forward_kl import ForwardKL


def build(*, batch_size: int, prior_share: float = 0.5, least_ess: float = 0.25) -> ForwardKL:
    """Forward KL with an annealed weight of the controls: `ForwardKL` with `least_ess`, a share of the batch.

    For targets that the prior hardly meets: the energy is lowered until enough samples count, and comes back by itself
    as the flow, which is one of the proposals, follows.
    """
    return ForwardKL(batch_size=batch_size, prior_share=prior_share, least_ess=least_ess)
