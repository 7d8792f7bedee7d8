"""Moment constraints of a target: their betas by the convex dual on the generator's samples, for one mu or for all."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from promptgen_jax import checks
from promptgen_jax.controls._dual import Dual, FollowedShares
from promptgen_jax.controls._shares import fill_shares
from promptgen_jax.devices import map_batches, seen_at_a_time
from promptgen_jax.draws import Draws, sample_keys
from promptgen_jax.ebm import LatentEBM
from promptgen_jax.flows.sentences import Sentences
from promptgen_jax.training import moments
from promptgen_jax.types import Array, Constraint, Spec, aims_of, constraints_of, following, networks_of, plain, said

KNOTS = 64  # about as many settings of shares are solved at once, in float64; those between them start there


def with_beta(ebm: LatentEBM, beta: dict) -> LatentEBM:
    """The same target with other betas in its moment controls, of those that follow shares with other lifts."""
    follow = {control.name for control in following(ebm.controls)}
    fields = {name: {"lift" if name in follow else "beta": value} for name, value in beta.items()}
    return _with_fields(ebm, fields)


def betas_of(ebm: LatentEBM) -> dict[str, Array]:
    """What `with_beta` sets, by name of the control, as it is now."""
    return {c.name: c.beta for c in constraints_of(ebm.controls)} | {c.name: c.lift for c in following(ebm.controls)}


def _with_fields(ebm: LatentEBM, fields: dict) -> LatentEBM:
    controls: tuple = ebm.controls
    return ebm.replace(controls=tuple(c.replace(**fields[c.name]) if c.name in fields else c for c in controls))


def fit_moments(
    ebm: LatentEBM, key: Array, *, num_samples: int = 4096, batch_size: int | None = None
) -> tuple[LatentEBM, Any]:
    """Fits beta of all moment controls together by the convex dual on samples of the generator (Eq. 5-7).

    Where conditions of the ebm are shares, controls are replaced by those that follow the condition: they keep what
    they have seen of the samples, and solve the dual for every share that is asked for. What their own mu says is then
    left aside; labels that no condition names are left to the generator.

    Returns:
      (ebm, fit): the ebm with its betas, and a `moments.DrawnFit`; fit is None without moment controls. With shares as
      conditions it is the fit of the shares in their ranges that fewest of the samples support.

    Raises:
      ValueError, TypeError: mu, or a corner of the ranges of shares, cannot be reached by reweighting the samples; a
        share of a label that no control constrains; a count below 1, a raw key.
    """
    checks.check_key("fit_moments", key)
    checks.check_count("fit_moments: num_samples", num_samples)
    batch_size = seen_at_a_time(ebm.generator.image_size, batch_size)
    checks.check_count("fit_moments: batch_size", batch_size)
    controls, asked = constraints_of(ebm.controls), shares_asked(ebm)
    if not controls:
        return ebm, None
    key_z, key_x = jax.random.split(key)
    z = ebm.generator.prior.sample(key_z, num_samples)

    @jax.jit
    def gammas(ebm, keys, z):
        images = ebm.images(keys, z)
        return {c.name: c.gamma(images) for c in constraints_of(ebm.controls)}

    gamma = map_batches(gammas, batch_size, sample_keys(key_x, np.arange(num_samples)), z, shared=(ebm,))
    if asked:
        return _following(ebm, asked, gamma)
    mu = {c.name: fill_shares(np.asarray(c.mu), np.mean(gamma[c.name], axis=0)) for c in controls}
    filled = {c.name: {"mu": jnp.asarray(mu[c.name], jnp.float32)} for c in controls if np.isnan(c.mu).any()}
    ebm = _with_fields(ebm, filled)
    fit = moments.DrawnFit(*moments.fit_beta(gamma, mu))
    ebm = with_beta(ebm, {name: jnp.asarray(beta, jnp.float32) for name, beta in fit.beta.items()})
    if len(controls) == len(ebm.controls) and ebm.cond_prior is None:  # all energies are known
        draws = Draws.of_noise(ebm.generator.prior, z, key_x)
        fit.draws = draws.weighted(sum(c.weight * gamma[c.name] @ fit.beta[c.name] for c in controls))
    return ebm, fit


def check_sentences(ebm: LatentEBM) -> None:
    """Raises ValueError if the conditions are sentences, and no control has the network that embeds them."""
    conditions = ebm.cond_prior
    if not isinstance(conditions, Sentences):
        return
    networks = [network for control in ebm.controls for network in networks_of(control)]
    if conditions.checksum not in [network.checksum for network in networks]:
        found = ", ".join(network.name for network in networks) or "no network"
        raise ValueError(
            f"conditions: sentences are embedded by {conditions.network}, while controls see with {found}. Add a "
            f"control of kind sentence with network={conditions.network!r}."
        )


def shares_asked(ebm: LatentEBM) -> dict[str, tuple[str, int]]:
    """Of every share among the conditions, by label: the name of its constraint, and its column of gamma.

    Raises:
      ValueError: a label that no constraint has, or several have; a constraint without a share, or with all of them.
    """
    shares = {} if ebm.cond_prior is None else ebm.cond_prior.of_kind("share")
    controls = constraints_of(ebm.controls)
    if not controls:
        if shares and not following(ebm.controls):
            raise ValueError(f"conditions: no moment control has the label {', '.join(shares)}. Add one that has.")
        return {}
    if not shares:
        return {}
    labels = {control.name: _labels(control) for control in controls}
    known = [label for each in labels.values() for label in each]
    for label in shares:
        checks.check_known("conditions: share of a label", label, known)
        if known.count(label) > 1:
            raise ValueError(f"conditions: share {label} is a label of several controls. Rename all but one of them.")
    for name, each in labels.items():
        if shares.keys().isdisjoint(each):
            raise ValueError(
                f"conditions: {name} has no share among them; give the range of a label of {', '.join(each)}, which "
                "may be as narrow as (0.5, 0.5, 'share')."
            )
        if set(each) <= shares.keys():
            raise ValueError(f"conditions: {name} has a share for each label, which add up to 1. Leave one out.")
    return {label: (name, each.index(label)) for label in shares for name, each in labels.items() if label in each}


def _labels(control: Constraint) -> tuple[str, ...]:
    """The labels of what a constraint constrains, in the order of gamma."""
    return tuple(label for aim in aims_of(control) if aim.unit == "share" for label, _ in aim.target)


def _following(ebm: LatentEBM, asked: Mapping, gamma: Mapping[str, np.ndarray]) -> tuple[LatentEBM, Any]:
    """The target with constraints that follow the condition, and the fit of the shares that are hardest to reach."""
    conditions: Any = ebm.cond_prior
    columns = {label: gamma[name][:, column] for label, (name, column) in asked.items()}
    places = conditions.of_kind("share")
    low, high = (np.asarray(end)[[places[label] for label in columns]] for end in (conditions.low, conditions.high))
    count = max(3, round(KNOTS ** (1 / len(columns))))
    axes = [np.linspace(a, b, count if a < b else 1) for a, b in zip(low, high, strict=True)]
    knots = list(itertools.product(*axes))
    fits = [
        moments.fit_beta(
            {label: column[:, None] for label, column in columns.items()},
            {label: np.array([mu]) for label, mu in zip(columns, knot, strict=True)},
        )
        for knot in knots
    ]
    solved = [np.concatenate([fit.beta[label] for label in columns]) for fit in fits]
    tables = (np.stack(list(columns.values()), axis=1), knots, solved)
    dual = Dual(*(jnp.asarray(np.asarray(table), jnp.float32) for table in tables))
    controls = tuple(
        _follower(control, dual, asked, places) if isinstance(control, Constraint) else control
        for control in ebm.controls
    )
    return ebm.replace(controls=controls), moments.DrawnFit(*min(fits, key=lambda fit: fit.ess))


def _follower(control: Any, dual: Dual, asked: Mapping, places: Mapping[str, int]) -> FollowedShares:
    own = [label for label, (name, _) in asked.items() if name == control.name]
    spec = said(control, "spec")
    if spec is not None:  # what was asked for is told by the conditions
        options = {name: value for name, value in spec.options.items() if name != "mu"}
        spec = Spec(spec.kind, plain({**options, "shares": own}))
    return FollowedShares(
        constraint=control,
        dual=dual,
        labels=tuple(own),
        picked=tuple(asked[label][1] for label in own),
        columns=tuple(list(asked).index(label) for label in own),
        places=tuple(places[label] for label in asked),
        lift=jnp.zeros((len(own), 1 + 2 * len(asked))),
        spec=spec,
    )
