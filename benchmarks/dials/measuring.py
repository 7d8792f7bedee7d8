"""What the benches of dials share: how they train, the free energy of samples, and means with their errors."""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import logsumexp

import promptgen_jax as pg
from promptgen_jax.devices import map_batches

FLOW = {"architecture": "coupling", "num_layers": 8, "hidden_dim": 64}
FACES = {"batch_size": 32, "kl_batch_size": 1024, "learning_rate": 1e-3, "warmup_steps": 10}
SMILE = {"network": "faceapi_expression", "attribute": "expression", "target": "happy", "weight": 3.0, "mirror": True}
SAMPLES, PRIOR_SAMPLES, BATCH = 4096, 8192, 128


class Asked(NamedTuple):
    """What the command was asked for.

    Attributes:
      steps: of a training.
      samples: of a measurement on faces.
      corners: shares of the draws at full strength, a training each; () for those of the bench.
      sentences: held out captions.
      problems: targets of `exact`.
      objective: of `shares`; "" for that of the bench.
      sheet: where `edit` writes its picture; None for nowhere.
    """

    steps: int
    samples: int = SAMPLES
    corners: tuple[float, ...] = ()
    sentences: int = 8
    problems: tuple[str, ...] = ()
    objective: str = ""
    sheet: Path | None = None


def train(ebm, seed, steps, options, flow=FLOW):
    """The prompt, and the seconds of the processor that it took, with compilation."""
    start = time.process_time()
    prompt, _ = pg.fit(ebm, flow=flow, num_steps=steps, seed=seed, quiet=True, **options)
    jax.block_until_ready(prompt.params)
    return prompt, time.process_time() - start


def smile_control():
    """The classifier control of weight 3 on the shipped expression network."""
    return pg.load_control("classifier", **SMILE, name="smile")


def smile_dial(generator, corners=0.5):
    """The target with a dial for the smile."""
    ranges = pg.Conditions.of_strengths({"smile": (0, 1)}, corners=corners)
    return pg.LatentEBM(generator, (smile_control(),), ranges)


def noise(generator, samples):
    """The noise (N, D) on which all trainings of a bench are measured."""
    return generator.prior.sample(jax.random.key(11), samples)


def prior_energies(ebm):
    """Weighted energies (M,) of samples of the generator."""
    look = jax.jit(lambda ebm, z: ebm.energy(jax.random.key(0), z))
    z = ebm.generator.prior.sample(jax.random.key(7), PRIOR_SAMPLES)
    return map_batches(look, BATCH, z, shared=(ebm,)).astype(np.float64)


def free_energy(prompt, ebm, strength, eps, batch=BATCH):
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


def is_identity(prompt, eps):
    """Whether strengths of 0 leave the noise as it is, to the last bit."""
    return bool(np.array_equal(prompt.latents(eps, jnp.zeros((len(eps), prompt.flow.cond_dim))), eps))


def log_mean_exp(log_weights):
    """Of (N,)."""
    return float(logsumexp(log_weights) - np.log(len(log_weights)))


def ess(log_weights):
    """Effective share of weights."""
    weights = np.exp(log_weights - log_weights.max())
    return float(weights.sum() ** 2 / (weights**2).sum() / len(weights))


def mean(name, values):
    """Mean and standard error of values (N,)."""
    return {name: float(values.mean()), f"{name}_se": float(values.std() / np.sqrt(len(values)))}


def gap(energies, log_weights):
    """The mean of log q - log p_z + E (N,) plus log Z of weights of the prior (M,), with the error of both."""
    weights = np.exp(log_weights - log_weights.max())
    log_z = float(np.log(weights.mean()) + log_weights.max())
    told = mean("gap", energies + log_z)
    error = float(weights.std() / weights.mean() / np.sqrt(len(weights)))
    told["gap_se"] = float(np.hypot(told["gap_se"], error))
    return {"log_z": log_z, "log_z_se": error, **interval(told, "gap")}


def interval(told, name):
    """What `mean` tells, with its interval of 95 %."""
    ends = {f"{name}_{end}": told[name] + way * told[f"{name}_se"] for end, way in (("low", -1.96), ("high", 1.96))}
    return told | ends


def seen(generator, looked, z):
    """The probabilities (N,) by name that networks see at latents (N, D), each a network, an attribute and a label."""
    networks = {network: pg.load_network(network) for network, _, _ in looked.values()}

    @jax.jit
    def look(generator, networks, z):
        images = generator(jax.random.key(0), z)
        found = {}
        for name, (network, attribute, label) in looked.items():
            log_probs = networks[network].log_probs(images, attribute)
            found[name] = jnp.exp(log_probs[:, networks[network].label_index(attribute, label)])
        return found

    return map_batches(look, BATCH, z, shared=(generator, networks))
