"""FLAME as a generator: shape and expression coefficients to head meshes (appendix E of the paper).

Like the toys of `generators.synthetic` it makes pictures of *points*: the image (B, V + 68, 1, 3) holds the coordinates
of the V vertices and then of the 68 landmarks, in metres. Controls of `controls.lengths` understand it; reports show a
rendering.
"""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from promptgen_jax import checks
from promptgen_jax.generators._frozen import Frozen
from promptgen_jax.models import flame, network
from promptgen_jax.ops import products
from promptgen_jax.store import images
from promptgen_jax.types import Array, Prior

IDENTITY = flame.COEFFICIENTS["shape"] + flame.COEFFICIENTS["exp"]
REST = flame.COEFFICIENTS["pose"] + flame.COEFFICIENTS["eyes"]


@struct.dataclass(kw_only=True)
class FlameMeshes(Frozen):
    """`x = G(z)`, z the 100 shape and 50 expression coefficients, standard normal; head, jaw and eyes are at rest."""

    makes: ClassVar[str] = "mesh"

    image_size: int = struct.field(pytree_node=False, default=1)

    def __post_init__(self):
        """Refuses a precision other than float32, whose coordinates are lengths."""
        products.check(self.name, self.precision, self.weights, taken=("float32",))

    def __call__(self, key: Array, z: Array) -> Array:
        """Vertices and landmarks (B, V + 68, 1, 3), metres, of latents (B, 150). `key` is not used.

        Raises:
          ValueError, TypeError: latents of another shape or dtype, or not finite.
        """
        del key
        checks.check_latents(self.name, z, self.prior.dim)
        made = self.module.apply({"params": self.weights}, jnp.pad(z, ((0, 0), (0, REST))))
        return jnp.concatenate([made["vertices"], made["landmarks3d"]], axis=1)[:, :, None]

    def triangles(self) -> np.ndarray:
        """(F, 3) vertices of every triangle."""
        return np.asarray(self.weights["triangles"])

    def view(self, made) -> np.ndarray:
        """Renderings (B, S, S, 3) of what it made (B, V + 68, 1, 3)."""
        return images.render_mesh(np.asarray(made)[:, : self.module.num_vertices, 0], self.triangles())


def build(*, weights: str = "flame") -> FlameMeshes:
    """Loads a converted FLAME.

    Args:
      weights: name under ported_weights, or a folder.

    Raises:
      FileNotFoundError, ValueError: as `network.load_params`.
    """
    example = jax.ShapeDtypeStruct((1, IDENTITY + REST), jnp.float32)
    module, tree, config = network.load_params(weights, kind="mesh", example=example)
    return FlameMeshes(
        weights=tree,
        prior=Prior.standard(IDENTITY),
        module=module,
        name=config["name"],
        checksum=config["sha256"],
        license=config["license"],
    )


def tiny() -> FlameMeshes:
    """A ball of 8 x 12 vertices that the coefficients dent at random, for tests."""
    rows, columns = 8, 12
    height = np.linspace(-np.pi / 2, np.pi / 2, rows)[:, None]
    around = np.linspace(0, 2 * np.pi, columns, endpoint=False)[None]
    ball = np.stack(
        np.broadcast_arrays(np.cos(height) * np.sin(around), np.sin(height), np.cos(height) * np.cos(around))
    )
    corner = np.arange(rows * columns).reshape(rows, columns)
    right, up = np.roll(corner, -1, axis=1)[:-1], corner[1:]
    upper = np.roll(corner, -1, axis=1)[1:]
    triangles = np.concatenate([np.stack([corner[:-1], right, up], -1), np.stack([right, upper, up], -1)]).reshape(
        -1, 3
    )
    module = flame.FLAME(num_vertices=rows * columns, num_faces=len(triangles))
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, IDENTITY + REST)))["params"]
    rng = np.random.default_rng(0)
    tree = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    tree |= {
        "template": 0.1 * ball.reshape(3, -1).T,
        "basis": rng.normal(0, 2e-3, shapes["basis"].shape),
        "weights": np.eye(1, len(flame.PARENTS)) * np.ones((rows * columns, 1)),
        "triangles": triangles,
        "full_triangles": rng.integers(0, len(triangles), 68),
        "full_coordinates": rng.dirichlet(np.ones(3), 68),
    }
    tree = jax.tree.map(lambda leaf, like: jnp.asarray(leaf, like.dtype), tree, dict(shapes))
    prior = Prior.standard(IDENTITY)
    return FlameMeshes(weights=tree, prior=prior, module=module, name="tiny_flame")
