"""How noisy the gradient of a CLIP energy is for its arithmetic: images, views of each, and how views are drawn.

The shipped faces and the shipped small CLIP. With the same views altogether, more images with fewer views cost a little
more of the generator; whether the gradient by the flow gets steadier is measured here.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import promptgen_jax as pg
from benchmarks import counting
from benchmarks.case import trained
from promptgen_jax.ops import augment

SPLITS = ((1, 48), (4, 12), (16, 3), (48, 1))  # images and views, 48 views altogether
COUNT = 48
ASKED = {"network": "tinyclip_faces", "text": "a photo of a smiling woman", "weight": 60.0}


def measure(quick: bool) -> list[dict]:
    """A record for each way to spend the views."""
    control = pg.load_control("clip", **ASKED)
    generator = pg.load_generator("dcgan_digiface")
    options = {"architecture": "coupling", "num_layers": 4, "hidden_dim": 64}
    flow, params = pg.init_flow(jax.random.key(0), generator.prior, **options)
    parts, params = (generator, flow, control.replace(chunk=6)), trained(params)
    count, splits = (3, SPLITS[-1:]) if quick else (COUNT, SPLITS)
    found = []
    for images, views in splits:
        for draw in augment.SPREADS[: 3 if views > 1 else 1]:  # one view has nothing to be spread over
            variance, squared_mean, gflop = spread_of(images, views, draw, params, parts, count)
            found.append(
                {
                    "name": f"views/{draw}-{images}x{views}",
                    "kind": "views",
                    "about": f"“{ASKED['text']}”, asked of the shipped faces through the shipped small CLIP",
                    "draw": draw,
                    "draws": count,
                    "images": images,
                    "views": views,
                    "gflop": gflop,
                    "variance": variance,
                    "squared_mean": squared_mean,
                }
            )
    share = max(float(np.mean([each["squared_mean"] for each in found])), 1e-30)  # all have the same mean
    return [each | {"variance": each["variance"] / share} for each in found]


def spread_of(images: int, views: int, draw: str, params: Any, parts: tuple, count: int) -> tuple[float, float, float]:
    """Total variance of the gradient, the squared norm of its mean without bias, and the GFLOP of one gradient."""

    def loss(params: Any, key: jax.Array, generator: Any, flow: Any, control: Any) -> jax.Array:
        eps_key, view_key = jax.random.split(key)
        z, _ = flow.forward_and_log_det(params, generator.prior.sample(eps_key, images))
        shape = {"num_images": images, "num_views": views, "image_size": generator.image_size}
        drawn = augment.draw(view_key, **shape, spread=draw)
        return control.weight * jnp.mean(control.mean_energies(drawn, generator(key, z)))

    def gradient(params: Any, key: jax.Array, parts: tuple) -> jax.Array:
        leaves = jax.tree.leaves(jax.grad(loss)(params, key, *parts))
        return jnp.concatenate([leaf.ravel() for leaf in leaves])

    one = jax.jit(gradient)
    keys = jax.random.split(jax.random.key(1), count)
    samples = np.stack([np.asarray(one(params, key, parts), np.float64) for key in keys])
    variance = float(samples.var(axis=0, ddof=1).sum())
    squared_mean = float(np.sum(samples.mean(axis=0) ** 2)) - variance / count
    return variance, squared_mean, counting.gflop(one.trace(params, keys[0], parts))
