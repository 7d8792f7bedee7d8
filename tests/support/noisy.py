"""Figures of a toy whose generator and control draw noise of their own; as a program it prints them."""

import json

import jax
from flax import struct

import promptgen_jax as pg


@struct.dataclass
class Noisy:
    inner: object
    name: str = struct.field(pytree_node=False, default="noisy")
    image_size: int = struct.field(pytree_node=False, default=1)
    makes: str = struct.field(pytree_node=False, default="points")
    prior = property(lambda self: self.inner.prior)

    def __call__(self, key, z):
        points = self.inner(key, z)
        return points + 0.5 * jax.random.normal(key, points.shape)


@struct.dataclass
class Random:
    name: str = struct.field(pytree_node=False, default="random")
    weight: float = 1.0
    needs_reference: bool = struct.field(pytree_node=False, default=False)

    def __call__(self, key, sample):
        return jax.random.uniform(key, (len(sample.z),)) * sample.images[:, 0, 0, 0] ** 2


def figures(batch_size, num_samples=1024):
    generator = Noisy(pg.load_generator("synthetic", problem="mixture2d"))
    ebm = pg.LatentEBM(generator, (pg.load_control("synthetic", energy="moment", mu=(0.5, 0.5), name="mode"), Random()))
    ebm, fit = pg.fit_moments(ebm, jax.random.key(1), num_samples=num_samples, batch_size=batch_size)
    flow, params = pg.init_flow(jax.random.key(0), generator.prior, architecture="coupling", num_layers=2, hidden_dim=8)
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)
    prompt = pg.Prompt(generator, flow, params)
    options = {"num_samples": num_samples, "batch_size": batch_size}
    found = pg.evaluation.evaluate(prompt, ebm, (), {}, jax.random.key(2), **options)
    return {"beta": fit.beta["mode"].tolist(), "found": found}


if __name__ == "__main__":
    print(json.dumps(figures(64) | {"devices": jax.device_count()}))
