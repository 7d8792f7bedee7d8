"""Residual networks and the two classifiers on them: FairFace (ResNet-34) and CelebA attributes (ResNet-50).

RGB images of any size in [0, 1], not clamped. The whole frame is resized; no face is searched for or aligned. Batch
normalisation is folded into the convolutions.
Source: arXiv 1512.03385, as in torchvision 0.12 (BSD-3); classifiers of ChenWu98/Generative-Visual-Prompt, model/lib.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from promptgen_jax.models.layers import Conv
from promptgen_jax.ops.depthwise import max_pool
from promptgen_jax.ops.resample import resize_bilinear

INPUT_SIZE = 224
MEAN_RGB, STD_RGB = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet

# inner widths and blocks of the four stages, the same for 34 and 50 layers
WIDTHS, BLOCKS = (64, 128, 256, 512), (3, 4, 6, 3)

RACES, GENDERS, AGES = 7, 2, 9


class ResNet(nn.Module):
    """The trunk: ResNet-34, or ResNet-50 with the stride in the 3 x 3 convolution.

    Attributes:
      bottleneck: blocks of 1 x 1, 3 x 3 and 1 x 1 convolutions, fourfold width outside, instead of two 3 x 3.
      widths: inner widths of the stages; the stem is as wide as the first.
      blocks: numbers of blocks of the stages.
    """

    bottleneck: bool
    widths: tuple[int, ...] = WIDTHS
    blocks: tuple[int, ...] = BLOCKS

    @nn.compact
    def __call__(self, x) -> jax.Array:
        """Pooled features (B, 512), or (B, 2048) with bottlenecks, of (B, 224, 224, 3)."""
        x = nn.relu(Conv(self.widths[0], 7, 2, name="stem")(x))
        # -inf never is the largest
        padded = jnp.pad(x, ((0, 0), (1, 0), (1, 0), (0, 0)), constant_values=-jnp.inf)
        x = max_pool(padded, window=3, padding="VALID")
        for stage, (features, num_blocks) in enumerate(zip(self.widths, self.blocks, strict=True), start=1):
            for index in range(num_blocks):
                stride = 2 if stage > 1 and index == 0 else 1
                x = Block(features, stride, self.bottleneck, name=f"stage{stage}_block{index}")(x)
        return jnp.mean(x, axis=(1, 2))


class Block(nn.Module):
    """Convolutions with ReLU between them beside a shortcut, itself a 1 x 1 convolution where the width changes."""

    features: int
    stride: int
    bottleneck: bool

    @nn.compact
    def __call__(self, x):
        """Maps (B, H, W, C) to (B, H / stride, W / stride, features), fourfold features with bottleneck."""
        width, stride = self.features, self.stride
        layers = ((width, 1, 1), (width, 3, stride), (4 * width, 1, 1))
        if not self.bottleneck:
            layers = ((width, 3, stride), (width, 3, 1))
        main = x
        for index, layer in enumerate(layers, start=1):
            main = main if index == 1 else nn.relu(main)
            main = Conv(*layer, name=f"conv{index}")(main)
        if x.shape[-1] != main.shape[-1]:
            x = Conv(main.shape[-1], 1, stride, name="shortcut")(x)
        return nn.relu(main + x)


class FairFace(nn.Module):
    """Apparent race in seven groups, gender presentation and age in nine bands, as FairFace labels them.

    Attributes:
      widths: of the trunk.
      blocks: of the trunk.
    """

    widths: tuple[int, ...] = WIDTHS
    blocks: tuple[int, ...] = BLOCKS

    @nn.compact
    def __call__(self, images) -> dict[str, jax.Array]:
        """Logits {"race": (B, 7), "gender": (B, 2), "age": (B, 9)} of images (B, H, W, 3) in [0, 1]."""
        features = ResNet(False, self.widths, self.blocks, name="trunk")(preprocess(images))
        logits = nn.Dense(RACES + GENDERS + AGES, name="head")(features)
        race, gender, age = jnp.split(logits, (RACES, RACES + GENDERS), axis=-1)
        return {"race": race, "gender": gender, "age": age}


class CelebA(nn.Module):
    """One binary attribute of CelebA.

    Attributes:
      attribute: its official name, e.g. "Eyeglasses", under which the logits are returned.
      widths: of the trunk.
      blocks: of the trunk.
    """

    attribute: str
    widths: tuple[int, ...] = WIDTHS
    blocks: tuple[int, ...] = BLOCKS

    @nn.compact
    def __call__(self, images) -> dict[str, jax.Array]:
        """Logits {attribute: (B, 2)} of absent and present, for images (B, H, W, 3) in [0, 1]; the first is 0."""
        features = ResNet(True, self.widths, self.blocks, name="trunk")(preprocess(images))
        present = nn.Dense(1, name="head")(nn.relu(nn.Dense(2048, name="hidden")(features)))
        return {self.attribute: jnp.concatenate([jnp.zeros_like(present), present], axis=-1)}


def preprocess(images: jax.Array) -> jax.Array:
    """Images (B, H, W, 3) in [0, 1] to (B, 224, 224, 3) with ImageNet's mean and standard deviation removed.

    Bilinear without antialiasing, as torchvision 0.12 resizes tensors: antialiasing would move logits by up to 0.5.
    """
    images = resize_bilinear(images, INPUT_SIZE)
    return (images - jnp.asarray(MEAN_RGB, images.dtype)) / jnp.asarray(STD_RGB, images.dtype)
