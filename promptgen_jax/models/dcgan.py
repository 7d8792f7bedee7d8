"""DCGAN generator: five transposed convolutions from a latent vector to an image.

Batch normalisation is folded into kernels and biases. Source: arXiv 1511.06434; the weights are those of
chien-liu/DCGAN-PyTorch (MIT), packaged as gan_face_generate 1.1.1.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from promptgen_jax.ops.convolution import convolve
from promptgen_jax.ops.products import einsum


class DCGAN(nn.Module):
    """Latents to square RGB images of 4 · 2^len(features) pixels.

    Attributes:
      features: channels after each layer but the last, which makes RGB.
    """

    features: tuple[int, ...] = (512, 256, 128, 64)

    @nn.compact
    def __call__(self, z) -> jax.Array:
        """Images (B, S, S, 3) in [0, 1] of latents z (B, D), standard normal."""
        x = _Project(self.features[0], name="layer1")(z)
        for index, features in enumerate((*self.features[1:], 3), start=2):
            x = _Upsample(features, name=f"layer{index}")(nn.relu(x))
        return (jnp.tanh(x) + 1) / 2


class _Upsample(nn.Module):
    """Transposed 4x4 convolution of stride 2."""

    features: int

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (4, 4, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return convolve(x, kernel, padding=((2, 2), (2, 2)), dilation=2) + bias


class _Project(nn.Module):
    """Transposed 4x4 convolution of a single pixel: a matrix product."""

    features: int

    @nn.compact
    def __call__(self, z):
        shape = (4, 4, z.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return einsum("bi,hwio->bhwo", z, kernel) + bias
