"""Exact solutions of the toy problems of `generators.synthetic`, in float64: what a trained flow must reach."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, log_expit, logsumexp
from scipy.stats import norm

from promptgen_jax import checks
from promptgen_jax.devices import map_batches
from promptgen_jax.ebm import LatentEBM
from promptgen_jax.generators.synthetic import OFFSET, SHARES, LinearGenerator

LOGIT = float(6 * np.sqrt(2))  # of the classifier along the diagonal: p(a_1 | x) = sigmoid(6 sqrt 2 u)


class NormalTarget(NamedTuple):
    """A normal target: mean (D,), covariance (D, D), log_z in nats."""

    mean: np.ndarray
    covariance: np.ndarray
    log_z: float


class MixtureTarget(NamedTuple):
    """A target on mixture2d.

    Attributes:
      log_z: nats; of "moment" in the gauge beta_2 = 0.
      kl_prior: KL(target || prior), nats.
      share: E[p(a_1 | x)] under the target.
      beta_gap: beta_1 - beta_2; 0 for the classifier.
    """

    log_z: float
    kl_prior: float
    share: float
    beta_gap: float


class PlaneTarget(NamedTuple):
    """A target on mixture2d as its latents see it: mean (2,), covariance (2, 2), log_z in nats."""

    mean: np.ndarray
    covariance: np.ndarray
    log_z: float


def linear_target(generator: LinearGenerator, target, scale: float) -> NormalTarget:
    """p(z) exp(-½ |(A z + b - target) / scale|²) / Z for the standard normal prior: Bayesian linear regression."""
    matrix = np.asarray(generator.matrix, np.float64)
    gap = np.asarray(target, np.float64) - np.asarray(generator.bias, np.float64)
    covariance = np.linalg.inv(np.eye(matrix.shape[1]) + matrix.T @ matrix / scale**2)
    evidence = matrix @ matrix.T / scale**2 + np.eye(matrix.shape[0])
    quadratic = gap @ np.linalg.solve(evidence, gap) / scale**2
    log_z = -0.5 * (quadratic + np.linalg.slogdet(evidence)[1])
    return NormalTarget(covariance @ matrix.T @ gap / scale**2, covariance, float(log_z))


def wells_log_z(centres, scale: float) -> float:
    """The log Z of `WellsControl` under a standard normal prior: each well times the prior is a normal."""
    centres = np.asarray(centres, np.float64)
    variance = 1 + scale**2
    each = -0.5 * np.sum(centres**2, axis=1) / variance + 0.5 * centres.shape[1] * np.log(scale**2 / variance)
    return float(logsumexp(each))


def mixture_classifier() -> MixtureTarget:
    """mixture2d with the energy -log p(a_1 | x) and weight 1: log Z = -1.20395."""
    return _mixture_target(log_expit, 0.0)


def mixture_debias(mu: float = 0.5) -> MixtureTarget:
    """mixture2d with E[p(a_1 | x)] = mu: for 0.5, beta_1 - beta_2 = 0.84730 and log Z = 0.33648."""

    def target(gap):
        return _mixture_target(lambda logit: gap * expit(logit), gap)

    return target(brentq(lambda gap: target(gap).share - mu, -20, 20, xtol=1e-12))


def mixture_strength(strength: float, beta_gap: float | None = None) -> PlaneTarget:
    """mixture2d with a strength of the energy -log p(a_1 | x), or of -beta_gap p(a_1 | x): what a dial must reach."""

    def tilt(logit):
        return strength * (log_expit(logit) if beta_gap is None else beta_gap * expit(logit))

    u, density, _, log_z = _tilted(tilt)
    below, above = (SHARES[0] * tail(u - OFFSET) + SHARES[1] * tail(u + OFFSET) for tail in (norm.cdf, norm.sf))
    z = np.where(below < 0.5, norm.ppf(below), norm.isf(above))  # z1 by the nearer tail; z2 stays normal
    mean = float(density @ z)
    return PlaneTarget(np.array([mean, 0.0]), np.diag([float(density @ (z - mean) ** 2), 1.0]), log_z)


def _mixture_target(log_tilt, beta_gap: float) -> MixtureTarget:
    u, density, tilt, log_z = _tilted(log_tilt)
    return MixtureTarget(log_z, float(density @ tilt - log_z), float(density @ expit(LOGIT * u)), beta_gap)


def _tilted(log_tilt) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """The diagonal u, on which alone a target depends, its density there times the step, log tilt, and log Z."""
    u, step = np.linspace(-16, 16, 64001, retstep=True)
    tilt = log_tilt(LOGIT * u)
    log_prior = np.logaddexp(np.log(SHARES[0]) + norm.logpdf(u - OFFSET), np.log(SHARES[1]) + norm.logpdf(u + OFFSET))
    log_z = float(logsumexp(log_prior + tilt) + np.log(step))
    return u, np.exp(log_prior + tilt - log_z) * step, tilt, log_z


def log_z_quadrature(ebm: LatentEBM, *, bound: float = 7.0, num_points: tuple[int, int] = (512, 512)) -> float:
    """The log Z = log ∫ p_z(z) exp(-E_C(G(z))) dz of any target with a 2-D latent, by the midpoint rule.

    Args:
      ebm: target whose energy does not depend on the key.
      bound: the square from -bound to bound, in standard deviations of the prior.
      num_points: along z1 and z2; where the energy jumps, the error is proportional to the spacing.

    Raises:
      ValueError: the latent has not two dimensions.
    """
    prior = ebm.generator.prior
    if prior.dim != 2:
        raise ValueError(f"log_z_quadrature: latents have {prior.dim} dimensions; expected 2. Use importance sampling.")
    for count in num_points:
        checks.check_count("log_z_quadrature: num_points", count)
    axes = [bound * (2 * (np.arange(count) + 0.5) / count - 1) for count in num_points]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)
    z = prior.loc + prior.scale * jnp.asarray(grid, jnp.float32)
    key = jax.random.key(0)
    jitted = jax.jit(lambda ebm, z: ebm.log_prob(key, z))
    log_density = map_batches(lambda batch: jitted(ebm, batch), 2**16, z).astype(np.float64)
    log_area = sum(np.log(2 * bound / count) for count in num_points) + np.sum(np.log(np.asarray(prior.scale)))
    return float(logsumexp(log_density) + log_area)
