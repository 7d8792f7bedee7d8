"""Layers that several ported networks share. Kernels are HWIO, images NHWC, padding is TensorFlow's SAME."""

from __future__ import annotations

import flax.linen as nn

from promptgen_jax.ops.depthwise import depthwise_conv3x3


class DepthwiseConv(nn.Module):
    """Depthwise 3x3 convolution without bias; `kernel` is (3, 3, 1, C)."""

    stride: int = 1

    @nn.compact
    def __call__(self, x):
        """Maps (B, H, W, C) to (B, ceil(H / stride), ceil(W / stride), C)."""
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (3, 3, 1, x.shape[-1]))
        return depthwise_conv3x3(x, kernel, stride=self.stride)


class SeparableConv(nn.Module):
    """`depthwise` 3x3 convolution, then `pointwise` 1x1 convolution with bias."""

    features: int
    stride: int = 1

    @nn.compact
    def __call__(self, x):
        """Maps (B, H, W, C) to (B, ceil(H / stride), ceil(W / stride), features)."""
        x = DepthwiseConv(self.stride, name="depthwise")(x)
        return nn.Conv(self.features, (1, 1), name="pointwise")(x)
