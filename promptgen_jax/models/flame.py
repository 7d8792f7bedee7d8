"""FLAME: a head mesh from shape, expression and pose by linear blend skinning.

Source: T. Li et al., Learning a model of facial shape and expression from 4D scans, 2017; skinning as in SMPL (2015),
with the layout and coefficients that DECA uses (YadiraF/DECA, decalib/models/FLAME.py).
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from promptgen_jax.ops.rotations import compose, from_axis_angle

PARENTS = (-1, 0, 1, 1, 1)  # of root, neck, jaw and the two eyes
COEFFICIENTS = {"shape": 100, "exp": 50, "pose": 6, "eyes": 6}
MAX_YAW = 39  # degrees, of the table of contours
PRECISION = jax.lax.Precision.HIGHEST


class FLAME(nn.Module):
    """Mesh, joints and landmarks of a head.

    Attributes:
      num_vertices: V.
      num_faces: triangles.
    """

    num_vertices: int = 5023
    num_faces: int = 9976

    @nn.compact
    def __call__(self, coefficients) -> dict[str, jax.Array]:
        """Makes meshes of coefficients (B, 162): shape 100, expression 50, pose 6, eyes 6.

        Shape and expression are standard normal a priori. Pose holds the rotation of the head, then of the jaw, eyes
        those of the left and right eye, as axis times angle in radians.

        Returns:
          vertices: (B, V, 3) in metres: x to the left of the head, y up, z to the front.
          joints: (B, 5, 3) of root, neck, jaw and eyes.
          landmarks2d: (B, 68, 3) points of the surface, the 17 of the contour as they are seen under the pose.
          landmarks3d: (B, 68, 3) fixed points of the surface.
        """
        num, joints = self.num_vertices, len(PARENTS)
        arrays = {
            name: self.param(name, nn.initializers.zeros, shape)
            for name, shape in {
                "template": (num, 3),
                "basis": (num, 3, COEFFICIENTS["shape"] + COEFFICIENTS["exp"]),
                "pose_basis": (9 * (joints - 1), num, 3),
                "regressor": (joints, num),
                "weights": (num, joints),
            }.items()
        }
        triangles = self.param("triangles", _integers, (self.num_faces, 3))
        identity, pose, eyes = jnp.split(coefficients, (150, 156), axis=-1)
        shaped = arrays["template"] + _sum("vcl,bl->bvc", arrays["basis"], identity)
        vectors = jnp.stack([pose[:, :3], 0 * pose[:, :3], pose[:, 3:], eyes[:, :3], eyes[:, 3:]], axis=1)
        rotations = from_axis_angle(vectors)
        vertices, posed = skin(
            shaped, rotations, **{name: arrays[name] for name in ("pose_basis", "regressor", "weights")}
        )
        rows = contour_rows(compose(rotations[:, 0], rotations[:, 1]))
        static, full = self._points("static", (51,)), self._points("full", (68,))
        contours = [table[rows] for table in self._points("contour", (2 * MAX_YAW + 1, 17))]
        both = [
            jnp.concatenate([a, jnp.broadcast_to(b, (len(a), *b.shape))], axis=1)
            for a, b in zip(contours, static, strict=True)
        ]
        return {
            "vertices": vertices,
            "joints": posed,
            "landmarks2d": _on_surface(vertices, triangles, *both),
            "landmarks3d": _on_surface(vertices, triangles, full[0][None], full[1][None]),
        }

    def _points(self, name: str, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
        """Triangles of landmarks, and barycentric coordinates in them."""
        triangles = self.param(f"{name}_triangles", _integers, shape)
        return triangles, self.param(f"{name}_coordinates", nn.initializers.zeros, (*shape, 3))


def skin(shaped, rotations, *, pose_basis, regressor, weights) -> tuple[jax.Array, jax.Array]:
    """Linear blend skinning.

    Args:
      shaped: (B, V, 3) vertices at rest.
      rotations: (B, 5, 3, 3) of every joint against its parent.
      pose_basis: (36, V, 3) what the rotations but the root's add to the rest.
      regressor: (5, V) joints from vertices.
      weights: (V, 5) of the joints, used as they are.

    Returns:
      (vertices, joints): (B, V, 3) and (B, 5, 3), posed.
    """
    joints = _sum("jv,bvc->bjc", regressor, shaped)
    feature = (rotations[:, 1:] - jnp.eye(3)).reshape(len(rotations), -1)
    offset = shaped + _sum("bp,pvc->bvc", feature, pose_basis)
    turned, moved = [rotations[:, 0]], [joints[:, 0]]
    for joint, parent in enumerate(PARENTS[1:], start=1):
        bone = joints[:, joint] - joints[:, parent]
        moved.append(moved[parent] + _sum("bij,bj->bi", turned[parent], bone))
        turned.append(_sum("bij,bjk->bik", turned[parent], rotations[:, joint]))
    turns, places = jnp.stack(turned, axis=1), jnp.stack(moved, axis=1)
    shift = places - _sum("bjik,bjk->bji", turns, joints)
    blended = _sum("vj,bjik->bvik", weights, turns)
    return _sum("bvik,bvk->bvi", blended, offset) + _sum("vj,bji->bvi", weights, shift), places


def contour_rows(rotations) -> jax.Array:
    """Rows (B,) of the contour table by the yaw of rotations (B, 3, 3): 0 to 39 degrees, then -1 to -39."""
    sideways = jnp.hypot(rotations[:, 0, 0], rotations[:, 1, 0])
    yaw = jnp.round(jnp.minimum(jnp.degrees(jnp.arctan2(-rotations[:, 2, 0], sideways)), MAX_YAW)).astype(jnp.int32)
    return jnp.where(yaw >= 0, yaw, jnp.where(yaw < -MAX_YAW, 2 * MAX_YAW, MAX_YAW - yaw))


def project(points, cam) -> jax.Array:
    """Points (B, N, 3) under the orthographic camera (B, 3) of DECA, scale and shift; y down and z away."""
    shift = jnp.pad(cam[:, None, 1:], ((0, 0), (0, 0), (0, 1)))
    return cam[:, None, :1] * (points + shift) * jnp.array([1.0, -1.0, -1.0])


def _on_surface(vertices, triangles, faces, coordinates):
    corners = jax.vmap(lambda mesh, chosen: mesh[triangles[chosen]])(
        vertices, jnp.broadcast_to(faces, (len(vertices), faces.shape[1]))
    )
    return jnp.sum(coordinates[..., None] * corners, axis=2)


def _integers(key, shape):
    del key
    return jnp.zeros(shape, jnp.int32)


def _sum(formula, *arrays):
    return jnp.einsum(formula, *arrays, precision=PRECISION)
