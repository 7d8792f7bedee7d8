"""Faces moved along the dial of the smile and back: the way back, and whether they stay the same person."""

from __future__ import annotations

import jax
import numpy as np

import promptgen_jax as pg
from benchmarks.dials import measuring
from benchmarks.dials.measuring import BATCH, FACES
from promptgen_jax import images
from promptgen_jax.controls.identity import unit
from promptgen_jax.devices import map_batches
from promptgen_jax.evaluation import identity_distances

STEPS, SAMPLES = 200, 256
EDITS = ((0.0, 0.5), (0.0, 1.0), (0.5, 1.0))  # from one strength to another
SHOWN = 8
SMILE = {"happy": ("faceapi_expression", "expression", "happy"), "happy_judge": ("emotion", "emotion", "happy")}


def run(seed, asked):
    """A training of the dial, then faces of the flow at one strength moved to another."""
    generator = pg.load_generator("dcgan_digiface")
    prompt, seconds = measuring.train(measuring.smile_dial(generator), seed, asked.steps, FACES)
    key, eps, rows, sheet = jax.random.key(0), measuring.noise(generator, asked.samples), [], {}
    for old, new in EDITS:
        start, end = (prompt.condition(strength={"smile": strength}) for strength in (old, new))
        z = np.asarray(prompt.latents(eps, np.tile(start, (len(eps), 1))))
        (before, _), (after, moved) = (prompt.edit(key, z, cond_from=start, cond_to=cond) for cond in (start, end))
        again, back = prompt.edit(key, moved, cond_from=end, cond_to=start)
        seen = measuring.seen(generator, SMILE, moved)
        rows.append(
            {"from": old, "to": new}
            | {"moved": float(np.abs(moved - z).mean()), "round_trip": float(np.abs(back - z).max())}
            | {"round_trip_pixels": float(np.abs(again - before).max())}
            | identity_distances(embeddings(before), embeddings(after))
            | {name: float(values.mean()) for name, values in seen.items()}
        )
        sheet |= {f"smile at {strength:g}": made[:SHOWN] for strength, made in ((old, before), (new, after))}
    if asked.sheet:
        images.save_png(asked.sheet, images.before_after_sheet(sorted(sheet.items()), scale=2))
    yield {"bench": "edit", "seed": seed, "steps": asked.steps, "seconds": seconds, "rows": rows}


def embeddings(pictures):
    """Of length 1, (N, F), by the shipped network that tells faces apart."""
    embed = jax.jit(lambda network, pictures: unit(network(pictures)["embedding"]))
    return map_batches(embed, BATCH, pictures, shared=(pg.load_network("faceres"),))
