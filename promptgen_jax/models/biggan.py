"""BigGAN-deep: noise and a class embedding to images; both enter every conditional batch normalisation.

Batch normalisation uses statistics that were stored for 51 truncations. Spectral normalisation is folded into the
kernels.
Source: arXiv 1809.11096, appendix B; huggingface/pytorch-pretrained-BigGAN, pytorch_pretrained_biggan/model.py.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from promptgen_jax.models.layers import Conv, Dense
from promptgen_jax.ops.products import einsum, matmul

EPSILON = 1e-4


class BigGAN(nn.Module):
    """Noise z and class embeddings y, both (B, E), to square RGB images of 4 · 2^(number of upsamplings) pixels.

    Buffers: `embeddings` (K, E), those of the classes, and of every batch normalisation `means` and `variances`, each
    (51, C).

    Attributes:
      channels: C of the first features, and behind every block.
      upsampling: whether a block doubles the resolution.
      attention_position: number of blocks before the self-attention.
      embedding_dim: E.
      num_classes: K.
      num_statistics: truncations with stored statistics, evenly spaced from 0 to 1.
    """

    channels: tuple[int, ...]
    upsampling: tuple[bool, ...]
    attention_position: int
    embedding_dim: int = 128
    num_classes: int = 1000
    num_statistics: int = 51

    @nn.compact
    def __call__(self, cond: jax.Array, *, truncation: float = 1.0) -> jax.Array:
        """Images (B, S, S, 3) in [0, 1].

        Args:
          cond: (B, 2E), z and then y; z is used as it is: the caller clamps and scales it.
          truncation: above 0, at most 1; chooses the statistics of the batch normalisations.
        """
        self.variable("buffers", "embeddings", jnp.zeros, (self.num_classes, self.embedding_dim))
        row = statistics_row(truncation, self.num_statistics)
        x = Dense(16 * self.channels[0], name="input")(cond).reshape(-1, 4, 4, self.channels[0])
        for index, (features, upsample) in enumerate(zip(self.channels[1:], self.upsampling, strict=True)):
            if index == self.attention_position:
                x = SelfAttention(name="attention")(x)
            block = nn.remat(Block)(features, upsample, self.num_statistics, row, name=f"block_{index}")
            x = block(x, cond)
        x = nn.relu(BatchNorm(self.num_statistics, row, name="norm")(x))
        return (jnp.tanh(Conv(3, 3, name="to_rgb")(x)) + 1) / 2


def statistics_row(truncation: float, num_statistics: int) -> tuple[int, float]:
    """(i, f): the statistics are f times row i and 1 - f times row i + 1; f is 1 where the truncation is stored.

    These are the official weights, though a linear interpolation has them the other way round, and the official
    arithmetic, in double precision, which at 0.28 and some others rounds to the next row.
    """
    fraction, index = math.modf(truncation / (1.0 / (num_statistics - 1)))
    return int(index), fraction or 1.0


class BatchNorm(nn.Module):
    """(x - mean) / sqrt(variance + 1e-4), then a scale and an offset, learned or made from a condition."""

    num_statistics: int
    row: tuple[int, float]

    @nn.compact
    def __call__(self, x, cond=None):
        """Keeps the shape (B, H, W, C); `cond` is (B, 2E), or None for learned scale and offset."""
        index, fraction = self.row
        shape = (self.num_statistics, x.shape[-1])
        stored = [
            self.variable("buffers", "means", jnp.zeros, shape),
            self.variable("buffers", "variances", jnp.ones, shape),
        ]
        mean, variance = (each.value[index] for each in stored)
        if fraction != 1:
            mean, variance = (
                fraction * first + (1 - fraction) * each.value[index + 1]
                for first, each in zip((mean, variance), stored, strict=True)
            )
        if cond is None:
            scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
            offset = self.param("offset", nn.initializers.zeros, (x.shape[-1],))
        else:
            scale = 1 + Dense(x.shape[-1], use_bias=False, name="scale")(cond)[:, None, None]
            offset = Dense(x.shape[-1], use_bias=False, name="offset")(cond)[:, None, None]
        return (x - mean) * (lax.rsqrt(variance + EPSILON) * scale) + offset


class Block(nn.Module):
    """Bottleneck of a quarter of the width; the shortcut drops the channels that are too many."""

    features: int
    upsample: bool
    num_statistics: int
    row: tuple[int, float]

    @nn.compact
    def __call__(self, x, cond):
        """Features (B, H, W, C) and conditions (B, 2E) to (B, H or 2H, W or 2W, features)."""
        width = x.shape[-1] // 4
        shortcut = x[..., : self.features]
        for index, (features, size) in enumerate([(width, 1), (width, 3), (width, 3), (self.features, 1)]):
            x = nn.relu(BatchNorm(self.num_statistics, self.row, name=f"norm{index}")(x, cond))
            if self.upsample and index == 1:
                x, shortcut = _double(x), _double(shortcut)
            x = Conv(features, size, name=f"conv{index}")(x)
        return x + shortcut


class SelfAttention(nn.Module):
    """Attention of every position to 2x2 cells of them, not scaled by the width, added with a learned weight."""

    @nn.compact
    def __call__(self, x):
        """Keeps the shape (B, H, W, C)."""
        batch, height, width, channels = x.shape
        query = Conv(channels // 8, 1, use_bias=False, name="query")(x)
        key = _pool(Conv(channels // 8, 1, use_bias=False, name="key")(x))
        value = _pool(Conv(channels // 2, 1, use_bias=False, name="value")(x))
        query, key, value = (each.reshape(batch, -1, each.shape[-1]) for each in (query, key, value))
        attention = nn.softmax(einsum("bqc,bkc->bqk", query, key), axis=-1)
        attended = matmul(attention, value).reshape(batch, height, width, -1)
        weight = self.param("weight", nn.initializers.zeros, ())
        return x + weight * Conv(channels, 1, use_bias=False, name="output")(attended)


def _double(x):
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


def _pool(x):
    return nn.max_pool(x, (2, 2), strides=(2, 2))
