"""Given pictures: their latents are found, and moved from condition to condition and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import DIM, as_picture, some_prompt

import promptgen_jax as pg
from promptgen_jax.controls import identity
from promptgen_jax.evaluation import identity_distances
from promptgen_jax.generators import dcgan, stylegan2, synthetic

KEY = jax.random.key(3)
PLAIN = pg.FunctionGenerator(prior=pg.Prior.standard(DIM), function=as_picture)
OLD, NEW = np.array([0.3, -0.2], np.float32), np.array([-0.5, 0.4], np.float32)


@pytest.fixture(scope="module")
def conditional():
    return some_prompt(PLAIN, cond_dim=2)


def test_latents_of_own_pictures_are_found():
    z = PLAIN.prior.sample(KEY, 3)
    found = pg.invert(PLAIN, PLAIN(KEY, z), KEY, num_starts=2, num_steps=200, prior_weight=0)
    np.testing.assert_allclose(found.z, z, atol=1e-3)
    np.testing.assert_allclose(found.images, PLAIN(KEY, z), atol=1e-3)
    assert found.residuals.shape == (3, 2)
    np.testing.assert_array_equal(found.residual, found.residuals.min(axis=1))


def test_the_prior_pulls_as_its_weight_says():
    """Of mean (x - x0)² + w (z²/2) / D with x = z, the minimum is 2 x0 / (2 + w)."""
    pictures = PLAIN(KEY, PLAIN.prior.sample(KEY, 2))
    found = pg.invert(PLAIN, pictures, KEY, num_starts=1, num_steps=300, prior_weight=1.0)
    np.testing.assert_allclose(found.images, pictures * 2 / 3, atol=1e-3)


def test_what_is_found_does_not_depend_on_the_batch():
    pictures = PLAIN(KEY, PLAIN.prior.sample(KEY, 3))
    one, other = (pg.invert(PLAIN, pictures, KEY, num_starts=2, num_steps=5, batch_size=size) for size in (1, 6))
    np.testing.assert_allclose(one.z, other.z, atol=1e-5)


def test_noise_of_the_generator_is_that_of_an_edit():
    generator = stylegan2.tiny()
    prompt = some_prompt(generator, cond_dim=2)
    z = generator.prior.sample(KEY, 2)
    pictures = np.clip(prompt.edit(KEY, z, cond_from=OLD, cond_to=OLD)[0], 0, 1)
    found = pg.invert(generator, pictures, KEY, num_starts=2, num_steps=2)
    again, _ = prompt.edit(KEY, found.z, cond_from=OLD, cond_to=OLD)
    np.testing.assert_allclose(again, found.images, atol=1e-3)


def test_there_and_back_is_where_it_was(conditional):
    z = conditional.prior.sample(KEY, 5)
    _, there = conditional.edit(KEY, z, cond_from=OLD, cond_to=NEW)
    assert np.abs(there - z).max() > 0.05
    images, back = conditional.edit(KEY, there, cond_from=NEW, cond_to=OLD, batch_size=2)
    np.testing.assert_allclose(back, z, atol=1e-3)
    np.testing.assert_allclose(images, PLAIN(KEY, z), atol=1e-3)
    np.testing.assert_allclose(conditional.edit(KEY, z, cond_from=OLD, cond_to=OLD)[1], z, atol=1e-3)


def test_noise_is_the_inverse_of_latents(conditional):
    eps, cond = conditional.prior.sample(KEY, 4), np.tile(NEW, (4, 1))
    np.testing.assert_allclose(conditional.noise(conditional.latents(eps, cond), cond), eps, atol=1e-3)


def test_without_an_old_condition_latents_are_noise(conditional):
    z = conditional.prior.sample(KEY, 3)
    np.testing.assert_allclose(
        conditional.edit(KEY, z, cond_to=NEW)[1], conditional.latents(z, np.tile(NEW, (3, 1))), atol=1e-5
    )
    prompt = some_prompt(PLAIN)
    np.testing.assert_allclose(prompt.edit(KEY, z)[1], prompt.latents(z), atol=1e-5)


def test_edited_faces_are_nearer_to_themselves_than_to_others():
    """By a drawn flow near the identity that moves pixels visibly."""
    prompt = some_prompt(pg.load_generator("dcgan_digiface"), scale=0.1, cond_dim=2)
    z = prompt.prior.sample(KEY, 6)
    (before, _), (after, moved) = (prompt.edit(KEY, z, cond_from=OLD, cond_to=cond) for cond in (OLD, 6 * NEW))
    assert np.abs(moved - z).max() > 0.1
    assert np.abs(after - before).max() > 0.1
    embed = jax.jit(lambda control, images: control.embed(images))
    distances = identity_distances(*(embed(identity.tiny(), images) for images in (before, after)))
    assert distances["same"] < 0.8 * distances["different"]


def test_features_of_a_network_count():
    generator = dcgan.tiny()
    pictures = generator(KEY, generator.prior.sample(KEY, 1))
    options = {"num_starts": 1, "num_steps": 2, "network": "faceres", "options": {"input_size": 64}}
    one, other = (pg.invert(generator, pictures, KEY, feature_weight=weight, **options) for weight in (0.0, 10.0))
    assert np.abs(one.z - other.z).max() > 1e-4


@pytest.mark.full
def test_faces_are_found():
    """Of the shipped generator's own faces pixels alone find half, and the face."""
    generator = pg.load_generator("dcgan_digiface")
    pictures = np.asarray(generator(KEY, generator.prior.sample(KEY, 4)))
    found = pg.invert(generator, pictures, KEY)
    assert found.residual.max() < 0.5 * np.sqrt(np.mean((pictures - pictures[::-1]) ** 2))


