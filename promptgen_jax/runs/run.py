"""A run: the stages of a configuration, each a control trained on top of the generator of the one before.

`train_and_evaluate(config, workdir)` is what the command line calls. A workdir holds config.json, one folder a stage
(training.json, metrics.jsonl, checkpoints, prompt, evaluation.json, samples.png, faces.png), report.json and
report.html. Finished stages are not done again; an interrupted one resumes.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import NamedTuple

from promptgen_jax import checks, devices, draws, parts, training
from promptgen_jax.ebm import LatentEBM
from promptgen_jax.evaluation.stage import evaluate
from promptgen_jax.flows.base import init_flow
from promptgen_jax.metrics import Headline
from promptgen_jax.metrics.mixture import headline, measure_mixtures
from promptgen_jax.models.network import load_network
from promptgen_jax.prompt import Prompt
from promptgen_jax.runs import origin, pictures, report
from promptgen_jax.runs.config import GENERATOR, LOOSE, RunConfig, load_sampler
from promptgen_jax.runs.finished import AGAIN
from promptgen_jax.runs.finished import load_prompt as load_prompt  # notebooks of version 0.1.0 find it here
from promptgen_jax.runs.pictures import condition_sheet as condition_sheet  # as they do this
from promptgen_jax.store import disk, documents, hub, weights
from promptgen_jax.types import networks_of, said


def train_and_evaluate(config: dict, workdir: str | Path, *, command: str = "") -> Path:
    """Trains every stage, evaluates each against the generator below it, and writes the report.

    Of several hosts, which share the workdir, all train and the first one evaluates and writes.

    Args:
      config: nested dict, see `configs/`.
      workdir: made if missing; the same call resumes.
      command: shown in the report.

    Returns:
      Path of report.html.

    Raises:
      ValueError, FileNotFoundError, PermissionError: bad configuration, weights, or workdir; nothing is half-written.
    """
    trained = train_stages(config, workdir)
    with disk.locked("workdir", trained.workdir), devices.compilations_kept():
        if devices.is_first_host():
            _evaluate_all(trained, command)
        devices.wait_for_hosts("report")
    return trained.workdir / "report.html"


class Trained(NamedTuple):
    """The trained stages of a run, by name.

    Attributes:
      config: with all defaults filled in.
      workdir: of the run.
      targets: what each was trained for, a `LatentEBM` with its moment constraints fitted.
      prompts: the prompts, and by `GENERATOR` the bare generator.
      earlier: controls of the prompts below each.
    """

    config: dict
    workdir: Path
    targets: dict[str, LatentEBM]
    prompts: dict
    earlier: dict[str, tuple]


def train_stages(config: dict, workdir: str | Path, *, until: str = "") -> Trained:
    """Trains the stages of a config, and loads those that are finished.

    Args:
      config: as in `train_and_evaluate`.
      workdir: as there.
      until: the last stage to train; all of them by default.

    Raises:
      ValueError, FileNotFoundError, PermissionError: as `train_and_evaluate`.
    """
    workdir, run = disk.local_path("workdir", workdir), RunConfig.from_dict(config)
    if until:
        checks.check_known("--stage", until, run.order)
    generator, controls, conditions = run.load_parts()
    below = {name: run.below(name) for name in run.order}
    workdir = open_workdir(workdir, config)
    first = documents.read(workdir / "config.json", documents.StoredRun, advice=AGAIN).get("evaluation") or {}
    config = run.to_dict() | {"moment_samples": first.get("num_samples", run.evaluation.num_samples)}
    targets, prompts, earlier = {}, {GENERATOR: generator}, {GENERATOR: ()}
    with disk.locked("workdir", workdir), devices.compilations_kept():
        for name in run.order[: run.order.index(until) + 1] if until else run.order:
            disk.sweep(workdir / name)
            disk.recover(workdir / name / "prompt")
            inner = with_options(prompts[below[name]], config["stages"][name].get("below") or {})
            ebm = LatentEBM(generator=inner, controls=controls[name], cond_prior=conditions[name])
            targets[name], prompts[name] = train_stage(name, config, ebm, workdir)
            earlier[name] = (*earlier[below[name]], *controls[name])
    return Trained(config, workdir, targets, prompts, {name: earlier[below[name]] for name in targets})


def _evaluate_all(trained: Trained, command: str) -> None:
    """Measures every stage and writes report.json and report.html."""
    config, workdir, prompts = trained.config, trained.workdir, trained.prompts
    stages, notes = [], {}
    for name in config["order"]:
        stages.append(
            evaluate_stage(name, config, trained.targets[name], prompts[name], trained.earlier[name], workdir)
        )
        notes[name] = report.effect_note(stages[-1])
        _noted(prompts[name], notes).save(workdir / name / "prompt")
    if config.get("mixtures"):
        stages.append(mixtures_stage(config, prompts))
    about = {"title": config["title"], "description": config["description"], **origin.how(command), "stages": stages}
    weights.write_json(workdir / "report.json", about)
    report.write_report(workdir)


def _noted(prompt: Prompt, notes: dict) -> Prompt:
    """A prompt and those below it, each with the note on its stage."""
    if isinstance(prompt.generator, Prompt):
        prompt = prompt.replace(generator=_noted(prompt.generator, notes))
    return prompt.with_note(*notes[prompt.name])


def open_workdir(workdir: str | Path, config: dict) -> Path:
    """Makes the workdir and writes config.json, or checks that it belongs to this config.

    How a run is measured and what it is called may differ from one call to the next; config.json keeps the first.

    Raises:
      PermissionError: not writable; ValueError: it holds a run of another config.
    """
    file = weights.open_folder("workdir", workdir) / "config.json"
    if file.is_file():
        found = documents.read(file, documents.StoredRun, advice=AGAIN)
        config = {**config, **{name: found[name] for name in LOOSE if name in found}}
        config = {name: value for name, value in config.items() if name not in LOOSE or name in found}
        config = found if found == _spelled_out(config) else config
    weights.claim(
        file,
        config,
        refusal="workdir {}: holds a run of another config (differs in {}). Choose another --workdir, or delete "
        "this one.",
    )
    return file.parent


def _spelled_out(config: dict) -> dict:
    """A config as it was written before CLIP controls had recipes: those without one spell out the paper's 50 views."""
    config = json.loads(json.dumps(config, default=float))
    for stage in config.get("stages", {}).values():
        for control in stage["controls"].values():
            if control["kind"] == "clip" and "recipe" not in control:
                control.setdefault("num_augmentations", 50)
    return config


