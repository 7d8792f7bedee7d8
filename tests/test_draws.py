"""Draws, and the engine that computes them: every sample a function of its own key, whatever the batch and devices."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import noisy
import numpy as np
import pytest
from helpers import quadratic, some_prompt, with_devices

import promptgen_jax as pg
from promptgen_jax import devices, draws
from promptgen_jax.draws import Draws
from promptgen_jax.evaluation import closed_forms

ROOT = Path(__file__).parent.parent
KEY = jax.random.key(0)


def test_draws_are_the_samples():
    """Of a generator with noise of its own: latents, keys and images are those of `sample`, whatever their number."""
    prompt = some_prompt(noisy.Noisy(pg.load_generator("synthetic", problem="wells")))
    drawn = prompt.draws(KEY, 5)
    images = draws.images_of(prompt.generator, drawn.key, drawn.z)
    np.testing.assert_allclose(images, prompt.sample(KEY, 5), atol=1e-5)
    np.testing.assert_allclose(prompt.draws(KEY, 2).z, drawn.z[:2], atol=1e-6)
    np.testing.assert_allclose(drawn.log_prob, prompt.log_prob(drawn.z), rtol=1e-4)
    again = prompt.draws(KEY, 2)
    assert (jax.random.key_data(again.key) == jax.random.key_data(drawn.key)[:2]).all()


def test_importance_turns_the_prior_into_the_posterior():
    """On the linear problem, whose posterior is known; resampled draws are its samples, with equal weights."""
    generator = pg.load_generator("synthetic", problem="linear")
    control = pg.load_control("synthetic", energy="quadratic", target=np.asarray(generator.bias), scale=2.0)
    ebm = pg.LatentEBM(generator, (control,))
    truth = closed_forms.linear_target(generator, control.target, 2.0)
    drawn = draws.importance(Draws.of_prior(generator.prior, KEY, 4096), ebm)
    weights = drawn.weights() / drawn.weights().sum()
    assert np.log(np.mean(np.exp(np.asarray(drawn.log_weight)))) == pytest.approx(truth.log_z, abs=0.1)
    np.testing.assert_allclose(weights @ np.asarray(drawn.z), truth.mean, atol=0.15)
    assert 1 < drawn.ess() < 4096
    assert drawn.cost.energy_calls == 4096
    chosen = drawn.resampled(jax.random.key(1), 2000)
    assert chosen.ess() == 2000
    np.testing.assert_allclose(np.cov(np.asarray(chosen.z).T), truth.covariance, atol=0.15)
    assert draws.importance(Draws.of_prior(generator.prior, KEY, 4), ebm).take(slice(1, 3)).z.shape == (
        2,
        generator.prior.dim,
    )


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
@pytest.mark.parametrize("total", [1, 6, 7])
def test_batches_of_any_size(batch_size, total):
    """Trees out, keys and arrays in, nothing of what fills up the last batch; each batch of one compiled size."""
    sizes = []

    @jax.jit
    def double(factor, keys, rows):
        sizes.append(len(rows))
        return {"rows": factor * rows, "noise": jax.vmap(jax.random.uniform)(keys)}

    keys, rows = jax.random.split(KEY, total), np.arange(2 * total, dtype=np.float32).reshape(total, 2)
    found = devices.map_batches(double, batch_size, keys, rows, shared=(2.0,))
    np.testing.assert_array_equal(found["rows"], 2 * rows)
    np.testing.assert_array_equal(found["noise"], jax.vmap(jax.random.uniform)(keys))
    assert sizes == [min(batch_size, total)]


def numbers(value):
    """All numbers of a structure, by their place."""
    if isinstance(value, dict):
        return {f"{k}/{p}": n for k, child in value.items() for p, n in numbers(child).items()}
    if isinstance(value, list):
        return numbers(dict(enumerate(value)))
    return {"": value} if isinstance(value, (int, float)) else {}


def test_figures_do_not_depend_on_devices_or_batches():
    """Evaluation and beta of 1,024 samples, with generator and control that draw noise of their own."""
    command, environment = [sys.executable, str(Path(noisy.__file__))], with_devices(4, PYTHONPATH=str(ROOT))
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    four = json.loads(done.stdout)
    assert four.pop("devices") == 4
    one, other_batches = (numbers(noisy.figures(batch_size)) for batch_size in (64, 1000))
    assert len(one) > 50
    assert numbers(four) == pytest.approx(one, rel=1e-4, abs=1e-5)
    assert other_batches == pytest.approx(one, rel=1e-4, abs=1e-5)


def with_reference():
    control = pg.load_control("identity")
    return pg.LatentEBM(pg.load_generator("dcgan_digiface"), (control,))


LINEAR = pg.FunctionGenerator(pg.Prior.standard(2), lambda z: jnp.zeros((len(z), 4, 4, 3)) + z[:, :1, None, None])


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: Draws.of_prior(LINEAR.prior, jax.random.PRNGKey(0), 3), "typed key"),
        (lambda: Draws.of_prior(LINEAR.prior, KEY, 0), "at least 1"),
        (lambda: Draws.of_prior(LINEAR.prior, KEY, 3).resampled(KEY, 0), "at least 1"),
        (lambda: draws.importance(Draws.of_prior(pg.Prior.standard(100), KEY, 2), with_reference()), "no fixed target"),
        (
            lambda: draws.importance(
                Draws.of_prior(LINEAR.prior, KEY, 3).replace(log_prob=None),
                pg.LatentEBM(LINEAR, (pg.FunctionControl(quadratic),)),
            ),
            "density of these draws is not known",
        ),
        (lambda: Draws.of_prior(LINEAR.prior, KEY, 3).replace(log_prob=None).through(None), "no noise for a flow"),
    ],
    ids=range(6),
)
def test_bad_input(call, match):
    with pytest.raises((TypeError, ValueError), match=match):
        call()
