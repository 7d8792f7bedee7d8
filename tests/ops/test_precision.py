"""Energies and cameras stay full float32 on accelerators, whose matrix products are bfloat16 or TF32 by default."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import promptgen_jax as pg
from promptgen_jax.controls.clip import ClipControl
from promptgen_jax.controls.identity import IdentityControl
from promptgen_jax.controls.rotation import RotationControl
from promptgen_jax.models import volume
from promptgen_jax.models.network import Network
from promptgen_jax.ops import augment
from promptgen_jax.training import moments
from promptgen_jax.types import Sample

IMAGES = jnp.full((2, 8, 8, 3), 0.5)


class Statistics:
    """A module without weights or matrix products: colours as an embedding, no rotation."""

    image_size = 8

    def apply(self, variables, images):
        """Mean colours (B, 3) and rotations (B, 3, 3)."""
        del variables
        return {"embedding": jnp.mean(images, axis=(1, 2)), "rotation": jnp.eye(3) + 0 * images[:, :3, :3, 0]}


NETWORK = Network(weights={}, module=Statistics(), name="statistics", checksum="", attributes=())


def moment():
    control = pg.load_control("synthetic", energy="moment", mu=(0.5, 0.5))
    return lambda: control(None, Sample(images=IMAGES[:, :1, :1], z=None))


def text():
    options = {"num_augmentations": 2, "policy": augment.POLICY, "antialias": False, "chunk": 2}
    features = jnp.eye(3)[:2]
    control = ClipControl(NETWORK, features, jnp.ones(2) / 2, 600.0, name="text", **options)
    return lambda: control(jax.random.key(0), Sample(images=IMAGES, z=None))


def photographs():
    control = IdentityControl(NETWORK, 1.0, jnp.eye(3)[:2], name="identity")
    return lambda: control(None, Sample(images=IMAGES, z=None))


def rotation():
    control = RotationControl(NETWORK, 1.0, jnp.eye(3), name="pose")
    return lambda: (control(None, Sample(images=IMAGES, z=None, cond=jnp.ones((2, 2)))), control.pose(IMAGES))


def moment_fit():
    gamma = {"a": jnp.full((4, 2), 0.5)}
    return lambda: moments.moment_loss({"a": jnp.zeros(2)}, gamma, {"a": "uniform"})


def camera():
    return lambda: volume.cast_rays(jnp.eye(3)[None], np.zeros((4, 2), np.float32), 12.0)


def precisions(jaxpr):
    """Of all matrix products in a traced program."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation.params["precision"]
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda each: hasattr(each, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from precisions(inner)


@pytest.mark.parametrize("make", [moment, text, photographs, rotation, moment_fit, camera])
def test_no_matrix_product_is_left_to_the_default(make):
    with jax.default_matmul_precision("default"):
        found = list(precisions(jax.make_jaxpr(make())().jaxpr))
    assert set(found) <= {(jax.lax.Precision.HIGHEST, jax.lax.Precision.HIGHEST)}
