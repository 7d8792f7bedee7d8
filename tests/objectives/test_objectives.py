"""The contract of objectives: own ones, what they keep, own optimisers and callbacks; and how a training is stopped."""

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import promptgen_jax as pg
from promptgen_jax import parts
from promptgen_jax.objectives import ForwardKL, ReverseKL, _shared

ROOT = Path(__file__).parents[2]
FLOW = {"num_layers": 2, "hidden_dim": 8}
OPTIONS = {"num_steps": 4, "batch_size": 16, "log_every": 1, "quiet": True, "flow": FLOW}
STOPPED = """
import os, signal, sys
import jax, jax.numpy as jnp
import promptgen_jax as pg

workdir, number = sys.argv[1], int(sys.argv[2])
def draw(z):
    return jnp.broadcast_to(z[:, None, None, :1], (len(z), 2, 2, 3))


generator = pg.FunctionGenerator(pg.Prior.standard(2), draw)
ebm = pg.LatentEBM(generator, (pg.FunctionControl(lambda x: jnp.mean((x - 1) ** 2, axis=(1, 2, 3))),))

def strike(step, metrics, prompt):
    if step == number:
        os.kill(os.getpid(), getattr(signal, sys.argv[3]))

prompt, history = pg.fit(ebm, workdir=workdir, flow={"num_layers": 2, "hidden_dim": 8}, num_steps=6, batch_size=8,
                         save_every=100, log_every=1, quiet=True, callback=strike)
print([line["step"] for line in history], float(sum(leaf.sum() for leaf in jax.tree.leaves(prompt.params))).hex())
"""


def make_ebm(level=1.0):
    generator = pg.FunctionGenerator(
        pg.Prior.standard(2), lambda z: jnp.broadcast_to(z[:, None, None, :1], (len(z), 2, 2, 3)), image_size=2
    )
    return pg.LatentEBM(generator, (pg.FunctionControl(lambda x: 4 * jnp.mean((x - level) ** 2, axis=(1, 2, 3))),))


@pytest.mark.parametrize("name", parts.available("objectives"))
def test_an_objective_remembers_what_it_is(name):
    """Its kind and all its options, on however many devices; and with an option replaced, that one."""
    objective = parts.load("objectives", name, batch_size=8)
    spec = parts.describe(objective)
    assert spec["kind"] == name
    assert spec["options"]["batch_size"] == 8
    assert parts.describe(_shared.sharded(objective, jax.sharding.SingleDeviceSharding(jax.devices()[0]))) == spec
    assert parts.describe(dataclasses.replace(objective, batch_size=4))["options"] == spec["options"] | {
        "batch_size": 4
    }


@dataclasses.dataclass(frozen=True)
class Momentum:
    """Reverse KL less the running mean of its loss, which it carries from step to step."""

    needs_fixed_target: ClassVar[bool] = False
    tells_moments: ClassVar[bool] = True

    batch_size: int = 16

    def init(self, ebm, flow, params):
        return {"mean": jnp.zeros(()), "calls": jnp.zeros((), jnp.int32)}

    def loss(self, params, state, key, ebm, flow):
        loss, metrics = ReverseKL(batch_size=self.batch_size)(params, key, ebm, flow)
        state = {"mean": 0.9 * state["mean"] + 0.1 * jax.lax.stop_gradient(loss), "calls": state["calls"] + 1}
        return loss - jax.lax.stop_gradient(state["mean"]), (state, metrics | {"calls": state["calls"].astype(float)})


@pytest.mark.parametrize("accumulation", [1, 2])
def test_an_own_objective_carries_its_state_through_steps_and_checkpoints(tmp_path, accumulation):
    options = OPTIONS | {"objective": Momentum(), "accumulation": accumulation, "save_every": 2}
    whole, history = pg.fit(make_ebm(), **options)
    assert [line["calls"] for line in history][-1] == pytest.approx(4 * accumulation, abs=0.5)

    def stop(step, metrics, prompt):
        if step == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        pg.fit(make_ebm(), workdir=tmp_path, **options, callback=stop)
    resumed, history = pg.fit(make_ebm(), workdir=tmp_path, **options)
    assert [line["step"] for line in history] == [3, 4]
    assert jax.tree.all(jax.tree.map(np.array_equal, whole.params, resumed.params))


