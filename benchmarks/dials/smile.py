"""The dial of the smile on the shipped faces, for each way to draw strengths, and the training without a dial."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

import promptgen_jax as pg
from benchmarks.dials import measuring
from benchmarks.dials.measuring import BATCH, FACES
from promptgen_jax.devices import map_batches

STEPS, CORNERS, STRENGTHS = 200, (0.5, 0.0), (0.25, 0.5, 1.0)


def run(seed, asked):
    """A training without a dial, then one for each share of the draws at full strength."""
    generator = pg.load_generator("dcgan_digiface")
    control = measuring.smile_control()
    single = pg.LatentEBM(generator, (control,))
    prior = measuring.prior_energies(single)
    log_z = {s: measuring.log_mean_exp(-s * prior) for s in STRENGTHS}
    eps = measuring.noise(generator, asked.samples)
    chosen = jax.jit(lambda c, x: jnp.argmax(c.network.log_probs(x, "expression"), 1))
    happy = control.network.label_index("expression", "happy")

    def row(prompt, ebm, strength, alone=None):
        found, z = measuring.free_energy(prompt, ebm, strength, eps)
        images = map_batches(lambda z: chosen(control, generator(jax.random.key(0), z)), BATCH, z)
        at = 1.0 if strength is None else strength
        told = {"strength": at, **measuring.mean("gap", found + log_z[at]), "happy": float(np.mean(images == happy))}
        return found, told | ({} if alone is None else measuring.mean("minus_single", found - alone))

    prompt, alone_seconds = measuring.train(single, seed, asked.steps, FACES)
    alone, told = row(prompt, single, None)
    about = {"bench": "smile", "seed": seed, "steps": asked.steps}
    yield {**about, "corners": None, "seconds": alone_seconds, "rows": [told]}
    for share in asked.corners or CORNERS:
        ebm = measuring.smile_dial(generator, share)
        prompt, seconds = measuring.train(ebm, seed, asked.steps, FACES)
        rows = [row(prompt, ebm, s, alone if s == 1 else None)[1] for s in STRENGTHS]
        times = {"seconds": seconds, "times_single": seconds / alone_seconds}
        yield {**about, "corners": share, **times, "identity": measuring.is_identity(prompt, eps), "rows": rows}
