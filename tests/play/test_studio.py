"""What the page to play with does, without the page."""

import shlex
import sys

import jax
import numpy as np
import pytest
from helpers import some_prompt
from PIL import Image

import promptgen_jax as pg
from promptgen_jax import commands
from promptgen_jax.play import space, studio
from promptgen_jax.play.studio import Settings, Studio
from promptgen_jax.store import images

DIALS = {"turn": (-20, 20, "angle"), "smile": (0, 1, "strength"), "female": (0.2, 0.8, "share")}


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """Two saved prompts of the shipped generator, the second with a dial of every kind."""
    generator, folder = pg.load_generator("dcgan_digiface"), tmp_path_factory.mktemp("prompts")
    some_prompt(some_prompt(generator, "inner"), "plain").save(folder / "plain")
    dials = some_prompt(generator, "dials", cond_dim=3).replace(conditions=pg.Conditions.of(DIALS))
    dials.save(folder / "dials")
    return str(folder / "plain"), str(folder / "dials")


@pytest.fixture(scope="module")
def both(names):
    return Studio.load(names)


def start(both, **chosen):
    return Settings(**{"dials": both.start} | chosen)


def test_dials_follow_the_conditions(both):
    shown = [(dial.name, dial.unit, dial.low, dial.high, dial.start) for dial in both.dials]
    assert shown == [("turn", "degrees", -20, 20, 0), ("smile", "", 0, 1, 1), ("female", "", 0.2, 0.8, 0.5)]
    drawn = both.draw(start(both, dials=(10.0, 0.5, 0.3), number=2))
    np.testing.assert_allclose(drawn.conds[1], [np.radians(10), 0.5, 0.3], rtol=1e-6)
    assert drawn.conds[0] is None


SAID = ("a smiling man", "a woman, looking left")


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """A prompt over sentences, as it was saved."""
    folder = tmp_path_factory.mktemp("told") / "said"
    conditions = pg.Sentences.embedded(SAID, network="tinyclip_faces")
    some_prompt(pg.load_generator("dcgan_digiface"), "said", cond_dim=128).replace(conditions=conditions).save(folder)
    return Studio.load([str(folder)])


def test_a_sentence_in_place_of_dials(told, tmp_path, monkeypatch):
    """Also by the command; words that nobody knows are told."""
    assert (told.dials, told.texts) == ((), SAID[:1])
    asked = Settings(number=2, texts=SAID[1:])
    first, second = (told.draw(Settings(number=2, texts=(text,))) for text in SAID)
    np.testing.assert_array_equal(first.before, second.before)
    assert np.any(first.after != second.after)
    wanted = images.to_uint8(told.prompts[0].sample(pg.draws.seeded(0), 2, text=SAID[1])).astype(int)
    assert np.abs(second.after - wanted).max() <= 1
    monkeypatch.chdir(tmp_path)
    words = shlex.split(told.command(asked))
    assert "--condition=text=a woman, looking left" in words
    assert commands.main([*words[1:], "--quiet"]) == 0
    written = np.asarray(Image.open("runs/pictures/000001.png")).astype(int)
    assert np.abs(written - second.after[1]).max() <= 1
    assert told.unknown(asked) == []
    assert told.unknown(asked._replace(texts=("a man with a hat",))) == ["hat"]


@pytest.mark.parametrize(
    ("texts", "match"),
    [
        ((), "expected 1 sentence"),
        ((3,), "expected 1 sentence"),
        (("a " * 200,), "300 characters"),
        ((" ",), "a sentence"),
    ],
)
def test_sentences_are_checked(told, texts, match):
    with pytest.raises(ValueError, match=match):
        told.draw(Settings(texts=texts))


def test_pictures_are_those_of_sample(both):
    """Before those of the generator alone, at any number."""
    key = pg.draws.seeded(3)
    drawn = both.draw(start(both, seed=3, number=20))
    sampled = images.to_uint8(both.prompts[0].sample(key, 20)).astype(int)
    assert np.abs(drawn.after - sampled).max() <= 1
    alone = images.to_uint8(both.generator(key, drawn.eps)).astype(int)
    assert np.abs(drawn.before - alone).max() <= 1
    conditional = both.draw(start(both, seed=3, number=2, weight=1.0))
    np.testing.assert_array_equal(conditional.eps, drawn.eps[:2])
    wanted = both.prompts[1].sample(key, 2, cond=conditional.conds[1])
    assert np.abs(conditional.after - images.to_uint8(wanted).astype(int)).max() <= 1


