"""`promptgen sweep`: one key of a configuration at several values, in one process, as a page and a JSON."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from promptgen_jax import checks, devices, training
from promptgen_jax.draws import seeded
from promptgen_jax.ebm import LatentEBM
from promptgen_jax.evaluation import sweep as sweeping
from promptgen_jax.metrics import Figure
from promptgen_jax.prompt import Prompt
from promptgen_jax.runs import report
from promptgen_jax.runs import run as runs
from promptgen_jax.runs.compare import write_sheet
from promptgen_jax.runs.config import GENERATOR, RunConfig
from promptgen_jax.runs.origin import how
from promptgen_jax.store import disk, weights
from promptgen_jax.store.fingerprint import fingerprint
from promptgen_jax.training import TrainConfig
from promptgen_jax.training.together import Together, bare, fits, same_shape

FOLDER, FOUND, MEMBER = "sweep", "sweep.json", "found.json"
PREVIOUS, FRESH = "previous", "fresh"
STARTS = (PREVIOUS, FRESH)
SHARE = 0.2  # of the steps, that a flow needs which starts from that of the value before
CAPTION = "The same noise at every value, by the first seed; the first samples, none picked."


class Member(NamedTuple):
    """One value with one seed.

    Attributes:
      value: as it is called on the page.
      seed: of the training.
      ebm: the target, its moment constraints fitted.
      stage: of the configuration with this value.
      folder: of this training; its name says all that it depends on.
    """

    value: str
    seed: int
    ebm: LatentEBM
    stage: Any
    folder: Path

    def options(self) -> TrainConfig:
        """How it is trained."""
        return TrainConfig(**self.stage.training, seed=self.seed)


def sweep_stage(
    config: dict,
    workdir: str | Path,
    *,
    key: str,
    configs: Mapping[str, dict],
    stage: str = "",
    seeds: int = 1,
    start: str = "",
    num_samples: int = 512,
    command: str = "",
) -> Path:
    """Trains a stage at several values of a key and shows what each buys; what is trained is not trained again.

    Args:
      config: of the run, which the stages below are trained with; energies are told by its weights.
      workdir: of the run.
      key: what is varied, for the page.
      configs: the configurations by value, from the gentlest on.
      stage: by name; the last one by default.
      seeds: trainings of every value, with seeds from that of the config on.
      start: "previous" starts each flow from that of the value before and gives it a fifth of the steps, "fresh" trains
        all at once from the beginning; by default the first where it can be done.
      num_samples: of the flow and of the prior, for the figures.
      command: shown on the page.

    Returns:
      Path of sweep.html; sweep.json and the picture are beside it.

    Raises:
      ValueError, FileNotFoundError, PermissionError: a bad configuration, value or work directory, before any work.
    """
    base = RunConfig.from_dict(config)
    stage = stage or base.order[-1]
    checked, start = _checked(base, configs, stage, seeds, start, num_samples)
    made, earlier, folder = _below(base, config, workdir, stage)
    began = time.monotonic()
    with disk.locked("workdir", folder.parents[1]), devices.compilations_kept():
        ruler, groups = _members(base, checked, stage, made, seeds, start, folder)
        prompts = _train(groups, start, made or None, config)
        print(f"{stage}: measuring {len(groups)} values on {num_samples} samples", flush=True)
        pool, judges = sweeping.Pool(jax.random.key(base.seed), num_samples), base.evaluation.judges
        about = {"num_samples": num_samples, "judges": {name: list(each) for name, each in judges.items()}}
        found = {
            value: sweeping.over_seeds([_measured(each, prompts, ruler, pool, about, earlier) for each in members])
            for value, members in groups.items()
        }
        firsts = [(value, members[0]) for value, members in groups.items()]
        rows = [(value, pool.drawn(each.ebm).through(prompts[each.folder]), bare(each.ebm)) for value, each in firsts]
        pictures = write_sheet(rows, base.evaluation.num_shown, folder, CAPTION)
    figures = sweeping.side_by_side(found)
    same_target = len({fingerprint(each.ebm) for _, each in firsts}) == 1
    best, sentence = sweeping.advice(figures, same_target=same_target)
    page = {
        "title": f"{base.title}: {key}, value by value",
        "description": base.stages[stage].summary,
        **how(command),
        "key": key,
        "values": list(groups),
        "knee": best,
        "advice": sentence,
        "figures": [row.to_json() for row in figures],
        "notes": [*sweeping.notes(figures, num_seeds=seeds), _told(start)],
        "images": pictures,
        "measured": {**about, "seed": base.seed, "seeds": seeds, "start": start},
        "seconds": time.monotonic() - began,
    }
    weights.write_json(folder / FOUND, page)
    return report.write_sweep(folder)


def _checked(
    base: RunConfig, configs: Mapping[str, dict], stage: str, seeds: int, start: str, num_samples: int
) -> tuple[dict[str, RunConfig], str]:
    """The configurations, typed, and how flows start. Raises ValueError for what cannot be swept, before any work."""
    checks.check_known("--stage", stage, base.order)
    checks.check_count("sweep: seeds", seeds)
    checks.check_count("sweep: num_samples", num_samples, minimum=2)
    checks.check_known("--start", start or FRESH, STARTS)
    if len(configs) < 2:
        raise ValueError("sweep: one value alone is no sweep. Give two or more, three for a knee.")
    checked, plain = {value: RunConfig.from_dict(each) for value, each in configs.items()}, base.to_dict()
    targets = []
    for value, run in checked.items():
        if run.stages[stage].training is None:
            raise ValueError(f"sweep: stage {stage} is only measured, not trained. Choose another --stage.")
        found = run.to_dict()
        apart = {name for name in found if name != "stages" and found[name] != plain[name]}
        apart |= {name for name in run.stages if name != stage and found["stages"][name] != plain["stages"][name]}
        if apart - ({GENERATOR} if base.below(stage) == GENERATOR else set()):
            raise ValueError(
                f"sweep: {value} changes {sorted(apart)[0]}, and not how {stage} is trained on what is below it. Vary "
                f"a key of config.stages.{stage}, or name the --stage."
            )
        generator, controls, conditions = run.load_parts()
        targets.append(LatentEBM(generator=generator, controls=controls[stage], cond_prior=conditions[stage]))
        if moving := [control.name for control in controls[stage] if control.needs_reference]:
            raise ValueError(
                f"sweep: {moving[0]} compares with an image that the flow itself makes, so there is no fixed target to "
                "measure at. Sweep without it."
            )
    stages = [run.stages[stage] for run in checked.values()]
    alike = all((each.flow, each.training) == (stages[0].flow, stages[0].training) for each in stages)
    alike = alike and same_shape(targets) and fits(TrainConfig(**(stages[0].training or {})))
    if start == PREVIOUS and not alike:
        raise ValueError(
            "sweep: --start=previous needs values that change numbers of the target alone, a named objective and "
            "training.eval_every=0. Use --start=fresh."
        )
    return checked, start or (PREVIOUS if alike and len(set(map(fingerprint, targets))) > 1 else FRESH)


def _below(base: RunConfig, config: dict, workdir: str | Path, stage: str) -> tuple[Any, tuple, Path]:
    """What the stage stands on, or None for a bare generator; the controls below it; and the folder of the sweep."""
    below = base.below(stage)
    if below == GENERATOR:
        made, controls, root = None, (), runs.open_workdir(disk.local_path("workdir", workdir), config)
    else:
        trained = runs.train_stages(config, workdir, until=below)
        made, root = trained.prompts[below], trained.workdir
        controls = (*trained.earlier[below], *trained.targets[below].controls)
    return made, controls, weights.open_folder("sweep", root / stage / FOLDER)


def _members(
    base: RunConfig,
    checked: Mapping[str, RunConfig],
    stage: str,
    made: Any,
    seeds: int,
    start: str,
    folder: Path,
) -> tuple[LatentEBM, dict[str, list[Member]]]:
    """The target of the config itself; and the members by value, with their targets."""
    ruler = _target(base, stage, made)
    targets = {value: _target(run, stage, made) for value, run in checked.items()}
    stages = {value: run.stages[stage] for value, run in checked.items()}
    groups: dict[str, list[Member]] = {}
    before = [""] * seeds
    for value, target in targets.items():
        groups[value] = []
        for number in range(seeds):
            seed = base.seed + number
            ebm, _ = training.fit_moments(target, seeded(seed), num_samples=base.evaluation.num_samples)
            told = [fingerprint(target), stages[value].flow, stages[value].training, seed, start, before[number]]
            name = hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:16]
            before[number] = name if start == PREVIOUS else ""
            groups[value].append(Member(value, seed, ebm, stages[value], folder / name))
    return ruler, groups


def _target(run: RunConfig, stage: str, made: Any) -> LatentEBM:
    generator, controls, conditions = run.load_parts()
    inner = runs.with_options(generator if made is None else made, run.stages[stage].below)
    return LatentEBM(generator=inner, controls=controls[stage], cond_prior=conditions[stage])


def _train(groups: Mapping[str, list[Member]], start: str, made: Any, config: dict) -> dict[Path, Prompt]:
    """The prompts of all members, by folder; those that are there are loaded."""
    everyone = [each for members in groups.values() for each in members]
    prompts = {
        each.folder: runs.load_trained(each.folder, each.ebm.generator, config)
        for each in everyone
        if runs.is_trained(each.folder)
    }
    if start == FRESH:
        for alike in _alike([each for each in everyone if each.folder not in prompts]):
            _train_together(alike, None, prompts, None)
        return prompts
    program, before = None, None
    for members in groups.values():
        if any(each.folder not in prompts for each in members):
            program = program or Together([each.ebm for each in everyone], members[0].options(), members[0].stage.flow)
            _train_together(members, program, prompts, before)
        before = [(prompts[each.folder].flow, prompts[each.folder].params) for each in members]
    return prompts


def _alike(members: Sequence[Member]) -> list[list[Member]]:
    """Members in groups that are trained in one program; those that have to go alone are groups of one."""
    groups: list[list[Member]] = []
    for member in members:
        for group in groups if fits(member.options()) else ():
            first = group[0]
            same = dataclasses.replace(member.options(), seed=first.seed) == first.options()
            if same and member.stage.flow == first.stage.flow and same_shape([first.ebm, member.ebm]):
                group.append(member)
                break
        else:
            groups.append([member])
    return groups


def _train_together(
    members: Sequence[Member], program: Together | None, prompts: dict[Path, Prompt], before: list | None
) -> None:
    """Trains members at once, from the flows before if there are any, and saves them."""
    names, config = ", ".join(dict.fromkeys(each.value for each in members)), members[0].options()
    print(f"training {names}", flush=True)
    began = time.monotonic()
    ebms, seeds = [each.ebm for each in members], [each.seed for each in members]
    if not fits(config):
        (one,) = members
        options = {**one.stage.training, "seed": one.seed}
        made = [training.fit(one.ebm, flow=one.stage.flow, name=one.value, quiet=True, **options)]
    else:
        program = program or Together(ebms, config, members[0].stage.flow)
        steps = config.num_steps if before is None else max(1, round(SHARE * config.num_steps))
        made = program.fit(ebms, seeds, start_at=before, num_steps=steps, name=members[0].value)
    seconds = (time.monotonic() - began) / len(members)
    for each, (prompt, _) in zip(members, made, strict=True):
        prompts[each.folder] = runs.saved(prompt, each.folder, {"train_seconds": seconds})


def _measured(
    member: Member, prompts: Mapping[Path, Prompt], ruler: LatentEBM, pool: sweeping.Pool, about: dict, earlier: tuple
) -> tuple[Figure, ...]:
    """The figures of a member, kept in its folder for the same question."""
    path, asked = member.folder / MEMBER, {**about, "ruler": fingerprint(ruler)}
    if path.is_file() and (found := weights.read_json(path, advice=runs.AGAIN)).get("asked") == asked:
        return tuple(map(Figure.from_json, found["figures"]))
    rows = sweeping.measure(prompts[member.folder], member.ebm, ruler, pool, about["judges"], earlier=earlier)
    weights.write_json(path, {"asked": asked, "figures": [row.to_json() for row in rows]})
    return rows


def _told(start: str) -> str:
    if start == PREVIOUS:
        return (
            f"Every flow but the first started from that of the value before and had {SHARE:.0%} of the steps; "
            "--start=fresh trains each from the beginning."
        )
    return "Every flow was trained from the beginning."
