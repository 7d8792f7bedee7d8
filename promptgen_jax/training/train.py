"""Algorithm 2: trains a flow on a `LatentEBM` with one jitted, donated, data-parallel step."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from promptgen_jax import checks, devices, types
from promptgen_jax.draws import Draws, seeded
from promptgen_jax.ebm import LatentEBM, check_ebm
from promptgen_jax.flows.base import build_module, check_options, init_flow
from promptgen_jax.objectives import _shared as contract
from promptgen_jax.prompt import Prompt
from promptgen_jax.store import disk
from promptgen_jax.store.checkpoints import Checkpoints
from promptgen_jax.training import moments
from promptgen_jax.training.about import claim_workdir, recipe
from promptgen_jax.training.config import AUTO, TrainConfig, make_objective
from promptgen_jax.training.constraints import betas_of, with_beta
from promptgen_jax.training.directions import NUM_GRADIENTS, active_directions, aimed, asked_for, has_directions
from promptgen_jax.training.optimizer import global_norm, make_optimizer
from promptgen_jax.training.start import NUM_DRAWS, choose, closest_normal, start_at, weighted_draws
from promptgen_jax.training.target import check_draws, check_target, flow_options
from promptgen_jax.training.watch import Watch, stop_signals
from promptgen_jax.types import Array, PyTree

CHECKPOINTS, MEMORY = "checkpoints", "objective"


def train_step(
    state: dict, ebm: LatentEBM, flow, run_key: Array | None = None, *, objective, optimizer, config: TrainConfig
) -> tuple[dict, dict]:
    """One update. The key is fold_in(run key, step), so a resumed run repeats the uninterrupted one.

    Args:
      state: `step`, `params`, `opt_state`, `beta` (by control name), `best`, `best_loss`, and what the objective
        carries, if it carries anything.
      ebm: the target; its moment controls take beta from the state.
      flow: the flow to train.
      run_key: of the whole training; by default that of the seed in `config`.
      objective: see `objectives`.
      optimizer: an optax transformation.
      config: training options.

    Returns:
      (state, metrics)
    """
    step_key = jax.random.fold_in(seeded(config.seed) if run_key is None else run_key, state["step"])

    def loss_of(trained, memory, key):
        params, beta = trained
        return objective.loss(params, memory, key, with_beta(ebm, beta), flow)

    def micro_step(memory, index):
        trained = state["params"], state["beta"]
        gradient, (memory, metrics) = jax.grad(loss_of, has_aux=True)(
            trained, memory, jax.random.fold_in(step_key, index)
        )
        return gradient, memory, metrics

    def accumulate(carried, index):
        total, memory = carried
        gradient, memory, metrics = micro_step(memory, index)
        return (jax.tree.map(jnp.add, total, gradient), memory), metrics

    memory = state.get(MEMORY, ())
    if config.accumulation == 1:  # no loop where there is nothing to accumulate
        (gradient, grad_beta), memory, metrics = micro_step(memory, 0)
    else:
        start = jax.tree.map(jnp.zeros_like, (state["params"], state["beta"])), memory
        (total, memory), metrics = jax.lax.scan(accumulate, start, jnp.arange(config.accumulation))
        gradient, grad_beta = jax.tree.map(lambda leaf: leaf / config.accumulation, total)
    metrics = jax.tree.map(jnp.mean, metrics)
    updates, opt_state = optimizer.update(gradient, state["opt_state"], state["params"])
    params = jax.tree.map(jnp.add, state["params"], updates)
    beta = state["beta"]
    if objective.tells_moments:
        # d loss / d beta = -weight · E_q[gamma], so the gradient also tells the moment that the flow has now
        told = [c for c in types.constraints_of(ebm.controls) if c.name in grad_beta and c.name not in ebm.dials]
        moment = {c.name: -_over(grad_beta[c.name], c.weight, otherwise=-c.mu) for c in told}
        mu = {c.name: c.mu for c in told}
        metrics |= {f"moment_gap/{name}": jnp.max(jnp.abs(moment[name] - mu[name])) for name in moment}
        # shares sum to one, as their mu does, so that their beta keeps summing to zero
        beta |= moments.closed_loop_update(
            {name: beta[name] for name in moment}, moment, mu, rate=config.closed_loop, simplex=()
        )
        for c in types.following(ebm.controls):  # of these it tells the gap itself, see `lift`
            if c.name not in ebm.dials:
                gap = _over(grad_beta[c.name], c.weight, otherwise=0.0)
                metrics |= {f"moment_gap/{c.name}": jnp.max(jnp.abs(gap[:, 0]))}
                beta |= {c.name: beta[c.name] + config.closed_loop * gap}
    state = {**state, "step": state["step"] + 1, "params": params, "opt_state": opt_state, "beta": beta}
    state |= {MEMORY: memory} if MEMORY in state else {}
    return state, {**metrics, "grad_norm": global_norm(gradient)}


def _over(gradient: Array, weight: Array | float, *, otherwise: Any) -> Array:
    """A gradient by beta over the weight of its control; of one switched off, which tells nothing, something else."""
    return jnp.where(weight == 0, otherwise, gradient / jnp.where(weight == 0, 1.0, weight))


def flow_key(seed: int) -> Array:
    """The key of a flow's first parameters in a training of this seed."""
    return jax.random.fold_in(seeded(seed), 2**31 - 1)


