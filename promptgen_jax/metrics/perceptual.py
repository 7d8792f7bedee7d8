"""Perceptual distance of pictures to one another, as LPIPS measures it, by the layers of a network.

    d(x, y) = Σ_l mean_p |f_l(x)_p - f_l(y)_p|²,

with what layer l sees at place p scaled to length 1, f_l(x)_p, and all channels weighed alike. LPIPS itself has learnt
weights of channels, and other layers, so the number means something only beside others of the same network, and is
named after it. Source: arXiv 1801.03924, and lpips.py of richzhang/PerceptualSimilarity (BSD-2) with lpips=False.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from promptgen_jax import checks, devices
from promptgen_jax.controls.identity import unit
from promptgen_jax.metrics._figures import Estimate, Figure
from promptgen_jax.metrics._intervals import BLOCKS, jackknife_estimate, leaving_out, normalised
from promptgen_jax.metrics._observed import About, Observed
from promptgen_jax.models.network import Network, load_network
from promptgen_jax.types import Array, makes

NETWORK = "faceres"
PICTURES = 256  # of each draws that are looked at


def measure(seen: Mapping[str, Observed], about: About) -> tuple[Figure, ...]:
    """By every network that judges and shows its layers, of the first 256 pictures, as small as they are kept.

    Nothing of points, which are no pictures.
    """
    if makes(about.ebm.generator) != "images":
        return ()
    rows, few = [], {draws: found.first(PICTURES) for draws, found in seen.items()}
    for name, network in about.networks.items():
        if not isinstance(network, Network) or not shows_layers(network):
            continue
        values = {
            draws: perceptual_distance(found.images, network=network, weights=found.weights())
            for draws, found in few.items()
        }
        rows.append(Figure(f"perceptual distance ({name})", values))
    return tuple(rows)


def shows_layers(network: Network) -> bool:
    """Whether its module sows `maps`."""
    return bool(jax.eval_shape(network.maps, jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)))


def perceptual_distance(images: Any, *, network: str | Network = NETWORK, weights: Any = None) -> Estimate:
    """The mean distance of all pairs of different pictures, with the interval of a jackknife over blocks of them.

    No pair is formed: for features F of weight w it is 2 (Σ w Σ w |F|² - |Σ w F|²) / ((Σ w)² - Σ w²), and a block's sum
    of them is all that is kept.

    Args:
      images: (N, H, W, 3) in [0, 1], N at least 2.
      network: one that shows its layers, by name or folder, or loaded: `faceres`, or the image tower of a CLIP.
      weights: (N,) importance weights, not negative, any scale; equal by default.

    Returns:
      From 0, for pictures that are all alike, to four times the number of layers; without an interval below 4 pictures.

    Raises:
      ValueError, TypeError: bad images or fewer than two, bad weights, a network that shows no layers.
    """
    checks.check_images("perceptual_distance", images)
    images, network = np.asarray(images), load_network(network)
    if len(images) < 2:
        raise ValueError("perceptual_distance: got one image; expected at least two. Sample more.")
    if not shows_layers(network):
        raise ValueError(f"perceptual_distance: {network.name} shows no layers. Use {NETWORK}, or the name of a CLIP.")
    weights = normalised(np.ones(len(images)) if weights is None else weights, len(images))
    count = min(BLOCKS, len(images) // 2)
    blocks = [_in_blocks(each, count) for each in (images, weights)]
    sums, squares = devices.map_batches(_sums, count, blocks[0], blocks[1].astype(np.float32), shared=(network,))
    keep = leaving_out(count)
    lengths = sum(_squared_lengths(keep, layer) for layer in sums)
    total, squared = keep @ blocks[1].sum(axis=1), keep @ np.sum(blocks[1] ** 2, axis=1)
    pairs = total**2 - squared
    apart = 2 * np.maximum(total * (keep @ squares.astype(np.float64)) - lengths, 0)
    # a weight that stands alone has no pair: it is like itself
    return jackknife_estimate(np.divide(apart, pairs, out=np.zeros(len(keep)), where=pairs > 1e-9))


def _in_blocks(rows: np.ndarray, count: int) -> np.ndarray:
    """Rows (N, ...) dealt out to blocks (K, M, ...), in turn; what fills up the last is 0."""
    size = -(-len(rows) // count)
    filled = np.concatenate([rows, np.zeros((size * count - len(rows), *rows.shape[1:]), rows.dtype)])
    return filled.reshape(size, count, *rows.shape[1:]).swapaxes(0, 1)


def _squared_lengths(keep: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """|Σ_k S_k|² over the blocks that are kept, one a row of `keep`, of their sums S (K, ...)."""
    rows = sums.reshape(len(sums), -1).astype(np.float64)
    return np.einsum("rk,kl,rl->r", keep, rows @ rows.T, keep)


@jax.jit
def _sums(network: Network, images: Array, weights: Array) -> tuple[tuple[Array, ...], Array]:
    """By block Σ w F (B, ...) of every layer, and Σ w |F|² (B,), of images (B, M, H, W, 3) and weights (B, M)."""

    def features(pictures: Array) -> tuple[Array, ...]:
        return tuple(unit(each) / np.sqrt(np.prod(each.shape[1:-1])) for each in network.maps(pictures))

    def add(found: tuple, each: tuple[Array, Array]) -> tuple[tuple, None]:
        (sums, squares), (pictures, weight) = found, each
        rows = features(pictures)
        sums = tuple(total + jnp.einsum("b,b...->b...", weight, row) for total, row in zip(sums, rows, strict=True))
        return (sums, squares + weight * sum(jnp.sum(row.reshape(len(row), -1) ** 2, axis=1) for row in rows)), None

    nothing = jax.tree.map(lambda row: jnp.zeros(row.shape, row.dtype), jax.eval_shape(features, images[:, 0]))
    start = nothing, jnp.zeros(len(images))
    return jax.lax.scan(add, start, (images.swapaxes(0, 1), weights.T))[0]
