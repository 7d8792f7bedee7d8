"""Time to a given energy: a text asked of the shipped faces by the paper's views, and by fewer that are spread.

The batches and steps that go with fewer views are measured here too. Looking at a flow takes none of its time.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

import promptgen_jax as pg
from benchmarks.objectives import FACES
from benchmarks.parts.views import ASKED

SEEDS = (0, 1, 2)
LOOKS = 2  # at a flow, half way and at the end
NUM_SAMPLES, BATCH = 128, 16  # of a look, each in the paper's views


@dataclasses.dataclass(frozen=True)
class Way:
    """A recipe of the CLIP control, and what of the training goes with it."""

    recipe: str
    batch_size: int
    num_steps: int
    learning_rate: float


PAPER = Way("paper", 32, 100, 2e-3)  # batch and rate of configs/face_text.py
FAST = Way("fast", 16, 120, 8e-3)
OTHERS = (  # of one seed: does the rate alone do it, and what do batch, steps and rate do to fewer views
    Way("paper", 32, 22, 8e-3),
    Way("fast", 32, 50, 2e-3),
    Way("fast", 16, 100, 2e-3),
    Way("fast", 8, 200, 2e-3),
    Way("fast", 16, 120, 6e-3),
    Way("fast", 8, 200, 5e-3),
)


def measure(quick: bool) -> Iterator[dict]:
    """A record for each training: what the flow had reached, after how many seconds of the processor."""
    jax.config.update("jax_enable_compilation_cache", False)  # compilation is part of the time
    runs = [(way, seed) for way in (PAPER, FAST) for seed in SEEDS] + [(way, SEEDS[0]) for way in OTHERS]
    if quick:
        runs = [(dataclasses.replace(way, batch_size=2, num_steps=12), SEEDS[0]) for way in (PAPER, FAST)]
    for way, seed in runs:
        yield {
            "name": f"recipes/{way.recipe}-{way.batch_size}x{way.num_steps}-{way.learning_rate:g}-{seed}",
            "kind": "recipe",
            **dataclasses.asdict(way),
            "seed": seed,
            **train(way, seed, num_samples=BATCH if quick else NUM_SAMPLES),
        }


def target_of(recipe: str) -> pg.LatentEBM:
    """The text asked of the shipped faces, in the views of a recipe."""
    return pg.LatentEBM(pg.load_generator("dcgan_digiface"), (pg.load_control("clip", recipe=recipe, **ASKED),))


def train(way: Way, seed: int, *, num_samples: int) -> dict:
    """One training, looked at by the paper's energy."""
    judge, trained = target_of(PAPER.recipe), target_of(way.recipe)
    seen: list[tuple[int, float, pg.Prompt]] = []
    start = time.process_time()

    def see(number: int, metrics: dict, prompt: pg.Prompt) -> None:
        if number > 1:  # at which fit calls back, too
            seen.append((number, time.process_time() - start, prompt))

    training = FACES | dataclasses.asdict(way) | {"seed": seed}
    del training["recipe"]
    pg.fit(trained, quiet=True, callback=see, log_every=way.num_steps // LOOKS, **training)
    looks = []
    for number, seconds, prompt in seen:
        energy, divergence = reached(judge, prompt, num_samples)
        loss = ASKED["weight"] * energy + divergence
        looks.append({"step": number, "seconds": seconds, "energy": energy, "divergence": divergence, "loss": loss})
    views = trained.controls[0].num_augmentations
    return {"text": ASKED["text"], "weight": ASKED["weight"], "views": views, "samples": num_samples, "looks": looks}


def reached(target: pg.LatentEBM, prompt: pg.Prompt, num_samples: int) -> tuple[float, float]:
    """Mean energy of fresh samples, of every flow by the same noise and views, and their KL to the generator, nats."""
    keys = jax.random.split(jax.random.key(10**6), num_samples // BATCH)
    found = [_look(prompt.flow, prompt.params, target, key) for key in keys]
    energy, divergence = np.mean(found, axis=0)
    return float(energy), float(divergence)


@jax.jit
def _look(flow, params, target, key):
    eps_key, key = jax.random.split(key)
    z, log_prob = flow.sample_and_log_prob(params, eps_key, BATCH)
    energies = target.energies(key, z)[target.controls[0].name]
    return jnp.mean(energies), jnp.mean(log_prob - target.generator.prior.log_prob(z))