PICTURES = jnp.full((2, 1, DIM, 3), 0.5)


@pytest.mark.parametrize(
    ("generator", "images", "options", "message"),
    [
        (PLAIN, jnp.zeros((2, 1, 5, 3)), {}, r"\(2, 1, 5, 3\); expected \(batch, 1, 4, 3\).*Crop and resize"),
        (PLAIN, 255 * PICTURES, {}, "Divide 8-bit images by 255"),
        (synthetic.tiny(), PICTURES, {}, "makes points, no pictures"),
        (PLAIN, PICTURES, {"num_starts": 0}, "num_starts: got 0"),
        (PLAIN, PICTURES, {"prior_weight": -1.0}, "prior_weight is -1.0"),
        (dcgan.tiny(), jnp.zeros((1, 16, 16, 3)), {"network": "emotion"}, "'embedding'"),
    ],
    ids=["size", "range", "points", "starts", "weight", "network"],
)
def test_what_cannot_be_inverted_is_refused(generator, images, options, message):
    with pytest.raises(ValueError, match=message):
        pg.invert(generator, images, KEY, **options)


def test_what_cannot_be_edited_is_refused(conditional):
    z = conditional.prior.sample(KEY, 2)
    with pytest.raises(ValueError, match=r"cond is none; expected \(2, 2\)"):
        conditional.edit(KEY, z, cond_from=OLD)
    with pytest.raises(ValueError, match="takes none"):
        some_prompt(PLAIN).edit(KEY, z, cond_to=NEW)
    flow, params = pg.init_flow(KEY, PLAIN.prior, kind="mixture", num_parts=2)
    with pytest.raises(ValueError, match="without a way back to its noise"):
        pg.Prompt(PLAIN, flow, params).noise(z)


def test_starts_that_end_in_nan_are_left_out():
    broken = pg.FunctionGenerator(
        prior=PLAIN.prior, function=lambda z: jnp.where(z[:, :1, None, None] > 0.5, jnp.nan, as_picture(z))
    )
    pictures = PLAIN(KEY, -jnp.abs(PLAIN.prior.sample(KEY, 3)))
    found = pg.invert(broken, pictures, KEY, num_starts=8, num_steps=5, prior_weight=0)
    assert np.isnan(found.residuals).any()
    np.testing.assert_array_equal(found.residual, np.nanmin(found.residuals, axis=1))
    lost = pg.FunctionGenerator(prior=PLAIN.prior, function=lambda z: jnp.nan * as_picture(z))
    with pytest.raises(ValueError, match="all starts of 3 of 3 pictures ended in NaN"):
        pg.invert(lost, pictures, KEY, num_starts=2, num_steps=1)
