"""The dials of smile and turn at the corners, for each way to draw strengths, and a training for each corner."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

import promptgen_jax as pg
from benchmarks.dials import measuring
from benchmarks.dials.measuring import BATCH, FACES
from configs import face_two_dials
from promptgen_jax.devices import map_batches

STEPS, SHARES = 200, (0.5,)
CORNERS = ((1, 0), (0, 1), (1, 1))


def run(seed, asked):
    """A training for each corner, then one for each share of the draws at corners."""
    config = face_two_dials.get_config().to_dict()
    stage, generator = config["stages"]["both"], pg.load_generator(**config["generator"])
    controls = {
        name: pg.load_control(options.pop("kind"), **options, name=name) for name, options in stage["controls"].items()
    }
    eps = measuring.noise(generator, asked.samples)
    prior = np.stack([measuring.prior_energies(pg.LatentEBM(generator, (each,))) for each in controls.values()])
    weights = {corner: -np.array(corner) @ prior for corner in CORNERS}
    rows, apart, alone = [], {}, {}
    for corner in CORNERS:
        wanted = tuple(control for control, at in zip(controls.values(), corner, strict=True) if at)
        single = pg.LatentEBM(generator, wanted)
        prompt, apart[corner] = measuring.train(single, seed, asked.steps, FACES)
        alone[corner], z = measuring.free_energy(prompt, single, None, eps)
        told = dict(zip(controls, corner, strict=True)) | {"ess_of_prior": measuring.ess(weights[corner])}
        rows.append(told | measuring.gap(alone[corner], weights[corner]) | turned(generator, controls, z))
    about = {"bench": "two", "seed": seed, "steps": asked.steps}
    yield {**about, "corners": None, "seconds": sum(apart.values()), "rows": rows}
    for share in asked.corners or SHARES:
        ranges = pg.Conditions.of(stage["condition"], corners=share)
        ebm = pg.LatentEBM(generator, tuple(controls.values()), ranges)
        prompt, seconds = measuring.train(ebm, seed, asked.steps, FACES)
        found = []
        for corner in CORNERS:
            energies, z = measuring.free_energy(prompt, ebm, jnp.array(corner), eps)
            paired = measuring.mean("minus_single", energies - alone[corner])
            told = dict(zip(controls, corner, strict=True)) | measuring.gap(energies, weights[corner])
            found.append(told | measuring.interval(paired, "minus_single") | turned(generator, controls, z))
        times = {"seconds": seconds, "times_single": seconds / apart[CORNERS[-1]]}
        yield {**about, "corners": share, **times, "identity": measuring.is_identity(prompt, eps), "rows": found}


def turned(generator, controls, z):
    """The share of smiles and the mean yaw, in degrees, that the controls' own networks see at latents (N, D)."""
    smile, turn = controls["smile"], controls["turn"]

    @jax.jit
    def look(generator, smile, turn, z):
        images = generator(jax.random.key(0), z)
        return jnp.argmax(smile.network.log_probs(images, "expression"), 1), turn.network(images)["pose"][:, 0]

    chosen, yaw = map_batches(look, BATCH, z, shared=(generator, smile, turn))
    happy = smile.network.label_index("expression", "happy")
    return {"happy": float(np.mean(chosen == happy)), "yaw": float(np.mean(yaw))}
