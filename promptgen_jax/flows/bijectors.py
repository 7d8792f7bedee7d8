"""Pieces of the flow as distrax bijectors on vectors: rotation, permutation, and bijectors in a row or side by side.

Forward is the direction noise to latent. Every matrix product runs at full float32: with TF32 or bfloat16 passes the
inverse would see other log-scales than the forward map did, and the round trip would fail.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import distrax
import jax
import jax.numpy as jnp
from jax import Array

from promptgen_jax.types import PyTree

PRECISION = jax.lax.Precision.HIGHEST


class Rotation(distrax.Bijector):
    """The rotation y = R x for a fixed rotation R (D, D); the inverse is the transpose, log_det is 0."""

    def __init__(self, matrix: Array):
        super().__init__(event_ndims_in=1, is_constant_jacobian=True)
        self._matrix = matrix

    def forward_and_log_det(self, x: Array) -> tuple[Array, Array]:
        """Rotates (..., D)."""
        return jnp.matmul(x, self._matrix.T, precision=PRECISION), jnp.zeros(x.shape[:-1])

    def inverse_and_log_det(self, y: Array) -> tuple[Array, Array]:
        """Rotates (..., D) back."""
        return jnp.matmul(y, self._matrix, precision=PRECISION), jnp.zeros(y.shape[:-1])


def num_pairs(dim: int) -> int:
    """How many pairs of D numbers `PairRotation` rotates."""
    return max(1, dim // 4)


class PairRotation(distrax.Bijector):
    """Rotates pairs of features by angles (..., A): R(rho), orthogonal, R(a) R(b) = R(a + b); log_det is 0.

    Of x (..., D) the first half is rotated, x_i with x_{i+P} for i < P = D // 4, or 1 if D < 4, by the angle of index
    i mod A; the rest stays, for what does not depend on the condition.
    """

    def __init__(self, angles: Array):
        super().__init__(event_ndims_in=1, is_constant_jacobian=True)
        self._angles = angles

    def _rotate(self, x: Array, angles: Array) -> Array:
        pairs = num_pairs(x.shape[-1])
        angle = jnp.take(angles, jnp.arange(pairs) % angles.shape[-1], axis=-1)
        one, other, rest = jnp.split(x, (pairs, 2 * pairs), axis=-1)
        cosine, sine = jnp.cos(angle), jnp.sin(angle)
        return jnp.concatenate([cosine * one - sine * other, sine * one + cosine * other, rest], axis=-1)

    def forward_and_log_det(self, x: Array) -> tuple[Array, Array]:
        """Rotates (..., D)."""
        return self._rotate(x, self._angles), jnp.zeros(x.shape[:-1])

    def inverse_and_log_det(self, y: Array) -> tuple[Array, Array]:
        """Rotates (..., D) back."""
        return self._rotate(y, -self._angles), jnp.zeros(y.shape[:-1])


class Permutation(distrax.Bijector):
    """Reorders, y_i = x_{p(i)}, by fixed integers p (D,); log_det is 0."""

    def __init__(self, indices: Array):
        super().__init__(event_ndims_in=1, is_constant_jacobian=True)
        self._indices = indices

    def forward_and_log_det(self, x: Array) -> tuple[Array, Array]:
        """Permutes the last axis of (..., D)."""
        return jnp.take(x, self._indices, axis=-1, mode="clip"), jnp.zeros(x.shape[:-1])

    def inverse_and_log_det(self, y: Array) -> tuple[Array, Array]:
        """Permutes the last axis of (..., D) back."""
        return jnp.take(y, jnp.argsort(self._indices), axis=-1, mode="clip"), jnp.zeros(y.shape[:-1])


class Repeated(distrax.Bijector):
    """Bijectors of one make in a row, which a program holds once, as the body of a loop.

    Args:
      make: from the arrays of one of them, and those of all, to its bijectors in the order in which they act.
      arrays: tree of what differs, along a first axis.
      shared: tree of what they have in common.
    """

    def __init__(self, make: Callable[[PyTree, PyTree], list[distrax.Bijector]], arrays: PyTree, shared: PyTree):
        super().__init__(event_ndims_in=1)
        self._make, self._arrays, self._shared = make, arrays, shared

    def _apply(self, x: Array, method: str, *, reverse: bool) -> tuple[Array, Array]:
        def step(carried: tuple[Array, Array], arrays: PyTree) -> tuple[tuple[Array, Array], None]:
            value, total = carried
            value, log_det = getattr(distrax.Chain(self._make(arrays, self._shared)[::-1]), method)(value)
            return (value, total + log_det), None

        return jax.lax.scan(step, (x, jnp.zeros(x.shape[:-1])), self._arrays, reverse=reverse)[0]

    def forward_and_log_det(self, x: Array) -> tuple[Array, Array]:
        """(..., D) through all of them, the first one first."""
        return self._apply(x, "forward_and_log_det", reverse=False)

    def inverse_and_log_det(self, y: Array) -> tuple[Array, Array]:
        """(..., D) back through all of them, the last one first."""
        return self._apply(y, "inverse_and_log_det", reverse=True)


class SideBySide(distrax.Bijector):
    """Independent bijectors on consecutive pieces of a vector; their log_dets add (Eq. 11).

    Args:
      bijectors: one per piece.
      sizes: lengths of the pieces, adding up to D.
    """

    def __init__(self, bijectors: Sequence[distrax.Bijector], sizes: Sequence[int]):
        super().__init__(event_ndims_in=1)
        self._bijectors = tuple(bijectors)
        self._edges = tuple(sum(sizes[: i + 1]) for i in range(len(sizes) - 1))

    @property
    def bijectors(self) -> tuple[distrax.Bijector, ...]:
        """One per piece."""
        return self._bijectors

    def _apply(self, x: Array, method: str) -> tuple[Array, tuple[Array, ...]]:
        pieces = jnp.split(x, self._edges, axis=-1)
        done = [getattr(b, method)(piece) for b, piece in zip(self._bijectors, pieces, strict=True)]
        values, log_dets = zip(*done, strict=True)
        return jnp.concatenate(values, axis=-1), log_dets

    def forward_and_log_dets(self, x: Array) -> tuple[Array, tuple[Array, ...]]:
        """Noise (..., D) to latent (..., D) and the log_dets (...,) of the pieces, a tuple."""
        return self._apply(x, "forward_and_log_det")

    def forward_and_log_det(self, x: Array) -> tuple[Array, Array]:
        """Noise (..., D) to latent (..., D) and log_det (...,)."""
        y, log_dets = self.forward_and_log_dets(x)
        return y, sum(log_dets, start=jnp.zeros(()))

    def inverse_and_log_det(self, y: Array) -> tuple[Array, Array]:
        """Latent (..., D) to noise (..., D) and the log_det (...,) of that map."""
        x, log_dets = self._apply(y, "inverse_and_log_det")
        return x, sum(log_dets, start=jnp.zeros(()))


class Held(distrax.Bijector):
    """A bijector that is the identity, to the last bit, for some of the vectors: its rounding does not reach them.

    Args:
      bijector: of vectors (..., D).
      held: (..., 1) which of them stay as they are.
    """

    def __init__(self, bijector: distrax.Bijector, held: Array):
        super().__init__(event_ndims_in=1)
        self._bijector, self._held = bijector, held

    def _apply(self, x: Array, method: str) -> tuple[Array, Array]:
        y, log_det = getattr(self._bijector, method)(x)
        return jnp.where(self._held, x, y), jnp.where(self._held[..., 0], 0.0, log_det)

    def forward_and_log_det(self, x: Array) -> tuple[Array, Array]:
        """Noise (..., D) to latent (..., D) and log_det (...,)."""
        return self._apply(x, "forward_and_log_det")

    def inverse_and_log_det(self, y: Array) -> tuple[Array, Array]:
        """Latent (..., D) to noise (..., D) and the log_det (...,) of that map."""
        return self._apply(y, "inverse_and_log_det")


class Within(distrax.Bijector):
    """x + V (f(Vᵀ x) - Vᵀ x): a bijector f of k numbers, along k directions; what is across them stays as it is.

    Args:
      bijector: f, of vectors (..., k).
      directions: V (D, k), orthonormal columns.
    """

    def __init__(self, bijector: distrax.Bijector, directions: Array):
        super().__init__(event_ndims_in=1)
        self._bijector, self._directions = bijector, directions

    def _apply(self, x: Array, method: str) -> tuple[Array, Array]:
        inner = jnp.matmul(x, self._directions, precision=PRECISION)
        moved, log_det = getattr(self._bijector, method)(inner)
        return x + jnp.matmul(moved - inner, self._directions.T, precision=PRECISION), log_det

    def forward_and_log_det(self, x: Array) -> tuple[Array, Array]:
        """Noise (..., D) to latent (..., D) and log_det (...,)."""
        return self._apply(x, "forward_and_log_det")

    def inverse_and_log_det(self, y: Array) -> tuple[Array, Array]:
        """Latent (..., D) to noise (..., D) and the log_det (...,) of that map."""
        return self._apply(y, "inverse_and_log_det")


@functools.partial(jax.jit, static_argnums=(1, 2))
def special_orthogonal(key: Array, num: int, dim: int) -> Array:
    """Draws (num, dim, dim) rotations, uniform on SO(dim): QR of normal matrices with the signs fixed."""
    q, r = jnp.linalg.qr(jax.random.normal(key, (num, dim, dim), jnp.float32))
    q = q * jnp.where(jnp.diagonal(r, axis1=1, axis2=2) < 0, -1.0, 1.0)[:, None, :]
    sign, _ = jnp.linalg.slogdet(q)
    return q.at[:, :, 0].multiply(sign[:, None])


def compose_rotations(matrices: Sequence[Array]) -> Array:
    """The one rotation R_n ... R_1 (D, D) that equals applying n of them, each (D, D), from first to last."""
    total = matrices[0]
    for matrix in matrices[1:]:
        total = jnp.matmul(matrix, total, precision=PRECISION)
    return total
