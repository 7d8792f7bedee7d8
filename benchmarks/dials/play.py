"""The time in which the page draws 16 shipped faces, before and after, once it has started."""

from __future__ import annotations

import statistics
import time

import jax

import promptgen_jax as pg
from benchmarks.dials import measuring
from benchmarks.machine import cores
from promptgen_jax.play.studio import BATCH, Settings, Studio

STEPS, TURNS = 1, 20
STRENGTHS = (0.0, 1.0)  # which cost the same, as a flow of one step of training does what a trained one does


def run(seed, asked):
    """Times of `TURNS` drawings at each strength, each with a seed of its own."""
    ebm = measuring.smile_dial(pg.load_generator("dcgan_digiface"))
    prompt, _ = measuring.train(ebm, seed, asked.steps, {"batch_size": 2})
    start = time.perf_counter()
    studio = Studio.of([prompt], ["smile"])
    about = {"bench": "play", "seed": seed, "cores": cores(), "seconds_to_start": time.perf_counter() - start}
    yield {**about, "faces": BATCH, "rows": [{"strength": at, **timed(studio, at)} for at in STRENGTHS]}


def timed(studio, strength):
    """Median and least seconds of a drawing; what it returns lies in memory, as pixels."""
    seconds = []
    for turn in range(TURNS):
        start = time.perf_counter()
        jax.block_until_ready(studio.draw(Settings(seed=turn, number=BATCH, dials=(strength,))).after)
        seconds.append(time.perf_counter() - start)
    return {"median": statistics.median(seconds), "least": min(seconds)}
