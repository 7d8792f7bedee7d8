"""The core on small real parts: target, objectives, training, prompt, exactness."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from helpers import DIM, FLOW, OPTIONS, SHIFT, as_picture, leaves_equal, make_ebm, quadratic, with_devices

import promptgen_jax as pg
from promptgen_jax import training
from promptgen_jax.evaluation.stage import evaluate
from promptgen_jax.objectives import ReverseKL, ScoreFunction
from promptgen_jax.training import train

ROOT = Path(__file__).parent.parent


def test_energies_add_with_their_weights():
    def bright(images):
        return jnp.mean(images, axis=(1, 2, 3))

    ebm = make_ebm(quadratic, bright)
    ebm = ebm.replace(controls=(ebm.controls[0].replace(weight=3.0), ebm.controls[1].replace(weight=0.5)))
    z = jax.random.normal(jax.random.key(0), (5, DIM))
    expected = 3 * quadratic(as_picture(z)) + 0.5 * bright(as_picture(z))
    np.testing.assert_allclose(ebm.energy(jax.random.key(1), z), expected, rtol=1e-6)
    log_prob = ebm.generator.prior.log_prob(z) - expected
    np.testing.assert_allclose(ebm.log_prob(jax.random.key(1), z), log_prob, rtol=1e-6)


def test_controls_of_one_name_are_refused():
    with pytest.raises(ValueError, match="not distinct"):
        make_ebm(quadratic, quadratic).energy(jax.random.key(0), jnp.zeros((1, DIM)))


def test_reverse_kl_loss_is_eq_10_minus_the_base_entropy():
    ebm = make_ebm()
    flow, params = pg.init_flow(jax.random.key(0), ebm.generator.prior, num_layers=2, hidden_dim=8)
    loss, metrics = ReverseKL(batch_size=4096)(params, jax.random.key(1), ebm, flow)
    eq_10 = metrics["energy/quadratic"] + metrics["prior"] - metrics["log_det"]
    entropy = DIM / 2 * (1 + np.log(2 * np.pi))
    np.testing.assert_allclose(loss, eq_10 - entropy, atol=0.1)


def test_score_function_gradient_agrees_with_the_path_gradient():
    ebm = make_ebm()
    flow, params = pg.init_flow(jax.random.key(0), ebm.generator.prior, num_layers=2, hidden_dim=8)
    gradients = []
    for objective in (ReverseKL(batch_size=65536), ScoreFunction(batch_size=65536)):
        gradient = jax.grad(lambda p, o=objective: o(p, jax.random.key(1), ebm, flow)[0])(params)
        gradients.append(np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(gradient)]))
    path, score = gradients
    assert np.linalg.norm(path - score) < 0.15 * np.linalg.norm(path)


def test_objectives_leave_frozen_arrays_out_of_the_gradient():
    ebm = make_ebm()
    flow, params = pg.init_flow(jax.random.key(0), ebm.generator.prior, num_layers=2, hidden_dim=8)
    before = jax.tree.map(np.array, flow.buffers)
    prompt, _ = pg.fit(ebm, flow={"num_layers": 2, "hidden_dim": 8}, **OPTIONS)
    assert leaves_equal(before, flow.buffers)
    assert not leaves_equal(prompt.params, params)


def test_fit_reaches_the_gaussian_posterior():
    ebm = make_ebm()  # N(0, I) times exp(-|z - 2m|²/2) is N(m, I/2)
    options = OPTIONS | {"num_steps": 600, "batch_size": 256, "learning_rate": 5e-3, "log_every": 100}
    prompt, _ = pg.fit(ebm, flow=FLOW, **options)
    z = prompt.latents(prompt.prior.sample(jax.random.key(5), 20000))
    np.testing.assert_allclose(z.mean(0), SHIFT, atol=0.03)
    np.testing.assert_allclose(np.cov(z.T), 0.5 * np.eye(DIM), atol=0.03)
    certificate = pg.evaluation.exactness(prompt, ebm, jax.random.key(6), num_samples=4096, reference_samples=20000)
    log_z = -DIM / 2 * np.log(2) - float(jnp.sum(SHIFT**2))  # ∫ N(z; 0, I) exp(-|z - 2m|²/2) dz
    assert abs(certificate["log_z"] - log_z) < 0.02
    assert certificate["kl"] < 0.02
    assert certificate["ess"] > 0.95 * 4096
    latents = pg.evaluation.resample(prompt, ebm, jax.random.key(7), 4000)
    np.testing.assert_allclose(latents.mean(0), SHIFT, atol=0.06)


def test_resumed_is_bit_identical(tmp_path):
    whole, _ = pg.fit(make_ebm(), workdir=tmp_path / "whole", flow=FLOW, **OPTIONS, eval_every=2)

    class KilledError(Exception):
        pass

    real = train.Checkpoints.save

    def save_then_die(self, step, state):
        real(self, step, state)
        if step == 4:
            raise KilledError

    train.Checkpoints.save = save_then_die
    try:
        with pytest.raises(KilledError):
            pg.fit(make_ebm(), workdir=tmp_path / "cut", flow=FLOW, **OPTIONS, eval_every=2)
    finally:
        train.Checkpoints.save = real
    resumed, history = pg.fit(make_ebm(), workdir=tmp_path / "cut", flow=FLOW, **OPTIONS, eval_every=2)
    assert [line["step"] for line in history] == [5, 6]
    assert leaves_equal(whole.params, resumed.params)


def test_the_kept_best_is_the_best_of_all_evaluations(monkeypatch):
    evaluated = []

    def recording(config, objective):
        evaluate = real(config, objective)

        def record(params, ebm, flow):
            evaluated.append((float(evaluate(params, ebm, flow)), jax.tree.map(np.array, params)))
            return evaluate(params, ebm, flow)

        return record

    real = train._evaluator
    monkeypatch.setattr(train, "_evaluator", recording)
    options = OPTIONS | {"num_steps": 40, "batch_size": 64, "learning_rate": 1e-2}
    prompt, _ = pg.fit(make_ebm(), flow=FLOW, **options, eval_every=10)
    losses = [loss for loss, _ in evaluated]
    assert np.argmin(losses) > 0
    assert leaves_equal(prompt.params, evaluated[np.argmin(losses)][1])


def test_the_step_compiles_once():
    ebm = make_ebm()
    with jax.log_compiles(False):
        traces = []

        def counted(images):
            traces.append(1)
            return quadratic(images)

        pg.fit(make_ebm(counted), flow=FLOW, **OPTIONS)
    assert len(traces) <= 2  # one trace of the step (scan may trace its body twice)
    assert ebm.controls


def test_an_evaluation_compiles_the_generator_once_and_draws_each_image_once():
    calls = []

    def counted(z):
        calls.append(len(z))
        jax.debug.callback(lambda: calls.append("run"))
        return as_picture(z)

    ebm = make_ebm().replace(generator=pg.FunctionGenerator(prior=pg.Prior.standard(DIM), function=counted))
    flow, params = pg.init_flow(jax.random.key(0), ebm.generator.prior, **FLOW)
    prompt = pg.Prompt(ebm.generator, flow, params)
    evaluate(prompt, ebm, (), {}, jax.random.key(1), num_samples=12, batch_size=6)
    jax.effects_barrier()
    assert [call for call in calls if call != "run"] == [1]
    assert calls.count("run") == 4  # two batches, before and after


def test_nan_stops_the_run_naming_term_and_step():
    def broken(images):
        return jnp.log(-jnp.abs(images[:, 0, 0, 0]) - 1)

    with pytest.raises(FloatingPointError, match=r"energy/broken.* at step 1"):
        pg.fit(make_ebm(quadratic, broken), flow=FLOW, **OPTIONS)


def test_prompts_nest_and_keep_exact_densities():
    inner, _ = pg.fit(make_ebm(), flow=FLOW, name="inner", **OPTIONS)
    ebm = make_ebm().replace(generator=inner)
    outer, _ = pg.fit(ebm, flow=FLOW, name="outer", **OPTIONS)
    eps = jax.random.normal(jax.random.key(3), (3, DIM))
    z = inner.latents(outer.latents(eps))
    jacobians = jax.vmap(jax.jacobian(lambda e: inner.latents(outer.latents(e[None]))[0]))(eps)
    expected = outer.prior.log_prob(eps) - jnp.linalg.slogdet(jacobians)[1]
    np.testing.assert_allclose(outer.log_prob(z), expected, atol=1e-4)


def test_saved_stack_samples_the_same(tmp_path):
    inner, _ = pg.fit(make_ebm(), flow=FLOW, name="inner", **OPTIONS)
    outer, _ = pg.fit(make_ebm().replace(generator=inner), flow=FLOW, name="outer", **OPTIONS)
    outer.save(tmp_path / "prompt")
    outer.save(tmp_path / "prompt")  # in place of the older one
    (tmp_path / "prompt" / "thesis.txt").touch()
    for folder in (tmp_path, tmp_path / "prompt", tmp_path / "prompt" / "thesis.txt"):
        with pytest.raises(ValueError, match="holds .*which would be lost"):
            outer.save(folder)
    (tmp_path / "README.md").write_text("mine")  # of names that are those of a prompt's files
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "README.md").write_text("mine")
    for folder in (tmp_path / "README.md", tmp_path / "project"):
        with pytest.raises(ValueError, match="holds README.md, which would be lost"):
            outer.save(folder)
    with pytest.raises(ValueError, match="folder is empty"):
        outer.save("")
    generator = make_ebm().generator
    again = pg.Prompt.load(tmp_path / "prompt", generator=generator)
    assert np.array_equal(outer.sample(jax.random.key(0), 5), again.sample(jax.random.key(0), 5))
    with pytest.raises(ValueError, match="sha256"):
        pg.Prompt.load(tmp_path / "prompt", generator=generator.replace(checksum="0" * 64))


def test_samples_do_not_depend_on_the_batch_size():
    prompt, _ = pg.fit(make_ebm(), flow=FLOW, **OPTIONS)
    one = prompt.sample(jax.random.key(0), 7, batch_size=7)
    other = prompt.sample(jax.random.key(0), 7, batch_size=3)
    np.testing.assert_allclose(one, other, atol=1e-6)


PROGRAM = """
import sys; sys.path.insert(0, "tests/support")
import jax, promptgen_jax as pg, helpers as t
_, history = pg.fit(t.make_ebm(), flow=t.FLOW, **t.OPTIONS)
print(jax.device_count(), *[line["loss"] for line in history])
"""


def test_four_devices_give_the_same_loss():
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, cwd=ROOT, env=with_devices(4), capture_output=True, text=True, check=True)
    devices, *losses = done.stdout.split()[-7:]
    assert int(devices) == 4
    _, history = pg.fit(make_ebm(), flow=FLOW, **OPTIONS)
    np.testing.assert_allclose(np.array(losses, float), [line["loss"] for line in history], rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"num_steps": 0}, "num_steps.*at least 1"),
        ({"batch_size": -3}, "batch_size"),
        ({"objective": "reverse_lk"}, "reverse_kl"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"nun_steps": 3}, "num_steps"),
        ({"objective": "forward_kl", "closed_loop": 0.1}, "closed_loop"),
        ({"objective": "score_function", "batch_size": 1}, "leave-one-out"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_bad_training_options(options, match):
    with pytest.raises(ValueError, match=match):
        pg.fit(make_ebm(), flow=FLOW, **({"quiet": True} | options))


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: pg.load_generator("dcgan_digifac"), ValueError, "dcgan_digiface"),
        (lambda: pg.load_control("clasifier"), ValueError, "classifier"),
        (lambda: _classifier(network="faceapi_expresion"), FileNotFoundError, "faceapi_expression"),
        (lambda: _classifier(attribute="expresion"), ValueError, "'expression'"),
        (lambda: _classifier(target="hapy"), ValueError, "'happy'"),
        (lambda: _moment(mu=(0.5, 0.6)), ValueError, "sum"),
        (lambda: pg.load_control("pose"), ValueError, "no target angle"),
        (lambda: pg.load_control("pose", yaw=3.0, sigma=0.0), ValueError, "sigma"),
        (lambda: pg.load_generator("dcgan")(jax.random.key(0), jnp.zeros((2, 3))), ValueError, r"\(batch, 100\)"),
        (lambda: pg.load_generator("dcgan")(jax.random.key(0), jnp.full((2, 100), jnp.nan)), ValueError, "NaN"),
        (lambda: pg.load_generator("dcgan")(jax.random.key(0), jnp.zeros((2, 100), int)), TypeError, "float32"),
        (lambda: pg.load_network("emotion")(jnp.zeros((1, 3, 8, 8))), ValueError, "Transpose"),
        (lambda: pg.load_network("emotion")(jnp.full((1, 8, 8, 3), 255.0)), ValueError, "Divide"),
        (lambda: pg.Prompt.load("nowhere"), FileNotFoundError, "prompt.json"),
    ],
    ids=range(14),
)
def test_bad_input(call, error, match):
    with pytest.raises(error, match=match):
        call()


def _moment(mu):
    return pg.load_control("moment", network="faceapi_age_gender", attribute="gender", mu=mu)


def _classifier(network="faceapi_expression", attribute="expression", target="happy"):
    return pg.load_control("classifier", network=network, attribute=attribute, target=target)


def test_train_config_fields_are_all_documented():
    text = training.TrainConfig.__doc__
    assert all(f"{field.name}:" in text for field in dataclasses.fields(training.TrainConfig))


@struct.dataclass
class Noise:
    """A generator of nothing but its own noise."""

    prior: pg.Prior
    image_size: int = struct.field(pytree_node=False, default=1)
    name: str = struct.field(pytree_node=False, default="noise")
    checksum: str = struct.field(pytree_node=False, default="")

    def __call__(self, key, z):
        return jax.random.normal(key, (len(z), 1, 1, 3))


def test_every_batch_of_samples_draws_new_noise():
    generator = Noise(pg.Prior.standard(DIM))
    flow, params = pg.init_flow(jax.random.key(0), generator.prior, **FLOW)
    images = pg.Prompt(generator=generator, flow=flow, params=params).sample(jax.random.key(1), 6, batch_size=2)
    assert len(np.unique(images)) == images.size
