"""Reads finished runs: their config, and their prompts with the generator's options for pictures."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from promptgen_jax import checks, parts
from promptgen_jax.prompt import Prompt
from promptgen_jax.runs.config import RunConfig
from promptgen_jax.store import disk, documents, home

AGAIN = "Train again, in another --workdir."


def load_prompt(workdir: str | Path, *, stage: str = "", trust: str | Iterable[str] = (), **options) -> Prompt:
    """The prompt of a stage of a run, with the generator's options for pictures; no control model is needed.

    Args:
      workdir: of a finished run.
      stage: by name; the last one by default.
      trust: packages outside the library, by name, whose code may run to build what config.json names.
      **options: of the generator, on top of those for pictures in the config.

    Raises:
      FileNotFoundError: not trained yet; TypeError, ValueError: unknown stage, or options that the generator does not
        have; a part of a package that is not trusted.
    """
    run = RunConfig.from_dict(read_config(workdir, stage=stage, trust=trust))
    workdir, stage = disk.local_path("workdir", workdir).resolve(), stage or run.order[-1]
    generator = parts.load_generator(**run.generator | run.evaluation.pictures | options)
    return Prompt.load(workdir / stage / "prompt", generator=generator, trust=trust)


def load_prompts(
    workdir: str | Path, *, mixture: str = "", stage: str = "", trust: str | Iterable[str] = (), **options
) -> dict[str, Prompt]:
    """What a run is sampled as: equal numbers of every stage of a mixture, by name, or one stage, by the name "".

    Args:
      workdir: of a finished run.
      mixture: one of those of the run; needed if it has several, and `stage` is not given.
      stage: one stage alone.
      trust: as `load_prompt`.
      **options: as `load_prompt`.

    Raises:
      ValueError: unknown mixture or stage, both, or none of several mixtures; else as `load_prompt`.
    """
    mixtures = read_config(workdir, stage=stage, trust=trust).get("mixtures") or {}
    if mixture and stage:
        raise ValueError("--mixture and --stage: give one of the two.")
    if mixture and not mixtures:
        raise ValueError(f"--mixture={mixture}: this run has no groups of stages. Leave it out.")
    if mixture:
        checks.check_known("--mixture", mixture, mixtures)
    if len(mixtures) > 1 and not mixture and not stage:
        raise ValueError(
            f"--mixture is missing: this run has several groups of stages, {', '.join(mixtures)}. Name one of them, "
            "or one stage by --stage."
        )
    if stage or not mixtures:
        return {"": load_prompt(workdir, stage=stage, trust=trust, **options)}
    cells = mixtures[mixture or next(iter(mixtures))]["stages"]
    return {cell: load_prompt(workdir, stage=cell, trust=trust, **options) for cell in cells}


def read_config(workdir: str | Path, *, stage: str = "", trust: str | Iterable[str] = ()) -> dict:
    """The config of a finished run.

    Args:
      workdir: of the run.
      stage: which has to be trained, by name; the last one by default.
      trust: packages outside the library, by name, whose code may run to check what it names.

    Raises:
      FileNotFoundError: no such folder, one without a run, or one that is not trained to the end; ValueError: it is
        damaged, names a part of a package that is not trusted, or has no stage of that name.
    """
    workdir = disk.local_path("workdir", workdir).resolve()
    path = workdir / "config.json"
    if not path.is_file():
        found = "holds no config.json" if workdir.is_dir() else "no such folder, so it holds no config.json"
        raise FileNotFoundError(f"workdir {workdir}: {found}. Train first: {home.command('train')}.")
    config = documents.read(path, documents.StoredRun, advice=AGAIN)
    parts.check_trusted(path, parts.kinds_in(config), trust)
    with documents.one_sentence(path, "no config of a run", advice=AGAIN):
        try:
            order = RunConfig.from_dict(config).order
        except ValueError as error:
            raise ValueError(f"{path}: {error} {AGAIN}") from None
    if stage:
        checks.check_known("--stage", stage, order)
    stage = stage or order[-1]
    if not (workdir / stage / "prompt" / "prompt.json").is_file():
        swept = sorted(workdir.glob("*/sweep/*/**/prompt/prompt.json"))
        raise FileNotFoundError(
            f"workdir {workdir}: holds trainings of a sweep, each a prompt of its own, as --prompt={swept[0].parent}."
            if swept
            else f"workdir {workdir}: its stage {stage} is not trained to the end. Repeat the command that "
            "began it; it goes on where it was."
        )
    return config
