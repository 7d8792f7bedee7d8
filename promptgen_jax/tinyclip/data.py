"""Faces of the shipped generator, and what the shipped classifiers read in them: everything follows from a seed."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from promptgen_jax.generators import dcgan
from promptgen_jax.models.network import load_network
from promptgen_jax.store import weights

GENERATOR = "dcgan_digiface"
NETWORKS = ("faceapi_expression", "faceapi_age_gender", "facemesh")
GREY = (0.299, 0.587, 0.114)  # luma of ITU-R BT.601


class Faces(NamedTuple):
    """Images and readings, one row each.

    Attributes:
      images: (N, 64, 64, 3) uint8.
      expression: (N, 7) P(neutral, happy, sad, angry, fearful, disgusted, surprised).
      gender: (N, 2) P(male, female), gender presentation as the classifier sees it.
      face: (N,) P(the picture holds a face).
      yaw: (N,) degrees, positive where the nose points to the left edge of the image.
      luma: (N,) mean luma in [0, 1].
    """

    images: np.ndarray
    expression: np.ndarray
    gender: np.ndarray
    face: np.ndarray
    yaw: np.ndarray
    luma: np.ndarray

    def take(self, rows) -> Faces:
        """The given rows, by index or mask."""
        return Faces(*(field[rows] for field in self))


def make_faces(seed: int, num_images: int, *, cache: str | Path | None = None, batch_size: int = 64) -> Faces:
    """Draws latents, makes images, rounds them to 8 bits and reads those.

    Args:
      seed: image i of a seed does not depend on how many are made.
      num_images: N.
      cache: folder to keep the result in and look for it first; made if missing. Files of other weights are ignored.
      batch_size: images at a time.
    """
    generator = dcgan.build(weights=GENERATOR)
    networks = tuple(load_network(name) for name in NETWORKS)
    made_by = json.dumps([generator.checksum, *(network.checksum for network in networks), seed, num_images])
    path = cache and Path(cache) / f"faces-{hashlib.sha256(made_by.encode()).hexdigest()[:16]}.npz"
    if path and path.is_file():
        with np.load(path) as arrays:
            return Faces(**arrays)
    key = jax.random.key(seed)
    parts = []
    for start in range(0, num_images, batch_size):
        numbers = jnp.arange(start, start + batch_size)
        parts.append(jax.tree.map(np.asarray, _read_batch(generator, networks, key, numbers)))
        if start // batch_size % 20 == 0:
            print(f"faces of seed {seed}: {min(start + batch_size, num_images)} of {num_images}", flush=True)
    faces = Faces(*(np.concatenate(field)[:num_images] for field in zip(*parts, strict=True)))
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile() as file:
            np.savez(file, **faces._asdict())
            file.seek(0)
            weights.write_bytes(path, file.read())
    return faces


@jax.jit
def _read_batch(generator, networks, key, numbers) -> Faces:
    z = jax.vmap(lambda number: generator.prior.sample(jax.random.fold_in(key, number), 1)[0])(numbers)
    stored = jnp.round(255 * jnp.clip(generator(key, z), 0, 1)).astype(jnp.uint8)
    images = as_float(stored)
    expression, gender, mesh = (network(images) for network in networks)
    read: Any = Faces
    return read(
        images=stored,
        expression=jax.nn.softmax(expression["expression"]),
        gender=jax.nn.softmax(gender["gender"]),
        face=jax.nn.softmax(mesh["face"])[:, 1],
        yaw=mesh["pose"][:, 0],
        luma=jnp.mean(images @ jnp.array(GREY), axis=(1, 2)),
    )


def as_float(images) -> jax.Array:
    """8-bit images as float32 in [0, 1]."""
    return jnp.asarray(images, jnp.float32) / 255
