"""One training over captions, at captions of label sets that it never saw, and a training for each of these.

The one serves all sentences, and has five times the steps of a training for one of them.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

import promptgen_jax as pg
from benchmarks.dials import measuring
from benchmarks.dials.measuring import BATCH, FACES
from configs import face_sentences
from promptgen_jax.devices import map_batches
from promptgen_jax.tinyclip import captions

STEPS, MORE = 300, 5  # of a training for one sentence, and how many times as many that over all has
SENTENCE = {**FACES, "learning_rate": 2e-3}
JUDGED = {  # network and attribute by attribute of a caption, and how it calls the labels
    "expression": ("emotion", "emotion", {"neutral": "neutral", "happy": "happy", "surprised": "surprise"}),
    "gender": ("faceres", "gender", {"male": "male", "female": "female"}),
}


def run(seed, asked):
    """The one flow, measured beside a training for each held out caption."""
    config = face_sentences.get_config().to_dict()
    stage, generator = config["stages"]["text"], pg.load_generator(**config["generator"])
    options, told = stage["controls"]["text"], stage["condition"]["text"]
    follows = pg.load_control(**options, name="text")
    ebm = pg.LatentEBM(generator, (follows,), pg.Sentences.embedded(told["sentences"], network=told["network"]))
    prompt, together = measuring.train(ebm, seed, MORE * asked.steps, SENTENCE)
    eps = measuring.noise(generator, asked.samples)
    rows, apart = [], 0.0
    for text, labels in held_out(told["sentences"])[: asked.sentences]:
        control = pg.load_control(**{**options, "kind": "clip"}, text=text, name="text")
        single = pg.LatentEBM(generator, (control,))
        prior = measuring.prior_energies(single)
        log_z = measuring.log_mean_exp(-prior)
        alone, seconds = measuring.train(single, seed, asked.steps, SENTENCE)
        found, z = measuring.free_energy(prompt, ebm, prompt.condition(text=text), eps)
        found_alone, z_alone = measuring.free_energy(alone, single, None, eps)
        rows.append(
            {"text": text, "log_z": log_z, "ess_of_prior": measuring.ess(-prior)}
            | {**measuring.mean("gap", found + log_z), **measuring.mean("gap_alone", found_alone + log_z)}
            | measuring.mean("minus_alone", found - found_alone)
            | {
                f"{name}_{when}": value
                for when, at in (("before", eps), ("after", z), ("alone", z_alone))
                for name, value in judged(generator, at, labels).items()
            }
        )
        apart += seconds
    mean = {name: float(np.mean([row[name] for row in rows])) for name in ("gap", "gap_alone", "minus_alone")}
    times = {"seconds": together, "seconds_alone": apart / len(rows)}
    yield {"bench": "sentences", "seed": seed, "steps": asked.steps, **times, **mean, "rows": rows}


def held_out(trained):
    """Captions that were not trained on, the first of each choice of labels, with the labels (4,)."""
    rows = np.random.default_rng(0).permutation(captions.label_sets()[1:])
    pairs = [(captions.phrases(row, 1)[0], row) for row in rows[len(trained) // 2 :]]
    return [(text, row) for text, row in pairs if text not in trained and np.sum(row != captions.UNKNOWN) >= 2]


def judged(generator, z, labels):
    """What judges see of what a caption states: shares of its labels, and the mean yaw of a direction."""
    networks = {name: pg.load_network(name) for name in ("emotion", "faceres", "facemesh")}

    @jax.jit
    def look(generator, networks, z):
        images = generator(jax.random.key(0), z)
        first = {name: jnp.argmax(networks[j].log_probs(images, of), 1) for name, (j, of, _) in JUDGED.items()}
        return first | {"yaw": networks["facemesh"](images)["pose"][:, 0]}

    seen, found = map_batches(look, BATCH, z, shared=(generator, networks)), {}
    for (name, known), label in zip(captions.ATTRIBUTES.items(), labels, strict=True):
        if label == captions.UNKNOWN or name == "light":
            continue
        if name == "direction":
            found["yaw"] = float(np.mean(seen["yaw"]))
        else:
            judge, attribute, calls = JUDGED[name]
            index = networks[judge].label_index(attribute, calls[known[label]])
            found[known[label]] = float(np.mean(seen[name] == index))
    return found