def first_draws(ebm: LatentEBM, seed: int, num_samples: int = NUM_DRAWS) -> Draws:
    """The weighted samples of the generator that a training of this seed begins with, where it needs any."""
    return weighted_draws(ebm, jax.random.fold_in(seeded(seed), 2**31 - 3), num_samples=num_samples)


def new_flow(ebm: LatentEBM, seed: int, flow: dict, *, told: bool = False) -> tuple[types.Density, PyTree]:
    """What a training of this seed begins with: a flow, along the target's directions if it has any, and parameters.

    Args:
      ebm: the target.
      seed: of the training.
      flow: options of `init_flow`.
      told: say that directions are looked for, which takes as many gradients.
    """
    cond_dim = ebm.cond_prior.dim if ebm.cond_prior else 0
    made, params = init_flow(flow_key(seed), ebm.generator.prior, cond_dim=cond_dim, **flow)
    if has_directions(made.buffers):
        if told:
            print(f"looking for directions, by {NUM_GRADIENTS} gradients of the energy ...", flush=True)
        made = aimed(made, active_directions(ebm, jax.random.fold_in(seeded(seed), 2**31 - 4)))
    return made, params


def started(flow: types.Density, params: PyTree, draws: Draws, seed: int, ebm: LatentEBM) -> PyTree:
    """Parameters of start="normal": near the normal of these samples, or as they were where none is worth it."""
    normal = closest_normal(draws, ebm.generator.prior)
    return params if normal is None else start_at(normal, flow, params, jax.random.fold_in(flow_key(seed), 1), ebm)


