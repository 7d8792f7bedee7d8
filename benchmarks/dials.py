"""What a dial costs: against closed forms, and against a training at full strength alone, on the same noise.

    python -m benchmarks.dials exact [--steps 4000] [--seed 0 1 2]
    python -m benchmarks.dials smile [--steps 200] [--seed 0 1 2] [--corners 0.5 0.0] [--samples 4096]
    python -m benchmarks.dials two [--steps 200] [--seed 0 1 2] [--corners 0.5] [--samples 4096]
    python -m benchmarks.dials sentences [--steps 300] [--seed 0 1 2] [--sentences 8] [--samples 4096]

A line of JSON a training goes to `--results`, and a table to the screen. `exact` is the linear-Gaussian bench at eleven
strengths, whose mean, covariance and log Z are known: of the mean the worst error in standard deviations, of the
covariance the relative Frobenius norm beside that of exact samples of the same size. `smile` is the classifier control
of weight 3 on the shipped faces at 0.25, 0.5 and 1, with the gap E_q[log q - log p_z + E] + log Z, that from the prior.
At 1 it has the paired difference to a training of the same steps and seed without a dial. `two` has a dial each for
smile and turn, as `configs/face_two_dials.py`, measured where the one, the other and both are at full strength, each
beside a training for that corner alone, of the same steps and seed, on the same noise. Intervals are of 95 %; that of
a gap has the error of log Z in it, and the paired difference has none. `sentences` trains one flow over captions of the
shipped small CLIP, by `configs/face_sentences.py`, and compares it, at captions of choices of labels that it never saw,
with a training for each of them, of the same steps and seed, on the same noise. Beside the gaps are the shares of what
a caption states as `emotion` and `faceres` see it, which had no part in the captions, and the mean yaw by `facemesh`,
positive being left: of the generator, of the one flow, and of that of the caption alone.
Seconds are those of a wall clock, with compilation.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import logsumexp

import promptgen_jax as pg
from benchmarks.machine import processor
from configs import face_sentences, face_two_dials
from promptgen_jax.devices import map_batches
from promptgen_jax.evaluation.closed_forms import linear_target
from promptgen_jax.tinyclip import captions

RESULTS = Path("benchmarks/dials.jsonl")
TARGET, SCALE = (1.0, -1.0, 0.5, 0.0, 0.3, -0.6, 0.2, 0.8), 0.5
FLOW = {"architecture": "coupling", "num_layers": 8, "hidden_dim": 64}
EXACT = {"batch_size": 256, "learning_rate": 3e-3}
SMILE = {"batch_size": 32, "kl_batch_size": 1024, "learning_rate": 1e-3, "warmup_steps": 10}
SENTENCE = {**SMILE, "learning_rate": 2e-3}
JUDGED = {  # network and attribute by attribute of a caption, and how it calls the labels
    "expression": ("emotion", "emotion", {"neutral": "neutral", "happy": "happy", "surprised": "surprise"}),
    "gender": ("faceres", "gender", {"male": "male", "female": "female"}),
}
CORNERS = ((1, 0), (0, 1), (1, 1))
STRENGTHS, SMILES = tuple(k / 10 for k in range(11)), (0.25, 0.5, 1.0)
EXACT_SAMPLES, PRIOR_SAMPLES, BATCH = 2**17, 8192, 128


def free_energy(prompt, ebm, strength, eps, batch):
    """Log q - log p_z + E (N,) of the noise eps (N, D) at a strength, None without a dial; latents (N, D).

    In place of a strength it may be a condition (A,).
    """
    cond = None if strength is None else jnp.tile(jnp.atleast_1d(strength), (len(eps), 1))

    @jax.jit
    def terms(prompt, ebm, eps, *cond):
        z, log_det = prompt.flow.forward_and_log_det(prompt.params, eps, *cond)
        energy = ebm.energy(jax.random.key(0), z, *cond)
        return prompt.prior.log_prob(eps) - log_det - prompt.prior.log_prob(z) + energy, z

    arrays = (eps,) if cond is None else (eps, cond)
    found, z = map_batches(terms, batch, *arrays, shared=(prompt, ebm))
    return found.astype(np.float64), z


def train(ebm, seed, steps, options):
    """The prompt, and the seconds that it took."""
    start = time.perf_counter()
    prompt, _ = pg.fit(ebm, flow=FLOW, num_steps=steps, seed=seed, quiet=True, **options)
    return prompt, time.perf_counter() - start


def exact(seed, steps, **_):
    """The dial of the linear bench at eleven strengths."""
    near = pg.load_control("synthetic", energy="quadratic", target=TARGET, scale=SCALE, name="near")
    generator = pg.load_generator("synthetic", problem="linear")
    ebm = pg.LatentEBM(generator, (near,), pg.Conditions.of_strengths({"near": (0, 1)}))
    prompt, seconds = train(ebm, seed, steps, EXACT)
    eps, rows = generator.prior.sample(jax.random.key(11), EXACT_SAMPLES), []
    for strength in STRENGTHS:
        true = linear_target(generator, TARGET, SCALE / np.sqrt(max(strength, 1e-12)))
        found, z = free_energy(prompt, ebm, strength, eps, 2**14)
        same = np.asarray(eps, np.float64) @ np.linalg.cholesky(true.covariance).T + true.mean
        size = np.linalg.norm(true.covariance)
        rows.append(
            {
                "strength": strength,
                "mean": float(np.max(np.abs(z.mean(0) - true.mean) / np.sqrt(np.diag(true.covariance)))),
                "covariance": float(np.linalg.norm(np.cov(z.T) - true.covariance) / size),
                "covariance_of_exact_samples": float(np.linalg.norm(np.cov(same.T) - true.covariance) / size),
                "kl": float(found.mean() + true.log_z),
                "log_z_error": float(logsumexp(-found) - np.log(len(found)) - true.log_z),
                "identity": bool(np.array_equal(z, np.asarray(eps))),
            }
        )
    yield {"bench": "exact", "seed": seed, "steps": steps, "seconds": seconds, "rows": rows}


def smile(seed, steps, corners, samples, **_):
    """The dial of the smile, for each way to draw strengths, and the training without a dial."""
    generator = pg.load_generator("dcgan_digiface")
    asked = {"network": "faceapi_expression", "attribute": "expression", "target": "happy"}
    control = pg.load_control("classifier", **asked, weight=3.0, mirror=True, name="smile")
    single = pg.LatentEBM(generator, (control,))
    look = jax.jit(lambda ebm, z: ebm.energy(jax.random.key(0), z))
    prior = map_batches(look, BATCH, generator.prior.sample(jax.random.key(7), PRIOR_SAMPLES), shared=(single,))
    log_z = {s: float(logsumexp(-s * prior.astype(np.float64)) - np.log(len(prior))) for s in SMILES}
    eps = generator.prior.sample(jax.random.key(11), samples)
    chosen = jax.jit(lambda c, x: jnp.argmax(c.network.log_probs(x, "expression"), 1))
    happy = control.network.label_index("expression", "happy")

    def row(prompt, ebm, strength, alone=None):
        found, z = free_energy(prompt, ebm, strength, eps, BATCH)
        images = map_batches(lambda z: chosen(control, generator(jax.random.key(0), z)), BATCH, z)
        at = 1.0 if strength is None else strength
        told = {"strength": at, **_mean("gap", found + log_z[at]), "happy": float(np.mean(images == happy))}
        return found, told | ({} if alone is None else _mean("minus_single", found - alone))

    prompt, alone_seconds = train(single, seed, steps, SMILE)
    alone, told = row(prompt, single, None)
    about = {"bench": "smile", "seed": seed, "steps": steps}
    yield {**about, "corners": None, "seconds": alone_seconds, "rows": [told]}
    for share in corners:
        ebm = single.replace(cond_prior=pg.Conditions.of_strengths({"smile": (0, 1)}, corners=share))
        prompt, seconds = train(ebm, seed, steps, SMILE)
        rows = [row(prompt, ebm, s, alone if s == 1 else None)[1] for s in SMILES]
        same = bool(np.array_equal(prompt.latents(eps, jnp.zeros((len(eps), 1))), eps))
        times = {"seconds": seconds, "times_single": seconds / alone_seconds}
        yield {**about, "corners": share, **times, "identity": same, "rows": rows}


def two(seed, steps, corners, samples, **_):
    """The dials of smile and turn at the corners, for each way to draw strengths, and a training for each corner."""
    config = face_two_dials.get_config().to_dict()
    stage, generator = config["stages"]["both"], pg.load_generator(**config["generator"])
    controls = {
        name: pg.load_control(options.pop("kind"), **options, name=name) for name, options in stage["controls"].items()
    }
    z_prior = generator.prior.sample(jax.random.key(7), PRIOR_SAMPLES)
    eps = generator.prior.sample(jax.random.key(11), samples)
    look = jax.jit(lambda ebm, z: ebm.energy(jax.random.key(0), z))
    prior = np.stack(
        [map_batches(look, BATCH, z_prior, shared=(pg.LatentEBM(generator, (each,)),)) for each in controls.values()]
    ).astype(np.float64)
    rows, apart, alone = [], {}, {}
    for corner in CORNERS:
        asked = tuple(control for control, at in zip(controls.values(), corner, strict=True) if at)
        single, weights = pg.LatentEBM(generator, asked), -np.array(corner) @ prior
        prompt, apart[corner] = train(single, seed, steps, SMILE)
        alone[corner], z = free_energy(prompt, single, None, eps, BATCH)
        told = dict(zip(controls, corner, strict=True)) | {"ess_of_prior": float(_ess(weights))}
        rows.append(told | _gap(alone[corner], weights) | turned(generator, controls, z) | {"weights": weights})
    about = {"bench": "two", "seed": seed, "steps": steps}
    yield {**about, "corners": None, "seconds": sum(apart.values()), "rows": [_without(row) for row in rows]}
    for share in corners:
        ranges = pg.Conditions.of(stage["condition"], corners=share)
        ebm = pg.LatentEBM(generator, tuple(controls.values()), ranges)
        prompt, seconds = train(ebm, seed, steps, SMILE)
        found = []
        for corner, row in zip(CORNERS, rows, strict=True):
            energies, z = free_energy(prompt, ebm, jnp.array(corner), eps, BATCH)
            paired = _mean("minus_single", energies - alone[corner])
            told = {name: row[name] for name in controls} | _gap(energies, row["weights"])
            found.append(told | _interval(paired, "minus_single") | turned(generator, controls, z))
        same = bool(np.array_equal(prompt.latents(eps, jnp.zeros((len(eps), 2))), eps))
        times = {"seconds": seconds, "times_single": seconds / apart[CORNERS[-1]]}
        yield {**about, "corners": share, **times, "identity": same, "rows": found}


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


def sentences(seed, steps, samples, number, **_):
    """One training over captions, at captions of label sets that it never saw, and a training for each of these."""
    config = face_sentences.get_config().to_dict()
    stage, generator = config["stages"]["text"], pg.load_generator(**config["generator"])
    options, told = stage["controls"]["text"], stage["condition"]["text"]
    follows = pg.load_control(**options, name="text")
    ebm = pg.LatentEBM(generator, (follows,), pg.Sentences.embedded(told["sentences"], network=told["network"]))
    prompt, together = train(ebm, seed, steps, SENTENCE)
    eps = generator.prior.sample(jax.random.key(11), samples)
    z_prior = generator.prior.sample(jax.random.key(7), PRIOR_SAMPLES)
    rows, apart = [], 0.0
    for text, labels in held_out(told["sentences"])[:number]:
        control = pg.load_control(**{**options, "kind": "clip"}, text=text, name="text")
        single = pg.LatentEBM(generator, (control,))
        look = jax.jit(lambda ebm, z: ebm.energy(jax.random.key(0), z))
        prior = map_batches(look, BATCH, z_prior, shared=(single,)).astype(np.float64)
        log_z = float(logsumexp(-prior) - np.log(len(prior)))
        alone, seconds = train(single, seed, steps, SENTENCE)
        found, z = free_energy(prompt, ebm, prompt.condition(text=text), eps, BATCH)
        found_alone, z_alone = free_energy(alone, single, None, eps, BATCH)
        rows.append(
            {"text": text, "log_z": log_z, "ess_of_prior": float(_ess(-prior))}
            | {**_mean("gap", found + log_z), **_mean("gap_alone", found_alone + log_z)}
            | _mean("minus_alone", found - found_alone)
            | {
                f"{name}_{when}": value
                for when, at in (("before", eps), ("after", z), ("alone", z_alone))
                for name, value in judged(generator, at, labels).items()
            }
        )
        apart += seconds
    mean = {name: float(np.mean([row[name] for row in rows])) for name in ("gap", "gap_alone", "minus_alone")}
    times = {"seconds": together, "seconds_alone": apart / len(rows)}
    yield {"bench": "sentences", "seed": seed, "steps": steps, **times, **mean, "rows": rows}


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


def _ess(log_weights):
    """Effective share of weights."""
    weights = np.exp(log_weights - log_weights.max())
    return weights.sum() ** 2 / (weights**2).sum() / len(weights)


def _mean(name, values):
    return {name: float(values.mean()), f"{name}_se": float(values.std() / np.sqrt(len(values)))}


def _gap(energies, log_weights):
    """The mean of log q - log p_z + E (N,) plus log Z of weights of the prior (M,), with the error of both."""
    weights = np.exp(log_weights - log_weights.max())
    log_z = float(np.log(weights.mean()) + log_weights.max())
    told = _mean("gap", energies + log_z)
    error = float(weights.std() / weights.mean() / np.sqrt(len(weights)))
    return {
        "log_z": log_z,
        "log_z_se": error,
        **_interval(told | {"gap_se": float(np.hypot(told["gap_se"], error))}, "gap"),
    }


def _interval(told, name):
    """What `_mean` tells, with its interval of 95 %."""
    return told | {
        f"{name}_{end}": told[name] + way * told[f"{name}_se"] for end, way in (("low", -1.96), ("high", 1.96))
    }


def _without(row):
    return {name: value for name, value in row.items() if name != "weights"}


def shown(found):
    """A training as lines of a table."""
    about = ", ".join(f"{name} {value}" for name, value in found.items() if name != "rows")
    lines = [about]
    for row in found["rows"]:
        cells = (
            f"{name} {value:.4f}" if isinstance(value, float) else f"{name} {value}" for name, value in row.items()
        )
        lines.append("  " + ", ".join(cells))
    return "\n".join(lines)


def main(arguments=None):
    """Trains and measures what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench", choices=("exact", "smile", "two", "sentences"))
    parser.add_argument(
        "--steps", type=int, default=0, help="of a training; 4,000 of exact, 200 of smile and two, 300 of sentences"
    )
    parser.add_argument("--seed", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--corners", type=float, nargs="+", default=[], help="0.5 and 0 of smile, 0.5 of two")
    parser.add_argument("--samples", type=int, default=4096, help="of smile, two and sentences")
    parser.add_argument("--sentences", type=int, default=8, help="held out, of sentences")
    parser.add_argument("--results", type=Path, default=RESULTS)
    asked = parser.parse_args(arguments)
    run, steps, corners = {
        "exact": (exact, 4000, ()),
        "smile": (smile, 200, (0.5, 0.0)),
        "two": (two, 200, (0.5,)),
        "sentences": (sentences, 300, ()),
    }[asked.bench]
    options = {"corners": asked.corners or corners, "samples": asked.samples, "number": asked.sentences}
    for seed in asked.seed:
        for found in run(seed, asked.steps or steps, **options):
            found["processor"] = processor()
            with asked.results.open("a") as file:
                file.write(json.dumps(found) + "\n")
            print(shown(found), flush=True)


if __name__ == "__main__":
    main()
