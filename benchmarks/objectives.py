"""What each objective reaches: docs/objectives.md, made by one command that goes on where it was stopped.

    python -m benchmarks.objectives [--bench wells debias70 ...] [--objective mixed fab ...] [--seed 0 1 2]
    python -m benchmarks.objectives --write docs/objectives.md

Each training is a line of JSON in `--results`; what is there already is not run again, so parts can run one by one, on
several machines too. The table has what was run, and says of how many seeds; `--write` runs nothing. Seconds are of the
processor, of training with its compilation. Energies count samples; a gradient counts as one more call.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import promptgen_jax as pg
from benchmarks.machine import processor
from promptgen_jax import devices
from promptgen_jax.controls.moment import MomentControl
from promptgen_jax.controls.synthetic import WELL_SCALE, WELLS
from promptgen_jax.evaluation import exact
from promptgen_jax.training.directions import NUM_GRADIENTS

RESULTS = Path("benchmarks/objectives.jsonl")
OBJECTIVES = ("reverse_kl", "path_gradient", "score_function", "forward_kl", "annealed", "mixed", "fab", "cgm_relax")
WITHIN = 20  # directions of the flows below, on faces
FEW_DIRECTIONS = {f"{name}, {WITHIN} directions": name for name in ("path_gradient", "mixed")}
TARGET = (1.0, -1.0, 0.5, 0.0, 0.3, -0.6, 0.2, 0.8)
TOY = {"flow": {"hidden_dim": 64}, "batch_size": 256, "num_steps": 600, "learning_rate": 3e-3}
FACES = {
    "flow": {"architecture": "coupling", "hidden_dim": 64},
    "batch_size": 32,
    "num_steps": 200,
    "kl_batch_size": 1024,
    "warmup_steps": 10,
}
SLOPES = {"reverse_kl": 1, "path_gradient": 1, "mixed": 1}  # gradients of the energy, for each sample of the batch
CAPTION = (
    "objective | seeds | reverse gap | forward gap | missed | log Z error | modes or share | seconds | "
    "energies, gradients"
)


def toy(problem, energy, **options):
    """A target on points."""
    control = pg.load_control("synthetic", energy=energy, **options)
    return pg.LatentEBM(pg.load_generator("synthetic", problem=problem), (control,))


def debias(share):
    """70/30 or another share asked of the mixture, with the exact beta, and its exact log Z."""
    answer = exact.mixture_debias(share)
    half = answer.beta_gap / 2
    ebm = toy("mixture2d", "moment", mu={"a_1": share})
    ebm = ebm.replace(controls=(ebm.controls[0].replace(beta=jnp.array([half, -half], jnp.float32)),))
    return ebm, answer.log_z - half


def wells():
    """Four separated wells."""
    return toy("wells", "wells"), exact.wells_log_z(WELLS, WELL_SCALE)


def linear():
    """A normal target in 8 dimensions."""
    ebm = toy("linear", "quadratic", target=TARGET, scale=0.5)
    return ebm, exact.linear_target(ebm.generator, TARGET, 0.5).log_z


def faces(kind, **options):
    """A target on the shipped faces, whose log Z nobody knows."""
    ebm = pg.LatentEBM(pg.load_generator("dcgan_digiface"), (pg.load_control(kind, name="asked", **options),))
    return pg.fit_moments(ebm, jax.random.key(9))[0], None


# the target with its exact log Z, and how it is trained
BENCHES = {
    "linear": (linear, TOY),
    "classifier": (lambda: (toy("mixture2d", "classifier"), exact.mixture_classifier().log_z), TOY),
    "wells": (wells, TOY),
    "wells_mixture": (wells, TOY | {"flow": {"kind": "mixture", "num_parts": 4, "part": {"hidden_dim": 64}}}),
    "debias50": (lambda: debias(0.5), TOY),
    "debias70": (lambda: debias(0.7), TOY),
    "smile": (
        lambda: faces(
            "classifier",
            network="faceapi_expression",
            attribute="expression",
            target="happy",
            weight=3.0,
            mirror=True,
        ),
        FACES,
    ),
    "gender": (lambda: faces("moment", network="faceapi_age_gender", attribute="gender"), FACES),
    "text": (
        lambda: faces(
            "clip",
            network="tinyclip_faces",
            text="a photo of a smiling woman",
            weight=30.0,
            num_augmentations=1,
            policy="",
        ),
        FACES,
    ),
}
TITLES = {
    "linear": "A normal target in 8 dimensions",
    "classifier": "One class of the 2-D mixture",
    "wells": "Four separated wells",
    "wells_mixture": "Four separated wells, by a mixture of four flows",
    "debias50": "The mixture's shares, 30/70, made 50/50",
    "debias70": "The mixture's shares, 30/70, made 70/30",
    "smile": "Faces: everybody smiles, weight 3",
    "gender": "Faces: gender 50/50, as the classifier sees it",
    "text": "Faces: “a photo of a smiling woman”",
}


def measure(bench: str, objective: str, seed: int, num_steps: int, num_samples: int) -> dict:
    """One training and its certificate."""
    make, recipe = BENCHES[bench]
    ebm, log_z = make()
    flow = recipe["flow"] | ({"directions": WITHIN} if objective in FEW_DIRECTIONS else {})
    recipe = recipe | {"objective": FEW_DIRECTIONS.get(objective, objective), "flow": flow, "seed": seed}
    recipe |= {"num_steps": num_steps} if num_steps else {}
    start = time.process_time()
    prompt, _ = pg.fit(ebm, quiet=True, **recipe)
    jax.block_until_ready(prompt.params)
    seconds = time.process_time() - start
    count, size = (num_samples or 2048, None) if log_z is None else (16_384, 16_384)
    found = pg.certify(
        prompt, ebm, jax.random.key(100 + seed), num_samples=count, reference_samples=count, batch_size=size
    )
    row = {"bench": bench, "objective": objective, "seed": seed, "steps": recipe["num_steps"], "samples": count}
    row |= {name: getattr(found, name) for name in ("reverse_kl", "forward_kl", "missed_mass", "log_z", "verdict")}
    row |= {"ess": found.ess_flow / count, "ess_prior": found.ess_prior, "seconds": seconds}
    row |= {"log_z_error": None if log_z is None else abs(found.log_z - log_z), "calls": calls(objective, recipe)}
    row |= {"machine": processor(), "jax": jax.__version__} | modes(bench, prompt, ebm)
    return row


def modes(bench: str, prompt, ebm) -> dict:
    """What the flow's own samples show: wells with a tenth of their share, or the share of the first label."""
    key, moments = jax.random.key(7), [control for control in ebm.controls if isinstance(control, MomentControl)]
    if moments:
        gamma = jax.jit(lambda control, draws: control.gamma(draws))  # of few images at a time: 2,048 would take 20 GB
        shares = np.mean(devices.map_batches(gamma, 32, prompt.sample(key, 2048), shared=(moments[0],)), axis=0)
        return {"share": float(shares[0]), "asked": float(moments[0].mu[0])}
    if bench.startswith("wells"):
        draws = prompt.sample(key, 2048)
        near = np.linalg.norm(np.asarray(draws)[:, 0, 0, None, :2] - np.asarray(WELLS), axis=-1) < 3 * WELL_SCALE
        return {"wells": int(np.sum(near.mean(axis=0) > 0.1 / len(WELLS)))}
    return {}


