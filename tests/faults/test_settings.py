"""Global settings of JAX do not change what a number, a seed, a folder mean."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import promptgen_jax as pg
from promptgen_jax.flows import base
from promptgen_jax.generators import stylegan2
from promptgen_jax.store import disk
from promptgen_jax.training import TrainConfig


@pytest.fixture(scope="module")
def prompt():
    generator = stylegan2.tiny()
    flow, params = pg.init_flow(jax.random.key(0), generator.prior, architecture="coupling", num_layers=2, hidden_dim=4)
    return pg.Prompt(generator, flow, params, name="some")


@pytest.fixture(scope="module")
def images(prompt):
    return prompt.sample(jax.random.key(7), 3)


@pytest.mark.parametrize("generator", ["rbg", "unsafe_rbg"])
def test_image_i_is_the_same_under_another_generator_of_random_numbers(prompt, images, generator):
    with jax.default_prng_impl(generator):
        got = prompt.sample(jax.random.key(7), 3, batch_size=2)
    np.testing.assert_allclose(got, images, atol=1e-5)


def test_image_i_is_the_same_with_64_bits(prompt, images):
    with jax.enable_x64(True):
        got = prompt.sample(jax.random.key(7), 3)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, images, atol=1e-5)


def test_a_folder_is_not_completed_under_other_settings(prompt, tmp_path):
    pg.write_samples(prompt, tmp_path, num_samples=1)
    before = (tmp_path / ".samples.json").read_bytes()
    assert "settings" not in disk.read_json(tmp_path / ".samples.json", advice="")
    with jax.enable_x64(True), pytest.raises(ValueError, match="another run .differs in settings"):
        pg.write_samples(prompt, tmp_path, num_samples=2)
    with jax.default_prng_impl("rbg"):
        pg.write_samples(prompt, tmp_path, num_samples=2)
    assert (tmp_path / ".samples.json").read_bytes() == before


def test_a_training_under_rbg_is_the_same(tmp_path):
    """And one that was begun with 32 bits is not resumed with 64."""
    generator = pg.load_generator("synthetic", problem="linear", dim=2)
    ebm = pg.LatentEBM(generator, (pg.load_control("synthetic", energy="quadratic", target=(1.0, 0.0)),))
    options = {"num_steps": 2, "batch_size": 4, "quiet": True, "flow": {"hidden_dim": 4, "num_layers": 2}}
    usual, _ = pg.fit(ebm, workdir=tmp_path, **options)
    with jax.default_prng_impl("rbg"):
        other, _ = pg.fit(ebm, **options)
    jax.tree.map(np.testing.assert_array_equal, usual.params, other.params)
    with jax.enable_x64(True), pytest.raises(ValueError, match="another training .differs in settings"):
        pg.fit(ebm, workdir=tmp_path, **options)


@pytest.mark.parametrize("number", [np.int64, np.int32, jnp.int32, np.array], ids=["int64", "int32", "jax", "array"])
def test_numbers_of_other_libraries_are_saved(number, tmp_path):
    """Options are checked and made plain before the first step, not when the flow is written."""
    prior = pg.load_generator("synthetic", problem="linear", dim=2).prior
    options = {"hidden_dim": number(4), "num_layers": number(2), "negative_slope": np.float32(0.1)}
    flow, params = pg.init_flow(jax.random.key(0), prior, architecture="coupling", **options)
    base.save_flow(tmp_path / "flow", flow, params)
    assert type(disk.read_json(tmp_path / "flow" / "config.json", advice="")["options"]["hidden_dim"]) is int
    assert TrainConfig(num_steps=number(3), learning_rate=np.float32(0.5)).about()["num_steps"] == 3
    assert json.dumps(TrainConfig(num_steps=number(3), learning_rate=np.float32(0.5)).about())


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"flow": {"hidden_dim": [4]}}, "hidden_dim: got .4.; expected an integer"),
        ({"flow": {"negative_slope": print}}, "flow option negative_slope"),
        ({"name": Path("x")}, "fit: name is"),
        ({"learning_rate": "fast"}, "training.learning_rate: got 'fast'; expected a number"),
        ({"tensorboard": "yes"}, "training.tensorboard: got 'yes'"),
    ],
    ids=["list", "function", "name", "rate", "flag"],
)
def test_options_that_cannot_be_written_are_refused_at_once(options, match, tmp_path):
    generator = pg.load_generator("synthetic", problem="linear", dim=2)
    ebm = pg.LatentEBM(generator, (pg.load_control("synthetic", energy="quadratic", target=(1.0, 0.0)),))
    with pytest.raises((TypeError, ValueError), match=match):
        pg.fit(ebm, workdir=tmp_path / "run", quiet=True, **options)
    assert not (tmp_path / "run").exists()
