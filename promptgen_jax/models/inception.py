"""InceptionV3 as FID takes it: 2,048 features of a picture, by the network of 2015 that published FIDs are made with.

It differs from the InceptionV3 of textbooks in its pooling, which leaves the padding out of means, and in the last
block, which takes the largest neighbour instead of the mean.

Source: arXiv 1512.00567; mseitzer/pytorch-fid (Apache-2.0), inception.py; for how pictures get in GaParmar/clean-fid
(MIT), arXiv 2104.11222.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from promptgen_jax import checks
from promptgen_jax.ops import resample
from promptgen_jax.ops.convolution import convolve

SIZE, FEATURES = 299, 2048
CLEAN, PLAIN = "clean", "pytorch_fid"
WAYS = (CLEAN, PLAIN)


class InceptionV3(nn.Module):
    """Features of pictures for FID.

    Attributes:
      resize: how pictures get to 299 pixels a side. "clean" as in clean-fid, with Pillow's antialiased bicubic filter,
        cut off at black and white; "pytorch_fid" as in pytorch-fid, bilinear without antialiasing. Their numbers do not
        compare with each other.
    """

    resize: str = CLEAN

    def setup(self):
        """The layers, under their official names."""
        self.Conv2d_1a_3x3 = Conv(32, stride=2, padding="VALID")
        self.Conv2d_2a_3x3 = Conv(32, padding="VALID")
        self.Conv2d_2b_3x3 = Conv(64)
        self.Conv2d_3b_1x1 = Conv(80, (1, 1))
        self.Conv2d_4a_3x3 = Conv(192, padding="VALID")
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = (Fine(pooled) for pooled in (32, 64, 64))
        self.Mixed_6a = ShrinkFine()
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = (Middle(width) for width in (128, 160, 160, 192))
        self.Mixed_7a = ShrinkMiddle()
        self.Mixed_7b, self.Mixed_7c = Coarse(), Coarse(largest=True)

    def __call__(self, images) -> dict[str, jax.Array]:
        """{"embedding": (B, 2048)}, for images (B, H, W, 3) in [0, 1]."""
        return {"embedding": self.features(preprocess(images, self.resize))}

    def features(self, x):
        """Features (B, 2048) of pixels (B, H, W, 3) from -1 to 1, at least 75 pixels a side."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(shrink(x)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(shrink(x))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        return jnp.mean(x, axis=(1, 2))


def preprocess(images, way: str = CLEAN) -> jax.Array:
    """Images (B, H, W, 3) in [0, 1] to what the network sees, (B, 299, 299, 3) from -1 to 1.

    They are cut off and rounded to 8 bits first, as they are in the files that others measure.

    Raises:
      ValueError: an unknown way, with the nearest.
    """
    checks.check_known("inception: resize", way, WAYS)
    images = jnp.round(255 * jnp.clip(images, 0, 1)) / 255
    if way == PLAIN:
        return 2 * resample.resize_bilinear(images, SIZE) - 1
    return (255 * jnp.clip(resample.resize(images, (SIZE, SIZE), "bicubic"), 0, 1) - 128) / 128


