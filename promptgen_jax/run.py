"""A run: the stages of a configuration, each a control trained on top of the generator of the one before.

`train_and_evaluate(config, workdir)` is what the command line calls. A workdir holds config.json, one folder a stage
(metrics.jsonl, checkpoints, prompt, evaluation.json, samples.png), report.json and report.html. Finished stages are
not done again; an interrupted one resumes.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from promptgen_jax import checks, images, parts, report, training, weights
from promptgen_jax.controls.pose import ANGLES
from promptgen_jax.ebm import LatentEBM
from promptgen_jax.evaluation import bias
from promptgen_jax.evaluation.exactness import exactness
from promptgen_jax.network import load_network
from promptgen_jax.prompt import Prompt, map_batches

VERSIONS = ("jax", "flax", "optax", "distrax", "orbax-checkpoint", "numpy")


def train_and_evaluate(config: dict, workdir: str | Path, *, command: str = "") -> Path:
    """Trains every stage, evaluates it against the uncontrolled generator, and writes the report.

    Args:
      config: nested dict, see `configs/`.
      workdir: made if missing; the same call resumes.
      command: shown in the report.

    Returns:
      Path of report.html.

    Raises:
      ValueError, FileNotFoundError, PermissionError: bad configuration, weights, or workdir; nothing is half-written.
    """
    generator = parts.load_generator(**config["generator"])
    controls = {name: build_controls(config["stages"][name]) for name in config["order"]}
    workdir = open_workdir(workdir, config)
    stages = []
    for name in config["order"]:
        ebm, prompt = train_stage(name, config, LatentEBM(generator=generator, controls=controls[name]), workdir)
        stages.append(evaluate_stage(name, config, ebm, prompt, workdir))
        generator = prompt
    about = {
        "title": config["title"],
        "description": config["description"],
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "hardware": _hardware(),
        "command": command,
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in VERSIONS},
        "stages": stages,
    }
    weights.write_json(workdir / "report.json", about)
    return report.write_report(workdir)


def open_workdir(workdir: str | Path, config: dict) -> Path:
    """Makes the workdir and writes config.json, or checks that it belongs to this very config.

    Raises:
      PermissionError: not writable; ValueError: it holds a run of another config.
    """
    workdir = Path(workdir).resolve()
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PermissionError(
            f"workdir {workdir}: cannot be made ({error.strerror}). Choose another --workdir."
        ) from None
    if not os.access(workdir, os.W_OK):
        raise PermissionError(f"workdir {workdir}: not writable. Choose another --workdir.")
    path = workdir / "config.json"
    config = json.loads(json.dumps(config))
    if path.exists() and (found := json.loads(path.read_text())) != config:
        differing = sorted(_differences(found, config))
        raise ValueError(
            f"workdir {workdir}: holds a run of another config (differs in {', '.join(differing[:5])}). "
            "Choose another --workdir, or delete this one."
        )
    weights.write_json(path, config)
    return workdir


def build_controls(stage: dict) -> tuple:
    """Loads the controls of a stage and checks its training options, before anything is written.

    Raises:
      ValueError, FileNotFoundError: unknown kind, network, attribute, label or option, with the nearest match.
    """
    training.TrainConfig(**stage["training"])
    return tuple(
        parts.load_control(
            options["kind"], name=name, **{key: value for key, value in options.items() if key != "kind"}
        )
        for name, options in stage["controls"].items()
    )


def train_stage(name: str, config: dict, ebm: LatentEBM, workdir: Path) -> tuple[LatentEBM, Prompt]:
    """Fits the moment constraints of a stage and trains its flow; loads what is finished."""
    stage, generator = config["stages"][name], ebm.generator
    ebm, fit = training.fit_moments(
        ebm, jax.random.key(config["seed"]), num_samples=config["evaluation"]["num_samples"]
    )
    folder = workdir / name
    if fit is not None:
        print(f"{name}: beta fitted, effective share {fit.ess:.2f}, KL to the generator {fit.kl:.3f} nats", flush=True)
    if (folder / "prompt" / "prompt.json").exists():
        return ebm, Prompt.load(folder / "prompt", generator=_innermost(generator)).replace(generator=generator)
    print(f"{name}: training ({', '.join(stage['controls'])})", flush=True)
    started = time.monotonic()
    prompt, _ = training.fit(
        ebm, workdir=folder, flow=stage["flow"], name=name, seed=config["seed"], **stage["training"]
    )
    weights.write_json(folder / "timing.json", {"train_seconds": time.monotonic() - started})
    prompt.save(folder / "prompt")
    return ebm, prompt


def evaluate_stage(name: str, config: dict, ebm: LatentEBM, prompt: Prompt, workdir: Path) -> dict:
    """Shares, pose, diversity, certificate and pictures of a stage, before (its generator) and after, same eps."""
    options, folder = config["evaluation"], workdir / name
    past = config["order"][: config["order"].index(name) + 1]
    controls = [control for each in past for control in config["stages"][each]["controls"].values()]
    print(f"{name}: evaluating on {options['num_samples']} samples", flush=True)
    key_eps, key_image, key_exact = jax.random.split(jax.random.key(config["seed"] + 1), 3)
    eps = prompt.prior.sample(key_eps, options["num_samples"])
    seen = {}
    judges = {judge: load_network(judge) for judge in options["judges"]}
    for when, generator in (("before", ebm.generator), ("after", prompt)):
        seen[when] = _observe(generator, judges, key_image, eps)
    stage = {
        "name": name,
        "folder": name,
        "summary": config["stages"][name]["summary"],
        "shares": [
            row
            for judge, network in judges.items()
            for row in _shares(network, ebm, seen, options["judges"][judge], controls)
        ],
        "statistics": _pose(ebm, seen),
        "diversity": _diversity(seen),
        "exactness": exactness(
            prompt,
            ebm,
            key_exact,
            num_samples=options["exactness_samples"],
            reference_samples=options["exactness_samples"],
        ),
        "licenses": _licenses(ebm, judges),
    }
    _pictures(stage, ebm, prompt, seen, eps, options, folder)
    stage["headline"] = _headline(stage, [control["target"] for control in controls if control["kind"] == "classifier"])
    timing = folder / "timing.json"
    if timing.exists():
        stage["timing"] = json.loads(timing.read_text()) | {"steps": config["stages"][name]["training"]["num_steps"]}
    weights.write_json(folder / "evaluation.json", stage)
    for line in stage["headline"]:
        print(f"  {line['label']}: {line['before']:.1f} -> {line['after']:.1f} {line['unit']}", flush=True)
    return stage


def _pictures(stage: dict, ebm: LatentEBM, prompt: Prompt, seen: dict, eps, options: dict, folder: Path) -> None:
    """A sheet of the same noise before and after; of a 2-D toy problem, target density against samples."""
    name, shown = stage["name"], options["num_shown"]
    if ebm.generator.image_size > 1:
        sheet = images.before_after_sheet(
            [(f"{when}: {name}", seen[when]["images"][:shown]) for when in ("before", "after")],
            columns=options["columns"],
        )
        images.save_png(folder / "samples.png", sheet)
        caption = "The same noise before and after; the first samples, none picked."
    elif prompt.prior.dim == 2:
        log_prob = jax.jit(lambda z: ebm.log_prob(jax.random.key(0), z))
        report.plot_density(
            folder / "samples.png",
            log_density=lambda z: np.asarray(log_prob(jnp.asarray(z, jnp.float32))),
            samples={"prior": np.asarray(eps[:4096]), "flow": np.asarray(prompt.latents(eps[:4096]))},
            extent=(-4, 4, -4, 4),
        )
        caption = "Latent space: contours of the target, with samples of the prior and of the trained flow."
    else:
        return
    stage["images"] = [{"file": "samples.png", "caption": caption}]


def _observe(generator, judges: dict, key, eps) -> dict:
    """Images (uint8-free float32) and all outputs of all judges for a batch of noise, as NumPy."""

    @jax.jit
    def observe(generator, judges, eps):
        x = generator(key, eps)
        return {"images": x, **{name: network(x) for name, network in judges.items()}}

    return map_batches(lambda batch: observe(generator, judges, batch), 64, eps)


def _shares(network, ebm: LatentEBM, seen: dict, attributes, controls: list[dict]) -> list[dict]:
    """Rows of the report; a network that controlled this stage or an earlier one is no independent judge."""
    rows = []
    controlling = {getattr(getattr(control, "network", None), "name", None): control for control in ebm.controls}
    for attribute in attributes:
        labels = network.labels(attribute)
        control = controlling.get(network.name)
        is_control = control is not None and getattr(control, "attribute", None) == attribute
        used = any((c.get("network"), c.get("attribute")) == (network.name, attribute) for c in controls)
        target = np.asarray(control.mu).tolist() if is_control and hasattr(control, "mu") else None
        row = {
            "judge": network.name,
            "role": "control" if used else "independent judge",
            "attribute": attribute,
            "labels": list(labels),
            "target": target,
        }
        for when in ("before", "after"):
            logits = np.asarray(seen[when][network.name][attribute], np.float64)
            log_probs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
            row[when] = bias.shares(log_probs, labels=labels)
            row["num_samples"] = len(logits)
            if target is not None:
                soft = [row[when][label]["soft"] for label in labels]
                row[f"kl_{when}"] = float(bias.kl_to_target(np.asarray(soft), np.asarray(target)))
        rows.append(row)
    return rows


def _pose(ebm: LatentEBM, seen: dict) -> list[dict]:
    rows = []
    for name, outputs in seen["before"].items():
        if not isinstance(outputs, dict) or "pose" not in outputs:
            continue
        control = next((c for c in ebm.controls if hasattr(c, "active") and c.network.name == name), None)
        for index, angle in enumerate(ANGLES):
            row = {"name": angle, "unit": "degrees"}
            if control is not None and float(control.active[index]):
                row["target"] = float(control.target[index])
            for when in ("before", "after"):
                values = seen[when][name]["pose"][:, index].astype(np.float64)
                error = 1.96 * values.std() / np.sqrt(len(values))
                mean = float(values.mean())
                row[when] = {"mean": mean, "std": float(values.std()), "low": mean - error, "high": mean + error}
            rows.append(row)
    return rows


def _diversity(seen: dict) -> list[dict]:
    rows = {}
    for when in ("before", "after"):
        embeddings = next(
            (o["embedding"] for o in seen[when].values() if isinstance(o, dict) and "embedding" in o), None
        )
        for name, value in bias.diversity(seen[when]["images"], embeddings).items():
            rows.setdefault(name, {"name": name})[when] = float(value)
    return list(rows.values())


def _headline(stage: dict, aims: list[str]) -> list[dict]:
    """What was asked, now and in earlier stages, by every judge that knows the label: the control's and the others'."""
    lines = []
    for row in stage["shares"]:
        for label in row["labels"]:
            if label in aims or row["target"]:
                before, after = (100 * row[when][label]["hard"] for when in ("before", "after"))
                text = f"share of {label} ({row['judge']}, {row['role']})"
                lines.append({"label": text, "before": before, "after": after, "unit": "%"})
    for row in stage["statistics"]:
        if "target" in row:
            label = f"mean {row['name']}, target {row['target']:g}"
            lines.append(
                {"label": label, "before": row["before"]["mean"], "after": row["after"]["mean"], "unit": "degrees"}
            )
    return lines


def _licenses(ebm: LatentEBM, judges: dict) -> list[dict]:
    used = [_innermost(ebm.generator), *(control.network for control in ebm.controls if hasattr(control, "network"))]
    unique = {part.name: part for part in [*used, *judges.values()]}
    return [
        {"name": name, "license": part.license, "source": f"ported_weights/{name}/SOURCE.md"}
        for name, part in unique.items()
        if getattr(part, "license", "")
    ]


def _innermost(generator):
    return generator.stack()[1] if isinstance(generator, Prompt) else generator


def _hardware() -> str:
    device = jax.devices()[0].device_kind
    return f"{jax.device_count()} x {device}, {os.cpu_count()} cores, {platform.machine()}"


def _differences(one, other, prefix="") -> set[str]:
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return set() if one == other else {prefix.rstrip(".")}
    return {
        name
        for key in one.keys() | other.keys()
        for name in _differences(one.get(key), other.get(key), f"{prefix}{key}.")
    }


def sample(workdir: str | Path, *, num_samples: int, seed: int) -> Path:
    """Writes `samples/<index>.png` of the last finished stage, without any control model; returns the folder."""
    workdir = Path(workdir).resolve()
    checks.check_count("sample: num_samples", num_samples)
    config = read_config(workdir)
    stage = config["order"][-1]
    prompt = Prompt.load(workdir / stage / "prompt")
    pictures = prompt.sample(jax.random.key(seed), num_samples)
    for index, picture in enumerate(pictures):
        images.save_png(workdir / "samples" / f"{index:06d}.png", jnp.asarray(picture)[None])
    return workdir / "samples"


def read_config(workdir: Path) -> dict:
    """The config of a run. Raises FileNotFoundError if the folder holds none."""
    path = workdir / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"workdir {workdir}: holds no config.json. Train first: main.py --mode=train.")
    return json.loads(path.read_text())