def calls(objective: str, recipe: dict) -> tuple[int, int]:
    """Energies and gradients of them, of single samples, in a training."""
    total = recipe["num_steps"] * recipe["batch_size"]
    if objective in FEW_DIRECTIONS:
        energies, gradients = calls(FEW_DIRECTIONS[objective], recipe)
        return energies, gradients + NUM_GRADIENTS
    if objective == "fab":
        gradients = total // 4 * 4 * (1 + 3)  # its defaults: every, distributions, leapfrog
        return gradients + total, gradients
    return total * (2 if objective == "mixed" else 1), total * SLOPES.get(objective, 0)


def page(rows: list[dict]) -> str:
    """The document."""
    machines = sorted({f"{row['machine']}, jax {row['jax']}" for row in rows})
    lines = [
        "# What each objective reaches",
        "",
        "Made by `python -m benchmarks.objectives --write docs/objectives.md` from the trainings in "
        f"`benchmarks/objectives.jsonl`, on {'; '.join(machines)}. Means over seeds, of the gaps with the least and "
        "the most, of seconds over machines too; what is missing was not run.",
        "",
        "The gaps are KL divergences in nats between flow and target, from [the certificate](method.md); missed is the "
        "share of the target where the flow is more than ten times too thin. The error of log Z is that of the pooled "
        "samples against the exact value. Energies and gradients are calls for single samples in training. Toys: the "
        "paper's flow, batches of 256, rate 3e-3. Faces: 8 couplings of 64, batches of 32, rate 1e-3; where it says so "
        f"along the {WITHIN} directions that change the energy most, found by {NUM_GRADIENTS} gradients. No objective "
        "was tuned for a bench.",
        "",
        'Which one? `objective="auto"` chooses by the rules of [`choose`](../promptgen_jax/training/start.py) and says '
        "why: where gradients are flat, as of shares, the score function; where few samples of the generator are "
        "effective, the path gradient; for several modes the annealed forward divergence, which a mixture of flows "
        "then follows closely; otherwise the mixed objective. Effective samples count against the numbers that the "
        "flow moves, so along few directions mixed is taken more often.",
    ]
    for bench, title in TITLES.items():
        here = [row for row in rows if row["bench"] == bench]
        for steps in sorted({row["steps"] for row in here}):
            lines += ["", f"## {title}", "", f"{steps} steps.", "", f"| {CAPTION} |", "| --- " * 9 + "|"]
            for objective in (*OBJECTIVES, *FEW_DIRECTIONS):
                some = [row for row in here if row["objective"] == objective and row["steps"] == steps]
                if some:
                    lines.append(_line(objective, some))
    return "\n".join([*lines, ""])


