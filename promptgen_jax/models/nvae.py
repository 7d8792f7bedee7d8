"""The generating half of NVAE: groups of latents, from coarse to fine, to the logits of a picture.

Every group is drawn given all above it, so one standard normal vector, the groups in that order, makes the picture.
Weight normalisation is folded into the kernels; the batch normalisations keep their statistics, so that they can be
adjusted to samples. Source: arXiv 2007.03898; NVlabs/NVAE, model.py, neural_operations.py and distributions.py.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from promptgen_jax.models.layers import Conv, Dense
from promptgen_jax.ops.depthwise import depthwise_conv
from promptgen_jax.ops.resample import resize_aligned

EPSILON = 1e-5
MOMENTUM = 0.05  # of new statistics when they are adjusted
NOISE_BOUND = 1.25  # of latents under the truncated rule
COLOURS = 3
NORMAL = nn.initializers.normal(0.1)


class NVAE(nn.Module):
    """Standard normal vectors (B, D) to logits (B, S, S, 10 · num_mixture), see `mean_image` and `sample_image`.

    Buffers: `mean` and `variance` (C,) of every batch normalisation.

    Attributes:
      groups: number of groups at every scale, coarse to fine.
      channels: of the features at the coarsest scale, halved with every doubling of the resolution.
      latent_channels: of every group.
      base_size: pixels a side of the coarsest scale.
      num_cells: residual cells before every group but the first.
      num_post_blocks: doublings of the resolution behind the last group.
      num_post_cells: residual cells of each, of which the first doubles it.
      num_mixture: logistics in the mixture of a pixel.
    """

    groups: tuple[int, ...]
    channels: int
    latent_channels: int = 20
    base_size: int = 8
    num_cells: int = 2
    num_post_blocks: int = 1
    num_post_cells: int = 2
    num_mixture: int = 10

    @property
    def group_sizes(self) -> list[int]:
        """Numbers in every group, coarse to fine; they add up to D."""
        return [
            self.latent_channels * (self.base_size << scale) ** 2
            for scale, count in enumerate(self.groups)
            for _ in range(count)
        ]

    @nn.compact
    def __call__(
        self, eps: jax.Array, *, temperature: float = 1.0, num_truncated: int = 0, adjust: bool = False
    ) -> jax.Array:
        """Logits (B, S, S, 10 · num_mixture).

        Args:
          eps: (B, D), group after group, each flattened channel, row, column.
          temperature: factor of every group's standard deviation.
          num_truncated: of the first groups that follow the rule of the later official wrapper, see `draw`.
          adjust: normalise by the statistics of this batch, and move the stored ones towards them; pass
            `mutable=["buffers"]`.
        """
        constant = self.param("constant", NORMAL, (self.base_size, self.base_size, self.channels))
        x = jnp.broadcast_to(constant, (len(eps), *constant.shape))
        channels, start, first = self.channels, 0, 0
        for scale, count in enumerate(self.groups):
            size = self.base_size << scale
            stop = start + count * self.latent_channels * size**2
            noise = eps[:, start:stop].reshape(len(eps), count, self.latent_channels, size, size)
            noise = noise.transpose(1, 0, 3, 4, 2)
            truncated = np.arange(first, first + count) < num_truncated
            if scale == 0:
                zeros = jnp.zeros_like(noise[0])
                z = draw(noise[0], zeros, zeros, temperature, truncated[0])
                x = Combiner(name="combiner")(x, z)
                noise, truncated = noise[1:], truncated[1:]
            if len(noise):
                x, _ = _stacked(Group)(self.num_cells, temperature, adjust, name=f"groups_{scale}")(
                    x, (noise, jnp.asarray(truncated))
                )
            if scale < len(self.groups) - 1:
                channels //= 2
                x = nn.remat(Cell)(channels, up=True, adjust=adjust, name=f"up_{scale}")(x)
            start, first = stop, first + count
        for block in range(self.num_post_blocks):
            channels //= 2
            for index in range(self.num_post_cells):
                name = f"post_{block}_{index}"
                x = nn.remat(Cell)(channels, expansion=3, up=index == 0, adjust=adjust, name=name)(x)
        return Conv(10 * self.num_mixture, 3, name="output")(nn.elu(x))


def draw(noise, mean, log_scale, temperature: float, truncated) -> jax.Array:
    """A group of latents, given what is above it.

        z = m(mean) + T (exp(m(log_scale)) + 0.01) noise,   m(x) = 5 tanh(x / 5)

    or, where `truncated`, mean + T exp(log_scale) noise with the noise clamped to ±1.25 (NVAETruncWrapper of
    ChenWu98/unified-generative-zoo).
    """
    exact = _soft_clamp(mean) + temperature * (jnp.exp(_soft_clamp(log_scale)) + 0.01) * noise
    clamped = mean + temperature * jnp.exp(log_scale) * jnp.clip(noise, -NOISE_BOUND, NOISE_BOUND)
    return jnp.where(truncated, clamped, exact)


def _soft_clamp(x):
    return 5 * jnp.tanh(x / 5)


def _stacked(module):
    """The module once for every entry of its inputs, with stacked parameters and one entry's features in memory."""
    axes = {"params": 0, "buffers": 0, "intermediates": 0}
    return nn.scan(nn.remat(module, prevent_cse=False), variable_axes=axes, split_rngs={"params": True})


