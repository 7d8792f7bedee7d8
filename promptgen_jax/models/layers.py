"""Layers that several ported networks share. Kernels are HWIO, images NHWC.

Padding is TensorFlow's SAME in networks made with it, and that of `Conv` in those made with PyTorch.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from promptgen_jax.ops import products
from promptgen_jax.ops.convolution import convolve
from promptgen_jax.ops.depthwise import depthwise_conv

MAPS = "maps"  # the name under which networks show what their layers see, (B, ..., C), see `Network.maps`


class Dense(nn.Dense):
    """As Flax's, in the `products.arithmetic` of the network."""

    dot_general: Any = products.dot_general


class ExactDense(nn.Dense):
    """As Flax's, in float32 whatever the arithmetic of the network: those of `products.EXACT`."""

    precision: Any = "highest"


class DepthwiseConv(nn.Module):
    """Depthwise 3x3 convolution without bias; `kernel` is (3, 3, 1, C)."""

    stride: int = 1

    @nn.compact
    def __call__(self, x):
        """Maps (B, H, W, C) to (B, ceil(H / stride), ceil(W / stride), C)."""
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (3, 3, 1, x.shape[-1]))
        return depthwise_conv(x, kernel, stride=self.stride)


class SeparableConv(nn.Module):
    """`depthwise` 3x3 convolution, then `pointwise` 1x1 convolution with bias."""

    features: int
    stride: int = 1

    @nn.compact
    def __call__(self, x):
        """Maps (B, H, W, C) to (B, ceil(H / stride), ceil(W / stride), features)."""
        x = DepthwiseConv(self.stride, name="depthwise")(x)
        return Conv(self.features, 1, name="pointwise")(x)


class Conv(nn.Module):
    """Convolution with size // 2 zeros on every side, unless `padding` is "SAME" or "VALID".

    SAME pads one side less where the stride is 2.
    """

    features: int
    size: int
    stride: int = 1
    use_bias: bool = True
    padding: str = ""

    @nn.compact
    def __call__(self, x):
        """Maps (B, H, W, C) to (B, ceil(H / stride), ceil(W / stride), features), VALID to less."""
        shape, sides = (self.size, self.size, x.shape[-1], self.features), (self.size, self.size)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        zeros = 2 * ((self.size // 2, self.size // 2),)
        if self.padding:
            zeros = tuple(lax.padtype_to_pads(x.shape[1:3], sides, (self.stride, self.stride), self.padding))
        x = convolve(x, kernel, stride=self.stride, padding=zeros)
        return x + self.param("bias", nn.initializers.zeros, (self.features,)) if self.use_bias else x


class ScaleShift(nn.Module):
    """Batch normalisation with its statistics folded: x · scale + bias per channel."""

    @nn.compact
    def __call__(self, x):
        """Keeps the shape (..., C)."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        return x * scale + bias


class PReLU(nn.Module):
    """x where it is positive, x times a learned slope per channel elsewhere."""

    @nn.compact
    def __call__(self, x):
        """Keeps the shape (..., C)."""
        slope = self.param("slope", nn.initializers.constant(0.25), (x.shape[-1],))
        return jnp.where(x >= 0, x, slope * x)
