"""`promptgen compare`: a stage of a run beside other methods on the same target, as a page, a JSON and a picture."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from promptgen_jax import checks, devices, parts
from promptgen_jax.draws import Cost, Draws
from promptgen_jax.ebm import LatentEBM
from promptgen_jax.evaluation import compare as comparing
from promptgen_jax.runs import origin, report
from promptgen_jax.runs import run as runs
from promptgen_jax.runs.config import RunConfig, load_sampler
from promptgen_jax.samplers._refine import Refined
from promptgen_jax.store import images, weights
from promptgen_jax.store.fingerprint import fingerprint
from promptgen_jax.types import Array, constraints_of, makes, view

FOLDER, FOUND, SHEET, PAGE = "comparison", "comparison.json", "samples.png", "comparison.html"
REFINED = "flow refined"
METHODS = {  # the paper's Table 4, and what people do who have no flow
    "langevin, num_steps=10": {"kind": "langevin", "num_steps": 10},
    "langevin, num_steps=50": {"kind": "langevin", "num_steps": 50},
    "best_of_n, num_candidates=16": {"kind": "best_of_n", "num_candidates": 16},
}
CAPTION = (
    "The same noise by every method that starts from it; rejection, best of n and the reference have noise of their "
    "own. The first samples, none picked."
)


def compare_stage(
    config: dict,
    workdir: str | Path,
    *,
    stage: str = "",
    methods: Mapping[str, Mapping] | None = None,
    reference: Mapping | None = None,
    num_samples: int = 512,
    reference_samples: int = 0,
    seed: int = 0,
    refine_steps: int = 0,
    rarity: bool = False,
    command: str = "",
) -> Path:
    """Compares the flow of a stage with other methods on its target; trains what is not trained.

    Draws of every sampler are kept in the folder of the stage, so the same call goes on where one was stopped.

    Args:
      config: of the run.
      workdir: of the run.
      stage: by name; the last one by default.
      methods: options of samplers by name, each with its `kind`; by default those of `evaluation.samplers` in the
        config, and without any `METHODS`.
      reference: options of the sampler "smc", the reference.
      num_samples: of every method.
      reference_samples: of the reference; 0 for as many.
      seed: of the draws.
      refine_steps: of MALA from the flow's own samples, a method of its own; 0 for none.
      rarity: whether to estimate how often the generator makes what is asked at all.
      command: shown on the page.

    Returns:
      Path of comparison.html; comparison.json and the picture are beside it.

    Raises:
      ValueError, FileNotFoundError, PermissionError: a bad configuration, method or work directory, before any work.
    """
    run = RunConfig.from_dict(config)
    asked = dict(methods or run.evaluation.samplers or METHODS)
    samplers = {name: load_sampler(name, options) for name, options in asked.items()}
    smc = parts.load_sampler("smc", **(reference or {}))
    stage = stage or run.order[-1]
    _check(run, stage, samplers, num_samples, refine_steps, rarity)
    trained = runs.train_stages(config, workdir, until=stage)
    folder = trained.workdir / stage / FOLDER
    ebm, made = trained.targets[stage], trained.prompts[stage]
    flow = made if run.stages[stage].training is not None else None
    if flow is not None and refine_steps:
        samplers[REFINED] = Refined(flow, refine_steps)
    kept = {name: Kept(sampler, folder) for name, sampler in samplers.items()}
    print(f"{stage}: comparing on {num_samples} samples", flush=True)
    with devices.compilations_kept():
        found = comparing.compare(
            ebm,
            jax.random.key(seed),
            num_samples=num_samples,
            prompt=flow,
            samplers=kept,
            reference=Kept(smc, folder),
            reference_samples=reference_samples,
            judges=run.evaluation.judges,
            earlier=trained.earlier[stage],
            training_seconds=_training_seconds(trained.workdir / stage),
            rarity=rarity,
        )
        pictures = write_sheet(
            [(*each, ebm) for each in found.draws.items()], run.evaluation.num_shown, folder, CAPTION
        )
    told = {name: parts.describe(sampler) for name, sampler in samplers.items() if name != REFINED}
    told |= {REFINED: {"kind": "refine", "options": {"num_steps": refine_steps}}} if REFINED in samplers else {}
    about = {
        "title": f"{config.get('title') or run.title}: {stage}, method by method",
        "description": config["stages"][stage].get("summary") or "",
        **origin.how(command),
        **found.to_json(),
        "methods": told | {comparing.REFERENCE: parts.describe(smc)},
        "seed": seed,
        "images": pictures,
    }
    weights.write_json(folder / FOUND, about)
    return report.write_comparison(folder)


def _check(run: RunConfig, stage: str, samplers: Mapping, num_samples: int, refine_steps: int, rarity: bool) -> None:
    """Raises ValueError for what cannot be compared, before anything is trained."""
    checks.check_known("--stage", stage, run.order)
    checks.check_count("compare: refine_steps", refine_steps, minimum=0)
    generator, controls, _ = run.load_parts()
    if refine_steps and run.stages[stage].training is None:
        raise ValueError(f"--refine={refine_steps}: stage {stage} has no flow to start from. Leave it out.")
    if refine_steps and REFINED in samplers:
        raise ValueError(f"--refine={refine_steps}: a method is called {REFINED!r} already. Rename it.")
    if rarity and len(constraints_of(controls[stage])) == len(controls[stage]):
        raise ValueError(
            f"--coverage: stage {stage} has constraints on shares alone, which any sample may meet. Leave it out."
        )
    comparing.check(LatentEBM(generator, controls[stage]), samplers, num_samples)


def _training_seconds(folder: Path) -> float | None:
    """How long the flow was trained, if that is known."""
    if not (folder / "timing.json").is_file():
        return None
    return weights.read_json(folder / "timing.json", advice=runs.AGAIN).get("train_seconds")


class Kept:
    """A sampler whose draws are kept in a folder: the same call finds them there."""

    def __init__(self, sampler: Any, folder: Path):
        """Of a sampler, and where to keep its draws."""
        self.sampler, self.folder = sampler, folder

    def __call__(self, key: Array, ebm: LatentEBM, num_samples: int) -> Draws:
        """As the sampler."""
        return self._drawn(key, ebm, num_samples, lambda: (self.sampler(key, ebm, num_samples), 0.0))[0]

    def sample_and_log_z(self, key: Array, ebm: LatentEBM, num_samples: int) -> tuple[Draws, float]:
        """As the sampler."""
        return self._drawn(key, ebm, num_samples, lambda: self.sampler.sample_and_log_z(key, ebm, num_samples))

    def _drawn(self, key: Array, ebm: LatentEBM, num_samples: int, draw: Callable) -> tuple[Draws, float]:
        asked = fingerprint((self.sampler, ebm, jax.random.key_data(key), num_samples))
        path = self.folder / f"{asked[:16]}.npz"
        if path.is_file():
            return _read(path)
        draws, log_z = draw()
        self.folder.mkdir(parents=True, exist_ok=True)
        arrays = {name: getattr(draws, name) for name in ("z", "log_weight", "cond", "log_prob")}
        arrays = {name: np.asarray(array) for name, array in arrays.items() if array is not None}
        key_data, cost = np.asarray(jax.random.key_data(draws.key)), np.asarray(draws.cost, np.float64)
        weights.write_npz(path, key=key_data, cost=cost, log_z=np.float64(log_z), **arrays)
        return draws, log_z


def _read(path: Path) -> tuple[Draws, float]:
    """What `Kept` wrote; a file that is damaged is named."""
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
        energy_calls, gradient_calls, seconds = found.pop("cost")
        key, log_z = jax.random.wrap_key_data(found.pop("key")), float(found.pop("log_z"))
        cost = Cost(int(energy_calls), int(gradient_calls), float(seconds))
        return Draws(key=key, cost=cost, **{name: jnp.asarray(array) for name, array in found.items()}), log_z
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: damaged ({error!r}). Delete it.") from None


def write_sheet(rows: Sequence[tuple[str, Draws, LatentEBM]], num_shown: int, folder: Path, caption: str) -> list[dict]:
    """Writes a row of pictures of each of named draws; nothing of points, which are no pictures."""
    if any(makes(ebm.generator) == "points" for *_, ebm in rows):
        return []
    shown = []
    for name, draws, ebm in rows:
        few = draws.take(np.arange(min(num_shown, len(draws.z))))
        made = devices.map_batches(_look, 16, few.key, few.z, shared=(ebm,))
        shown.append((name, view(ebm.generator, made)))
    images.save_png(folder / SHEET, images.before_after_sheet(shown))
    return [{"file": SHEET, "caption": caption}]


@jax.jit
def _look(ebm, keys, z):
    return ebm.images(keys, z)


def read_methods(texts: Iterable[str]) -> dict[str, dict]:
    """Methods as people write them, such as "langevin,num_steps=50": the kind of a sampler and its options.

    Raises:
      ValueError: an option without a value, or the same method twice.
    """
    found = {}
    for text in texts:
        kind, *options = (word.strip() for word in text.split(","))
        pairs = [option.partition("=") for option in options]
        if bad := [name for name, equals, _ in pairs if not equals]:
            raise ValueError(f"--method={text}: option {bad[0]!r} has no value. Write it as num_steps=50.")
        name = ", ".join([kind, *options])
        if name in found:
            raise ValueError(f"--method={text}: it is there twice. Leave one out.")
        found[name] = {"kind": kind} | {option: _value(value) for option, _, value in pairs}
    return found


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
