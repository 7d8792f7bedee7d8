"""How a flow is trained: `TrainConfig`, and the objective that it names."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
from jax.sharding import Mesh

from promptgen_jax import checks, devices, parts
from promptgen_jax.objectives import _shared as contract

AUTO, STARTS = "auto", ("normal",)
SIZES = {"batch_size", "kl_batch_size"}  # which an objective gets from the training


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How a flow is trained; the defaults are the paper's recipe where it has one.

    Attributes:
      num_steps: updates.
      batch_size: energies per micro-batch.
      kl_batch_size: noise vectors for the cheap terms (reverse_kl only); 0 means batch_size.
      accumulation: micro-batches per update.
      objective: name of a file in `objectives`, or dotted name of a module outside the library, or an object of their
        contract, or "auto": `start.choose` picks one from a first batch of samples, and says why.
      objective_options: further options of its `build`, such as {"forward_share": 0.3}.
      learning_rate: of AdamW, decays linearly to 0.
      warmup_steps: linear warm-up before the decay.
      clip_norm: global gradient norm.
      seed: of everything.
      closed_loop: rate at which beta follows the gap to mu while the flow trains, of shares as conditions by a smooth
        function of them; 0 leaves it at the fit. As the target then changes, eval_every keeps the last parameters.
      eval_every: updates between evaluations on frozen noise by the objective's own figure, which choose the kept-best
        parameters; 0 keeps the last.
      eval_size: noise vectors of that evaluation.
      save_every: updates between checkpoints.
      log_every: updates between lines of metrics.
      start: "normal" starts at the diagonal normal of `start.closest_normal`, if that is closer to the target than the
        prior; None leaves the flow as it is made.
      tensorboard: also write TensorBoard files.
      shard_weights: split large frozen weights over the devices in place of a whole copy on each, see `devices.shard`.
    """

    num_steps: int = 1280
    batch_size: int = 8
    kl_batch_size: int = 0
    accumulation: int = 1
    objective: str | contract.Objective = "reverse_kl"
    learning_rate: float = 1e-3
    warmup_steps: int = 0
    clip_norm: float = 1.0
    seed: int = 42
    closed_loop: float = 0.0
    eval_every: int = 0
    eval_size: int = 256
    save_every: int = 100
    log_every: int = 10
    tensorboard: bool = False
    shard_weights: bool = False
    objective_options: Mapping | None = None
    start: str | None = None

    def __post_init__(self):
        """Raises ValueError for counts and names out of range."""
        for field in dataclasses.fields(self):
            if field.name != "objective":
                object.__setattr__(self, field.name, checks.plain_number(getattr(self, field.name)))
        for field in ("num_steps", "batch_size", "accumulation", "eval_size", "save_every", "log_every"):
            checks.check_count(f"training.{field}", getattr(self, field))
        for field in ("kl_batch_size", "warmup_steps", "eval_every"):
            checks.check_count(f"training.{field}", getattr(self, field), minimum=0)
        checks.check_seed("training.seed", self.seed)
        for field, most in (("learning_rate", 1e3), ("clip_norm", np.inf), ("closed_loop", 1e3)):
            if not isinstance(value := getattr(self, field), (int, float)) or isinstance(value, bool):
                raise ValueError(f"training.{field}: got {value!r}; expected a number.")
            checks.check_number(f"training.{field}", getattr(self, field), 0, most, above=field != "closed_loop")
        for field in ("tensorboard", "shard_weights"):
            if not isinstance(value := getattr(self, field), bool):
                raise ValueError(f"training.{field}: got {value!r}; expected True or False.")
        if self.start is not None:
            checks.check_known("training.start", self.start, STARTS)
        if self.objective_options is not None:
            object.__setattr__(self, "objective_options", self._checked_options())
        if self.objective == AUTO:
            self._check_auto()
            return
        objective = make_objective(self)
        if self.closed_loop and not objective.tells_moments:
            raise ValueError(
                f"training.closed_loop: not available with {name_of(objective)}, which reaches mu with the fitted beta."
            )
        if self.eval_every and not contract.can_choose(objective):
            raise ValueError(
                f"training.eval_every: {name_of(objective)} has no held_out to choose parameters by. Set it to 0."
            )

    def _checked_options(self) -> dict:
        try:
            options = checks.plain_numbers(dict(self.objective_options or {}))
        except (TypeError, ValueError):
            raise ValueError(
                f"training.objective_options is {self.objective_options!r}; expected options by name."
            ) from None
        for name in sorted(SIZES & set(options)):
            raise ValueError(
                f"training.objective_options: {name} is an option of the training. Give it as training.{name}."
            )
        return options

    def _check_auto(self) -> None:
        if self.closed_loop or self.objective_options:
            raise ValueError(
                "training.objective: auto may choose an objective that closed_loop or objective_options do not fit. "
                "Name the objective, or leave them out."
            )

    def options(self) -> dict:
        """All but the objective."""
        names = [field.name for field in dataclasses.fields(self) if field.name != "objective"]
        return {name: getattr(self, name) for name in names}

    def about(self) -> dict:
        """All as JSON, for claims.

        Raises:
          ValueError: an object as objective that cannot be told apart from others.
        """
        name: Any = self.objective
        if not isinstance(name, str):
            name = f"{name_of(name)} {parts.fingerprint(name)[:12]}"
        return self.options() | {"objective": name}


def make_objective(config: TrainConfig, mesh: Mesh | None = None) -> contract.Objective:
    """The objective of a config, its batch split over the mesh.

    Raises:
      ValueError: unknown name, with the nearest match; an object that is no objective.
    """
    objective: Any = config.objective
    if isinstance(objective, str):
        known = inspect.signature(parts.find("objectives", objective).build).parameters
        options = {name: getattr(config, name) for name in SIZES & set(known)}
        objective = parts.load("objectives", objective, **options | dict(config.objective_options or {}))
    elif config.objective_options:
        raise ValueError("training.objective_options: they are of an objective by name. Make the object with them.")
    if missing := contract.missing(objective):
        raise ValueError(
            f"training.objective: {name_of(objective)} has no {', '.join(missing)}. Give a name of "
            f"{', '.join(parts.available('objectives'))}, or an object of the contract in promptgen_jax.objectives."
        )
    return objective if mesh is None else contract.sharded(objective, devices.batch_sharding(mesh))


def name_of(objective: str | contract.Objective) -> str:
    """How messages call an objective."""
    return objective if isinstance(objective, str) else type(objective).__name__
