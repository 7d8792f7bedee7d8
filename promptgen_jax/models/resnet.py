"""Residual networks and classifiers on them: any of torchvision and transformers, FairFace, and CelebA attributes.

FairFace and CelebA read RGB images of any size in [0, 1], not clamped. The whole frame is resized; no face is searched
for or aligned. Batch normalisation is folded into the convolutions.
Source: arXiv 1512.03385, as in torchvision 0.12 (BSD-3) and transformers (Apache-2.0), models/resnet; FairFace and
CelebA of ChenWu98/Generative-Visual-Prompt, model/lib.
"""

from __future__ import annotations

import itertools
import re
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from promptgen_jax.models import recipe
from promptgen_jax.models.layers import Conv, Dense
from promptgen_jax.ops.depthwise import max_pool
from promptgen_jax.ops.products import FINER
from promptgen_jax.ops.resample import resize_bilinear

INPUT_SIZE = 224
MEAN_RGB, STD_RGB = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet

# inner widths and blocks of the four stages, the same for 34 and 50 layers
WIDTHS, BLOCKS = (64, 128, 256, 512), (3, 4, 6, 3)

RACES, FEW_RACES, GENDERS, AGES = 7, 4, 2, 9  # of FairFace


class ResNet(nn.Module):
    """The trunk of 18, 34, 50, 101 or 152 layers, by its blocks.

    Attributes:
      bottleneck: blocks of 1 x 1, 3 x 3 and 1 x 1 convolutions, fourfold width outside, instead of two 3 x 3.
      widths: inner widths of the stages.
      blocks: numbers of blocks of the stages.
      stem: width of the stem; 0 for that of the first stage.
      first_stride: of the first stage; that of the others is 2.
      stride_first: whether bottlenecks have their stride in the first convolution, not in the 3 x 3.
    """

    bottleneck: bool
    widths: tuple[int, ...] = WIDTHS
    blocks: tuple[int, ...] = BLOCKS
    stem: int = 0
    first_stride: int = 1
    stride_first: bool = False

    @nn.compact
    def __call__(self, x) -> jax.Array:
        """Pooled features (B, F) of (B, H, W, 3); F is the last width, fourfold with bottlenecks."""
        x = nn.relu(Conv(self.stem or self.widths[0], 7, 2, name="stem")(x))
        odd = ((1, side % 2) for side in x.shape[1:3])  # -inf never is the largest
        padded = jnp.pad(x, ((0, 0), *odd, (0, 0)), constant_values=-jnp.inf)
        x = max_pool(padded, window=3, padding="VALID")
        for stage, (features, num_blocks) in enumerate(zip(self.widths, self.blocks, strict=True), start=1):
            for index in range(num_blocks):
                stride = 1 if index else self.first_stride if stage == 1 else 2
                x = Block(features, stride, self.bottleneck, self.stride_first, name=f"stage{stage}_block{index}")(x)
        return jnp.mean(x, axis=(1, 2))


class Block(nn.Module):
    """Convolutions with ReLU between them beside a shortcut, itself a 1 x 1 convolution where the shape changes."""

    features: int
    stride: int
    bottleneck: bool
    stride_first: bool = False

    @nn.compact
    def __call__(self, x):
        """Maps (B, H, W, C) to (B, H / stride, W / stride, features), fourfold features with bottleneck."""
        width, stride = self.features, self.stride
        first, second = (stride, 1) if self.stride_first else (1, stride)
        layers = ((width, 1, first), (width, 3, second), (4 * width, 1, 1))
        if not self.bottleneck:
            layers = ((width, 3, stride), (width, 3, 1))
        main = x
        for index, layer in enumerate(layers, start=1):
            main = main if index == 1 else nn.relu(main)
            main = Conv(*layer, name=f"conv{index}")(main)
        if x.shape[-1] != main.shape[-1] or stride > 1:
            x = Conv(main.shape[-1], 1, stride, name="shortcut")(x)
        return nn.relu(main + x)


