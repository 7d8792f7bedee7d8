"""Where a flow starts and by which objective, from weighted samples of the generator."""

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import promptgen_jax as pg
from promptgen_jax import training
from promptgen_jax.controls import synthetic as toy
from promptgen_jax.draws import importance
from promptgen_jax.generators import synthetic
from promptgen_jax.training import start

FLOW = {"num_layers": 2, "hidden_dim": 8, "architecture": "coupling"}
OPTIONS = {"num_steps": 1, "batch_size": 8, "flow": FLOW, "learning_rate": 1e-9}


def make(problem, energy, **options):
    return pg.LatentEBM(synthetic.build(problem=problem), (toy.build(energy=energy, **options),))


def linear(scale):
    return make("linear", "quadratic", target=(1.0, -1.0, 0.5, 0.0, 0.3, -0.6, 0.2, 0.8), scale=scale)


def debias():
    return training.with_beta(make("mixture2d", "moment"), {"moment": jnp.array([0.42, -0.42])})


def test_a_flow_starts_at_the_normal_of_the_weighted_samples():
    ebm = linear(1.0)
    draws = training.weighted_draws(ebm, jax.random.key(0), batch_size=4096)
    normal = start.closest_normal(draws, ebm.generator.prior)
    weight = draws.weights() / draws.weights().sum()
    assert np.linalg.norm(normal.loc - weight @ np.asarray(draws.z)) < 0.3 * np.linalg.norm(normal.loc)
    prompt, _ = pg.fit(ebm, draws=draws, start="normal", **OPTIONS, quiet=True)
    z = prompt.latents(prompt.prior.sample(jax.random.key(1), 4096))
    np.testing.assert_allclose(z.mean(axis=0), normal.loc, atol=0.1)
    np.testing.assert_allclose(z.std(axis=0), normal.scale, atol=0.1)


def test_what_the_fit_of_moments_drew_is_weighted_for_the_target():
    ebm, fit = pg.fit_moments(make("mixture2d", "moment", mu={"a_1": 0.7}), jax.random.key(0), batch_size=4096)
    again = importance(fit.draws.weighted(jnp.zeros(4096)), ebm, batch_size=4096)
    np.testing.assert_allclose(fit.draws.log_weight, again.log_weight, atol=1e-4)
    assert len(fit) == 5


def test_where_the_prior_is_the_target_the_flow_stays():
    ebm = linear(1e3)
    draws = training.weighted_draws(ebm, jax.random.key(0), num_samples=512, batch_size=512)
    assert start.closest_normal(draws, ebm.generator.prior) is None


@pytest.mark.parametrize(
    ("target", "objective", "reason"),
    [
        (lambda: linear(0.7), "mixed", "no sign of several modes"),
        (lambda: make("wells", "wells"), "annealed", "effective, and show several modes"),
        (debias, "score_function", "no useful gradient"),
        (lambda: linear(0.02), "path_gradient", "only 1"),
    ],
    ids=["one mode", "wells", "saturated", "rare"],
)
def test_an_objective_is_chosen_for_a_reason(target, objective, reason):
    draws = training.weighted_draws(target(), jax.random.key(0), batch_size=4096)
    chosen = start.choose(target(), draws)
    assert chosen.objective == objective
    assert reason in chosen.reason


def test_of_few_samples_for_so_many_coordinates_nothing_is_learnt_by_heart():
    """On faces of 100 coordinates, by 156 effective samples, mixed came 0.8 nats less close than reverse KL alone."""
    generator = pg.FunctionGenerator(prior=pg.Prior.standard(100), function=helpers.as_picture)
    push = pg.FunctionControl(function=lambda images: -18.0 * images.mean((1, 2, 3)))
    ebm = pg.LatentEBM(generator, (push,))
    draws = training.weighted_draws(ebm, jax.random.key(0), batch_size=4096)
    assert 100 < draws.ess() < 200
    chosen = start.choose(ebm, draws)
    assert chosen.objective == "path_gradient"
    assert chosen.reason.endswith("effective, in 100 dimensions")
    assert start.choose(ebm, draws, directions=20).objective == "mixed"  # so many are enough for twenty of them


def test_auto_says_what_it_takes_and_why(capsys):
    pg.fit(linear(0.02), objective="auto", **OPTIONS)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "weighing 4096 samples of the generator ..."
    assert said[1].startswith("objective path_gradient: only 1")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": "norml"}, "normal"),
        ({"objective": "auto", "closed_loop": 0.1}, "auto may choose"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        training.TrainConfig(**options)
