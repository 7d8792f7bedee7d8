"""Diffusion autoencoder: a denoiser of latents, and a denoiser of pictures given a latent.

Source: arXiv 2111.15640; phizaz/diffae, model/unet_autoenc.py, model/unet.py, model/blocks.py, model/latentnet.py.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from promptgen_jax.models import diffusion
from promptgen_jax.models.layers import Conv, Dense
from promptgen_jax.ops.products import einsum, matmul

LATENT_TIME_DIM = 64


class DiffAE(nn.Module):
    """Both networks. Buffers: `mean` and `std` (S,) of the latents, which the denoiser of latents works without.

    Attributes:
      image_size: pixels a side of the pictures.
      multipliers: channels at every resolution, from the finest, in units of base_channels.
      base_channels: C at the finest resolution, a multiple of 32.
      style_dim: S, the length of a latent.
      latent_layers: depth of the denoiser of latents.
      latent_width: of its layers.
      attention_size: resolution at which the denoiser of pictures has attention, besides its middle.
    """

    image_size: int
    multipliers: tuple[int, ...]
    base_channels: int = 128
    style_dim: int = 512
    latent_layers: int = 10
    latent_width: int = 2048
    attention_size: int = 16

    def setup(self):
        """Makes the networks and the buffers."""
        self.latent_net = LatentNet(self.latent_layers, self.latent_width, self.style_dim)
        self.unet = UNet(self.base_channels, self.multipliers, self.attention_size)
        self.mean = self.variable("buffers", "mean", jnp.zeros, self.style_dim)
        self.std = self.variable("buffers", "std", jnp.ones, self.style_dim)

    def __call__(self, z: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The noise that both networks see in latents (B, S) and in a grey picture at level 0; for initialisation."""
        time = jnp.zeros(len(z), jnp.int32)
        grey = jnp.zeros((len(z), self.image_size, self.image_size, 3))
        return self.latent_noise(z, time), self.image_noise(grey, time, self.to_style(z))

    def latent_noise(self, x, time):
        """The noise (B, S) in latents x (B, S) at levels (B,)."""
        return self.latent_net(x, time)

    def image_noise(self, x, time, style):
        """The noise (B, H, W, 3) in pictures x (B, H, W, 3), data in [-1, 1], at levels (B,), given styles (B, S)."""
        return self.unet(x, time, style)

    def to_style(self, latent):
        """Denoised latents (B, S) to the styles that the denoiser of pictures takes."""
        return latent * self.std.value + self.mean.value


def generate(
    module: DiffAE, weights: dict, z: jax.Array, noise: jax.Array, *, latent_steps: int, image_steps: int
) -> jax.Array:
    """Images (B, S, S, 3) in [0, 1].

    Args:
      module: the networks.
      weights: their parameters and buffers.
      z: (B, S) standard normal, start of the sampler of latents.
      noise: (B, S, S, 3) standard normal, start of the sampler of pictures.
      latent_steps: of the former.
      image_steps: of the latter.
    """

    def latent_noise(x, time):
        return module.apply(weights, x, time, method="latent_noise")

    schedule = diffusion.make_schedule(diffusion.constant_betas(), latent_steps)
    latent, _ = diffusion.sample(latent_noise, z, schedule, clip=False)
    style = module.apply(weights, latent, method="to_style")

    def image_noise(x, time):
        return module.apply(weights, x, time, style, method="image_noise")

    schedule = diffusion.make_schedule(diffusion.linear_betas(), image_steps)
    images, _ = diffusion.sample(image_noise, noise, schedule, clip=True)
    return (images + 1) / 2


class LatentNet(nn.Module):
    """Dense layers, all but the first of which also see the input; the level scales what they make."""

    layers: int
    width: int
    style_dim: int

    @nn.compact
    def __call__(self, x, time):
        """The noise (B, S) in latents (B, S) at levels (B,)."""
        embedding = TimeEmbedding(LATENT_TIME_DIM, self.style_dim, name="time")(time)
        h = x
        for index in range(self.layers - 1):
            h = h if index == 0 else jnp.concatenate([h, x], axis=-1)
            h = Dense(self.width, name=f"layer_{index}")(h)
            h = h * (1 + Dense(self.width, name=f"scale_{index}")(nn.silu(embedding)))
            h = nn.silu(nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, name=f"norm_{index}")(h))
        return Dense(x.shape[-1], name=f"layer_{self.layers - 1}")(jnp.concatenate([h, x], axis=-1))


