"""Energies that are no numbers, or no number for each image, are told in one sentence wherever they are used."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import FLOW, OPTIONS, make_ebm, some_prompt

import promptgen_jax as pg
from promptgen_jax.draws import Draws, importance
from promptgen_jax.evaluation.compare import compare
from promptgen_jax.metrics.coverage import coverage

KEY = jax.random.key(0)


def first(images):
    return images[:, 0, 0, 0]


def partly(value, above):
    """Energies that are `value` where the first number of the latent is above some height."""
    return make_ebm(lambda images: jnp.where(first(images) > above, value, first(images) ** 2))


def prior_draws(ebm, count=256):
    return Draws.of_prior(ebm.generator.prior, KEY, count)


USES = {
    "importance": lambda ebm, prompt: importance(prior_draws(ebm), ebm),
    "certify": lambda ebm, prompt: pg.certify(prompt, ebm, KEY, num_samples=64, reference_samples=64),
    "resample": lambda ebm, prompt: pg.evaluation.resample(prompt, ebm, KEY, 32),
    "best_of_n": lambda ebm, prompt: pg.load_sampler("best_of_n")(KEY, ebm, 16),
    "smc": lambda ebm, prompt: pg.load_sampler("smc")(KEY, ebm, 64),
    "auto": lambda ebm, prompt: pg.fit(ebm, flow=FLOW, objective="auto", **OPTIONS),
    "start": lambda ebm, prompt: pg.fit(ebm, flow=FLOW, start="normal", **OPTIONS),
}


@pytest.mark.parametrize("use", USES)
def test_nan_is_told(use):
    ebm = partly(jnp.nan, 1.0)
    with pytest.raises(ValueError, match=r"the energy is NaN, or minus infinity, at [1-9]\d* of \d+ samples"):
        USES[use](ebm, some_prompt(ebm.generator))


@pytest.mark.parametrize("use", ["importance", "certify", "resample", "auto"])
def test_a_target_that_no_sample_meets_is_told(use):
    ebm = partly(jnp.inf, -jnp.inf)
    with pytest.raises(ValueError, match="the energy is infinite at all"):
        USES[use](ebm, some_prompt(ebm.generator))


def test_a_sampler_says_which_chains_are_stuck():
    with pytest.raises(ValueError, match=r"mala: [1-9]\d* of 32 chains began where the energy is NaN or infinite"):
        pg.load_sampler("mala", num_warmup=1, num_steps=1)(KEY, partly(jnp.inf, 0.0), 32)
    with pytest.raises(ValueError, match=r"lace_ode: 4 of 4 paths did not end within max_steps=2"):
        pg.load_sampler("lace_ode", max_steps=2, tolerance=1e-6)(KEY, make_ebm(), 4)


@pytest.mark.parametrize(
    ("energy", "shape"),
    [(lambda images: first(images)[:, None] ** 2, r"\(8, 1\)"), (lambda images: jnp.mean(images), r"\(\)")],
)
def test_one_number_for_each_image(energy, shape):
    with pytest.raises(ValueError, match=rf"control .* gives energies of shape {shape} for 8 images; expected \(8,\)"):
        pg.fit(make_ebm(energy), flow=FLOW, **OPTIONS)


def test_what_is_no_target_is_told():
    ebm = make_ebm()
    prompt = some_prompt(ebm.generator)
    with pytest.raises(TypeError, match=r"fit: got FunctionGenerator for the target; expected a LatentEBM"):
        pg.fit(ebm.generator, flow=FLOW, **OPTIONS)
    with pytest.raises(TypeError, match=r"certify: got Prompt for the target"):
        pg.certify(ebm, prompt, KEY)
    with pytest.raises(TypeError, match=r"Write pg.load_generator\('dcgan_digiface'\)"):
        pg.LatentEBM("dcgan_digiface", ebm.controls)
    with pytest.raises(ValueError, match="weight is '3'; expected a number"):
        pg.load_control("synthetic", energy="wells", weight="3")
    with pytest.raises(TypeError, match=r"flow is 'coupling'; expected its options, such as {'architecture'"):
        pg.fit(ebm, flow="coupling", **OPTIONS)


def test_parameters_are_kept_though_what_chooses_them_is_infinite():
    """An energy that is infinite at few samples, of which the large held-out batch always has some."""
    ebm = partly(jnp.inf, 3.0)
    options = OPTIONS | {"num_steps": 4, "learning_rate": 1e-2, "seed": 1}
    last, _ = pg.fit(ebm, flow=FLOW, **options)
    chosen, _ = pg.fit(ebm, flow=FLOW, eval_every=2, eval_size=2**13, **options)
    jax.tree.map(np.testing.assert_array_equal, chosen.params, last.params)
    with pytest.raises(FloatingPointError, match="the held-out figure of eval_every is NaN or infinite at step 2"):
        pg.fit(partly(jnp.nan, 3.0), flow=FLOW, eval_every=2, eval_size=2**13, **options)


def test_draws_have_to_be_of_the_target():
    ebm = make_ebm()
    wrong = {
        "are of type str": "many",
        "have no log_prob": prior_draws(ebm).replace(log_prob=None),
        r"latents are \(256, 3\)": Draws.of_prior(pg.Prior.standard(3), KEY, 256),
        "got a condition": prior_draws(ebm).replace(cond=jnp.zeros((256, 1))),
        "the energy is NaN": prior_draws(ebm).weighted(np.full(256, np.nan)),
    }
    for message, draws in wrong.items():
        with pytest.raises(ValueError, match=f"fit: draws.*{message}"):
            pg.fit(ebm, flow=FLOW, draws=draws, objective="mixed", **OPTIONS)
    angles = ebm.replace(cond_prior=pg.Conditions.of_angles({"turn": (-10, 10)}))
    with pytest.raises(ValueError, match=r"fit: draws: cond is none; expected \(256, 1\)"):
        pg.fit(angles, flow=FLOW, draws=prior_draws(ebm), objective="mixed", **OPTIONS)


def test_coverage_is_that_of_controls_at_full_strength():
    ebm = make_ebm(lambda images: jnp.ones(len(images)))
    ebm = ebm.replace(cond_prior=pg.Conditions.of_strengths({ebm.controls[0].name: (0, 1)}))
    assert coverage(ebm, KEY, num_samples=32).share.mean == pytest.approx(np.exp(-1))


def tilted(reach=(0, 1)):
    """The first number of the latent, with a strength."""
    ebm = make_ebm(lambda images: 3 * first(images))
    return ebm.replace(cond_prior=pg.Conditions.of_strengths({ebm.controls[0].name: reach}))


@pytest.mark.parametrize("share", [0.1, 0.4, 0.8])
def test_smc_never_ends_where_the_energy_is_infinite(share):
    """A target with an edge, whose Z is the share of the prior that it leaves."""
    edge = float(jax.scipy.stats.norm.ppf(share))
    draws, log_z = pg.load_sampler("smc").sample_and_log_z(KEY, partly_flat(edge), 512)
    assert np.max(np.asarray(draws.z)[:, 0]) <= edge
    assert log_z == pytest.approx(np.log(share), abs=0.4)


def partly_flat(edge):
    return make_ebm(lambda images: jnp.where(first(images) > edge, jnp.inf, 0.0))


def test_the_best_of_n_keeps_its_condition():
    """Of candidates with strengths of their own it would be the one of the lowest strength."""
    ebm = tilted()
    cond = pg.load_sampler("best_of_n", num_candidates=8)(KEY, ebm, 256).cond
    np.testing.assert_array_equal(cond, ebm.draw_cond(jax.random.fold_in(KEY, 1), 256))


def test_a_dial_that_is_off_bears_an_infinite_energy():
    ebm = partly_flat(0.0)
    ebm = ebm.replace(cond_prior=pg.Conditions.of_strengths({ebm.controls[0].name: (0, 1)}))
    z = jnp.array([[1.0, 0, 0, 0], [-1.0, 0, 0, 0]])
    np.testing.assert_array_equal(ebm.energy(KEY, z, jnp.zeros((2, 1))), [0, 0])
    np.testing.assert_array_equal(ebm.energy(KEY, z, jnp.ones((2, 1))), [np.inf, 0])


def test_a_comparison_under_conditions_says_what_differs():
    found = compare(tilted(), KEY, num_samples=16)
    assert any(note.startswith("Conditions vary.") for note in found.notes)
    found = compare(tilted((1, 1)), KEY, num_samples=16)
    assert not any(note.startswith("Conditions vary.") for note in found.notes)
    with pytest.raises(ValueError, match="compare: reference_samples: got 1; expected an integer of at least 2"):
        compare(tilted(), KEY, num_samples=16, reference_samples=1)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("optimise", {"learning_rate": -0.1}, "learning_rate is -0.1"),
        ("optimise", {"distance_weight": float("nan")}, "distance_weight is nan"),
        ("langevin", {"noise_weight": -1.0}, "noise_weight is -1.0"),
    ],
)
def test_samplers_refuse_options_that_climb(name, options, message):
    with pytest.raises(ValueError, match=message):
        pg.load_sampler(name, **options)


def test_a_chain_that_diverges_is_told():
    with pytest.raises(ValueError, match=r"sampler: \d+ of 8 samples became NaN or infinite. Take smaller steps"):
        pg.load_sampler("langevin", step_size=50.0, num_steps=60)(KEY, make_ebm(), 8)