def fit(
    ebm: LatentEBM,
    *,
    workdir: str | Path | None = None,
    flow: dict | None = None,
    name: str = "prompt",
    quiet: bool = False,
    optimizer: optax.GradientTransformation | None = None,
    callback: Callable[[int, dict, Prompt], None] | None = None,
    draws: Draws | None = None,
    **options,
) -> tuple[Prompt, list[dict]]:
    """Trains a flow to sample p(z|C) and returns it as a prompt.

    With a workdir, metrics and checkpoints go there and the same call resumes, bit for bit. `training.json` in it says
    what is trained there, as far as names, weights and options tell.

    Args:
      ebm: the target. Fit betas first with `fit_moments`. With a `cond_prior` the flow is conditional, and every
        noise vector meets a new condition.
      workdir: folder of this training, or None for none.
      flow: options of `init_flow`; with a `kind`, of a flow of your own.
      name: of the prompt.
      quiet: print nothing; otherwise lines of progress with a workdir, and a bar without one.
      optimizer: an optax transformation in place of the paper's, which learning_rate, warmup_steps and clip_norm set.
      callback: called with the step, its metrics and the prompt so far, whenever metrics are logged.
      draws: samples of the prior weighted for this target, of `weighted_draws` or `fit_moments`, for start="normal",
        objective="auto" and the first samples of "mixed". None draws 4,096 where the first two need them.
      **options: fields of `TrainConfig`.

    Returns:
      (prompt, history): history is a list of the metrics that this call logged, which of a resumed training are those
      of the steps that were left. metrics.jsonl of the workdir holds all.

    Raises:
      ValueError: options out of range, an objective or generator that cannot take this target, draws that are not of
        it, energies that are NaN, or a workdir of another training.
      FloatingPointError: a term became NaN, naming it and the step.
      KeyboardInterrupt: stopped by SIGINT or SIGTERM; with a workdir, after the step under way was saved.
    """
    for option in options:
        checks.check_known("training option", option, [field.name for field in dataclasses.fields(TrainConfig)])
    workdir = None if workdir is None else disk.local_path("fit: workdir", workdir)
    check_ebm("fit", ebm)
    config, flow = TrainConfig(**options), checks.plain_numbers(check_options({} if flow is None else flow))
    if not isinstance(name, str):
        raise ValueError(f"fit: name is {name!r}; expected text.")
    told = not quiet and devices.is_first_host()
    if draws is not None:
        check_draws(ebm, draws)
    if (config.start or config.objective == AUTO) and draws is None and not ebm.needs_reference:
        if told:
            print(f"weighing {NUM_DRAWS} samples of the generator ...", flush=True)
        draws = first_draws(ebm, config.seed)
    if config.objective == AUTO:
        chosen, reason = choose(ebm, draws, directions=asked_for(flow))
        config = dataclasses.replace(config, objective=chosen)
        if told:
            print(f"objective {chosen}: {reason}", flush=True)
    check_target(ebm, config, flow)
    flow = flow_options(ebm, flow)
    cond_dim = ebm.cond_prior.dim if ebm.cond_prior else 0
    build_module(ebm.generator.prior, cond_dim=cond_dim, **flow)  # wrong options raise, before anything is written
    mesh = devices.data_mesh()
    objective = make_objective(config, mesh)
    num_devices = mesh.devices.size
    if config.batch_size % num_devices:
        raise ValueError(
            f"training.batch_size: {config.batch_size} does not divide over {num_devices} devices; choose a multiple."
        )
    about = {"flow": flow, "name": name, "optimizer": optimizer, "draws": draws}
    seen = {"workdir": workdir, "quiet": quiet, "callback": callback}
    if workdir is None:
        return _fit(ebm, objective, config, mesh, **about, **seen)
    with disk.locked("fit: workdir", disk.open_folder("fit: workdir", workdir)):
        claim_workdir(workdir, ebm, config, flow, optimizer)
        return _fit(ebm, objective, config, mesh, **about, **seen)


def _fit(ebm, objective, config: TrainConfig, mesh, *, flow, name, optimizer, draws, workdir, quiet, callback):
    """`fit`, once all is checked, and the workdir is this training's."""
    trained_flow, params = new_flow(ebm, config.seed, flow, told=not quiet and devices.is_first_host())
    if config.start and draws is not None:
        params = started(trained_flow, params, draws, config.seed, ebm)
    optimizer = optimizer or make_optimizer(
        learning_rate=config.learning_rate,
        num_steps=config.num_steps,
        warmup_steps=config.warmup_steps,
        clip_norm=config.clip_norm,
    )
    state = {
        "step": jnp.zeros((), jnp.int32),
        "params": params,
        "opt_state": optimizer.init(params),
        "beta": betas_of(ebm),
        "best": params,
        "best_loss": jnp.asarray(jnp.inf, jnp.float32),
    }
    memory = contract.receive(objective, objective.init(ebm, trained_flow, params), draws)
    state |= {MEMORY: memory} if jax.tree.leaves(memory) else {}
    state = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), state)  # nothing shared: the step donates its state
    state, trained_flow = devices.replicate((state, trained_flow), mesh)
    ebm = devices.shard(ebm, mesh) if config.shard_weights else devices.replicate(ebm, mesh)
    step_options = {"objective": objective, "optimizer": optimizer, "config": config}
    step = functools.partial(jax.jit, donate_argnums=0)(functools.partial(train_step, **step_options))
    prompt = Prompt(
        ebm.generator,
        trained_flow,
        params,
        conditions=ebm.cond_prior,
        recipe=recipe(ebm, config, flow, objective),
        name=name,
    )
    watch = Watch(config, workdir, quiet, None if callback is None else functools.partial(_call, callback, prompt))
    params_best, history = _run(state, step, ebm, trained_flow, objective, config, watch)
    generator = devices.gather(ebm.generator, mesh) if config.shard_weights else ebm.generator
    prompt = prompt.replace(params=params_best, generator=generator, flow=trained_flow)
    return devices.local(prompt), history


