"""Several trainings in one program, against each of them alone."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import with_devices

import promptgen_jax as pg
from configs import quickstart
from promptgen_jax import training
from promptgen_jax.objectives.mixed import Mixed
from promptgen_jax.training.start import NUM_DRAWS
from promptgen_jax.training.together import Together, fits, same_shape

CONFIG = training.TrainConfig(num_steps=6, batch_size=12, warmup_steps=2, log_every=2)
FLOW = {"architecture": "coupling", "num_layers": 2, "hidden_dim": 8}


def target(weight, point=(0.6, -0.4)):
    generator = pg.load_generator("synthetic", problem="linear", dim=2)
    return pg.LatentEBM(generator, (pg.load_control("synthetic", energy="quadratic", target=point, weight=weight),))


BOTH_WAYS = {"objective": "mixed", "objective_options": {"forward_batch": 16}, "start": "normal"}


@pytest.mark.parametrize(
    ("recipe", "directions"), [({}, {}), ({}, {"directions": 2}), pytest.param(BOTH_WAYS, {}, marks=pytest.mark.full)]
)
def test_each_is_trained_as_it_is_alone(recipe, directions):
    config, flow = dataclasses.replace(CONFIG, **recipe), FLOW | directions
    targets, seeds = [target(0.5), target(2.0), target(2.0)], (3, 3, 4)
    found = Together(targets, config, flow).fit(targets, seeds, name="many")
    options = {name: getattr(CONFIG, name) for name in ("num_steps", "batch_size", "warmup_steps", "log_every")}
    options |= recipe
    for ebm, seed, (prompt, history) in zip(targets, seeds, found, strict=True):
        alone, expected = pg.fit(ebm, flow=flow, quiet=True, seed=seed, **options)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), prompt.params, alone.params)
        assert [line["step"] for line in history] == [line["step"] for line in expected] == [1, 2, 4, 6]
        np.testing.assert_allclose(history[-1]["loss"], expected[-1]["loss"], rtol=1e-4)
        assert prompt.recipe == alone.recipe
    first, second, third = (jax.tree.leaves(prompt.params) for prompt, _ in found)
    assert not np.allclose(first[0], second[0])
    assert not np.allclose(second[0], third[0])


def test_a_dial_is_off_at_strength_0_as_it_is_alone():
    """Strengths decide what flow is made, and with it that strength 0 changes nothing."""
    dial = pg.Conditions.of_strengths({"quadratic": (0, 1)})
    targets = [target(weight).replace(cond_prior=dial) for weight in (0.5, 2.0)]
    found = Together(targets, CONFIG, {"num_layers": 2, "hidden_dim": 8}).fit(targets, (3, 3))
    eps = jax.random.normal(jax.random.key(0), (5, 2))
    for prompt, _ in found:
        off, on = (prompt.flow.forward_and_log_det(prompt.params, eps, np.full((5, 1), at))[0] for at in (0.0, 1.0))
        np.testing.assert_array_equal(off, eps)
        assert np.max(np.abs(on - eps)) > 1e-4
    options = {name: getattr(CONFIG, name) for name in ("num_steps", "batch_size", "warmup_steps", "log_every")}
    alone, _ = pg.fit(targets[0], flow={"num_layers": 2, "hidden_dim": 8}, quiet=True, seed=3, **options)
    assert found[0][0].recipe == alone.recipe
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found[0][0].params, alone.params)


@pytest.mark.full
@pytest.mark.parametrize("count", [2, 3])
def test_devices_share_the_trainings_out(count):
    """Three trainings on two devices, which cannot split them evenly, and on three, which can."""
    here = Path(__file__).parent
    code = (
        "import jax, test_together as here; "
        f"assert jax.device_count() == {count}; here.test_each_is_trained_as_it_is_alone({{}}, {{}})"
    )
    environment = with_devices(
        count, PYTHONPATH=os.pathsep.join(map(str, (here.parents[1], here.parent / "support", here)))
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_later_training_moves_along_the_directions_of_the_flow_it_starts_from():
    """Those of its own target are others, along which the parameters would mean something else."""
    targets = [target(1.0), target(1.0, (-0.9, 0.9))]
    program = Together(targets, CONFIG, FLOW | {"directions": 2})
    ((one, _),) = program.fit(targets[:1], (0,))
    ((other, _),) = program.fit(targets[1:], (0,), start_at=[(one.flow, one.params)], num_steps=3)
    np.testing.assert_array_equal(one.flow.buffers["directions"], other.flow.buffers["directions"])
    ((fresh, _),) = program.fit(targets[1:], (0,), num_steps=3)
    assert not np.array_equal(fresh.flow.buffers["directions"], one.flow.buffers["directions"])


def test_later_trainings_use_the_same_program_and_start_where_they_are_told(monkeypatch):
    targets, compiled = [target(weight) for weight in (1.0, 2.0)], []
    program = Together(targets, CONFIG, FLOW)
    ((one, _),) = program.fit(targets[:1], (0,))
    monkeypatch.setattr("promptgen_jax.training.together.train_step", lambda *_, **__: compiled.append(1))
    ((other, history),) = program.fit(targets[1:], (0,), start_at=[(one.flow, one.params)], num_steps=3)
    assert not compiled
    assert [line["step"] for line in history] == [1, 2, 3]
    distance = [np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (one.params, other.params)), strict=True)]
    assert 0 < max(distance) < 3 * 1.5e-3  # three updates away
    assert other.recipe["training"]["num_steps"] == 3


def test_a_later_training_has_samples_of_its_own_target_to_begin_with(monkeypatch):
    """Its share of the generator's samples is that of its steps, and it stays where it was told to start."""
    config = dataclasses.replace(CONFIG, **BOTH_WAYS)
    targets, given = [target(1.0), target(8.0)], []
    program = Together(targets, config, FLOW)
    received = Mixed.receive

    def receive(objective, buffer, draws):
        given.append(draws)
        return received(objective, buffer, draws)

    monkeypatch.setattr(Mixed, "receive", receive)
    ((one, _),) = program.fit(targets[:1], (0,))
    ((other, history),) = program.fit(targets[1:], (0,), start_at=[(one.flow, one.params)], num_steps=3)
    first, later = given
    assert (len(first.z), len(later.z)) == (NUM_DRAWS, NUM_DRAWS // 2)
    np.testing.assert_allclose(later.log_weight, 8 * first.log_weight[: len(later.z)], rtol=1e-5)
    distance = [np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (one.params, other.params)), strict=True)]
    assert 0 < max(distance) < 3 * 1.5e-3
    assert history[0]["ess"] > 1


def test_what_cannot_go_together():
    wide = pg.load_generator("synthetic", problem="linear", dim=3)
    other = pg.LatentEBM(wide, (pg.load_control("synthetic", energy="quadratic", target=(0.0, 0.0, 0.0)),))
    assert same_shape([target(1.0), target(2.0, (0.0, 1.0))])
    assert not same_shape([target(1.0), other])
    assert fits(CONFIG)
    assert fits(training.TrainConfig(**quickstart.get_config().stages.smile.training))  # so that it is swept cheaply
    alone = ({"objective": "auto"}, {"eval_every": 2}, {"shard_weights": True})
    assert not any(fits(training.TrainConfig(**each)) for each in alone)
    with pytest.raises(ValueError, match="cannot go together"):
        Together([target(1.0), other], CONFIG, FLOW)