class Classifier(nn.Module):
    """A trunk with one dense layer on it, of any number of classes.

    Attributes:
      num_labels: K.
      others: of the trunk.
      precisions: those that leave its gradients by pixels as they are; those of `FairFace` and `CelebA` were not.
    """

    precisions: ClassVar[tuple[str, ...]] = FINER
    num_labels: int
    bottleneck: bool
    widths: tuple[int, ...] = WIDTHS
    blocks: tuple[int, ...] = BLOCKS
    stem: int = 0
    first_stride: int = 1
    stride_first: bool = False

    @nn.compact
    def __call__(self, pixels) -> dict[str, jax.Array]:
        """Logits {"label": (B, K)} and {"embedding": (B, F)}, pooled features, of normalised pixels (B, H, W, 3)."""
        trunk = (self.bottleneck, self.widths, self.blocks, self.stem, self.first_stride, self.stride_first)
        features = ResNet(*trunk, name="trunk")(pixels)
        return {"label": Dense(self.num_labels, name="head")(features), "embedding": features}


class FairFace(nn.Module):
    """Apparent race in seven groups, gender presentation and age in nine bands, as FairFace labels them.

    Attributes:
      widths: of the trunk.
      blocks: of the trunk.
      races: 7, or 4 for the network that is read for race alone.
      precisions: with bfloat16 the cosine was 0.91, with seeded weights.
    """

    precisions: ClassVar[tuple[str, ...]] = FINER
    widths: tuple[int, ...] = WIDTHS
    blocks: tuple[int, ...] = BLOCKS
    races: int = RACES

    @nn.compact
    def __call__(self, images) -> dict[str, jax.Array]:
        """Logits {"race": (B, 7), "gender": (B, 2), "age": (B, 9)}, or "race" alone, of (B, H, W, 3) in [0, 1]."""
        features = ResNet(False, self.widths, self.blocks, name="trunk")(preprocess(images))
        others = {"gender": GENDERS, "age": AGES} if self.races == RACES else {}
        sizes = {"race": self.races, **others}
        logits = Dense(sum(sizes.values()), name="head")(features)
        ends = list(itertools.accumulate(sizes.values()))
        return dict(zip(sizes, jnp.split(logits, ends[:-1], axis=-1), strict=True))


class CelebA(nn.Module):
    """One binary attribute of CelebA.

    Attributes:
      attribute: its official name, e.g. "Eyeglasses", under which the logits are returned.
      widths: of the trunk.
      blocks: of the trunk.
      precisions: with bfloat16 the cosine was 0.63, with seeded weights.
    """

    precisions: ClassVar[tuple[str, ...]] = FINER
    attribute: str
    widths: tuple[int, ...] = WIDTHS
    blocks: tuple[int, ...] = BLOCKS

    @nn.compact
    def __call__(self, images) -> dict[str, jax.Array]:
        """Logits {attribute: (B, 2)} of absent and present, for images (B, H, W, 3) in [0, 1]; the first is 0."""
        features = ResNet(True, self.widths, self.blocks, name="trunk")(preprocess(images))
        present = Dense(1, name="head")(nn.relu(Dense(2048, name="hidden")(features)))
        return {self.attribute: jnp.concatenate([jnp.zeros_like(present), present], axis=-1)}


def preprocess(images: jax.Array) -> jax.Array:
    """Images (B, H, W, 3) in [0, 1] to (B, 224, 224, 3) with ImageNet's mean and standard deviation removed.

    Bilinear without antialiasing, as torchvision 0.12 resizes tensors: antialiasing would move logits by up to 0.5.
    """
    images = resize_bilinear(images, INPUT_SIZE)
    return (images - jnp.asarray(MEAN_RGB, images.dtype)) / jnp.asarray(STD_RGB, images.dtype)


class Layout(NamedTuple):
    """How one library names convolutions and the batch normalisations behind them.

    Attributes:
      stem: of the first.
      layer: in a block; `{stage}` and `{layer}` count from 1, `{stage0}`, `{layer0}` and `{block}` from 0.
      shortcut: in a block.
      head: the dense layer.
    """

    stem: tuple[str, str]
    layer: tuple[str, str]
    shortcut: tuple[str, str]
    head: str