class Conv(nn.Module):
    """Convolution with its batch normalisation folded, then ReLU; "SAME" pads as a stride of 1 needs it."""

    features: int
    size: tuple[int, int] = (3, 3)
    stride: int = 1
    padding: str = "SAME"

    @nn.compact
    def __call__(self, x):
        """Maps (B, H, W, C) to (B, H', W', features)."""
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (*self.size, x.shape[-1], self.features))
        rows, columns = (size // 2 if self.padding == "SAME" else 0 for size in self.size)
        x = convolve(x, kernel, stride=self.stride, padding=((rows, rows), (columns, columns)))
        return nn.relu(x + self.param("bias", nn.initializers.zeros, (self.features,)))


class Fine(nn.Module):
    """Block at 35 x 35; `pooled` is the width of its branch behind the pooling."""

    pooled: int

    @nn.compact
    def __call__(self, x):
        """Maps (B, H, W, C) to (B, H, W, 224 + pooled)."""
        one = Conv(64, (1, 1), name="branch1x1")(x)
        five = Conv(64, (5, 5), name="branch5x5_2")(Conv(48, (1, 1), name="branch5x5_1")(x))
        three = Conv(96, name="branch3x3dbl_2")(Conv(64, (1, 1), name="branch3x3dbl_1")(x))
        three = Conv(96, name="branch3x3dbl_3")(three)
        return jnp.concatenate([one, five, three, Conv(self.pooled, (1, 1), name="branch_pool")(mean(x))], axis=-1)


class ShrinkFine(nn.Module):
    """From 35 x 35 to 17 x 17."""

    @nn.compact
    def __call__(self, x):
        """Maps (B, H, W, C) to (B, H', W', 480 + C)."""
        three = Conv(384, stride=2, padding="VALID", name="branch3x3")(x)
        double = Conv(96, name="branch3x3dbl_2")(Conv(64, (1, 1), name="branch3x3dbl_1")(x))
        double = Conv(96, stride=2, padding="VALID", name="branch3x3dbl_3")(double)
        return jnp.concatenate([three, double, shrink(x)], axis=-1)


class Middle(nn.Module):
    """Block at 17 x 17, whose 7 x 7 convolutions are a row and a column; `width` of them in between."""

    width: int

    @nn.compact
    def __call__(self, x):
        """Maps (B, H, W, C) to (B, H, W, 768)."""
        row, column = (1, 7), (7, 1)
        one = Conv(192, (1, 1), name="branch1x1")(x)
        seven = Conv(self.width, (1, 1), name="branch7x7_1")(x)
        seven = Conv(192, column, name="branch7x7_3")(Conv(self.width, row, name="branch7x7_2")(seven))
        double = Conv(self.width, (1, 1), name="branch7x7dbl_1")(x)
        for number, size in ((2, column), (3, row), (4, column)):
            double = Conv(self.width, size, name=f"branch7x7dbl_{number}")(double)
        double = Conv(192, row, name="branch7x7dbl_5")(double)
        return jnp.concatenate([one, seven, double, Conv(192, (1, 1), name="branch_pool")(mean(x))], axis=-1)


class ShrinkMiddle(nn.Module):
    """From 17 x 17 to 8 x 8."""

    @nn.compact
    def __call__(self, x):
        """Maps (B, H, W, C) to (B, H', W', 512 + C)."""
        three = Conv(192, (1, 1), name="branch3x3_1")(x)
        three = Conv(320, stride=2, padding="VALID", name="branch3x3_2")(three)
        seven = Conv(192, (1, 7), name="branch7x7x3_2")(Conv(192, (1, 1), name="branch7x7x3_1")(x))
        seven = Conv(192, (7, 1), name="branch7x7x3_3")(seven)
        seven = Conv(192, stride=2, padding="VALID", name="branch7x7x3_4")(seven)
        return jnp.concatenate([three, seven, shrink(x)], axis=-1)


class Coarse(nn.Module):
    """Block at 8 x 8; `largest` pools by the largest neighbour instead of the mean."""

    largest: bool = False

    @nn.compact
    def __call__(self, x):
        """Maps (B, H, W, C) to (B, H, W, 2048)."""
        parts = [Conv(320, (1, 1), name="branch1x1")(x)]
        three = Conv(384, (1, 1), name="branch3x3_1")(x)
        double = Conv(384, name="branch3x3dbl_2")(Conv(448, (1, 1), name="branch3x3dbl_1")(x))
        for name, each in (("branch3x3_2", three), ("branch3x3dbl_3", double)):
            parts += [Conv(384, (1, 3), name=f"{name}a")(each), Conv(384, (3, 1), name=f"{name}b")(each)]
        pooled = nn.max_pool(x, (3, 3), padding=2 * ((1, 1),)) if self.largest else mean(x)
        return jnp.concatenate([*parts, Conv(192, (1, 1), name="branch_pool")(pooled)], axis=-1)


def shrink(x):
    """The largest of 3 x 3 pixels, at every second."""
    return nn.max_pool(x, (3, 3), (2, 2))


def mean(x):
    """The mean of 3 x 3 pixels, of those that lie inside."""
    return nn.avg_pool(x, (3, 3), padding=2 * ((1, 1),), count_include_pad=False)
