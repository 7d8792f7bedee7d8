"""IR-SE50: a residual network with squeeze and excitation, trained with ArcFace to tell people apart.

Source: arXiv 1801.07698 and TreB1eN/InsightFace_Pytorch (MIT), as ChenWu98/Generative-Visual-Prompt uses it in
model/energy/id.py (Eq. 12).
"""

from __future__ import annotations

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from promptgen_jax.models.layers import Conv, Dense, PReLU, ScaleShift
from promptgen_jax.ops.products import FINER
from promptgen_jax.ops.resample import resize_average

# (width, units) of the four stages; the first unit of each halves the resolution
STAGES = ((64, 3), (128, 4), (256, 14), (512, 3))
FRAME, ROWS, COLUMNS, FACE = 256, slice(35, 223), slice(32, 220), 112
EMBEDDING = 512
REDUCTION = 16


class IRSE50(nn.Module):
    """Identity embedding of the face that fills the frame, as in FFHQ.

    Attributes:
      symmetric: feed 2 x - 1, the range that the network learnt on. The paper's code feeds [0, 1] as it is.
      precisions: those that leave its gradients by pixels as they are; with bfloat16 their cosine was 0.97.
    """

    precisions: ClassVar[tuple[str, ...]] = FINER
    symmetric: bool = False

    @nn.compact
    def __call__(self, images) -> dict[str, jax.Array]:
        """{"embedding": (B, 512)} of length 1, for images (B, H, W, 3) in [0, 1]; compare by dot product."""
        x = crop_face(images)
        x = 2 * x - 1 if self.symmetric else x
        x = PReLU(name="stem_activation")(Conv(STAGES[0][0], 3, name="stem")(x))
        for stage, (features, num_units) in enumerate(STAGES, start=1):
            for index in range(num_units):
                x = Unit(features, 2 if index == 0 else 1, name=f"stage{stage}_unit{index}")(x)
        x = Dense(EMBEDDING, name="embedding")(x.reshape(len(x), -1))
        return {"embedding": x / jnp.linalg.norm(x, axis=-1, keepdims=True)}


class Unit(nn.Module):
    """Two convolutions, gated per channel, beside a shortcut that skips pixels or is convolved to a new width."""

    features: int
    stride: int

    @nn.compact
    def __call__(self, x):
        """Maps (B, H, W, C) to (B, H / stride, W / stride, features)."""
        # zeros are padded to what is normalised already, so this one cannot be folded into the convolution
        main = ScaleShift(name="norm")(x)
        main = PReLU(name="activation")(Conv(self.features, 3, use_bias=False, name="conv1")(main))
        main = Conv(self.features, 3, self.stride, name="conv2")(main)
        gate = jnp.mean(main, axis=(1, 2), keepdims=True)
        gate = nn.relu(Dense(self.features // REDUCTION, use_bias=False, name="squeeze")(gate))
        gate = nn.sigmoid(Dense(self.features, use_bias=False, name="excite")(gate))
        if x.shape[-1] == self.features:
            shortcut = x[:, :: self.stride, :: self.stride]
        else:
            shortcut = Conv(self.features, 1, self.stride, name="shortcut")(x)
        return main * gate + shortcut


def crop_face(images: jax.Array) -> jax.Array:
    """Images (B, H, W, 3) to the middle of the face, (B, 112, 112, 3): pooled to 256, cropped to 188, pooled again."""
    return resize_average(resize_average(images, FRAME)[:, ROWS, COLUMNS], FACE)