def train_stage(name: str, config: dict, ebm: LatentEBM, workdir: Path) -> tuple[LatentEBM, Prompt]:
    """Fits the moment constraints of a stage and trains its flow; loads what is finished.

    A stage without training is the identity: its report shows the generator below it, and what its energy asks for as
    reweighted samples.
    """
    stage, generator = config["stages"][name], ebm.generator
    ebm, fit = training.fit_moments(
        ebm,
        draws.seeded(config["seed"]),
        num_samples=config.get("moment_samples", config["evaluation"]["num_samples"]),
    )
    folder = workdir / name
    if fit is not None:
        print(f"{name}: beta fitted, effective share {fit.ess:.2f}, KL to the generator {fit.kl:.3f} nats", flush=True)
    if is_trained(folder):
        return ebm, load_trained(folder, generator, config)
    if stage["training"] is None:
        flow, params = init_flow(draws.seeded(0), generator.prior, architecture="coupling", num_layers=2)
        return ebm, saved(Prompt(generator=generator, flow=flow, params=params, name=name), folder, {})
    print(f"{name}: training ({', '.join(stage['controls'])})", flush=True)
    resumed, started = (folder / training.CHECKPOINTS).exists(), time.monotonic()
    weighted = None if fit is None else fit.draws
    prompt, _ = training.fit(
        ebm, workdir=folder, flow=stage["flow"], name=name, seed=config["seed"], draws=weighted, **stage["training"]
    )
    timing = {} if resumed else {"train_seconds": time.monotonic() - started}  # what went before is not known
    return ebm, saved(prompt, folder, timing)


