"""Deterministic sampling by denoising diffusion (DDIM), differentiable from end to end.

Source: arXiv 2010.02502, eq. 12 with sigma 0; phizaz/diffae, diffusion/base.py and diffusion/diffusion.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

NUM_TIMES = 1000  # noise levels that the networks know


class Schedule(NamedTuple):
    """The steps of a sampler from noise to data, each field (N,).

    Attributes:
      time: level that the network is told, 0 to 999.
      signal: share of the data in the variance at that level, abar.
      next_signal: the same after the step; 1 at the last.
    """

    time: np.ndarray
    signal: np.ndarray
    next_signal: np.ndarray


def linear_betas() -> np.ndarray:
    """Of pictures: 1e-4 to 0.02."""
    return np.linspace(1e-4, 0.02, NUM_TIMES)


def constant_betas() -> np.ndarray:
    """Of latents: 0.008."""
    return np.full(NUM_TIMES, 0.008)


def make_schedule(betas: np.ndarray, num_steps: int) -> Schedule:
    """Every s-th level from 0 on, s the smallest stride that gives so many; sampling starts at the last of them.

    Raises:
      ValueError: no stride gives that number of steps.
    """
    strides = [s for s in range(1, NUM_TIMES + 1) if -(-NUM_TIMES // s) == num_steps]
    if not strides:
        near = min({-(-NUM_TIMES // s) for s in range(1, NUM_TIMES + 1)}, key=lambda count: abs(count - num_steps))
        raise ValueError(f"{num_steps} steps: no stride through {NUM_TIMES} levels gives them. Use {near}.")
    time = np.arange(0, NUM_TIMES, strides[0])
    signal = np.cumprod(1 - betas)[time]
    return Schedule(time[::-1], signal[::-1], np.append(1.0, signal[:-1])[::-1])


def sample(denoise: Callable, x: jax.Array, schedule: Schedule, *, clip: bool) -> tuple[jax.Array, jax.Array]:
    """Data of noise, and what there was after every step, (N, *x.shape).

        x0 = (x - sqrt(1 - abar) e) / sqrt(abar),   x ← sqrt(abar') x0 + sqrt(1 - abar') e

    The gradient keeps x of every step and computes everything else again.

    Args:
      denoise: (x, time (B,)) to the noise e in x.
      x: standard normal, the batch along the first axis.
      schedule: of the steps.
      clip: x0 to ±1; e is then what leads from x to the clipped x0.
    """
    rows = {
        "time": np.int32(schedule.time),
        "gain": np.float32(np.sqrt(1 / schedule.signal)),
        "loss": np.float32(np.sqrt(1 / schedule.signal - 1)),
        "signal": np.float32(np.sqrt(schedule.next_signal)),
        "noise": np.float32(np.sqrt(1 - schedule.next_signal)),
    }

    def step(x, row):
        data = row["gain"] * x - row["loss"] * denoise(x, jnp.broadcast_to(row["time"], len(x)))
        data = jnp.clip(data, -1, 1) if clip else data
        noise = (row["gain"] * x - data) / row["loss"]
        x = row["signal"] * data + row["noise"] * noise
        return x, x

    return jax.lax.scan(jax.checkpoint(step, prevent_cse=False), x, rows)


def time_features(time: jax.Array, dim: int) -> jax.Array:
    """(B, dim): cosines, then sines, of levels (B,) at frequencies from 1 down to 1 / 10,000."""
    frequencies = np.exp(-np.log(10_000) * np.arange(dim // 2) / (dim // 2)).astype(np.float32)
    angles = time[:, None].astype(jnp.float32) * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
