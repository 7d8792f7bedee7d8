"""The configuration of a run, typed, and checked as a whole before anything is written.

`RunConfig.from_dict` reads what the files in configs/ make, and what config.json of a run holds; all problems are told
together. `ml_collections` is not needed here.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from promptgen_jax import checks, parts
from promptgen_jax.ebm import LatentEBM
from promptgen_jax.flows.base import build_module
from promptgen_jax.flows.conditions import FULL, Conditions
from promptgen_jax.flows.sentences import check_written, read_conditions
from promptgen_jax.metrics import frechet
from promptgen_jax.metrics._figures import RESERVED, TITLES
from promptgen_jax.models.network import load_network
from promptgen_jax.training import TrainConfig
from promptgen_jax.training.constraints import check_sentences, shares_asked
from promptgen_jax.training.target import check_angles, flow_options

GENERATOR = "generator"  # what the first stage stands on
STAGE_NAME = re.compile(r"(?!(con|prn|aux|nul|com\d|lpt\d)$)\w([\w -]{0,98}[\w-])?", re.IGNORECASE)
LOOSE = ("title", "description", "evaluation")  # what may differ on the work directory of a finished run


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """How a run is measured and shown.

    Attributes:
      num_samples: of the prior and of the prompt.
      num_shown, columns: pictures of the sheets.
      pictures: options of the generator that differ in pictures.
      judges: attributes by name of a network, shown beside those of the controls.
      metrics: own metrics, by dotted name of their module.
      samplers: of the target itself, measured beside the prompt: options by one's own name of each, with its `kind`.
      real: real pictures that samples are compared with: by network a folder, or an .npz of their statistics.
    """

    num_samples: int = 2048
    num_shown: int = 16
    columns: int = 8
    pictures: dict = dataclasses.field(default_factory=dict)
    judges: dict = dataclasses.field(default_factory=dict)
    metrics: tuple = ()
    samplers: dict = dataclasses.field(default_factory=dict)
    real: dict = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class StageConfig:
    """One control, or several together, and how they are trained.

    Attributes:
      controls: options by the user's own name of each, with its `kind`.
      summary: a sentence for the report.
      on: the stage that it stands on, "generator" for the bare one, "" for the stage before it.
      below: options of the generator from this stage on.
      condition: what the flow is told, ranges or sentences as `sentences.read_conditions` reads them, or nothing.
      corners: share of the draws of strengths at the corners of their ranges.
      flow: options of `init_flow`.
      training: options of `TrainConfig`, or None for a stage that is only measured.
    """

    controls: dict
    summary: str = ""
    on: str = ""
    below: dict = dataclasses.field(default_factory=dict)
    condition: dict = dataclasses.field(default_factory=dict)
    corners: float = FULL
    flow: dict = dataclasses.field(default_factory=dict)
    training: dict | None = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """A whole run.

    Attributes:
      generator: `name`, and options of it.
      stages: by name.
      order: of the stages; all of them as they are listed if left out.
      seed: of everything.
      title, description: of the report.
      evaluation: how it is measured.
      mixtures: groups of stages that are measured together, with their judges.
    """

    generator: dict
    stages: dict[str, StageConfig]
    order: tuple[str, ...] = ()
    seed: int = 42
    title: str = "A controlled generator"
    description: str = ""
    evaluation: EvaluationConfig = EvaluationConfig()
    mixtures: dict = dataclasses.field(default_factory=dict)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> RunConfig:
        """Reads and checks the form of a config: keys, types, names, counts. Parts are checked by `load_parts`.

        Raises:
          ValueError: what is wrong, all of it.
        """
        problems = Problems()
        run = problems.read("config", cls, config)
        if run is None:
            raise problems.error()
        stages = {
            name: problems.read(f"config.stages.{name}", StageConfig, stage) for name, stage in run.stages.items()
        }
        evaluation = run.evaluation
        if isinstance(evaluation, Mapping):
            evaluation = problems.read("config.evaluation", EvaluationConfig, evaluation)
        run = dataclasses.replace(run, stages=stages, evaluation=evaluation, order=tuple(run.order or stages))
        run._check(problems)
        problems.raise_all()
        return run

    def _check(self, problems: Problems) -> None:
        problems.take(checks.check_seed, "config.seed", self.seed)
        if not self.stages:
            problems.found.append(ValueError("config.stages: there is none. Add one with its controls."))
        for name in self.order:
            problems.take(checks.check_known, "config.order", name, self.stages)
        for name, stage in self.stages.items():
            if not STAGE_NAME.fullmatch(name) or name == GENERATOR:
                problems.found.append(
                    ValueError(
                        f"config.stages: {name!r} cannot be the name of a stage, which is that of a folder. Use "
                        f"letters, digits, blanks within, _ and -, and neither {GENERATOR!r} nor what Windows reserves."
                    )
                )
            if stage is not None and name in self.order:
                problems.take(self.below, name)
                if stage.training is not None:
                    problems.take(_check_training, f"config.stages.{name}", stage.training)
                if stage.condition:
                    problems.take(_check_condition, stage.condition, stage.corners)
        if self.evaluation is not None:
            for name, least in (("num_samples", 2), ("num_shown", 1), ("columns", 1)):
                count = getattr(self.evaluation, name)
                problems.take(checks.check_count, f"config.evaluation.{name}", count, minimum=least)
        for name, mixture in self.mixtures.items():
            problems.take(_check_mixture, f"config.mixtures.{name}", mixture, self.order)
        for judge, attributes in self.evaluation.judges.items() if self.evaluation is not None else ():
            if not _are_names(attributes):
                message = f"config.evaluation.judges.{judge} is {attributes!r}; expected a list of attributes."
                problems.found.append(ValueError(message))

    def below(self, name: str) -> str:
        """What a stage stands on: the stage before it, unless its `on` names another, or the bare generator."""
        before = (GENERATOR, *self.order[: self.order.index(name)])
        below = self.stages[name].on or before[-1]
        checks.check_known(f"config.stages.{name}.on", below, before)
        return below

    def to_dict(self) -> dict:
        """The config with all defaults filled in, as nested dicts."""
        return dataclasses.asdict(self)

    def load_parts(self) -> tuple[Any, dict[str, tuple], dict[str, Conditions | None]]:
        """Generator, controls by stage and conditions by stage.

        Raises:
          ValueError, FileNotFoundError: what cannot be built, all of it: unknown kinds, options, networks, labels,
            judges, metrics, options of flows.
        """
        problems, controls, conditions = Problems(), {}, {}
        generator = problems.take(parts.load_generator, **self.generator)
        for name in self.order:
            stage = self.stages[name]
            told = {"written": stage.condition, "corners": stage.corners}
            conditions[name] = problems.take(read_conditions, **told) if stage.condition else None
            controls[name] = tuple(
                problems.take(_load_control, f"config.stages.{name}.controls.{each}", each, options)
                for each, options in stage.controls.items()
            )
            if generator is not None and None not in controls[name]:
                problems.take(_check_flow, LatentEBM(generator, controls[name], conditions[name]), stage.flow)
        for judge, attributes in self.evaluation.judges.items():
            network = problems.take(load_network, judge)
            for attribute in attributes if network is not None else ():
                problems.take(network.labels, attribute)
        for judge, path in self.evaluation.real.items():
            problems.take(frechet.check_real, judge, path, self.evaluation.num_samples)
        for metric in self.evaluation.metrics:
            problems.take(parts.find, "metrics", metric)
        for name, options in self.evaluation.samplers.items():
            problems.take(load_sampler, name, options)
            for control in (control for each in controls.values() for control in each if control is not None):
                if control.needs_reference:
                    problems.found.append(
                        ValueError(
                            f"config.evaluation.samplers: {control.name} compares with an image that the flow itself "
                            "makes, so there is no fixed target to sample. Leave the samplers out."
                        )
                    )
        for mixture in self.mixtures.values():
            for judge, attribute, label in (question for asked in mixture["judges"] for question in asked):
                network = problems.take(load_network, judge)
                if network is not None:
                    problems.take(network.label_index, attribute, label)
        problems.raise_all()
        return generator, controls, conditions


def _check_training(where: str, options: Mapping[str, Any]) -> None:
    """Raises ValueError for options that `TrainConfig` refuses, with the stage that they are of."""
    try:
        TrainConfig(**options)
    except ValueError as error:
        raise ValueError(f"{where}.{error}" if str(error).startswith("training.") else str(error)) from None


def _check_condition(written: Mapping[str, Any], corners: float) -> None:
    """Raises ValueError for a condition of another form; sentences are not embedded yet."""
    if any(isinstance(each, Mapping) for each in written.values()):
        check_written(written)
    else:
        Conditions.of(written, corners=corners)


def _check_flow(ebm: LatentEBM, flow: Mapping[str, Any]) -> None:
    """Raises ValueError unless conditions find their controls, and such a flow can be made for the target."""
    shares_asked(ebm)
    check_sentences(ebm)
    check_angles(ebm)
    cond_dim = ebm.cond_prior.dim if ebm.cond_prior else 0
    build_module(ebm.generator.prior, cond_dim=cond_dim, **flow_options(ebm, dict(flow)))


def _load_control(where: str, name: str, options: Mapping[str, Any]):
    if not isinstance(options, Mapping) or "kind" not in options:
        raise ValueError(f"{where}: kind is missing. Name one of {', '.join(parts.available('controls'))}.")
    return parts.load_control(options["kind"], name=name, **{key: options[key] for key in options if key != "kind"})


def load_sampler(name: str, options: Mapping[str, Any]):
    """The sampler of an entry of `evaluation.samplers`.

    Raises:
      ValueError: no kind, an unknown one, a name that stands for something else, or unknown options.
    """
    where = f"config.evaluation.samplers.{name}"
    if not isinstance(options, Mapping) or "kind" not in options:
        raise ValueError(f"{where}: kind is missing. Name one of {', '.join(parts.available('samplers'))}.")
    if name in (*RESERVED, *TITLES):
        raise ValueError(f"{where}: {name} has a meaning of its own in reports. Choose another name.")
    return parts.load_sampler(options["kind"], **{key: options[key] for key in options if key != "kind"})


class Problems:
    """What is wrong with a config, collected, so that it is told at once."""

    def __init__(self) -> None:
        self.found: list[Exception] = []

    def take(self, function: Callable, *args, **kwargs):
        """The result of a function, or None if it finds something wrong."""
        try:
            return function(*args, **kwargs)
        except (ValueError, TypeError, OSError) as error:
            self.found.append(error)
            return None

    def read(self, where: str, kind: type, values: Any):
        """An object of a typed part of the config, or None if keys are missing, unknown or of another type."""
        if not isinstance(values, Mapping):
            self.found.append(ValueError(f"{where} is {values!r}; expected its keys and values."))
            return None
        fields, before = {field.name: field for field in dataclasses.fields(kind)}, len(self.found)
        for name in values:
            self.take(checks.check_known, f"{where}: key", name, fields)
        for name, field in fields.items():
            wanted = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
            if wanted and name not in values:
                self.found.append(ValueError(f"{where}: {name} is missing. Add it."))
            elif name in values and not _fits(field.type, values[name]):
                self.found.append(ValueError(f"{where}.{name} is {values[name]!r}; expected {_expected(field.type)}."))
        if len(self.found) > before:
            return None
        return kind(**{name: value for name, value in values.items() if value is not None or name == "training"})

    def raise_all(self) -> None:
        """Raises what was found, if anything was."""
        if self.found:
            raise self.error()

    def error(self) -> Exception:
        """The one problem as it is, or several as a list, of their own kind if they share one."""
        messages = list(dict.fromkeys(map(str, self.found)))
        if len(messages) == 1:
            return self.found[0]
        kinds = set(map(type, self.found))
        kind = kinds.pop() if len(kinds) == 1 else ValueError
        return kind("\n".join([f"config: {len(messages)} problems.", *(f"- {message}" for message in messages)]))


def _check_mixture(where: str, mixture: Any, order: Sequence[str]) -> None:
    """Raises ValueError unless a group has stages of the run, and judges as (network, attribute, label)."""
    if not isinstance(mixture, Mapping) or not _are_names(mixture.get("stages")) or not mixture["stages"]:
        raise ValueError(f"{where}: stages is missing or no list of stages. Name those of the group.")
    for stage in mixture["stages"]:
        checks.check_known(f"{where}.stages", stage, order)
    judges = mixture.get("judges")
    questions = [each for asked in judges if isinstance(asked, (list, tuple)) for each in asked] if judges else []
    if not isinstance(judges, (list, tuple)) or not all(_are_names(each) and len(each) == 3 for each in questions):
        raise ValueError(f"{where}.judges is {judges!r}; expected lists of (network, attribute, label).")


def _are_names(values: Any) -> bool:
    return isinstance(values, (list, tuple)) and all(isinstance(each, str) for each in values)


def _fits(kind: Any, value: Any) -> bool:
    if value is None:
        return True
    if kind.startswith(("dict", "EvaluationConfig")):
        return isinstance(value, (Mapping, EvaluationConfig))
    if kind.startswith("tuple"):
        return isinstance(value, (list, tuple))
    return kind not in ("str", "int") or isinstance(value, {"str": str, "int": int}[kind])


def _expected(kind: Any) -> str:
    names = {"str": "text", "int": "an integer"}
    return names.get(kind, "a list" if kind.startswith("tuple") else "keys and values")
