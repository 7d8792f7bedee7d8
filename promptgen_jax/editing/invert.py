"""Latents of given pictures, by gradient descent from several starts each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from promptgen_jax import checks, devices
from promptgen_jax.controls.identity import unit
from promptgen_jax.draws import noise, sample_keys
from promptgen_jax.models.network import Network, load_network
from promptgen_jax.samplers.optimise import descend
from promptgen_jax.types import Array, Generator, makes


@dataclass(frozen=True)
class Inversion:
    """What was found for N pictures.

    Attributes:
      z: (N, D) latents, of each picture's best start.
      images: (N, H, W, 3) what the generator makes of them.
      residual: (N,) root mean square of the difference in pixels, 0 for the picture itself.
      residuals: (N, S) of every start; if they differ much, more starts may find better ones.
    """

    z: np.ndarray
    images: np.ndarray
    residual: np.ndarray
    residuals: np.ndarray


class _Search(struct.PyTreeNode):
    """How a picture is looked for; called, the loss of one latent (D,) for one picture (H, W, 3), see `invert`."""

    generator: Generator
    network: Network | None
    feature_weight: float
    prior_weight: float
    num_steps: int = struct.field(pytree_node=False)
    learning_rate: float = struct.field(pytree_node=False)

    def __call__(self, key: Array, z: Array, picture: Array, features: Array) -> Array:
        image = self.image(key, z)
        loss = jnp.mean((image - picture) ** 2)
        loss += self.feature_weight * (1 - jnp.sum(self.features(image) * features))
        return loss - self.prior_weight * self.generator.prior.log_prob(z[None])[0] / len(z)

    def image(self, key: Array, z: Array) -> Array:
        """G(z) (H, W, 3)."""
        return self.generator(key, z[None])[0]

    def features(self, image: Array) -> Array:
        """Of length 1, of one image; without a network the same for all."""
        return jnp.ones(1) if self.network is None else unit(self.network(image[None])["embedding"])[0]


def invert(
    generator: Generator,
    images: Any,
    key: Array,
    *,
    num_starts: int = 4,
    num_steps: int = 300,
    learning_rate: float = 0.1,
    prior_weight: float = 1e-3,
    network: str | Path | Network | None = None,
    options: dict | None = None,
    feature_weight: float = 0.1,
    batch_size: int = 16,
) -> Inversion:
    """Finds the latents of pictures by Adam on z.

    With x = G(z), the picture x0 and features e, the loss of one start is

        mean (x - x0)² + feature_weight (1 - cos(e(x), e(x0))) - prior_weight log p_z(z) / D.

    The start with the least loss counts. A picture that the generator cannot make is answered with the nearest one, and
    a large residual. Each picture's result depends on its number and the key, not on the batch; the generator's own
    noise is that of `prompt.edit` under the same key.

    Args:
      generator: frozen, such as `prompt.generator`.
      images: (N, S, S, 3) in [0, 1], of the generator's size and framed as it frames them.
      key: of the starts, which are draws of the prior, and of the noise of the generator.
      num_starts: for each picture.
      num_steps: of Adam.
      learning_rate: of Adam, which rises at first and falls at the end as in the sampler `optimise`.
      prior_weight: 0 leaves the prior out; more keeps z typical, where flows and edits are at home.
      network: one that gives an `embedding`, such as faceres, by name or folder, or loaded; None for pixels alone.
      options: of that network, e.g. `{"input_size": 112}`.
      feature_weight: of the features, which see who it is where pixels see brightness.
      batch_size: starts per device at a time.

    Raises:
      TypeError, ValueError: pictures of another size or range, a raw key, a count below 1, a negative weight, a
        generator of points or meshes, a network without embedding.
    """
    _check(generator, images, key)
    for name, count in (("num_starts", num_starts), ("num_steps", num_steps), ("batch_size", batch_size)):
        checks.check_count(f"invert: {name}", count)
    for name, value in (("prior_weight", prior_weight), ("feature_weight", feature_weight)):
        checks.check_number(f"invert: {name}", value, 0, np.inf)
    checks.check_number("invert: learning_rate", learning_rate, 0, np.inf, above=True)
    if network is not None:
        network = load_network(network, **(options or {})).that_returns("embedding")
    search = _Search(generator, network, feature_weight, prior_weight, num_steps, learning_rate)
    pictures, numbers = np.asarray(images, np.float32), np.arange(len(images) * num_starts)
    rows = (
        sample_keys(key, numbers // num_starts),
        noise(generator.prior, key, numbers),
        pictures.repeat(num_starts, axis=0),
    )
    loss, z, made = devices.map_batches(_invert, batch_size, *rows, shared=(search,))
    loss = loss.reshape(-1, num_starts)
    if lost := int(np.sum(np.isnan(loss).all(axis=1))):
        raise ValueError(
            f"invert: all starts of {lost} of {len(images)} pictures ended in NaN. Lower learning_rate, or the weights."
        )
    each = np.arange(len(images)), np.where(np.isnan(loss), np.inf, loss).argmin(axis=1)
    z, made = (found.reshape(-1, num_starts, *found.shape[1:]) for found in (z, made))
    residuals = np.sqrt(np.mean((made - pictures[:, None]) ** 2, axis=(2, 3, 4)))
    return Inversion(z=z[each], images=made[each], residual=residuals[each], residuals=residuals)


def _check(generator: Generator, images: Any, key: Array) -> None:
    """Raises TypeError or ValueError unless these are pictures as the generator makes them, and a key."""
    checks.check_key("invert", key)
    checks.check_images("invert", images)
    if makes(generator) != "images":
        raise ValueError(f"invert: {generator.name} makes {makes(generator)}, no pictures. Choose another generator.")
    made = jax.eval_shape(generator, key, jax.ShapeDtypeStruct((1, generator.prior.dim), jnp.float32)).shape[1:]
    if not len(images) or images.shape[1:] != made:
        raise ValueError(
            f"invert: images are {images.shape}; expected (batch, {', '.join(map(str, made))}), as {generator.name} "
            "makes them. Crop and resize them as it frames its own."
        )


@jax.jit
def _invert(search: _Search, keys: Array, starts: Array, pictures: Array) -> tuple[Array, Array, Array]:
    """Losses (B,), latents (B, D) and images (B, H, W, 3) where the descents end."""

    def one(key, start, picture):
        features = search.features(picture)

        def loss(z):
            return search(key, z, picture, features)

        z = descend(loss, start, search.num_steps, search.learning_rate)
        return loss(z), z, search.image(key, z)

    return jax.vmap(one)(keys, starts, pictures)
