"""Who appears how often: shares of a judge's classes with intervals, distance to a target, diversity.

NumPy, on numbers that judges and embedders returned. A judge is a classifier: a share is what it sees,
not what is true; name it, and where possible show a second judge that was not the control.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit

from promptgen_jax import checks

Z_95 = 1.959963984540054  # two-sided 95 % quantile of the standard normal
RESAMPLES = 400  # of the bootstrap


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
    weights = np.full(len(probs), 1 / len(probs)) if weights is None else _normalised(weights, len(probs))
    ess = effective_sample_size(weights)
    choices = np.eye(len(labels))[probs.argmax(axis=1)]
    return {
        label: {
            **_named("soft", *_mean_interval(probs[:, k], weights, ess)),
            **_named("hard", *_share_interval(choices[:, k], weights, ess)),
        }
        for k, label in enumerate(labels)
    }


def wilson_interval(share: float, num_samples: float) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion, which neither leaves [0, 1] nor collapses at its ends.

        (p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n)

    Args:
      share: p in [0, 1].
      num_samples: n > 0; an effective number need not be whole.

    Returns:
      (low, high).
    Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference, 1927.
    """
    ratio = Z_95**2 / num_samples
    centre = share + ratio / 2
    half = math.sqrt(ratio * share * (1 - share) + ratio**2 / 4)
    return max(0.0, (centre - half) / (1 + ratio)), min(1.0, (centre + half) / (1 + ratio))


def effective_sample_size(weights) -> float:
    """(Σ w)² / Σ w² of weights (N,): N if all are equal, near 1 if a single one dominates.

    Raises:
      ValueError: weights that are negative, not finite or all zero.
    """
    weights = _normalised(weights, np.size(weights))
    return float(1 / np.sum(weights**2))


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
    weights = np.full(len(probs), 1 / len(probs)) if weights is None else _normalised(weights, len(probs))
    choices = np.eye(probs.shape[1])[probs.argmax(axis=1)]
    counts = np.random.default_rng(seed).multinomial(len(probs), np.full(len(probs), 1 / len(probs)), RESAMPLES)
    resampled = counts * weights
    total = resampled.sum(axis=1, keepdims=True)
    resampled = (resampled / np.where(total > 0, total, 1))[total[:, 0] > 0]  # a draw may miss the one large weight
    result = {}
    for kind, values in (("soft", probs), ("hard", choices)):
        scattered = [kl_to_target(share, mu) for share in resampled @ values]
        result |= _named(kind, kl_to_target(weights @ values, mu), *np.quantile(scattered, (0.025, 0.975)).tolist())
    return result


def diversity(images, embeddings=None) -> dict[str, float]:
    """How different the samples are from one another.

    Args:
      images: (N, H, W, 3) in [0, 1], N at least 2.
      embeddings: (N, E) features of an identity or content network.

    Returns:
      {"pixel_std"}: standard deviation over samples, averaged over pixels and channels; larger is more
      diverse. With embeddings also {"embedding_cosine"}: mean cosine over all pairs, in [-1, 1]; smaller is
      more diverse.

    Raises:
      ValueError, TypeError: bad images or fewer than two, embeddings of another length, zero or not finite.
    """
    checks.check_images("diversity", images)
    images = np.asarray(images)
    if len(images) < 2:
        raise ValueError("diversity: got one image; expected at least two. Sample more.")
    # row by row, so that no double-precision copy of the whole batch is made
    rows = [images[:, row].std(axis=0, dtype=np.float64).mean() for row in range(images.shape[1])]
    result = {"pixel_std": float(np.mean(rows))}
    if embeddings is not None:
        result["embedding_cosine"] = _mean_pairwise_cosine(np.asarray(embeddings, np.float64), len(images))
    return result


def _mean_pairwise_cosine(embeddings: np.ndarray, num: int) -> float:
    """(|Σ u|² − N) / (N (N − 1)) for unit vectors u, which is the mean over pairs without forming them."""
    norms = np.linalg.norm(embeddings, axis=-1, keepdims=True)
    if embeddings.ndim != 2 or len(embeddings) != num or not np.all((norms > 0) & np.isfinite(norms)):
        raise ValueError(
            f"diversity: embeddings are {embeddings.shape}; expected ({num}, features), finite and not zero. "
            "Pass one row per image."
        )
    total = np.sum(embeddings / norms, axis=0)
    return float((total @ total - num) / (num * (num - 1)))


def _normalised(weights, num: int) -> np.ndarray:
    weights = np.asarray(weights, np.float64)
    total = weights.sum()
    if weights.shape != (num,) or not np.all(weights >= 0) or not (0 < total < np.inf):
        raise ValueError(
            f"weights are {weights.shape} with sum {total:.4g}; expected ({num},) finite numbers of at least "
            "0, not all 0. Subtract the largest log-weight before taking exp."
        )
    return weights / total


def _mean_interval(values: np.ndarray, weights: np.ndarray, ess: float) -> tuple[float, float, float]:
    """Mean of values in [0, 1] with Student's interval: (mean, low, high), weights adding up to 1."""
    mean = float(weights @ values)
    freedom = ess - 1
    if freedom < 1e-9:  # one sample says nothing of the spread
        return mean, 0.0, 1.0
    error = math.sqrt(np.sum((weights * (values - mean)) ** 2) * ess / freedom)
    half = float(stdtrit(freedom, 0.975)) * error if error else 0.0
    return mean, max(0.0, mean - half), min(1.0, mean + half)


def _share_interval(chosen: np.ndarray, weights: np.ndarray, ess: float) -> tuple[float, float, float]:
    """Share of the ones in `chosen` with Wilson's interval: (share, low, high)."""
    share = float(np.clip(weights @ chosen, 0, 1))
    variance = float(np.sum((weights * (chosen - share)) ** 2))
    equal_weight = share * (1 - share) / variance if variance > 0 else ess
    return share, *wilson_interval(share, min(ess, max(equal_weight, 1.0)))


def _named(kind: str, value: float, low: float, high: float) -> dict[str, float]:
    return {kind: value, f"{kind}_low": low, f"{kind}_high": high}
