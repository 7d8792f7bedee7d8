"""Shares that a condition asks for: beta(mu) of the convex dual on cached samples, and the control that follows it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from promptgen_jax.types import FOLLOWS, Aim, Array, Sample, Spec, spec_field

STEPS, RIDGE = 2, 1e-6  # Newton's, from the tangent at the nearest knot; what keeps a covariance invertible


class Dual(struct.PyTreeNode):
    """The beta of every wanted mean: the smooth map that `training.moments.fit_beta` evaluates at one mu, as JAX.

        beta(mu) = argmin  log mean_n exp(beta · gamma_n) - beta · mu

    There the weighted mean of gamma is mu. So the derivative is that of an implicit function, the inverse of the
    weighted covariance of gamma, and no iteration is differentiated. It also gives the start: the tangent at the
    nearest knot, from which few of Newton's steps are left to go.

    Attributes:
      gamma: (N, A) what is constrained, of samples of the generator.
      knots: (K, A) wanted means where beta is known.
      solved: (K, A) beta there.
    """

    gamma: Array = struct.field(repr=False)
    knots: Array = struct.field(repr=False)
    solved: Array = struct.field(repr=False)

    def __call__(self, mu: Array) -> Array:
        """Wanted means (B, A) to beta (B, A)."""
        middle, spread = jnp.mean(self.gamma, axis=0), jnp.std(self.gamma, axis=0)
        nearest = jnp.argmin(jnp.sum(((mu[:, None] - self.knots) / spread) ** 2, axis=-1), axis=1)
        beta = _beta((self.gamma - middle) / spread, (mu - middle) / spread, self.solved[nearest] * spread)
        return beta / spread

    def log_z(self, beta: Array) -> Array:
        """Log mean_n exp(beta · gamma_n) (B,) of beta (B, A)."""
        return jax.nn.logsumexp(_dot(beta, self.gamma.T), axis=1) - jnp.log(len(self.gamma))


@jax.custom_jvp
def _beta(gamma: Array, mu: Array, start: Array) -> Array:
    """The beta (B, A) of mu (B, A) from samples (N, A), by Newton's method; the first step follows the tangent."""
    beta = start
    for _ in range(1 + STEPS):
        mean, covariance = _moments(gamma, beta)
        beta = beta + _solve(covariance, mu - mean)
    return beta


@_beta.defjvp
def _beta_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    """Of E[gamma] = mu: d beta = Cov(gamma)^-1 (d mu - what d gamma does to the mean at this beta), from any start."""
    gamma, mu, start = primals
    beta = _beta(gamma, mu, start)
    _, drift = jax.jvp(lambda gamma: _moments(gamma, beta)[0], (gamma,), (tangents[0],))
    return beta, _solve(_moments(gamma, beta)[1], tangents[1] - drift)


def _solve(covariance: Array, right: Array) -> Array:
    """Cov^-1 right (B, A)."""
    return jnp.linalg.solve(covariance + RIDGE * jnp.eye(right.shape[1]), right[..., None])[..., 0]


def _moments(gamma: Array, beta: Array) -> tuple[Array, Array]:
    """Means (B, A) and covariances (B, A, A) of gamma (N, A) under weights in proportion to exp(beta · gamma)."""
    weight = jax.nn.softmax(_dot(beta, gamma.T), axis=1)
    mean, products = _dot(weight, gamma), gamma[:, :, None] * gamma[:, None, :]
    second = _dot(weight, products.reshape(len(gamma), -1)).reshape(*beta.shape, beta.shape[1])
    return mean, second - mean[:, :, None] * mean[:, None, :]


def _dot(one: Array, other: Array) -> Array:
    return jnp.matmul(one, other, precision=jax.lax.Precision.HIGHEST)


@struct.dataclass
class FollowedShares:
    """E(x) = log Z(mu) - beta(mu) · gamma(x), with mu the condition: a `MomentControl` whose shares that asks for.

    Each control bears the part of log Z of its own labels, so that together they leave every condition as likely as it
    was. Without it some would outweigh others in what objectives compare or weigh over a batch of several conditions.

    Labels that the condition does not name are left to the generator. `training.fit_moments` makes it.

    Attributes:
      constraint: the moment constraint, which has a classifier for gamma.
      dual: of all shares that the condition asks for, here and of other controls.
      labels: which of its labels the condition asks for.
      picked: their columns of its gamma.
      columns: their places in the dual.
      places: those of all components of the dual in a condition.
      lift: (K, F) what `closed_loop` adds to beta while a flow trains that falls short: factors of the first Legendre
        polynomials, 1, √3 t and √5 (3 t² - 1) / 2, of each wanted mean, with t from -1 to 1 over the knots. They are
        of the same size, and so learn at the same rate. Zero of the target itself.
    """

    constraint: Any
    dual: Dual = struct.field(metadata={FOLLOWS: True})
    labels: tuple[str, ...] = struct.field(pytree_node=False)
    picked: tuple[int, ...] = struct.field(pytree_node=False)
    columns: tuple[int, ...] = struct.field(pytree_node=False)
    places: tuple[int, ...] = struct.field(pytree_node=False)
    lift: Array = struct.field(metadata={FOLLOWS: True})
    needs_reference: bool = struct.field(pytree_node=False, default=False)
    spec: Spec | None = spec_field()

    @property
    def name(self) -> str:
        """That of the constraint."""
        return self.constraint.name

    @property
    def weight(self) -> Array:
        """The paper's lambda on beta; anything but 1 overshoots."""
        return self.constraint.weight

    @property
    def aims(self) -> tuple[Aim, ...]:
        """The labels; which share of them is wanted, the condition says."""
        return tuple(
            Aim(aim.network, aim.output, labels=self.labels, unit="share", count=aim.count)
            for aim in self.constraint.aims
        )

    @property
    def networks(self) -> tuple:
        """Of the constraint."""
        return self.constraint.networks

    def gamma(self, images: Array) -> Array:
        """What the energy is linear in, (B, K), of the labels that are asked for."""
        return self.constraint.gamma(images)[:, self.picked]

    def slopes(self, cond: Array) -> Array:
        """The beta (B, K) of them under conditions (B, A)."""
        return self.dual(cond[:, self.places])[:, self.columns] + self._lifted(cond)

    def _lifted(self, cond: Array) -> Array:
        """What is added to beta, (B, K)."""
        low, high = jnp.min(self.dual.knots, axis=0), jnp.max(self.dual.knots, axis=0)
        at = (2 * cond[:, self.places] - low - high) / jnp.where(high > low, high - low, 1)
        curved = np.sqrt(5) * (3 * at**2 - 1) / 2
        return _dot(jnp.concatenate([jnp.ones((len(cond), 1)), np.sqrt(3) * at, curved], axis=1), self.lift.T)

    def __call__(self, key: Array, sample: Sample) -> Array:
        """Energies (B,), nats. `key` is not used."""
        del key
        if sample.cond is None:
            raise ValueError(
                f"control {self.name}: condition is none; it follows shares. Give the LatentEBM a cond_prior of them."
            )
        gamma, mu = self.gamma(sample.images), sample.cond[:, self.places]
        beta, columns = self.dual(mu), list(self.columns)
        own = len(columns) / beta.shape[1] * self.dual.log_z(beta)
        # with the factor gamma - mu the gradient by `lift` is the gap to mu: the flow's moments less it
        lifted = self._lifted(sample.cond) * (gamma - mu[:, columns])
        return own - jnp.sum(gamma * beta[:, columns] + lifted, axis=1)