def is_trained(folder: Path) -> bool:
    """Whether a folder of a training holds its prompt."""
    return (folder / "prompt" / "prompt.json").exists()


def load_trained(folder: Path, generator, config: dict) -> Prompt:
    """The prompt of a finished training, on the generator that it was trained on."""
    trust = parts.packages(parts.kinds_in(config))  # what the run itself names has been imported
    prompt = Prompt.load(folder / "prompt", generator=_innermost(generator), trust=trust)
    return prompt.replace(generator=generator)


def saved(prompt: Prompt, folder: Path, timing: dict) -> Prompt:
    """The prompt, once it is written beside the timing."""
    if devices.is_first_host():
        folder.mkdir(parents=True, exist_ok=True)
        weights.write_json(folder / "timing.json", timing)
        prompt.save(folder / "prompt")
    devices.wait_for_hosts(f"prompt {folder.name}")
    return prompt


def evaluate_stage(name: str, config: dict, ebm: LatentEBM, prompt: Prompt, earlier: tuple, workdir: Path) -> dict:
    """What the report says of a stage; `earlier` are the controls of the stages below it."""
    options, folder = config["evaluation"], workdir / name
    print(f"{name}: evaluating on {options['num_samples']} samples", flush=True)
    key = draws.seeded(config["seed"] + 1)
    stage = {"name": name, "folder": name, "summary": config["stages"][name]["summary"]}
    trained = config["stages"][name]["training"] is not None
    size, real = options["num_samples"], options.get("real") or {}
    beside = {
        "metrics": options.get("metrics") or (),
        "real": real,
        "samplers": {each: load_sampler(each, asked) for each, asked in (options.get("samplers") or {}).items()},
    }
    stage |= evaluate(prompt, ebm, earlier, options["judges"], key, num_samples=size, trained=trained, **beside)
    stage["measured"]["seed"] = config["seed"]
    stage |= {
        "images": pictures.write(name, ebm, with_options(prompt, options["pictures"]), key, options, folder),
        "licenses": _licenses(ebm, {**options["judges"], **real}),
    }
    timing = folder / "timing.json"
    if trained and timing.exists():
        stage["timing"] = documents.read(timing, documents.Times, advice=AGAIN) | {
            "steps": config["stages"][name]["training"]["num_steps"]
        }
    weights.write_json(folder / "evaluation.json", stage)
    for line in map(Headline.from_json, stage["headline"]):
        print(f"  {line.text()}", flush=True)
    return stage


def mixtures_stage(config: dict, made: dict) -> dict:
    """What the report says of equal numbers of samples from several stages; see `metrics.mixture`."""
    size = config["evaluation"]["num_samples"]
    print(f"equal numbers of each: evaluating {', '.join(config['mixtures'])} on {size} samples", flush=True)
    key = draws.seeded(config["seed"] + 2)
    rows = measure_mixtures(config["mixtures"], made, made[GENERATOR], key, num_samples=size)
    headlines = headline(rows)
    for line in headlines:
        print(f"  {line.text()}", flush=True)
    summary = "As many samples of every prompt in a group, judged together; before is the generator without a control."
    found = {name: [row.to_json() for row in each] for name, each in (("headline", headlines), ("shares", rows))}
    return {"name": "equal numbers of each", "summary": summary} | found


def _licenses(ebm: LatentEBM, judges: dict) -> list[dict]:
    used = [_innermost(ebm.generator), *(network for control in ebm.controls for network in networks_of(control))]
    unique = {part.name: part for part in [*used, *map(load_network, judges)]}
    return [
        {"name": name, "license": part.license, "source": hub.source_of(name) or f"ported_weights/{name}/SOURCE.md"}
        for name, part in unique.items()
        if said(part, "license")
    ]


def with_options(generator, options: dict):
    """The same stack on a generator with other options."""
    if isinstance(generator, Prompt):
        return generator.replace(generator=with_options(generator.generator, options))
    return generator.replace(**options)


def _innermost(generator):
    return generator.stack()[1] if isinstance(generator, Prompt) else generator
