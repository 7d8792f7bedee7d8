"""What a target asks of the options and the samples of its training."""

from __future__ import annotations

import numpy as np

from promptgen_jax import checks, types
from promptgen_jax.draws import Draws
from promptgen_jax.ebm import LatentEBM
from promptgen_jax.flows.base import PAPER
from promptgen_jax.flows.bijectors import num_pairs
from promptgen_jax.prompt import Prompt
from promptgen_jax.training.config import TrainConfig, make_objective, name_of
from promptgen_jax.training.constraints import check_sentences
from promptgen_jax.training.directions import asked_for

DIAL_SCALE = 10.0  # of strengths and shares, which are from 0 to 1, for the networks of the flow


def flow_options(ebm: LatentEBM, flow: dict) -> dict:
    """Options of the flow for a target: where every control has a dial, it is the identity with all of them at 0.

    Of sentences the numbers of a condition, those of a vector of unit length, are brought to the size of 1, since a
    short training hardly hears smaller ones. Strengths are brought to 0 to 10, as with 0 to 1 two dials acted as one,
    and shares likewise, of which a training of 300 steps heard nothing. Several dials have heads of their own, without
    which each of two also did a part of what the other is for.

    Raises:
      ValueError: a strength that names no control; a flow that cannot be the exact identity.
    """
    if ebm.cond_prior is not None and ebm.cond_prior.texts and flow.get("kind", PAPER) == PAPER:
        return {"cond_scale": round(ebm.cond_prior.dim**0.5, 2), **flow}
    if not ebm.dials or set(ebm.dials) != {control.name for control in ebm.controls}:
        shares = ebm.cond_prior is not None and ebm.cond_prior.of_kind("share") and flow.get("kind", PAPER) == PAPER
        return ({"cond_scale": DIAL_SCALE} if shares else {}) | flow  # a control without a dial acts at any strength
    if flow.get("kind", PAPER) != PAPER:
        raise ValueError(
            f"fit: flow kind {flow['kind']} with strengths; only {PAPER} is exactly the identity at strength 0. Leave "
            "kind out."
        )
    dials = tuple(ebm.dials.values())
    usual = {"architecture": "coupling", "cond_scale": DIAL_SCALE, "dial_heads": len(dials) > 1}
    return {**usual, **flow, "dials": dials}


def check_draws(ebm: LatentEBM, draws: Draws) -> None:
    """Raises ValueError unless these are weighted samples of this target's prior, with conditions if it has any."""
    if not isinstance(draws, Draws):
        raise ValueError(
            f"fit: draws are of type {type(draws).__name__}; expected Draws, as pg.training.weighted_draws makes."
        )
    if draws.log_prob is None:
        raise ValueError(
            "fit: draws have no log_prob, as those of a sampler, whose density nobody knows. Take those of "
            "pg.training.weighted_draws."
        )
    checks.check_latents("fit: draws", draws.z, ebm.generator.prior.dim)
    cond_dim = ebm.cond_prior.dim if ebm.cond_prior else 0
    checks.check_cond("fit: draws", draws.cond, cond_dim, len(draws.z))
    checks.check_met("fit: draws", draws.log_weight)


def check_pairs(ebm: LatentEBM, flow: dict) -> None:
    """Raises ValueError unless an equivariant flow has a pair of features for every component of a condition."""
    if flow.get("conditioning") != "equivariant" or not ebm.cond_prior:
        return
    size, wanted = flow.get("directions") or max(ebm.generator.prior.blocks), ebm.cond_prior.dim
    if num_pairs(size) < wanted:
        raise ValueError(
            f"flow conditioning: equivariant rotates {num_pairs(size)} pairs of {size} numbers, so the last of "
            f"{wanted} components of the condition would do nothing. Use concat."
        )


def check_angles(ebm: LatentEBM) -> None:
    """Raises ValueError where a control that reads the condition as angles would take another component for one."""
    if ebm.cond_prior is None:
        return
    others = [name for name, kind in ebm.cond_prior.components if kind != "angle"]
    readers = [control.name for control in ebm.controls if any(aim.follows for aim in types.aims_of(control))]
    if others and readers:
        raise ValueError(
            f"conditions: {readers[0]} reads all of them as angles, and {', '.join(others)} is none. Train that one on "
            "top, as a prompt of its own."
        )


def check_target(ebm: LatentEBM, config: TrainConfig, flow: dict) -> None:
    """Raises ValueError for a target that cannot be trained on with these options."""
    for option in {"cond_dim", "dials"} & flow.keys():
        raise ValueError(
            f"fit: flow option {option} follows from the conditions. Give the LatentEBM a cond_prior instead."
        )
    if config.closed_loop and not (types.constraints_of(ebm.controls) or types.following(ebm.controls)):
        raise ValueError("fit: closed_loop corrects constraints, and no control of this target is one. Set it to 0.")
    if config.closed_loop and any(control.name in ebm.dials for control in types.constraints_of(ebm.controls)):
        raise ValueError(
            "fit: closed_loop corrects one target, while a strength makes many of a constraint. Set it to 0, or give "
            "shares as the condition."
        )
    check_sentences(ebm)
    check_angles(ebm)
    check_pairs(ebm, flow)
    if ebm.needs_reference and config.start:
        raise ValueError("fit: start='normal' needs a fixed target, which a control of this one moves. Leave it out.")
    if ebm.needs_reference and asked_for(flow):
        raise ValueError("fit: directions need a fixed target, which a control of this one moves. Leave them out.")
    if ebm.needs_reference and make_objective(config).needs_fixed_target:
        names = ", ".join(control.name for control in ebm.controls if control.needs_reference)
        raise ValueError(
            f"fit: {names} compares with an image that the flow itself makes, so the target moves with the flow; "
            f"{name_of(config.objective)} needs a fixed one. Use reverse_kl."
        )
    if ebm.cond_prior and (shares := ebm.cond_prior.of_kind("share")) and not types.following(ebm.controls):
        raise ValueError(
            f"fit: no control follows the share of {', '.join(shares)}. Call pg.fit_moments first, with a moment "
            "control of that label."
        )
    for control in types.constraints_of(ebm.controls):
        if np.isnan(control.mu).any():
            raise ValueError(
                f"fit: {control.name} leaves shares to the generator that are not known yet. Call pg.fit_moments first."
            )
    if isinstance(ebm.generator, Prompt) and any(inner.flow.cond_dim for inner in ebm.generator.stack()[0]):
        raise ValueError(
            f"fit: the generator is the conditional prompt {ebm.generator.name!r}, which a control on top of it could "
            "not tell its condition. Train the conditional prompt last."
        )