def _call(callback: Callable, prompt: Prompt, number: int, metrics: dict, params: PyTree) -> None:
    callback(number, metrics, devices.local(prompt.replace(params=jax.tree.map(jnp.copy, params))))


def _run(state, step, ebm, flow, objective, config: TrainConfig, watch: Watch) -> tuple[PyTree, list[dict]]:
    """Opens what the training writes, resumes, and runs the loop."""
    with contextlib.ExitStack() as stack:
        checkpoints = None
        if watch.workdir is not None:
            checkpoints = stack.enter_context(Checkpoints(watch.workdir / CHECKPOINTS))
            state = checkpoints.load_latest(state) or state
        stopped: list = []
        if checkpoints:
            stopped = stack.enter_context(stop_signals())
        watch.start(int(state["step"]))
        stack.callback(watch.close)
        return _loop(state, step, ebm, flow, objective, config, watch, checkpoints, stopped)


def _loop(state, step, ebm, flow, objective, config, watch, checkpoints, stopped) -> tuple[PyTree, list[dict]]:
    evaluate, start, history = _evaluator(config, objective), int(state["step"]), []
    for number in range(start + 1, config.num_steps + 1):
        if number == start + 1:
            watch.compiling(lambda state=state: step.lower(state, ebm, flow).compile())

        # one update
        state, metrics = step(state, ebm, flow)

        # what is seen of it
        due = number == 1 or number == config.num_steps or number % config.log_every == 0
        if due:
            metrics = {name: float(value) for name, value in metrics.items()}
            check_metrics(metrics, number)
            history.append({"step": number, **metrics})
        watch.log(number, metrics, state["params"], due)

        # the best parameters so far, as the objective sees it
        last = number == config.num_steps
        if config.eval_every and (last or number % config.eval_every == 0):
            loss = evaluate(state["params"], with_beta(ebm, state["beta"]), flow)
            if np.isnan(loss):
                check_metrics({"the held-out figure of eval_every": float(loss)}, number)
            if config.closed_loop or float(loss) <= float(state["best_loss"]):  # also where all so far are infinite
                best = jax.tree.map(jnp.copy, state["params"])
                state = {**state, "best": best, "best_loss": loss}

        # on disk
        if checkpoints and (last or stopped or number % config.save_every == 0):
            checkpoints.save(number, state)
            if last and devices.is_first_host():
                checkpoints.keep_only(number)  # the same call returns what it holds
        if stopped and not last:
            raise KeyboardInterrupt(f"stopped after step {number} of {config.num_steps}, which is saved")
    return (state["best"] if config.eval_every else state["params"]), history


def _evaluator(config: TrainConfig, objective):
    """The figure of an objective on frozen noise: (params, ebm, flow) to a number, smaller is better."""
    count = -(-config.eval_size // config.batch_size)
    key = jax.random.fold_in(seeded(config.seed), 2**31 - 2)
    held_out = jax.jit(lambda params, key, ebm, flow: objective.held_out(params, key, ebm, flow))

    def evaluate(params, ebm, flow):
        return objective.score([held_out(params, k, ebm, flow) for k in jax.random.split(key, count)])

    return evaluate


def check_metrics(metrics: dict, step: int) -> None:
    """Raises FloatingPointError for numbers that are not finite, named."""
    bad = [name for name, value in metrics.items() if not np.isfinite(value)]
    if bad:
        raise FloatingPointError(
            f"training: {', '.join(bad)} is NaN or infinite at step {step}. Lower learning_rate, or check that control."
        )
