"""Meshes under control: FLAME's adapter on a small ball, lengths between landmarks, and the picture in the report."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

import promptgen_jax as pg
from configs import flame_wide_mouth
from promptgen_jax.generators import flame
from promptgen_jax.runs import finished, run
from promptgen_jax.store import images


@pytest.fixture(scope="module")
def ball():
    return flame.tiny()


def test_render_shows_the_front_lit_from_above(ball):
    made = ball(jax.random.key(0), np.zeros((1, 150), np.float32))
    (picture,) = images.render_mesh(made[:, :96, 0], ball.triangles(), size=64)
    assert picture.shape == (64, 64, 3)
    shaded = picture[..., 0] < 0.99
    assert 0.5 < shaded.mean() < 0.8  # a disc in its square
    rows, columns = np.nonzero(shaded)
    assert abs(rows.mean() - 31.5) < 1
    assert abs(columns.mean() - 31.5) < 1
    middle = picture[:, 24:40, 0]
    assert middle[12:24].mean() > 1.2 * middle[40:52].mean()


@pytest.mark.full
def test_lengths_are_reached(ball):
    """Two lengths between landmarks become what is asked, on meshes that stay near the prior."""
    options = {"pairs": ((0, 9), (17, 26)), "sigma": 0.001}
    measure = pg.load_control("lengths", lengths=(0.1, 0.1), **options).measure
    rest = measure(ball(jax.random.key(0), np.zeros((1, 150), np.float32)))[0]
    wanted = rest * np.array([1.05, 0.95])
    ebm = pg.LatentEBM(ball, (pg.load_control("lengths", lengths=wanted, **options),))
    options = {"num_steps": 150, "batch_size": 64, "learning_rate": 5e-3}
    prompt, _ = pg.fit(ebm, flow={"architecture": "coupling", "hidden_dim": 32}, quiet=True, **options)
    after = measure(prompt.sample(jax.random.key(1), 256))
    before = measure(ball(jax.random.key(1), ball.prior.sample(jax.random.key(2), 256)))
    np.testing.assert_allclose(np.mean(after, axis=0), wanted, atol=0.001)
    assert np.all(np.std(after, axis=0) < 0.5 * np.std(before, axis=0))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"pairs": ((0, 68),), "lengths": (0.1,)}, "pair .0, 68.; expected two different landmarks"),
        ({"pairs": ((3, 3),), "lengths": (0.1,)}, "expected two different landmarks"),
        ({"pairs": ((0, 1),), "lengths": (0.1, 0.2)}, "1 pairs, lengths"),
        ({"pairs": ((0, 1),), "lengths": (-0.1,)}, "one positive length a pair"),
    ],
)
def test_bad_lengths(options, match):
    with pytest.raises(ValueError, match=match):
        pg.load_control("lengths", **options)


def test_only_meshes_have_lengths():
    control = pg.load_control("lengths", pairs=((0, 1),), lengths=(0.1,))
    with pytest.raises(ValueError, match="Use the generator flame"):
        control(jax.random.key(0), pg.Sample(images=np.zeros((2, 8, 8, 3), np.float32), z=np.zeros((2, 1))))


def test_run_renders_meshes(ball, tmp_path, monkeypatch):
    """The report and the samples show pictures; weights that are missing are answered with where to get them."""
    config = flame_wide_mouth.get_config("smoke").to_dict()
    with pytest.raises(FileNotFoundError, match="flame.is.tue.mpg.de"):
        run.train_and_evaluate(config, tmp_path / "run")
    monkeypatch.setattr(flame, "build", lambda: ball)
    run.train_and_evaluate(config, tmp_path / "run")
    (stage,) = json.loads((tmp_path / "run" / "report.json").read_text())["stages"]
    assert {"name", "before", "after"} <= stage["statistics"][0].keys()
    assert np.ptp(np.asarray(Image.open(tmp_path / "run" / "mouth" / "samples.png").convert("L"))[40:]) > 100
    pg.write_samples(finished.load_prompt(tmp_path / "run"), tmp_path / "samples", num_samples=2)
    assert np.asarray(Image.open(tmp_path / "samples" / "000001.png")).shape[1] >= 128
