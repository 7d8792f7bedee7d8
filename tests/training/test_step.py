"""How large the compiled step is, and what devices tell each other in it."""

import functools
import json
import re
import subprocess
import sys
from pathlib import Path

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import promptgen_jax as pg
from configs import quickstart
from promptgen_jax import devices
from promptgen_jax.training.config import TrainConfig, make_objective
from promptgen_jax.training.optimizer import make_optimizer
from promptgen_jax.training.train import train_step

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys; sys.path[:0] = ["tests/support", "tests/training"]
from runpy import run_path; run_path("tests/training/test_step.py")[sys.argv[1]]()
"""


def step_of(ebm, flow, **options):
    """A training step, and what it is called with at the start."""
    config, optimizer = TrainConfig(**options), make_optimizer(learning_rate=1e-3, num_steps=10)
    mesh = devices.data_mesh()
    flow, params = pg.init_flow(jax.random.key(0), ebm.generator.prior, **flow)
    zero = jnp.zeros((), jnp.int32)
    state = {"step": zero, "params": params, "opt_state": optimizer.init(params), "beta": {}}
    objective = make_objective(config, mesh)
    memory = objective.init(ebm, flow, params)
    state |= {"objective": memory} if jax.tree.leaves(memory) else {}
    step = functools.partial(train_step, objective=objective, optimizer=optimizer, config=config)
    return step, devices.replicate((state, ebm, flow), mesh)


def count_equations(jaxpr):
    """Those of a program and of all programs within it."""
    inner = (part for equation in jaxpr.eqns for part in jax.tree.leaves(list(equation.params.values())))
    inner = (getattr(part, "jaxpr", part) for part in inner)
    return len(jaxpr.eqns) + sum(count_equations(part) for part in inner if hasattr(part, "eqns"))


@pytest.mark.parametrize("objective", ["mixed", "reverse_kl"])
def test_step_of_a_smile_is_small(objective):
    """What is traced is traced, lowered and compiled before the first step, dead or not."""
    stage = quickstart.get_config().stages.smile
    ebm = pg.LatentEBM(pg.load_generator("dcgan_digiface"), helpers.build_controls(stage))
    options = {"objective_options": stage.training.objective_options.to_dict()} if objective == "mixed" else {}
    step, arguments = step_of(ebm, stage.flow, batch_size=32, objective=objective, **options)
    assert 2000 < count_equations(jax.make_jaxpr(step)(*arguments).jaxpr) <= (5000 if options else 3200)


def on_four_devices(function):
    """What a function of this module prints in a process with four virtual devices."""
    command = [sys.executable, "-c", PROGRAM, function]
    return subprocess.run(command, cwd=ROOT, env=helpers.with_devices(4), capture_output=True, text=True, check=False)


def test_devices_tell_each_other_the_gradient_of_the_flow_alone():
    done = on_four_devices("print_collectives")
    assert done.stdout.split() == ["looped", "all-reduce", "all-reduce", "paper", "all-reduce"], (
        done.stdout + done.stderr
    )


def print_collectives():
    """Of couplings, whose loop tells the gradient of a pair of layers in each round; and of the paper's flow."""
    assert jax.device_count() == 4
    for name, flow in {"looped": helpers.FLOW, "paper": {"num_layers": 2, "hidden_dim": 8}}.items():
        step, arguments = step_of(helpers.make_ebm(), flow, batch_size=8, kl_batch_size=64)
        text = jax.jit(step).lower(*arguments).compile().as_text()
        print(name, *re.findall(r" (all-\w+|collective-\w+|reduce-scatter)(?:-start)?\(", text))


def test_split_weights_give_the_same_losses_and_take_less():
    done = on_four_devices("print_split")
    assert done.stdout, done.stderr
    whole, split = json.loads(done.stdout)
    np.testing.assert_allclose(split["losses"], whole["losses"], rtol=1e-5)
    assert split["bytes"] < 0.5 * whole["bytes"]
    assert split["drawn"] == pytest.approx(whole["drawn"], rel=1e-4)


def print_split():
    """Losses of three steps, bytes of the frozen weights on one device, and the mean of what the prompt draws after."""
    generator = pg.load_generator("dcgan_digiface")
    ebm = pg.LatentEBM(generator, (pg.FunctionControl(function=lambda images: 20 * images.mean((1, 2, 3))),))
    lines = []
    for split in (False, True):
        placed = (devices.shard if split else devices.replicate)(ebm, devices.data_mesh())
        held = sum(leaf.addressable_data(0).nbytes for leaf in jax.tree.leaves(placed))
        options = {"num_steps": 3, "batch_size": 8, "log_every": 1, "quiet": True, "shard_weights": split}
        prompt, history = pg.fit(ebm, flow=helpers.FLOW, **options)
        drawn = float(prompt.sample(jax.random.key(1), 8).mean())
        lines.append({"losses": [line["loss"] for line in history], "bytes": held, "drawn": drawn})
    print(json.dumps(lines))
