"""Weighted samples of the target that an objective keeps from step to step: a ring, the oldest replaced first."""

from __future__ import annotations

from typing import Self

import jax
import jax.numpy as jnp
from flax import struct

from promptgen_jax.ebm import LatentEBM
from promptgen_jax.types import Array


class Buffer(struct.PyTreeNode):
    """N weighted samples.

    Attributes:
      z: (N, D) latents.
      cond: (N, A) conditions, or None.
      log_weight: (N,) nats; minus infinity where the place is empty.
      log_q: (N,) log density of the flow when it was last asked.
      written: () how many samples have been written so far.
    """

    z: Array
    cond: Array | None
    log_weight: Array
    log_q: Array
    written: Array

    @classmethod
    def empty(cls, ebm: LatentEBM, size: int, **further: Array) -> Self:
        """Places for `size` samples of a target; `further` are the fields that a subclass adds."""
        cond_dim = ebm.cond_prior.dim if ebm.cond_prior else 0
        return cls(
            z=jnp.zeros((size, ebm.generator.prior.dim)),
            cond=jnp.zeros((size, cond_dim)) if cond_dim else None,
            log_weight=jnp.full(size, -jnp.inf),
            log_q=jnp.zeros(size),
            written=jnp.zeros((), jnp.int32),
            **further,
        )

    def add(self, z: Array, cond: Array | None, log_weight: Array, log_q: Array) -> Self:
        """With samples z (B, D), conditions (B, A), log weights (B,) and log q (B,) in place of the oldest ones."""
        size, count = len(self.log_weight), len(z)
        z, log_weight, log_q = (each[-size:] for each in (z, log_weight, log_q))
        rows = (self.written + jnp.arange(len(z))) % size
        log_weight = jnp.where(jnp.isfinite(log_weight), log_weight, -jnp.inf)
        return self.replace(
            z=self.z.at[rows].set(z),
            cond=None if cond is None or self.cond is None else self.cond.at[rows].set(cond[-size:]),
            log_weight=self.log_weight.at[rows].set(log_weight),
            log_q=self.log_q.at[rows].set(log_q),
            written=self.written + count,
        )

    def choose(self, key: Array, count: int) -> Array:
        """Rows (count,) drawn with repetition in proportion to the weights, evenly spread (systematic resampling)."""
        weight = jnp.cumsum(jax.nn.softmax(self.log_weight))
        ticks = (jnp.arange(count) + jax.random.uniform(key)) / count
        return jnp.clip(jnp.searchsorted(weight, ticks * weight[-1]), 0, len(weight) - 1)

    def ess(self) -> Array:
        """Effective number of samples ()."""
        return 1 / jnp.sum(jax.nn.softmax(self.log_weight) ** 2)

    def rows(self, rows: Array) -> tuple[Array, Array | None]:
        """Latents and conditions of some of the samples."""
        return self.z[rows], None if self.cond is None else self.cond[rows]
