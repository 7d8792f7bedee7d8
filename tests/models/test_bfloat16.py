"""What is left of images, energies and gradients where the products of networks are bfloat16, compared with float32.

Compiled as accelerators have it, where a product of bfloat16 is rounded; XLA leaves that out on CPUs if it may.
"""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from promptgen_jax import parts, types
from promptgen_jax.models import network

KEY, BATCH = jax.random.key(3), 3
ROUNDED = {"xla_allow_excess_precision": False}
GENERATORS = ("biggan", "dcgan", "diffae", "nvae", "stylegan2", "stylenerf")
CONTROLS = ("cells", "classifier", "clip", "identity", "judges", "moment", "pose", "rotation")


def tiny(package, name):
    if name == "clip":
        return parts.load_control("clip", network="tinyclip_faces", text="a smiling face", num_augmentations=4)
    return importlib.import_module(f"promptgen_jax.{package}.{name}").tiny()


@functools.cache
def faces():
    generator = parts.load_generator("dcgan_digiface")
    return generator(KEY, generator.prior.sample(KEY, BATCH))


def in_precision(part, precision):
    """The same part, of which every network computes in a precision."""
    if isinstance(part, network.Network):
        return part.replace(precision=precision)
    is_network = lambda each: isinstance(each, network.Network)  # noqa: E731
    made = jax.tree.map(
        lambda each: in_precision(each, precision) if is_network(each) else each, part, is_leaf=is_network
    )
    return made.replace(precision=precision) if isinstance(part, types.Generator) else made


def made_by(part):
    """What a generator makes of latents, or a control's energies of faces, and the gradient of their sum of squares."""
    if isinstance(part, types.Generator):
        given = part.prior.sample(KEY, BATCH)
        compute = lambda part, z: part(KEY, z)  # noqa: E731
    else:
        given = faces()
        rest = {"z": jnp.zeros((BATCH, 1)), "cond": jnp.full((BATCH, 2), 0.2), "reference": given[:, :, ::-1]}
        compute = lambda part, images: part(KEY, types.Sample(images=images, **rest))  # noqa: E731

    def both(part, given):
        value, pull = jax.vjp(functools.partial(compute, part), given)
        return value, pull(value if isinstance(part, types.Generator) else jnp.ones_like(value))[0]

    return jax.jit(both, compiler_options=ROUNDED)(part, given)


def errors(part):
    """Largest error of values beside the larger of 1 and the largest value, and the cosine of the gradients."""
    (exact, gradient), (got, other) = (made_by(in_precision(part, name)) for name in ("float32", "bfloat16"))
    assert got.dtype == other.dtype == jnp.float32
    error = np.max(np.abs(got - exact)) / max(1, np.max(np.abs(exact)))
    return error, np.vdot(gradient, other) / np.linalg.norm(gradient) / np.linalg.norm(other)


@pytest.mark.parametrize(
    ("package", "name"),
    [("generators", name) for name in GENERATORS] + [("controls", name) for name in CONTROLS],
)
def test_values_and_gradients(package, name):
    error, cosine = errors(tiny(package, name))
    assert 0 < error < 1e-2
    assert cosine > 0.99


if __name__ == "__main__":
    for package, names in (("generators", GENERATORS), ("controls", CONTROLS)):
        for name in names:
            error, cosine = errors(tiny(package, name))
            print(f"{package} {name:12s} {error:.1e} {cosine:.6f}", flush=True)
