"""Several trainings at once: targets of one shape, which differ in numbers alone, such as the weights of controls.

One program trains all of them, with what differs on an axis of its own; it is compiled once, for later ones too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from promptgen_jax import checks, devices, parts
from promptgen_jax.draws import seeded
from promptgen_jax.ebm import LatentEBM
from promptgen_jax.objectives import _shared as contract
from promptgen_jax.prompt import Prompt
from promptgen_jax.training.about import recipe
from promptgen_jax.training.config import AUTO, TrainConfig, make_objective
from promptgen_jax.training.constraints import betas_of
from promptgen_jax.training.optimizer import linear_decay, scheduled
from promptgen_jax.training.start import NUM_DRAWS
from promptgen_jax.training.target import check_target, flow_options
from promptgen_jax.training.train import (
    MEMORY,
    check_metrics,
    first_draws,
    new_flow,
    started,
    train_step,
)
from promptgen_jax.types import Density, PyTree


def fits(config: TrainConfig) -> bool:
    """Whether trainings of this config can go together: those that choose an objective or parameters go alone."""
    return not (config.objective == AUTO or config.eval_every or config.shard_weights)


def same_shape(targets: Sequence[LatentEBM]) -> bool:
    """Whether targets differ in numbers alone."""
    return len({_shape(bare(target)) for target in targets}) == 1


def bare(target: LatentEBM) -> LatentEBM:
    """The target without remarks on how its parts were made, which programs do not read."""
    controls: tuple[Any, ...] = target.controls
    return target.replace(generator=parts.bare(target.generator), controls=tuple(map(parts.bare, controls)))


class Together:
    """A program that trains one target for each seed, or several, at once.

    Attributes:
      config: of the trainings; `seed` and `num_steps` are those of each call.
      flow: options of `init_flow`.
    """

    def __init__(self, targets: Sequence[LatentEBM], config: TrainConfig, flow: dict):
        """Of all targets that it will be asked for, which say what differs.

        Raises:
          ValueError: targets of different shapes, or a config that `fits` refuses; what `fit` raises.
        """
        if not same_shape(targets) or not fits(config):
            raise ValueError("fit: these trainings cannot go together. Train them one by one.")
        for target in targets:
            check_target(target, config, flow)
        self.config, self.flow = config, flow_options(targets[0], flow)  # which those of one shape have in common
        self._tree = jax.tree.structure(bare(targets[0]))
        rows = [jax.tree.leaves(target) for target in targets]
        self._own = [index for index, leaves in enumerate(zip(*rows, strict=True)) if not _all_equal(leaves)]
        self._shared = [leaf for index, leaf in enumerate(rows[0]) if index not in self._own]
        self._objective = make_objective(config)
        self._step = jax.jit(self._steps, donate_argnums=0)

    def fit(
        self,
        targets: Sequence[LatentEBM],
        seeds: Sequence[int],
        *,
        start_at: Sequence[tuple[Density, PyTree]] | None = None,
        num_steps: int = 0,
        name: str = "prompt",
    ) -> list[tuple[Prompt, list[dict]]]:
        """Trains a flow on each target, the same as `training.fit` with its seed does up to rounding.

        Args:
          targets: one or more.
          seeds: one for each.
          start_at: flows and their parameters to start at, or None for new ones. With them, where the config starts
            with samples of the generator, they are as large a share of its own number as `num_steps` is.
          num_steps: updates, by default those of the config.
          name: of the prompts.

        Returns:
          (prompt, history) by target; history as of `fit`.

        Raises:
          FloatingPointError: a term became NaN, naming it and the step.
        """
        num_steps = num_steps or self.config.num_steps
        checks.check_count("fit: num_steps", num_steps)
        each_target = list(zip(targets, seeds, strict=True))
        made = start_at or [new_flow(target, seed, self.flow) for target, seed in each_target]
        starts = [
            self._start(target, seed, *each, num_steps, new=start_at is None)
            for (target, seed), each in zip(each_target, made, strict=True)
        ]
        first = [each for each, _ in starts]
        memory = _stack([remembered for _, remembered in starts])
        flows, keys = _stack([flow for flow, _ in made]), _stack([seeded(seed) for seed in seeds])
        state: dict = {
            "step": jnp.zeros(len(seeds), jnp.int32),
            "params": _stack(first),
            "opt_state": _stack([self._optimizer(num_steps).init(each) for each in first]),
            "beta": _stack([betas_of(target) for target in targets]),
        } | ({MEMORY: memory} if jax.tree.leaves(memory) else {})
        rows = [jax.tree.leaves(target) for target in targets]
        own = [_stack([row[index] for row in rows]) for index in self._own]
        state, own, flows, keys = self._placed((state, own, flows, keys), len(seeds))
        shared = devices.replicate(self._shared, devices.data_mesh())
        histories: list[list[dict]] = [[] for _ in seeds]
        for number in range(1, num_steps + 1):
            state, metrics = self._step(state, own, flows, keys, shared, jnp.int32(num_steps))
            if number in (1, num_steps) or number % self.config.log_every == 0:
                for index, history in enumerate(histories):
                    line = {term: float(values[index]) for term, values in metrics.items()}
                    check_metrics(line, number)
                    history.append({"step": number, **line})
        found = jax.device_get(state["params"])
        prompts = [
            Prompt(
                target.generator,
                flow,
                jax.tree.map(lambda leaf, index=index: jnp.asarray(leaf[index]), found),
                conditions=target.cond_prior,
                recipe=recipe(target, self._config_of(seed, num_steps), self.flow, self._objective),
                name=name,
            )
            for index, (target, (flow, _), seed) in enumerate(zip(targets, made, seeds, strict=True))
        ]
        return list(zip(prompts, histories, strict=True))

    def _start(
        self, target: LatentEBM, seed: int, flow: Density, params: PyTree, num_steps: int, *, new: bool
    ) -> tuple[PyTree, PyTree]:
        """The parameters and the memory that a training starts with."""
        draws = None
        if self.config.start and not target.needs_reference:
            count = NUM_DRAWS if new else max(1, NUM_DRAWS * num_steps // self.config.num_steps)
            draws = first_draws(target, seed, count)
        if draws is not None and new:
            params = started(flow, params, draws, seed, target)
        memory = self._objective.init(target, flow, params)  # which refuses what it cannot train on
        return params, contract.receive(self._objective, memory, draws)

    def _config_of(self, seed: int, num_steps: int) -> TrainConfig:
        warmup = min(self.config.warmup_steps, num_steps - 1)
        return dataclasses.replace(self.config, seed=seed, num_steps=num_steps, warmup_steps=warmup)

    def _optimizer(self, num_steps: Any):
        config = self.config
        return scheduled(linear_decay(config.learning_rate, num_steps, config.warmup_steps), config.clip_norm)

    def _steps(self, state, own, flows, keys, shared, num_steps):
        """`train_step` of all."""
        options = {"objective": self._objective, "optimizer": self._optimizer(num_steps), "config": self.config}

        def one(state, own, flow, key):
            mine, theirs = iter(own), iter(shared)
            count = len(own) + len(shared)
            leaves = [next(mine if index in self._own else theirs) for index in range(count)]
            return train_step(state, jax.tree.unflatten(self._tree, leaves), flow, key, **options)

        return jax.vmap(one)(state, own, flows, keys)

    @staticmethod
    def _placed(trees: Any, count: int) -> Any:
        """Split over the devices, if they share the trainings out evenly; else whole on every one."""
        mesh = devices.data_mesh()
        if count % mesh.devices.size:
            return devices.replicate(trees, mesh)
        return jax.device_put(trees, devices.batch_sharding(mesh))


def _shape(target: LatentEBM) -> tuple:
    leaves, tree = jax.tree.flatten(target)
    return tree, tuple((np.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)


def _all_equal(leaves: Sequence) -> bool:
    return all(leaf is leaves[0] or np.array_equal(leaf, leaves[0]) for leaf in leaves[1:])


def _stack(trees: Sequence[PyTree]) -> PyTree:
    return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *trees)
