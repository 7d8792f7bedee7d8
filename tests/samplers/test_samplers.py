"""Samplers on targets whose moments and log Z are known, and what all of them promise."""

import importlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from noisy import Noisy, Random

import promptgen_jax as pg
from promptgen_jax import parts
from promptgen_jax.draws import Draws
from promptgen_jax.evaluation import closed_forms
from promptgen_jax.runs import run
from promptgen_jax.store import weights

TARGET, SIZE = (0.6, -0.4), 1024
KINDS = parts.available("samplers")
EXACT = {
    "hmc": {"num_warmup": 30, "num_steps": 10, "num_leaps": 6},
    "importance": {"num_candidates": 16},
    "langevin": {"num_steps": 200},
    "mala": {},
    "nuts": {"num_warmup": 20, "num_steps": 5},
    "rejection": {},
    "smc": {},
}

SLOW = ("hmc", "nuts")  # to compile


@pytest.fixture(scope="module")
def linear():
    generator = parts.load_generator("synthetic", problem="linear", dim=2)
    control = pg.load_control("synthetic", energy="quadratic", target=TARGET)
    return pg.LatentEBM(generator, (control,)), closed_forms.linear_target(generator, TARGET, 0.5)


@pytest.fixture(scope="module")
def wells():
    generator = parts.load_generator("synthetic", problem="wells")
    return pg.LatentEBM(generator, (pg.load_control("synthetic", energy="wells"),))


def line(shift):
    """The standard normal on a line, under E = (z - shift)² / 2."""
    generator = pg.FunctionGenerator(
        pg.Prior.standard(1), lambda z: jnp.tile(z[:, :, None, None], (1, 1, 1, 3)), image_size=1
    )
    return pg.LatentEBM(generator, (pg.FunctionControl(lambda images: (images[:, 0, 0, 0] - shift) ** 2 / 2),))


def tiny(kind):
    return importlib.import_module(f"promptgen_jax.samplers.{kind}").tiny()


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.full] * (name in SLOW)) for name in EXACT])
def test_moments_of_a_normal_target(name, linear):
    ebm, truth = linear
    sampler = pg.load_sampler({"nuts": "hmc"}.get(name, name), **EXACT[name])
    draws = sampler(jax.random.key(4), ebm, SIZE)
    z = np.asarray(draws.z, np.float64)
    assert draws.weights() is None
    assert z.shape == (SIZE, 2)
    deviation = np.sqrt(np.diag(truth.covariance))
    # four standard errors; those of resampling and tempering are larger, as particles have common ancestors
    error = 4 / np.sqrt(SIZE) * (2 if name in ("importance", "smc") else 1)
    np.testing.assert_allclose((z.mean(axis=0) - truth.mean) / deviation, 0, atol=error)
    bias = 0.06 if name == "langevin" else 0  # 1 / (1 - s P / 4) at P = 5 of the stiffest direction, in its docstring
    np.testing.assert_allclose(z.std(axis=0) / deviation, 1, atol=error + bias)
    assert draws.cost.energy_calls + draws.cost.gradient_calls >= SIZE
    assert draws.cost.seconds > 0


def test_smc_finds_all_wells_and_log_z(wells):
    draws, log_z = pg.load_sampler("smc").sample_and_log_z(jax.random.key(0), wells, 2048)
    right = np.asarray(draws.z) > 0
    shares = [np.mean((right == corner).all(axis=1)) for corner in ((0, 0), (0, 1), (1, 0), (1, 1))]
    np.testing.assert_allclose(shares, 0.25, atol=0.06)
    assert abs(log_z - closed_forms.wells_log_z(wells.controls[0].centres, 0.35)) < 0.12


def test_mala_accepts_as_often_as_asked(linear):
    from promptgen_jax.samplers import _chains, mala

    ebm, _ = linear
    sampler = pg.load_sampler("mala", num_warmup=100)
    start = Draws.of_prior(ebm.generator.prior, jax.random.key(1), 256)
    chains, _ = _chains.run(mala._walk, sampler, ebm, start, jax.random.key(2))
    assert 0.4 < chains.acceptance.mean() < 0.8


def test_lace_ode_is_gradient_descent():
    z = np.asarray(pg.load_sampler("lace_ode")(jax.random.key(0), line(2.0), 4096).z)
    np.testing.assert_allclose(z.mean() / 2, 0.993, atol=2e-3)
    np.testing.assert_allclose(z.var(), 4e-5, rtol=0.1)


def test_optimisation_stays_nearer_with_a_larger_weight():
    start = np.asarray(Draws.of_prior(pg.Prior.standard(1), jax.random.key(0), 64).z)
    samplers = [pg.load_sampler("optimise", num_steps=100, distance_weight=weight) for weight in (0.0, 1.0)]
    moved = [np.abs(sampler(jax.random.key(0), line(3.0), 64).z - start) for sampler in samplers]
    np.testing.assert_allclose(moved[0], np.abs(3 - start), atol=0.2)
    np.testing.assert_allclose(moved[1], np.abs(3 - start) / 3, atol=0.2)


