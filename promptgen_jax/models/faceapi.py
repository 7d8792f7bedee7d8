"""The two face-api.js classifiers: facial expression, and age with gender. RGB images of any size in [0, 1].

Both resize the whole frame to 112 x 112 by TensorFlow's legacy bilinear rule and subtract the mean colour.
Source: justadudewhohacks/face-api.js (MIT), as packaged in @vladmandic/face-api 1.7.15.
"""

from __future__ import annotations

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from promptgen_jax.models.layers import Conv, Dense, SeparableConv
from promptgen_jax.ops.depthwise import max_pool
from promptgen_jax.ops.products import FINER
from promptgen_jax.ops.resample import resize_bilinear_legacy

INPUT_SIZE = 112
MEAN_RGB = (122.782, 117.001, 104.298)


def _preprocess(images):
    """Images (B, H, W, 3) in [0, 1] to (B, 112, 112, 3), zero at the mean colour."""
    return resize_bilinear_legacy(images, INPUT_SIZE) - jnp.asarray(MEAN_RGB, images.dtype) / 255


class Expression(nn.Module):
    """Seven expressions: neutral, happy, sad, angry, fearful, disgusted, surprised.

    Four dense blocks, in which each convolution reads the sum of all outputs before it.

    Attributes:
      precisions: those that leave its gradients by pixels as they are; with bfloat16 their cosine was 0.98.
    """

    precisions: ClassVar[tuple[str, ...]] = FINER
    num_classes: int = 7

    @nn.compact
    def __call__(self, images) -> dict[str, jax.Array]:
        """Logits {"expression": (B, 7)} of images (B, H, W, 3) in [0, 1]."""
        x = _preprocess(images)
        x = _DenseBlock(32, separable_stem=False, name="dense0")(x)
        for index, features in enumerate((64, 128, 256), start=1):
            x = _DenseBlock(features, name=f"dense{index}")(x)
        return {"expression": Dense(self.num_classes, name="fc")(jnp.mean(x, axis=(1, 2)))}


class AgeGender(nn.Module):
    """Age in years, and gender presentation in the order male, female: a small Xception.

    Attributes:
      precisions: as of `Expression`, where the cosine was 0.985.
    """

    precisions: ClassVar[tuple[str, ...]] = FINER
    num_main_blocks: int = 2

    @nn.compact
    def __call__(self, images) -> dict[str, jax.Array]:
        """{"gender": logits (B, 2), "age": years (B,)} of images (B, H, W, 3) in [0, 1]."""
        x = nn.relu(Conv(32, 3, 2, padding="SAME", name="conv_in")(_preprocess(images)))
        x = _ReductionBlock(64, activate_input=False, name="reduction0")(x)
        x = _ReductionBlock(128, name="reduction1")(x)
        for index in range(self.num_main_blocks):
            x = _MainBlock(name=f"main{index}")(x)
        x = _ReductionBlock(256, name="reduction2")(x)
        x = nn.relu(SeparableConv(512, name="separable")(x))
        features = jnp.mean(x, axis=(1, 2))
        return {
            "gender": Dense(2, name="gender")(features),
            "age": Dense(1, name="age")(features)[:, 0],
        }


class _DenseBlock(nn.Module):
    features: int
    separable_stem: bool = True

    @nn.compact
    def __call__(self, x):
        if self.separable_stem:
            total = SeparableConv(self.features, stride=2, name="conv0")(x)
        else:
            total = Conv(self.features, 3, 2, padding="SAME", name="conv0")(x)
        total = nn.relu(total)
        total = total + SeparableConv(self.features, name="conv1")(total)
        total = total + SeparableConv(self.features, name="conv2")(nn.relu(total))
        return nn.relu(total + SeparableConv(self.features, name="conv3")(nn.relu(total)))


class _ReductionBlock(nn.Module):
    features: int
    activate_input: bool = True

    @nn.compact
    def __call__(self, x):
        main = nn.relu(x) if self.activate_input else x
        main = nn.relu(SeparableConv(self.features, name="separable0")(main))
        main = SeparableConv(self.features, name="separable1")(main)
        main = max_pool(main, window=3)
        return main + Conv(self.features, 1, 2, name="expansion")(x)


class _MainBlock(nn.Module):
    @nn.compact
    def __call__(self, x):
        main = x
        for index in range(3):
            main = SeparableConv(x.shape[-1], name=f"separable{index}")(nn.relu(main))
        return x + main