def test_moving_a_dial_compiles_nothing_and_keeps_the_noise(both):
    first = both.draw(start(both, weight=1.0))
    compiled = studio._draw._cache_size()
    moved = both.draw(start(both, dials=(15.0, 0.0, 0.8), weight=0.7, truncation=0.5, number=40, seed=4))
    again = both.draw(start(both, dials=(15.0, 1.0, 0.5), weight=1.0))
    assert studio._draw._cache_size() == compiled
    assert len(moved.after) == 40
    np.testing.assert_array_equal(first.before, again.before)
    assert np.any(first.after != again.after)


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_the_command_makes_the_same(both, weight, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = start(both, seed=5, number=3, truncation=0.6, weight=weight, dials=(-7.5, 0.25, 0.7))
    words = shlex.split(both.command(settings))
    assert words[0] == "promptgen"
    assert commands.main([*words[1:], "--quiet"]) == 0
    drawn = both.draw(settings)
    for number, picture in enumerate(drawn.after):
        written = np.asarray(Image.open(f"runs/pictures/{number:06d}.png")).astype(int)
        assert np.abs(written - picture).max() <= 1
    with np.load("runs/pictures/latents.npz") as saved:
        np.testing.assert_allclose(saved["eps"], drawn.eps, atol=1e-5)
        np.testing.assert_allclose(saved["z"], drawn.z, atol=1e-4)


def test_of_a_face_and_a_blend_the_latents_make_the_same(both, tmp_path, monkeypatch):
    """The face stands first, and the others move up by one."""
    monkeypatch.chdir(tmp_path)
    others = both.draw(start(both, number=3))
    settings = start(both, number=3, weight=0.5, face=np.full(both.generator.prior.dim, 0.5, np.float32))
    drawn = both.draw(settings)
    np.testing.assert_array_equal(drawn.eps[0], settings.face)
    np.testing.assert_array_equal(drawn.eps[1:], others.eps[:2])
    np.savez("latents.npz", number=drawn.number, z=drawn.z)
    exec(both.command(settings), {})
    sheet = images.image_grid(drawn.after.astype(np.float32) / 255).astype(int)
    assert np.abs(np.asarray(Image.open("pictures.png")) - sheet).max() <= 1


def test_a_face_is_found(both, monkeypatch):
    monkeypatch.setattr(studio, "STEPS", 30)
    monkeypatch.setattr(studio, "STARTS", 2)
    picture = np.asarray(Image.fromarray(both.draw(start(both, number=1)).before[0]).resize((160, 120)))
    z, residual = both.find(picture)
    assert z.shape == (both.generator.prior.dim,)
    assert residual < 0.25


@pytest.mark.parametrize(
    ("chosen", "match"),
    [
        ({"seed": -1}, "seed is -1; expected a whole number from 0"),
        ({"seed": 1.5}, "seed is 1.5"),
        ({"number": 0}, "number is 0"),
        ({"number": 10**9}, "number is 1000000000; expected a whole number from 1 to 64"),
        ({"truncation": 0.0}, "truncation is 0.0; expected a number above 0"),
        ({"truncation": float("nan")}, "truncation is nan"),
        ({"weight": 1.1}, "weight is 1.1"),
        ({"dials": (0.0,)}, "got 1 dials; expected 3"),
        ({"dials": (21.0, 0.0, 0.5)}, "turn is 21.0; expected a number from -20"),
        ({"dials": (0.0, "x", 0.5)}, "smile is 'x'"),
        ({"face": np.zeros(3, np.float32)}, "face"),
        ({"face": np.full(100, np.inf, np.float32)}, "face"),
    ],
)
def test_settings_out_of_range_are_refused(both, chosen, match):
    """Also where somebody goes around the page."""
    with pytest.raises(ValueError, match=match):
        both.draw(start(both, **chosen))


def test_what_cannot_be_played_with_is_refused(both, names):
    points = pg.load_generator("synthetic", problem="mixture2d")
    flow = {"num_layers": 2, "hidden_dim": 8}
    toy = pg.Prompt(points, *pg.init_flow(jax.random.key(0), points.prior, **flow))
    with pytest.raises(ValueError, match="toy problem"):
        Studio.of([toy], ["toy"])
    with pytest.raises(ValueError, match="does not say from which ranges"):
        Studio.of([both.prompts[1].replace(conditions=None)], ["x"])
    with pytest.raises(ValueError, match="expected one, or two"):
        Studio.load([*names, names[0]])
    with pytest.raises(ValueError, match="expected one in colour"):
        both.find(np.zeros((4, 4), np.uint8))


def test_a_space_is_written_and_its_program_reads_it(names, tmp_path, monkeypatch):
    pytest.importorskip("gradio", reason="Gradio is not installed, so no page was made")
    from promptgen_jax.play import page

    assert (
        commands.main(["play", f"--prompt={names[1]}", f"--space={tmp_path / 'space'}", "--repository=https://x/y"])
        == 0
    )
    found = {path.name for path in (tmp_path / "space").iterdir()}
    assert found == {"app.py", "requirements.txt", "README.md", "prompt_0"}
    assert "promptgen_jax[play] @ git+https://x/y" in (tmp_path / "space" / "requirements.txt").read_text()
    assert "sdk: gradio" in (tmp_path / "space" / "README.md").read_text()
    served = []
    monkeypatch.setattr(page, "serve", lambda studio, **options: served.append((studio, options)))
    monkeypatch.chdir(tmp_path / "space")
    exec(compile((tmp_path / "space" / "app.py").read_text(), "app.py", "exec"), {"__name__": "__main__"})
    ((played, options),) = served
    assert [prompt.name for prompt in played.prompts] == ["dials"]
    assert options == {"host": None, "port": None}
    with pytest.raises(ValueError, match="holds something already"):
        space.write(played, tmp_path / "space")


def test_without_gradio_it_says_so(names, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "promptgen_jax.play.page", raising=False)
    monkeypatch.delattr("promptgen_jax.play.page", raising=False)
    assert commands.main(["play", f"--prompt={names[0]}"]) == 2
    assert "pip install 'promptgen_jax[play]'" in capsys.readouterr().err