TORCHVISION = Layout(
    stem=("conv1", "bn1"),
    layer=("layer{stage}.{block}.conv{layer}", "layer{stage}.{block}.bn{layer}"),
    shortcut=("layer{stage}.{block}.downsample.0", "layer{stage}.{block}.downsample.1"),
    head="fc",
)
_BLOCK = "resnet.encoder.stages.{stage0}.layers.{block}"
TRANSFORMERS = Layout(
    stem=("resnet.embedder.embedder.convolution", "resnet.embedder.embedder.normalization"),
    layer=(f"{_BLOCK}.layer.{{layer0}}.convolution", f"{_BLOCK}.layer.{{layer0}}.normalization"),
    shortcut=(f"{_BLOCK}.shortcut.convolution", f"{_BLOCK}.shortcut.normalization"),
    head="classifier.1",
)


def trunk_recipe(layout: Layout, options: dict[str, Any], *, prefix: str = "") -> dict[str, recipe.Part]:
    """`ResNet` under `trunk`.

    Args:
      layout: the names.
      options: of `ResNet`, those that differ from its defaults.
      prefix: of all names, with its dot.
    """

    def conv_norm(names, **numbers):
        return recipe.conv_norm(*(prefix + name.format(**numbers) for name in names))

    sizes = ResNet(**options)
    width, outside = sizes.stem or sizes.widths[0], 4 if sizes.bottleneck else 1
    parts = {"trunk/stem": conv_norm(layout.stem)}
    for stage, (features, num_blocks) in enumerate(zip(sizes.widths, sizes.blocks, strict=True), start=1):
        for index in range(num_blocks):
            target, where = f"trunk/stage{stage}_block{index}", {"stage": stage, "stage0": stage - 1, "block": index}
            for layer in (1, 2, 3) if sizes.bottleneck else (1, 2):
                parts[f"{target}/conv{layer}"] = conv_norm(layout.layer, **where, layer=layer, layer0=layer - 1)
            if index == 0 and (width != outside * features or stage > 1 or sizes.first_stride > 1):
                parts[f"{target}/shortcut"] = conv_norm(layout.shortcut, **where)
        width = outside * features
    return parts


def classifier_recipe(layout: Layout, options: dict[str, Any]) -> dict[str, recipe.Part]:
    """`Classifier` of these options."""
    trunk = {name: value for name, value in options.items() if name != "num_labels"}
    return {**trunk_recipe(layout, trunk), "head": recipe.dense(layout.head)}


def options_of(config) -> dict[str, Any]:
    """Options of `Classifier` from transformers' ResNetConfig. Raises ValueError naming what is not computed here."""
    recipe.refuse(config, hidden_act=("relu",), num_channels=(3,))
    bottleneck = config.layer_type == "bottleneck"
    return {
        "num_labels": config.num_labels,
        "bottleneck": bottleneck,
        "widths": [size // 4 if bottleneck else size for size in config.hidden_sizes],
        "blocks": list(config.depths),
        "stem": config.embedding_size,
        "first_stride": 2 if config.downsample_in_first_stage else 1,
        "stride_first": config.downsample_in_bottleneck,
    }


def options_of_torchvision(tensors: dict[str, Any]) -> dict[str, Any]:
    """Options of `Classifier` read off a state dict of torchvision's resnet18 to resnet152, or timm's of these names.

    Raises:
      ValueError: no such state dict, or a wide or grouped one, which is not computed here.
    """
    blocks = [0, 0, 0, 0]
    for name in tensors:
        if found := re.match(r"layer([1-4])\.(\d+)\.conv1\.weight$", name):
            blocks[int(found[1]) - 1] = max(blocks[int(found[1]) - 1], int(found[2]) + 1)
    if not all(blocks) or not {"conv1.weight", "fc.weight"} <= tensors.keys():
        raise ValueError(
            "no state dict of torchvision's ResNet (conv1, layer1 to layer4 and fc are expected). Pass that of "
            "resnet18, 34, 50, 101 or 152, without a prefix before the names."
        )
    bottleneck = "layer1.0.conv3.weight" in tensors
    widths = [int(tensors[f"layer{stage}.0.conv1.weight"].shape[0]) for stage in (1, 2, 3, 4)]
    return {
        "num_labels": int(tensors["fc.weight"].shape[0]),
        "bottleneck": bottleneck,
        "widths": widths,
        "blocks": blocks,
        "stem": int(tensors["conv1.weight"].shape[0]),
    }
