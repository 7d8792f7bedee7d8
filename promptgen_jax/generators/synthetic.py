"""Toy generators with exact solutions: the test bench of objectives, flows and certificates.

An exception to the contract of images: these are pictures of *points*. A point x in R^M is stored as the channels of
a (1, ceil(M / 3), 3) image, filled up with zeros, so a point of the plane is the single pixel (x1, x2, 0). The values
are plain coordinates and not confined to [0, 1]; only the controls of `controls.synthetic` understand them.
"""

from __future__ import annotations

import hashlib
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.scipy.special import log_ndtr, logsumexp
from jax.scipy.stats import norm

from promptgen_jax import checks
from promptgen_jax.types import Array, Prior, Spec, spec_field

PROBLEMS = ("mixture2d", "linear", "wells")
SHARES = (0.3, 0.7)  # of the modes at (3, 3) and (-3, -3)
OFFSET = float(3 * np.sqrt(2))  # distance of both modes from the origin, along the diagonal u
BISECTIONS = 30


def to_images(points: Array) -> Array:
    """Points (B, M) as images (B, 1, ceil(M / 3), 3)."""
    return jnp.pad(points, ((0, 0), (0, -points.shape[1] % 3))).reshape(points.shape[0], 1, -1, 3)


def to_points(images: Array, dim: int) -> Array:
    """Images (B, 1, W, 3) back to points (B, dim)."""
    return images.reshape(images.shape[0], -1)[:, :dim]


@struct.dataclass
class MixtureGenerator:
    """z ~ N(0, I) in the plane to x ~ 0.3 N((3, 3), I) + 0.7 N((-3, -3), I), in closed form.

    With u = (x1 + x2) / sqrt 2 and v = (x1 - x2) / sqrt 2:  u = F^{-1}(Phi(z1)), v = z2, F the CDF of the mixture of u.
    """

    makes: ClassVar[str] = "points"

    prior: Prior
    name: str = struct.field(pytree_node=False, default="synthetic_mixture2d")
    checksum: str = struct.field(pytree_node=False, default="")
    image_size: int = struct.field(pytree_node=False, default=1)
    spec: Spec | None = spec_field()

    def __call__(self, key: Array, z: Array) -> Array:
        """Points (B, 1, 1, 3) of latents (B, 2); `key` is not used."""
        del key
        checks.check_latents(self.name, z, self.prior.dim)
        u, v = mixture_quantile(z[:, 0]), z[:, 1]
        return to_images(jnp.stack([u + v, u - v], axis=1) / np.sqrt(2))


@struct.dataclass
class LinearGenerator:
    """x = A z + b: with a quadratic energy the target is normal, its mean and covariance are known.

    Attributes:
      matrix: (M, D).
      bias: (M,).
    """

    makes: ClassVar[str] = "points"

    matrix: Array
    bias: Array
    prior: Prior
    name: str = struct.field(pytree_node=False, default="synthetic_linear")
    checksum: str = struct.field(pytree_node=False, default="")
    image_size: int = struct.field(pytree_node=False, default=1)
    spec: Spec | None = spec_field()

    def __call__(self, key: Array, z: Array) -> Array:
        """Points (B, 1, ceil(M / 3), 3) of latents (B, D); `key` is not used."""
        del key
        checks.check_latents(self.name, z, self.prior.dim)
        points = jnp.matmul(z, self.matrix.T, precision=jax.lax.Precision.HIGHEST) + self.bias
        return to_images(points)


@struct.dataclass
class IdentityGenerator:
    """x = z, for energies written directly on the latent, such as the four wells."""

    makes: ClassVar[str] = "points"

    prior: Prior
    name: str = struct.field(pytree_node=False, default="synthetic_wells")
    checksum: str = struct.field(pytree_node=False, default="")
    image_size: int = struct.field(pytree_node=False, default=1)
    spec: Spec | None = spec_field()

    def __call__(self, key: Array, z: Array) -> Array:
        """Points (B, 1, ceil(D / 3), 3) of latents (B, D); `key` is not used."""
        del key
        checks.check_latents(self.name, z, self.prior.dim)
        return to_images(z)


def build(*, problem: str, dim: int = 8, seed: int = 0) -> MixtureGenerator | LinearGenerator | IdentityGenerator:
    """A toy generator.

    Args:
      problem: "mixture2d", "linear" or "wells".
      dim: D and M of "linear"; the others live in the plane.
      seed: draws A and b of "linear".

    Raises:
      ValueError: unknown problem, with the nearest match, or dim below 1.
    """
    checks.check_known("synthetic: problem", problem, PROBLEMS)
    checks.check_count("synthetic: dim", dim)
    if problem == "linear":
        rng = np.random.default_rng(seed)
        matrix = (rng.normal(size=(dim, dim)) / np.sqrt(dim)).astype(np.float32)
        bias = (0.3 * rng.normal(size=dim)).astype(np.float32)
        checksum = _checksum(problem, matrix, bias)
        return LinearGenerator(jnp.asarray(matrix), jnp.asarray(bias), Prior.standard(dim), checksum=checksum)
    cls: Any = {"mixture2d": MixtureGenerator, "wells": IdentityGenerator}[problem]
    return cls(Prior.standard(2), checksum=_checksum(problem))


def _checksum(problem: str, *arrays: np.ndarray) -> str:
    return hashlib.sha256(b"".join([problem.encode(), *(array.tobytes() for array in arrays)])).hexdigest()


@jax.custom_jvp
def mixture_quantile(z: Array) -> Array:
    """F^{-1}(Phi(z)), F(u) = 0.3 Phi(u - 3 sqrt 2) + 0.7 Phi(u + 3 sqrt 2), elementwise.

    Bisection between the quantiles of the two modes, z - 3 sqrt 2 and z + 3 sqrt 2, in log probability of the nearer
    tail, so float32 is enough for any z. The derivative is exact: du/dz = phi(z) / F'(u).
    """
    sign = jnp.where(z < 0, 1.0, -1.0)  # lower tail, or the upper tail mirrored
    wanted = log_ndtr(sign * z)

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        tails = jnp.stack([log_ndtr(sign * (middle - OFFSET)), log_ndtr(sign * (middle + OFFSET))])
        log_tail = logsumexp(tails + _log_shares(tails), axis=0)
        below = sign * (log_tail - wanted) < 0
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    low, high = jax.lax.fori_loop(0, BISECTIONS, halve, (z - OFFSET, z + OFFSET))
    return (low + high) / 2


@mixture_quantile.defjvp
def _mixture_quantile_jvp(primals, tangents):
    (z,), (tangent,) = primals, tangents
    u = mixture_quantile(z)
    densities = jnp.stack([norm.logpdf(u - OFFSET), norm.logpdf(u + OFFSET)])
    log_density = logsumexp(densities + _log_shares(densities), axis=0)
    return u, jnp.exp(norm.logpdf(z) - log_density) * tangent


def _log_shares(stacked: Array) -> Array:
    return jnp.log(jnp.asarray(SHARES, stacked.dtype)).reshape(-1, *[1] * (stacked.ndim - 1))


def tiny() -> MixtureGenerator | LinearGenerator | IdentityGenerator:
    """A small one for tests: 8 latents to a point."""
    return build(problem="linear")
