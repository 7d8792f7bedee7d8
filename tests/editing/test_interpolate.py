"""From one noise to another: along the sphere, both ends included, as strip and GIF."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import DIM, as_picture, some_prompt
from PIL import Image

import promptgen_jax as pg
from promptgen_jax.editing.interpolate import spherical
from promptgen_jax.store import images as pictures

KEY = jax.random.key(0)
PRIOR = pg.Prior(loc=jnp.array([1.0, 0.0, -1.0, 2.0]), scale=jnp.array([1.0, 2.0, 0.5, 1.0]), blocks=(DIM,))


def prompt_of(cond_dim=0):
    return some_prompt(pg.FunctionGenerator(prior=PRIOR, function=as_picture), cond_dim=cond_dim)


def directions(eps):
    standard = (np.asarray(eps, np.float64) - PRIOR.loc) / PRIOR.scale
    norms = np.linalg.norm(standard, axis=1)
    return norms, standard / norms[:, None]


def test_the_way_turns_evenly_and_its_norms_go_evenly():
    a, b = PRIOR.sample(KEY, 2)
    eps = spherical(PRIOR, a, b, 7)
    np.testing.assert_allclose(eps[jnp.array([0, -1])], jnp.stack([a, b]), atol=1e-5)
    norms, units = directions(eps)
    np.testing.assert_allclose(norms, np.linspace(norms[0], norms[-1], 7), rtol=1e-5)
    steps = np.arccos(np.sum(units[1:] * units[:-1], axis=1))
    np.testing.assert_allclose(steps, np.arccos(units[0] @ units[-1]) / 6, rtol=1e-4)


def test_between_equal_ends_nothing_moves():
    a = PRIOR.sample(KEY, 1)[0]
    np.testing.assert_allclose(spherical(PRIOR, a, a, 3), jnp.stack([a] * 3), atol=1e-5)


def test_images_are_those_of_the_noise():
    prompt, (a, b) = prompt_of(), PRIOR.sample(KEY, 2)
    images = pg.interpolate(prompt, a, b, 5, KEY, batch_size=2)
    np.testing.assert_allclose(images, prompt(KEY, spherical(PRIOR, a, b, 5)), atol=1e-5)


def test_conditions_may_move_too():
    prompt, a = prompt_of(cond_dim=2), PRIOR.sample(KEY, 1)[0]
    still = pg.interpolate(prompt, a, a, 3, KEY, cond=np.zeros(2))
    moving = pg.interpolate(prompt, a, a, 3, KEY, cond=np.linspace([0, 0], [2, 2], 3))
    np.testing.assert_allclose(still, still[:1].repeat(3, axis=0), atol=1e-5)
    np.testing.assert_allclose(moving[0], still[0], atol=1e-5)
    assert np.abs(moving[2] - still[2]).max() > 1e-2


@pytest.mark.parametrize(
    ("ends", "num", "message"),
    [
        (([1.0, 2, 3, 4], [1.0, 2, 3]), 3, r"\(1, 3\); expected \(batch, 4\)"),
        (([1.0, 2, 3, 4], [4.0, 3, 2, 1]), 1, "at least 2"),
        ((np.asarray(PRIOR.loc), [4.0, 3, 2, 1]), 3, "no direction"),
        ((PRIOR.loc + PRIOR.scale, PRIOR.loc - 2 * PRIOR.scale), 3, "opposite"),
    ],
    ids=["shape", "number", "mean", "opposite"],
)
def test_ends_without_a_way_are_refused(ends, num, message):
    with pytest.raises(ValueError, match=message):
        spherical(PRIOR, *(np.asarray(end, np.float32) for end in ends), num)


def test_strip_and_gif(tmp_path):
    images = np.linspace(0, 1, 3 * 4 * 4 * 3, dtype=np.float32).reshape(3, 4, 4, 3)
    assert pictures.load_image(pictures.save_film(tmp_path / "a.png", images)).shape == (8, 20, 3)
    with Image.open(pictures.save_film(tmp_path / "new" / "a.gif", images, seconds=0.2, scale=2)) as film:
        assert (film.n_frames, film.size, film.info["duration"], film.info["loop"]) == (3, (8, 8), 200, 0)
        film.seek(2)
        shown = np.asarray(film.convert("RGB"))
    np.testing.assert_allclose(shown, 255 * images[2].repeat(2, axis=0).repeat(2, axis=1), atol=6)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [("a.mp4", {}, r"neither \.png nor \.gif\. Name it a\.gif"), ("a.gif", {"seconds": 0.0}, "from 0.02 to 60")],
)
def test_other_films_are_refused(tmp_path, name, options, message):
    with pytest.raises(ValueError, match=message):
        pictures.save_film(tmp_path / name, np.zeros((2, 4, 4, 3), np.float32), **options)
    assert not list(tmp_path.iterdir())
