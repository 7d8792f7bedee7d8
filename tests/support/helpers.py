"""Small real parts and inputs that several tests share."""

import os
import socket

import jax
import jax.numpy as jnp
import numpy as np

import promptgen_jax as pg
from promptgen_jax.models import facemesh

DIM = 4

SHIFT = jnp.array([1.0, -0.5, 0.0, 0.5])

OPTIONS = {"num_steps": 6, "batch_size": 8, "save_every": 2, "log_every": 1, "quiet": True}

FLOW = {"architecture": "coupling", "num_layers": 4, "hidden_dim": 16}


def as_picture(z):
    return jnp.tile(z[:, None, :, None], (1, 1, 1, 3))


def quadratic(images):
    return 0.5 * jnp.sum((images[:, 0, :, 0] - 2 * SHIFT) ** 2, axis=-1)


def make_ebm(*functions):
    generator = pg.FunctionGenerator(prior=pg.Prior.standard(DIM), function=as_picture)
    functions = functions or (quadratic,)
    controls = tuple(pg.FunctionControl(function=f, name=f.__name__) for f in functions)
    return pg.LatentEBM(generator=generator, controls=controls)


def leaves_equal(one, other):
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


def some_prompt(generator, name="some", scale=0.3, cond_dim=0):
    """A prompt whose flow is drawn, not trained."""
    options = {"architecture": "coupling", "num_layers": 2, "hidden_dim": 8, "cond_dim": cond_dim}
    flow, params = pg.init_flow(jax.random.key(0), generator.prior, **options)
    rng = np.random.default_rng(0)
    changes = jax.tree.map(lambda leaf: scale * rng.normal(size=leaf.shape), params)
    params = jax.tree.map(lambda leaf, change: jnp.asarray(np.asarray(leaf) + change, leaf.dtype), params, changes)
    return pg.Prompt(generator, flow, params, name=name)


def with_devices(count, **more):
    """The environment of a process with virtual devices, that compiles as this one does."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
    return os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"} | more


def free_address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def rotated_landmarks(yaw=0.0, pitch=0.0, roll=0.0):
    """A face with the four landmarks of the pose, turned by angles in degrees; x right, y down, z away."""
    points = np.zeros((facemesh.NUM_LANDMARKS, 3), np.float32)
    points[facemesh.FOREHEAD], points[facemesh.CHIN] = (0, -50, 0), (0, 50, 0)
    points[facemesh.RIGHT_CHEEK], points[facemesh.LEFT_CHEEK] = (-40, 0, 0), (40, 0, 0)
    a, b, c = np.radians([yaw, pitch, roll])
    about_y = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    about_z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return jnp.asarray((points @ (about_y @ about_x @ about_z).T + 96)[None], jnp.float32)


def build_controls(stage):
    """The controls of a stage of a config."""
    return tuple(
        pg.load_control(options["kind"], name=name, **{key: options[key] for key in options if key != "kind"})
        for name, options in stage["controls"].items()
    )