class Group(nn.Module):
    """Cells, then the parameters of a group of latents, its draw, and its way back into the features."""

    num_cells: int
    temperature: float
    adjust: bool

    @nn.compact
    def __call__(self, x, inputs):
        """Features (B, H, W, C) to features; `inputs` are noise (B, H, W, Z) and whether the group is truncated."""
        noise, truncated = inputs
        for index in range(self.num_cells):
            x = Cell(x.shape[-1], adjust=self.adjust, name=f"cell_{index}")(x)
        parameters = Dense(2 * noise.shape[-1], name="sampler")(nn.elu(x))
        z = draw(noise, *jnp.split(parameters, 2, axis=-1), self.temperature, truncated)
        return Combiner(name="combiner")(x, z), None


class Combiner(nn.Module):
    """Features and latents to features, by one matrix at every position."""

    @nn.compact
    def __call__(self, x, z):
        """Keeps the shape (B, H, W, C) of the features."""
        return Dense(x.shape[-1], name="dense")(jnp.concatenate([x, z], axis=-1))


class Cell(nn.Module):
    """Residual cell: expansion, depthwise 5x5 convolution, projection, squeeze and excitation, a tenth of it added."""

    features: int
    expansion: int = 6
    up: bool = False
    adjust: bool = False

    @nn.compact
    def __call__(self, x):
        """Features (B, H, W, C) to (B, H, W, features), or twice that resolution."""
        hidden, skip = self.expansion * x.shape[-1], x
        if self.up:
            skip = Dense(self.features, use_bias=False, name="skip")(resize_aligned(x, 2 * x.shape[1]))
            x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
        x = BatchNorm(self.adjust, name="norm0")(x)
        x = Dense(hidden, use_bias=False, name="expand")(x)
        x = nn.swish(BatchNorm(self.adjust, name="norm1")(x))
        x = depthwise_conv(x, self.param("kernel", NORMAL, (5, 5, 1, hidden)))
        x = nn.swish(BatchNorm(self.adjust, name="norm2")(x))
        x = Dense(self.features, use_bias=False, name="project")(x)
        x = BatchNorm(self.adjust, name="norm3")(x)
        gate = nn.relu(Dense(max(self.features // 16, 4), name="squeeze")(jnp.mean(x, axis=(1, 2))))
        gate = nn.sigmoid(Dense(self.features, name="excite")(gate))
        return skip + 0.1 * gate[:, None, None] * x


class BatchNorm(nn.Module):
    """Batch normalisation by stored statistics, which it moves towards those of the batch if asked to."""

    adjust: bool

    @nn.compact
    def __call__(self, x):
        """Keeps the shape (B, H, W, C)."""
        shape = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        stored = [
            self.variable("buffers", "mean", jnp.zeros, shape),
            self.variable("buffers", "variance", jnp.ones, shape),
        ]
        mean, variance = (each.value for each in stored)
        if self.adjust:
            count = x.size // x.shape[-1]
            mean, variance = jnp.mean(x, axis=(0, 1, 2)), jnp.var(x, axis=(0, 1, 2))
            for each, new in zip(stored, (mean, variance * count / (count - 1)), strict=True):
                each.value = (1 - MOMENTUM) * each.value + MOMENTUM * new
        return (x - mean) * (lax.rsqrt(variance + EPSILON) * scale) + bias


def mean_image(logits: jax.Array) -> jax.Array:
    """The official mean (B, H, W, 3) in [0, 1] of logits (B, H, W, 10 M): averages within the mixture, then colours.

    It is no exact expectation: means and coefficients are averaged apart.
    """
    mixture, means, _, coefficients = _mixture(logits)
    return _chain(*(jnp.sum(mixture[..., None, :] * each, axis=-1) for each in (means, coefficients)))


def sample_image(logits: jax.Array, u_mixture: jax.Array, u_colour: jax.Array) -> jax.Array:
    """A draw (B, H, W, 3) in [0, 1] from logits (B, H, W, 10 M).

    Args:
      logits: of the mixture.
      u_mixture: (B, H, W, M) uniform, chooses the component of every pixel.
      u_colour: (B, H, W, 3) uniform, the noise of every colour.
    """
    mixture, means, log_scales, coefficients = _mixture(logits)
    chosen = jnp.argmax(jnp.log(mixture) - jnp.log(-jnp.log(u_mixture)), axis=-1)
    one_hot = nn.one_hot(chosen, mixture.shape[-1])[..., None, :]
    mean, log_scale, coefficient = (jnp.sum(one_hot * each, axis=-1) for each in (means, log_scales, coefficients))
    noise = jnp.log(u_colour) - jnp.log1p(-u_colour)
    return _chain(mean + jnp.exp(log_scale) * noise, coefficient)


def _mixture(logits):
    """Weights (..., M) of the mixture, and means, log-scales and coefficients (..., 3, M)."""
    num_mixture = logits.shape[-1] // 10
    rest = logits[..., num_mixture:].reshape(*logits.shape[:-1], COLOURS, 3 * num_mixture)
    means, log_scales, coefficients = jnp.split(rest, 3, axis=-1)
    return nn.softmax(logits[..., :num_mixture]), means, jnp.maximum(log_scales, -7), jnp.tanh(coefficients)


def _chain(values, coefficients):
    """Every colour is shifted by those before it."""
    red = jnp.clip(values[..., 0], -1, 1)
    green = jnp.clip(values[..., 1] + coefficients[..., 0] * red, -1, 1)
    blue = jnp.clip(values[..., 2] + coefficients[..., 1] * red + coefficients[..., 2] * green, -1, 1)
    return (jnp.stack([red, green, blue], axis=-1) + 1) / 2