def test_forward_kl_keeps_what_is_best_by_its_own_figure(monkeypatch):
    """Not what is best by reverse KL, which prefers other parameters."""
    kept, measured = [], []
    real = ForwardKL.held_out

    def measuring(self, params, key, ebm, flow):
        measured.append(1)
        return real(self, params, key, ebm, flow)

    monkeypatch.setattr(ForwardKL, "held_out", measuring)

    def note(step, metrics, prompt):
        if step % 10 == 0:
            kept.append(prompt)

    ebm = make_ebm()
    options = OPTIONS | {"num_steps": 40, "objective": "forward_kl", "learning_rate": 3e-2, "eval_every": 10}
    prompt, _ = pg.fit(ebm, **options, callback=note, eval_size=512)
    assert measured, "the figure of forward KL was not asked"
    key = jax.random.fold_in(jax.random.key(42), 2**31 - 2)
    objective = ForwardKL(batch_size=16)

    def figure(prompt):
        keys = jax.random.split(key, 512 // 16)
        return float(objective.score([real(objective, prompt.params, k, ebm, prompt.flow) for k in keys]))

    assert figure(prompt) == pytest.approx(min(map(figure, kept)), abs=1e-5)


def test_held_out_forward_kl_is_the_cross_entropy_to_the_target():
    """Of the untrained flow, whose q is the prior: E_target[-log p_z], for a target that is known to be normal."""
    ebm, objective = make_ebm(), ForwardKL(batch_size=4096)
    flow, params = pg.init_flow(jax.random.key(0), ebm.generator.prior, **FLOW, identity_start=True)
    keys = jax.random.split(jax.random.key(1), 16)
    found = objective.score([objective.held_out(params, key, ebm, flow) for key in keys])
    mean, variance = 8 / 9, 1 / 9  # N(0, 1) exp(-4 (z - 1)²) in the first coordinate
    exact = np.log(2 * np.pi) + 0.5 * (mean**2 + variance) + 0.5
    assert float(found) == pytest.approx(exact, abs=0.05)


def test_own_optimiser_and_callback():
    seen = []

    def note(step, metrics, prompt):
        seen.append((step, metrics["loss"], prompt.sample(jax.random.key(0), 2).shape))

    prompt, _ = pg.fit(make_ebm(), **OPTIONS, optimizer=optax.sgd(0.0), callback=note)
    start, _ = pg.fit(make_ebm(), **OPTIONS | {"num_steps": 1}, optimizer=optax.sgd(0.0))
    assert jax.tree.all(jax.tree.map(np.array_equal, prompt.params, start.params)), "a rate of 0 moved the flow"
    assert [step for step, *_ in seen] == [1, 2, 3, 4]
    assert seen[0][2] == (2, 2, 2, 3)


def test_another_optimiser_is_another_training(tmp_path):
    pg.fit(make_ebm(), workdir=tmp_path, **OPTIONS, optimizer=optax.adam(1e-3))
    assert pg.fit(make_ebm(), workdir=tmp_path, **OPTIONS, optimizer=optax.adam(1e-3))[1] == []
    with pytest.raises(ValueError, match="another training"):
        pg.fit(make_ebm(), workdir=tmp_path, **OPTIONS, optimizer=optax.adam(1e-2))


BAD = {
    "name": ({"objective": "reverse_lk"}, "Did you mean 'reverse_kl'"),
    "object": ({"objective": object()}, "has no init, loss, needs_fixed_target, tells_moments"),
    "held out": ({"objective": Momentum(), "eval_every": 2}, "Momentum has no held_out"),
    "moments": ({"objective": "forward_kl", "closed_loop": 0.1}, "closed_loop: not available with ForwardKL"),
    "batch": ({"objective": "score_function", "batch_size": 1}, "needs at least 2"),
    "module": ({"objective": "mine.nope"}, "cannot be imported"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_objectives_are_refused(name):
    options, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        pg.fit(make_ebm(), **OPTIONS | options)


def test_numbers_of_numpy_are_options(tmp_path):
    options = OPTIONS | {"num_steps": np.int64(2), "learning_rate": np.float32(1e-3)}
    prompt, _ = pg.fit(make_ebm(), workdir=tmp_path, **options | {"flow": FLOW | {"hidden_dim": np.int64(8)}})
    prompt.save(tmp_path / "prompt")
    assert pg.Prompt.load(tmp_path / "prompt", generator=make_ebm().generator).flow.module.hidden_dim == 8


def test_a_bar_without_a_workdir_and_silence(capsys):
    pg.fit(make_ebm(), **OPTIONS | {"quiet": False})
    assert "4/4" in capsys.readouterr().err
    pg.fit(make_ebm(), **OPTIONS)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["SIGTERM", pytest.param("SIGINT", marks=pytest.mark.full)])
def test_a_signal_saves_the_step_under_way(tmp_path, name):
    def run(workdir, number):
        command = [sys.executable, "-c", STOPPED, str(workdir), str(number), name]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    stopped = run(tmp_path / "cut", 3)
    assert stopped.returncode not in (0, -getattr(signal, name)) or name == "SIGINT"
    assert "KeyboardInterrupt: stopped after step 3 of 6, which is saved" in stopped.stderr
    resumed, whole = run(tmp_path / "cut", 99), run(tmp_path / "whole", 99)
    assert resumed.stdout.startswith("[4, 5, 6]")
    assert whole.stdout.startswith("[1, 2, 3, 4, 5, 6]")
    assert resumed.stdout.split("]")[1] == whole.stdout.split("]")[1]
    assert [path.name for path in (tmp_path / "cut" / "checkpoints").iterdir() if path.name.isdecimal()] == ["6"]