class UNet(nn.Module):
    """Down and up again through the resolutions; on its way up it also sees what there was on the way down."""

    base_channels: int
    multipliers: tuple[int, ...]
    attention_size: int

    @nn.compact
    def __call__(self, x, time, style):
        """The noise (B, H, W, 3) in pictures (B, H, W, 3) at levels (B,), given styles (B, S)."""
        embedding = TimeEmbedding(self.base_channels, 4 * self.base_channels, name="time")(time)
        last = len(self.multipliers) - 1

        def block(x, level, name, resample=""):
            x = ResBlock(self.base_channels * self.multipliers[level], resample, name=name)(x, embedding, style)
            if x.shape[1] == self.attention_size and not resample:
                x = Attention(name=f"{name}_attention")(x)
            return x

        x = Conv(self.base_channels, 3, name="down_0")(x)
        seen = [x]
        for level in range(last + 1):
            for _ in range(2):
                x = block(x, level, f"down_{len(seen)}")
                seen.append(x)
            if level < last:
                x = block(x, level, f"down_{len(seen)}", "down")
                seen.append(x)
        x = ResBlock(x.shape[-1], name="middle_0")(x, embedding, style)
        x = Attention(name="middle_attention")(x)
        x = ResBlock(x.shape[-1], name="middle_1")(x, embedding, style)
        for index in range(len(seen)):
            level = last - index // 3
            x = block(jnp.concatenate([x, seen.pop()], axis=-1), level, f"up_{index}")
            if index % 3 == 2 and level:
                x = block(x, level, f"up_{index}_double", "up")
        return Conv(3, 3, name="output")(nn.silu(_norm("norm")(x)))


class TimeEmbedding(nn.Module):
    """Levels to vectors: features, then two dense layers."""

    feature_dim: int
    dim: int

    @nn.compact
    def __call__(self, time):
        """(B, dim) of levels (B,)."""
        x = Dense(self.dim, name="dense_0")(diffusion.time_features(time, self.feature_dim))
        return Dense(self.dim, name="dense_1")(nn.silu(x))


class ResBlock(nn.Module):
    """Two convolutions, between which the level scales and shifts, and the style scales; a shortcut is added."""

    features: int
    resample: str = ""

    @nn.compact
    def __call__(self, x, embedding, style):
        """Features (B, H, W, C) to (B, H', W', features); `resample` is "down", "up" or none."""
        h = nn.silu(_norm("norm_0")(x))
        if self.resample:
            change = _halve if self.resample == "down" else _double
            h, x = change(h), change(x)
        h = Conv(self.features, 3, name="conv_0")(h)
        level = Dense(2 * self.features, name="level")(nn.silu(embedding))
        scale, shift = jnp.split(level[:, None, None], 2, axis=-1)
        gain = Dense(self.features, name="style")(nn.silu(style))[:, None, None]
        h = (_norm("norm_1")(h) * (1 + scale) + shift) * (1 + gain)
        h = Conv(self.features, 3, name="conv_1")(nn.silu(h))
        return h + (x if x.shape[-1] == self.features else Conv(self.features, 1, name="shortcut")(x))


class Attention(nn.Module):
    """Attention between all positions, one head, added to what came in."""

    @nn.compact
    def __call__(self, x):
        """Keeps the shape (B, H, W, C)."""
        batch, height, width, channels = x.shape
        tokens = _norm("norm")(x).reshape(batch, height * width, channels)
        query, key, value = jnp.split(Dense(3 * channels, name="qkv")(tokens), 3, axis=-1)
        attention = nn.softmax(einsum("bqc,bkc->bqk", query, key) / channels**0.5, axis=-1)
        return x + Dense(channels, name="output")(matmul(attention, value)).reshape(x.shape)


def _norm(name):
    return nn.GroupNorm(num_groups=32, epsilon=1e-5, use_fast_variance=False, name=name)


def _halve(x):
    batch, height, width, channels = x.shape
    return jnp.mean(x.reshape(batch, height // 2, 2, width // 2, 2, channels), axis=(2, 4))


def _double(x):
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
