"""Shares of a judge's classes with intervals, and their distance to a target.

A judge is a classifier: a share is what it sees,
not what is true; name it, and where possible show a second judge that was not the control.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from promptgen_jax.metrics._figures import JudgedShares, Share
from promptgen_jax.metrics._intervals import RESAMPLES, effective_sample_size, mean_interval, normalised, share_interval
from promptgen_jax.metrics._observed import About, Observed


def measure(seen: Mapping[str, Observed], about: About) -> tuple[JudgedShares, ...]:
    """Of every judge and attribute, on every draws."""
    return tuple(
        judged(
            name,
            about.role(name, attribute),
            attribute,
            network.labels(attribute),
            {draws: (found.log_probs(name, attribute), found.weights()) for draws, found in seen.items()},
            target=about.target(name, attribute),
        )
        for name, network in about.networks.items()
        for attribute in about.attributes[name]
    )


def judged(
    judge: str,
    role: str,
    attribute: str,
    labels: Sequence[str],
    seen: Mapping[str, tuple],
    *,
    target: Mapping | tuple[()] = (),
) -> JudgedShares:
    """Shares of one judge's classes, with their distance to the target if there is one.

    Args:
      judge: name of the network.
      role: "control" or "independent judge".
      attribute: what is judged.
      labels: K classes.
      seen: log-probabilities (N, K) and weights (N,) or None, by draws.
      target: wanted share by label, or nothing.
    """
    labels, mu = tuple(map(str, labels)), tuple(target[label] for label in labels) if target else None
    found = {draws: shares(values, labels=labels, weights=weights) for draws, (values, weights) in seen.items()}
    kl = {} if mu is None else {d: distance_to_target(values, mu, weights=w) for d, (values, w) in seen.items()}
    return JudgedShares(
        judge=judge,
        role=role,
        attribute=attribute,
        labels=labels,
        shares={draws: {k: Share.from_json(share) for k, share in row.items()} for draws, row in found.items()},
        target=mu,
        kl={draws: Share.from_json(distance) for draws, distance in kl.items()},
        num_samples=max(len(values) for values, _ in seen.values()),
    )


def shares(log_probs, *, labels: Sequence[str], weights=None) -> dict[str, dict[str, float]]:
    """Share of each class among samples, as mean probability (soft) and as first choice (hard).

        soft_k = Σ_n w_n p_nk        hard_k = Σ_n w_n [k = argmax_j p_nj]        Σ w = 1, default 1/N

    The soft interval is Student's t with ESS − 1 degrees of freedom around the (weighted) mean; it relies on
    the central limit theorem, so a class that nearly never occurs needs many samples. The hard interval is
    Wilson's, which stays sensible for empty classes; weighted, N becomes the number of equal-weight samples
    with the same variance, at most the ESS.

    Args:
      log_probs: (N, K) log-probabilities of the judge, -inf allowed.
      labels: K names.
      weights: (N,) importance weights, not negative, any scale; they turn samples of a flow into samples of
        its target.

    Returns:
      {label: {"soft", "soft_low", "soft_high", "hard", "hard_low", "hard_high"}}, all in [0, 1].

    Raises:
      ValueError: shapes that do not fit, no samples, NaN, rows that are no log-probabilities, bad weights.
    """
    log_probs = np.asarray(log_probs, np.float64)
    labels = [str(label) for label in labels]
    if log_probs.ndim != 2 or log_probs.shape[1] != len(set(labels)) or not len(log_probs):
        raise ValueError(
            f"shares: log_probs are {log_probs.shape} for {len(set(labels))} different labels; expected "
            "(samples, labels) with at least one sample. Pass one label per column."
        )
    probs = np.exp(log_probs)
    if not np.allclose(probs.sum(axis=1), 1, atol=1e-3):  # NaN fails too
        worst = float(probs.sum(axis=1)[np.argmax(np.abs(probs.sum(axis=1) - 1))])
        raise ValueError(
            f"shares: probabilities of a sample add up to {worst:.4g}; expected 1. Pass log_softmax of the logits."
        )
    importance = np.full(len(probs), 1 / len(probs)) if weights is None else normalised(weights, len(probs))
    ess = effective_sample_size(importance)
    choices = np.eye(len(labels))[probs.argmax(axis=1)]
    return {
        label: {
            **_named("soft", *mean_interval(probs[:, k], importance, ess)),
            **_named("hard", *share_interval(choices[:, k], importance, ess)),
        }
        for k, label in enumerate(labels)
    }


def kl_to_target(share, mu) -> float:
    """KL(share ‖ mu) = Σ_k share_k log(share_k / mu_k) in nats, with 0 log 0 = 0.

    Args:
      share: (K,) shares of a distribution, adding up to 1.
      mu: (K,) target shares, adding up to 1.

    Returns:
      0 if they agree; infinite if a class occurs that the target forbids.

    Raises:
      ValueError: shapes differ, or either is no distribution.
    """
    share, mu = np.asarray(share, np.float64), np.asarray(mu, np.float64)
    if share.ndim != 1 or share.shape != mu.shape:
        raise ValueError(
            f"kl_to_target: shares are {share.shape}, target {mu.shape}; expected two vectors of one length. "
            "Give one target share per label."
        )
    for name, values in (("shares", share), ("target", mu)):
        if not (np.all(values >= 0) and abs(values.sum() - 1) < 1e-3):
            raise ValueError(
                f"kl_to_target: {name} {np.round(values, 4).tolist()} are no distribution; expected numbers "
                "of at least 0 that add up to 1. Divide them by their sum."
            )
    with np.errstate(divide="ignore"):
        terms = share[share > 0] * (np.log(share[share > 0]) - np.log(mu[share > 0]))
    return max(0.0, float(terms.sum()))


def distance_to_target(log_probs, mu, *, weights=None, seed: int = 0) -> dict[str, float]:
    """KL of soft and of hard shares to a target, with 95 % intervals by the bootstrap over samples.

    The distance of a finite sample is never 0, also where the distribution meets the target: with N samples expect
    about (K - 1) / 2N for hard shares. The interval says how far such a sample scatters.

    Args:
      log_probs: (N, K) log-probabilities of the judge.
      mu: (K,) target shares, adding up to 1.
      weights: (N,) importance weights, not negative, any scale; default equal.
      seed: of the resampling, so that the same samples give the same interval.

    Returns:
      {"soft", "soft_low", "soft_high", "hard", "hard_low", "hard_high"} in nats.

    Raises:
      ValueError: as `shares` and `kl_to_target`.
    """
    probs = np.exp(np.asarray(log_probs, np.float64))
    importance = np.full(len(probs), 1 / len(probs)) if weights is None else normalised(weights, len(probs))
    choices = np.eye(probs.shape[1])[probs.argmax(axis=1)]
    counts = np.random.default_rng(seed).multinomial(len(probs), np.full(len(probs), 1 / len(probs)), RESAMPLES)
    resampled = counts * importance
    total = resampled.sum(axis=1, keepdims=True)
    resampled = (resampled / np.where(total > 0, total, 1))[total[:, 0] > 0]  # a draw may miss the one large weight
    result: dict = {}
    for kind, values in (("soft", probs), ("hard", choices)):
        scattered = [kl_to_target(share, mu) for share in resampled @ values]
        # nothing lies between a number and infinity
        between: Any = "linear" if np.isfinite(scattered).all() else "nearest"
        ends = np.quantile(scattered, (0.025, 0.975), method=between)
        result |= _named(kind, kl_to_target(importance @ values, mu), *ends.tolist())
    return result


def _named(kind: str, value: float, low: float, high: float) -> dict[str, float]:
    return {kind: value, f"{kind}_low": low, f"{kind}_high": high}
