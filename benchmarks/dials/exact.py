"""Dials of targets that are known exactly, at eleven strengths: a normal one, and two on the mixture of two modes.

`linear` is a quadratic energy on the linear generator, in 8 dimensions. `class` and `shares` are the energies
-log p(a_1 | x) and -0.847 p(a_1 | x) on mixture2d, at full strength one of its two modes alone, and both with the same
share. In latents the first cuts off a part of the normal prior at an edge, the second is a step in its density. Affine
couplings do not make a step of it, monotone splines do, so those two take splines.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

import promptgen_jax as pg
from benchmarks.dials import measuring
from promptgen_jax.evaluation import closed_forms

STEPS, SAMPLES, STRENGTHS = 4000, 2**17, tuple(k / 10 for k in range(11))
BATCH = 2**14
LINEAR, SCALE = (1.0, -1.0, 0.5, 0.0, 0.3, -0.6, 0.2, 0.8), 0.5
SPLINES = measuring.FLOW | {"transformer": "spline"}
TOY = {"batch_size": 256, "learning_rate": 3e-3}
SATURATED = {"batch_size": 1024, "learning_rate": 3e-3, "objective": "score_function"}  # as gradients vanish there


def linear():
    """The target with a dial, its exact answer by strength, how it is trained, and the flow."""
    near = pg.load_control("synthetic", energy="quadratic", target=LINEAR, scale=SCALE, name="near")
    generator = pg.load_generator("synthetic", problem="linear")
    ebm = pg.LatentEBM(generator, (near,), pg.Conditions.of_strengths({"near": (0, 1)}))

    def answer(strength):
        return closed_forms.linear_target(generator, LINEAR, SCALE / np.sqrt(max(strength, 1e-12)))

    return ebm, answer, TOY, measuring.FLOW


def of_class():
    """One mode of the mixture; else as `linear`."""
    return (
        _mixture(pg.load_control("synthetic", energy="classifier", name="near")),
        closed_forms.mixture_strength,
        SATURATED,
        SPLINES,
    )


def of_shares():
    """Both modes with the same share; else as `linear`."""
    beta_gap = closed_forms.mixture_debias().beta_gap
    control = pg.load_control("synthetic", energy="moment", name="near")
    control = control.replace(beta=jnp.array([beta_gap, 0.0], jnp.float32))
    return _mixture(control), lambda strength: closed_forms.mixture_strength(strength, beta_gap), SATURATED, SPLINES


def _mixture(control):
    ranges = pg.Conditions.of_strengths({"near": (0, 1)})
    return pg.LatentEBM(pg.load_generator("synthetic", problem="mixture2d"), (control,), ranges)


PROBLEMS = {"linear": linear, "class": of_class, "shares": of_shares}


def run(seed, asked):
    """A training for each problem."""
    for problem in asked.problems or PROBLEMS:
        ebm, answer, options, flow = PROBLEMS[problem]()
        prompt, seconds = measuring.train(ebm, seed, asked.steps, options, flow)
        eps = measuring.noise(ebm.generator, SAMPLES)
        rows = [row(prompt, ebm, strength, answer(strength), eps) for strength in STRENGTHS]
        about = {"bench": "exact", "problem": problem, "seed": seed, "steps": asked.steps, **options}
        about["transformer"] = flow.get("transformer", "affine")
        yield {**about, "seconds": seconds, "rows": rows}


def row(prompt, ebm, strength, true, eps):
    """How far the flow is from what is true at a strength."""
    found, z = measuring.free_energy(prompt, ebm, strength, eps, BATCH)
    same = np.asarray(eps, np.float64) @ np.linalg.cholesky(true.covariance).T + true.mean
    size = np.linalg.norm(true.covariance)
    return {
        "strength": strength,
        "mean": float(np.max(np.abs(z.mean(0) - true.mean) / np.sqrt(np.diag(true.covariance)))),
        "covariance": float(np.linalg.norm(np.cov(z.T) - true.covariance) / size),
        "covariance_of_exact_samples": float(np.linalg.norm(np.cov(same.T) - true.covariance) / size),
        "kl": float(found.mean() + true.log_z),
        "log_z_error": measuring.log_mean_exp(-found) - true.log_z,
        "identity": bool(np.array_equal(z, np.asarray(eps))),
    }
