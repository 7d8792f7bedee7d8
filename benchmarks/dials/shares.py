"""Shares of female presentation and smiles at once, as the control's own networks see them, and as others do."""

from __future__ import annotations

import jax
import numpy as np
from scipy.special import logsumexp

import promptgen_jax as pg
from benchmarks.dials import measuring
from configs import face_shares

CONFIG = face_shares.get_config().to_dict()
STAGE = CONFIG["stages"]["shares"]
STEPS, OBJECTIVE = STAGE["training"]["num_steps"], STAGE["training"]["objective"]
ASKED = tuple({"female": female, "happy": 0.5} for female in (0.3, 0.5, 0.7, 0.9))
LOOKED = {  # network, attribute and label: what the controls are made of, and independent judges
    "female": ("faceapi_age_gender", "gender", "female"),
    "happy": ("faceapi_expression", "expression", "happy"),
    "female_judge": ("faceres", "gender", "female"),
    "happy_judge": ("emotion", "emotion", "happy"),
}


def run(seed, asked):
    """One training, measured at every share of `ASKED`; the generator's own shares stand first."""
    generator = pg.load_generator(**CONFIG["generator"])
    controls = tuple(pg.load_control(name=name, **options) for name, options in STAGE["controls"].items())
    ebm = pg.LatentEBM(generator, controls, pg.Conditions.of(STAGE["condition"]))
    ebm, fit = pg.fit_moments(ebm, jax.random.key(9), num_samples=CONFIG["evaluation"]["num_samples"])
    objective = asked.objective or OBJECTIVE
    prompt, seconds = measuring.train(ebm, seed, asked.steps, recipe(objective), STAGE["flow"])
    eps = measuring.noise(generator, asked.samples)
    rows = [{"asked": None, **means(measuring.seen(generator, LOOKED, eps))}]
    for shares in ASKED:
        found, z = measuring.free_energy(prompt, ebm, prompt.condition(shares=shares), eps)
        seen, weights = measuring.seen(generator, LOOKED, z), np.exp(-found - logsumexp(-found))
        reweighted = {f"{name}_reweighted": float(weights @ values) for name, values in seen.items()}
        worst = max(abs(float(seen[name].mean()) - share) for name, share in shares.items())
        rows.append({"asked": shares, "worst": worst, "ess": measuring.ess(-found), **means(seen), **reweighted})
    about = {"bench": "shares", "seed": seed, "steps": asked.steps, "objective": objective}
    yield {**about, "seconds": seconds, "ess_of_prior_at_worst": float(fit.ess), "rows": rows}


def recipe(objective):
    """That of the config, by this objective."""
    told = {name: value for name, value in STAGE["training"].items() if name != "num_steps"}
    return told if objective == OBJECTIVE else told | {"objective": objective, "objective_options": None}


def means(seen):
    """Of probabilities by name, with standard errors."""
    return {key: value for name, values in seen.items() for key, value in measuring.mean(name, values).items()}