def _line(objective: str, rows: list[dict]) -> str:
    def mean(name):
        return np.mean([row[name] for row in rows])

    error = "-" if rows[0]["log_z_error"] is None else f"{mean('log_z_error'):.4f}"
    shown = "-"
    if "wells" in rows[0]:
        shown = f"{mean('wells'):.1f} of 4"
    elif "share" in rows[0]:
        shown = f"{mean('share'):.3f}, asked {rows[0]['asked']:.2f}"
    cells = [
        f"`{FEW_DIRECTIONS[objective]}`, {WITHIN} directions" if objective in FEW_DIRECTIONS else f"`{objective}`",
        str(len(rows)),
        *(_with_range([row[name] for row in rows]) for name in ("reverse_kl", "forward_kl")),
        f"{mean('missed_mass'):.1%}",
        error,
        shown,
        f"{mean('seconds'):.0f}",
        "{:,}, {:,}".format(*rows[0]["calls"]),
    ]
    return f"| {' | '.join(cells)} |"


def _with_range(values: list[float]) -> str:
    ends = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{ends}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bench", nargs="*", default=[*BENCHES], choices=[*BENCHES])
    offered = (*OBJECTIVES, *FEW_DIRECTIONS)
    parser.add_argument("--objective", nargs="*", default=[*offered], choices=offered)
    parser.add_argument("--seed", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=0, help="instead of those of the bench")
    parser.add_argument("--samples", type=int, default=0, help="of the certificate on faces, from either side")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    rows = [json.loads(line) for line in options.results.read_text().splitlines()] if options.results.exists() else []
    if options.write:
        options.write.write_text(page(rows))
        return
    done = {(row["bench"], row["objective"], row["seed"], row["steps"]) for row in rows}
    for seed in options.seed:
        for bench in options.bench:
            for objective in options.objective:
                steps = options.steps or BENCHES[bench][1]["num_steps"]
                if objective == "cgm_relax" and bench not in ("debias50", "debias70", "gender"):
                    continue  # there is no moment to relax
                if objective in FEW_DIRECTIONS and BENCHES[bench][1] is not FACES:
                    continue  # toys have few
                if (bench, objective, seed, steps) in done:
                    continue
                row = measure(bench, objective, seed, options.steps, options.samples)
                with options.results.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