@pytest.mark.parametrize("kind", KINDS)
def test_draws_follow_from_the_key(kind):
    """The same again, and of a noisy target too each sample alone, except where samples are chosen among each other."""
    ebm = pg.LatentEBM(Noisy(parts.load_generator("synthetic", problem="mixture2d")), (Random(),))
    sampler = tiny(kind)
    first, second = sampler(jax.random.key(0), ebm, 64), sampler(jax.random.key(0), ebm, 64)
    np.testing.assert_array_equal(first.z, second.z)
    assert np.isfinite(first.z).all()
    assert first.z.shape == (64, 2)
    if kind not in ("smc", "rejection", "best_of_n"):
        np.testing.assert_array_equal(sampler(jax.random.key(0), ebm, 70).z[:64], first.z)


@pytest.mark.parametrize("kind", KINDS)
def test_bad_input(kind, linear):
    ebm, _ = linear
    sampler = tiny(kind)
    with pytest.raises(TypeError, match="key"):
        sampler(0, ebm, 4)
    with pytest.raises(ValueError, match="num_samples"):
        sampler(jax.random.key(0), ebm, 0)
    moving = ebm.replace(controls=(ebm.controls[0].replace(needs_reference=True),))
    with pytest.raises(ValueError, match="no fixed target"):
        sampler(jax.random.key(0), moving, 4)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("langevin", {"step_size": 0}, "step_size is 0"),
        ("langevin", {"num_stps": 3}, "num_steps"),
        ("mala", {"acceptance": 1.5}, "acceptance is 1.5"),
        ("smc", {"ess": 2}, "ess is 2"),
        ("rejection", {"bound": float("nan")}, "bound is nan"),
        ("lace_ode", {"tolerance": 0}, "tolerance is 0"),
        ("langevine", {}, "'langevin'"),
        ("nopackage.walk", {}, "cannot be imported"),
    ],
)
def test_bad_options(kind, options, message):
    with pytest.raises(ValueError, match=message):
        pg.load_sampler(kind, **options)


def test_rejection_says_that_the_bound_does_not_hold_and_when_it_gives_up(linear):
    ebm, _ = linear
    with pytest.raises(ValueError, match="lies below the bound 100"):
        pg.load_sampler("rejection", bound=100)(jax.random.key(0), ebm, 8)
    with pytest.raises(ValueError, match="of 16 draws of the prior were accepted, 8 were asked for"):
        pg.load_sampler("rejection", bound=-20, max_candidates=2)(jax.random.key(0), ebm, 8)


OWN = """
from promptgen_jax.draws import Cost, Draws


def build(*, shift):
    def sample(key, ebm, num_samples):
        draws = Draws.of_prior(ebm.generator.prior, key, num_samples)
        return draws.replace(z=draws.z + shift, log_prob=None, cost=Cost(num_samples, 0, 0.5))

    return sample
"""


def test_a_config_names_samplers_of_the_library_and_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "shifted.py").write_text(OWN)
    (tmp_path / "own_samplers").mkdir()
    (tmp_path / "own_samplers" / "shifted.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    config = {
        "generator": {"name": "synthetic", "problem": "mixture2d"},
        "stages": {
            "a1": {
                "controls": {"mode": {"kind": "synthetic", "energy": "classifier"}},
                "flow": {"hidden_dim": 8, "num_layers": 2},
                "training": {"num_steps": 2, "batch_size": 8},
            }
        },
        "evaluation": {
            "num_samples": 64,
            "samplers": {
                "chains": {"kind": "langevin", "num_steps": 5},
                "moved": {"kind": "own_samplers.shifted", "shift": 2.0},
            },
        },
    }
    run.train_and_evaluate(config, tmp_path / "run")
    (stage,) = weights.read_json(tmp_path / "run" / "report.json", advice="")["stages"]
    assert set(stage["shares"][0]) >= {"before", "after", "weighted", "chains", "moved"}
    calls = {row["name"]: row for row in stage["metrics"]["cost"]["rows"]}
    assert calls["gradients"]["chains"] == 5
    assert calls["energies"]["moved"] == 1
    assert "Cost of the samplers" in (tmp_path / "run" / "report.html").read_text()
    for wrong, message in (
        ({"chains": {"kind": "langevine"}}, "'langevin'"),
        ({"chains": {"num_steps": 3}}, "kind is missing"),
        ({"after": {"kind": "langevin"}}, "Choose another name"),
    ):
        with pytest.raises(ValueError, match=message):
            run.train_and_evaluate({**config, "evaluation": {"samplers": wrong}}, tmp_path / "other")
    assert not (tmp_path / "other").exists()
    sys.modules.pop("own_samplers.shifted", None)
