"""The coarse encoder of DECA: FLAME coefficients, head pose among them, of the face that fills the frame.

Needs neither FLAME nor a renderer.
Source: arXiv 2012.04012 and YadiraF/DECA, as ChenWu98/Generative-Visual-Prompt uses it in model/energy/pose.py (Eq. 4).
"""

from __future__ import annotations

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from promptgen_jax.models.layers import Dense
from promptgen_jax.models.resnet import INPUT_SIZE, ResNet
from promptgen_jax.ops.products import FINER
from promptgen_jax.ops.resample import resize_bicubic
from promptgen_jax.ops.rotations import from_axis_angle

COEFFICIENTS = {"shape": 100, "tex": 50, "exp": 50, "pose": 6, "cam": 3, "light": 27}


class DECA(nn.Module):
    """ResNet-50 and two dense layers.

    Attributes:
      precisions: those that leave its gradients by pixels as they are; with bfloat16 their cosine was 0.96.
    """

    precisions: ClassVar[tuple[str, ...]] = FINER

    @nn.compact
    def __call__(self, images) -> dict[str, jax.Array]:
        """Reads images (B, H, W, 3) in [0, 1], resized to 224 pixels by bicubic interpolation without antialiasing.

        Returns:
          shape: (B, 100), exp: (B, 50) coefficients of FLAME, standard normal a priori.
          tex: (B, 50) coefficients of its texture.
          pose: (B, 6) rotation of the head, then of the jaw, as axis times angle in radians: x nods, y turns,
            z rolls; positive y is to the right as the viewer sees it.
          rotation: (B, 3, 3) the first of them as a matrix.
          cam: (B, 3) scale and shift of the orthographic camera.
          light: (B, 9, 3) spherical harmonics of the light, per colour.
        """
        features = ResNet(bottleneck=True, name="trunk")(resize_bicubic(images, INPUT_SIZE))
        hidden = nn.relu(Dense(1024, name="hidden")(features))
        coefficients = Dense(sum(COEFFICIENTS.values()), name="head")(hidden)
        ends = np.cumsum(list(COEFFICIENTS.values()))[:-1]
        groups = dict(zip(COEFFICIENTS, jnp.split(coefficients, ends, axis=-1), strict=True))
        rotation = from_axis_angle(groups["pose"][:, :3])
        return groups | {"light": groups["light"].reshape(-1, 9, 3), "rotation": rotation}
