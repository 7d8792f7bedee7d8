"""The CLIP control: what it computes on a small CLIP, what it carries, and what it refuses."""

import dataclasses
import functools
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from official_clip import ALLOWED, convert, small_state, view_energies_and_gradient, write_archive

import promptgen_jax as pg
from promptgen_jax.controls import clip as clip_control
from promptgen_jax.generators import dcgan
from promptgen_jax.models import clip, network, tokenizer
from promptgen_jax.ops import augment
from promptgen_jax.store import catalogue
from promptgen_jax.store.fingerprint import fields_told

pytestmark = ALLOWED


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    return convert(write_archive(folder / "small.pt", small_state()), folder / "clip_small")


def load(folder):
    module, tree, _ = network.load_params(folder, kind="clip", example=clip.CLIP.example)
    return module, tree


def build(small, **options):
    options = {"text": "a smile", "num_augmentations": 4, "chunk": 3, "name": "clip"} | options
    return pg.load_control("clip", network=str(small), **options)


PHOTOS = np.random.default_rng(1).uniform(0, 1, (2, 24, 24, 3)).astype(np.float32)


@functools.cache
def draws(image_size=24, policy=augment.POLICY):
    return augment.draw(jax.random.key(0), num_images=2, num_views=4, image_size=image_size, policy=policy)


@jax.jit
def mean_energies(control, draws, images):
    return control.mean_energies(draws, images)


@jax.jit
def called(control, key, sample):
    return control(key, sample)


def energies(control):
    return mean_energies(control, draws(), PHOTOS)


def test_energy_without_augmentation_is_the_cosine_distance(small):
    texts, text_weights = ("a smile", "a frown"), (0.7, 0.5)
    control = build(small, text=texts, text_weights=text_weights)
    images = PHOTOS[:, :16, :16]  # the size of the tower: nothing to resize
    module, tree = load(small)
    tokens = tokenizer.tokenize(texts, context_length=16, vocab_size=600)
    cosines = jax.jit(module.apply)({"params": tree}, (images, tokens)) / np.exp(tree["logit_scale"])
    expected = (1 - cosines) @ np.float32(text_weights)
    np.testing.assert_allclose(mean_energies(control, draws(16, ""), images), expected, atol=1e-6)


def test_energies_of_texts_add_with_their_weights(small):
    one, other = (energies(build(small, text=text)) for text in ("a smile", "a frown"))
    assert np.all(np.abs(one - other) > 1e-4)
    both = ("a smile", "a frown")
    np.testing.assert_allclose(energies(build(small, text=both)), (one + other) / 2, atol=1e-6)
    weighted = build(small, text=both, text_weights=(2.0, -0.5))
    np.testing.assert_allclose(energies(weighted), 2 * one - other / 2, atol=2e-6)


def test_several_clip_models_add_with_their_weights(small):
    """Also: gradients reach the latents, and the energies are a function of the key."""
    controls = (build(small, weight=2.0), build(small, text="a frown", name="second", weight=3.0))
    ebm = pg.LatentEBM(dcgan.tiny(), controls)
    z = ebm.generator.prior.sample(jax.random.key(3), 2)

    @jax.jit
    def run(ebm, key, z):
        def total(z):
            values = ebm.energies(key, z)
            return jnp.sum(ebm.total(values)), values

        return jax.value_and_grad(total, has_aux=True)(z)

    (total, values), gradient = run(ebm, jax.random.key(4), z)
    np.testing.assert_allclose(total, np.sum(2 * values["clip"] + 3 * values["second"]), rtol=1e-6)
    assert values["clip"].shape == (2,)
    assert np.all((values["clip"] >= 0) & (values["clip"] <= 2))
    assert np.all(np.isfinite(gradient))
    assert np.all(np.any(gradient != 0, axis=1))
    again, other = (run(ebm, jax.random.key(seed), z)[0][1]["clip"] for seed in (4, 5))
    np.testing.assert_array_equal(again, values["clip"])
    assert np.all(other != values["clip"])


@pytest.mark.parametrize("chunk", [1, 50])
def test_chunks_change_nothing(small, chunk):
    expected = view_energies_and_gradient(build(small, chunk=3), draws(), PHOTOS)
    for got, want in zip(view_energies_and_gradient(build(small, chunk=chunk), draws(), PHOTOS), expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)


def test_antialias_reaches_the_resize(small):
    smooth = energies(build(small, antialias=True))
    assert np.all(np.abs(smooth - energies(build(small))) > 1e-5)


def test_control_carries_the_image_tower_only(small):
    _, tree = load(small)
    control = build(small)
    numbers = sum(leaf.size for leaf in jax.tree.leaves(tree["vision"]))
    assert sum(leaf.size for leaf in jax.tree.leaves(control)) == numbers + 32 + 1 + 1  # features, their weight, lambda
    assert control.network.name == "clip_small"


def test_recipes_set_the_views(small):
    options = {"num_augmentations": None}
    paper, fast = (build(small, recipe=recipe, **options) for recipe in ("paper", "fast"))
    assert (paper.num_augmentations, fast.num_augmentations) == (50, 12)
    assert build(small, recipe="fast", num_augmentations=20).num_augmentations == 20
    assert build(small).recipe == "paper"


def test_a_control_of_the_paper_recipe_is_the_one_that_it_was(small):
    """Its fingerprint says nothing of recipes, which came later; another recipe is another control."""
    paper = build(small)
    fields = [(field.name, getattr(paper, field.name)) for field in fields_told(paper) if field.name != "recipe"]
    before = dataclasses.make_dataclass("ClipControl", [name for name, _ in fields])
    before.__module__, before.__qualname__ = clip_control.__name__, "ClipControl"
    assert pg.parts.fingerprint(before(**dict(fields))) == pg.parts.fingerprint(paper)
    assert pg.parts.fingerprint(build(small, recipe="fast")) != pg.parts.fingerprint(paper)


def test_a_training_begun_before_recipes_goes_on(small, tmp_path):
    ebm = pg.LatentEBM(dcgan.tiny(), (build(small, num_augmentations=2),))
    options = {"num_steps": 1, "batch_size": 1, "quiet": True, "flow": {"num_layers": 2, "hidden_dim": 8}}
    pg.fit(ebm, workdir=tmp_path, **options)
    about = json.loads((tmp_path / "training.json").read_text())
    del about["controls"]["clip"]["options"]["recipe"]
    (tmp_path / "training.json").write_text(json.dumps(about))
    assert pg.fit(ebm, workdir=tmp_path, **options)[1] == []
    fast = ebm.replace(controls=(build(small, num_augmentations=2, recipe="fast"),))
    with pytest.raises(ValueError, match=r"another training \(differs in controls.clip.fingerprint"):
        pg.fit(fast, workdir=tmp_path, **options)


@pytest.mark.full
def test_fast_views_have_the_mean_of_the_paper_and_less_variance():
    """Four faces, each 128 times in 12 views: the same mean within its error, less variance between draws."""
    generator = pg.load_generator("dcgan_digiface")
    faces = generator(jax.random.key(0), generator.prior.sample(jax.random.key(1), 4))
    many = pg.Sample(images=jnp.tile(faces, (128, 1, 1, 1)), z=None)
    options = {"network": "tinyclip_faces", "text": "a photo of a smiling woman", "num_augmentations": 12, "chunk": 2}
    mean, variance = {}, {}
    for recipe in ("paper", "fast"):
        control = pg.load_control("clip", recipe=recipe, **options)
        energies = np.float64(called(control, jax.random.key(2), many)).reshape(128, 4)
        mean[recipe], variance[recipe] = energies.mean(axis=0), energies.var(axis=0, ddof=1)
    error = np.sqrt((variance["paper"] + variance["fast"]) / 128)
    assert np.all(np.abs(mean["fast"] - mean["paper"]) < 4 * error)
    assert variance["fast"].mean() < 0.9 * variance["paper"].mean()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"text": ""}, ValueError, "text is ''; expected words"),
        ({"text": ()}, ValueError, r"text is \(\); expected words"),
        ({"text": ("a", 3)}, ValueError, r"text is \('a', 3\); expected words"),
        ({"text": "long " * 20}, ValueError, "expected at most 16. Shorten it"),
        ({"text": ("a", "b"), "text_weights": (1.0,)}, ValueError, "expected 2 numbers, one per text"),
        ({"text_weights": (float("nan"),)}, ValueError, "expected 1 numbers, one per text"),
        ({"num_augmentations": 0}, ValueError, "num_augmentations: got 0; expected an integer of at least 1"),
        ({"recipe": "quick"}, ValueError, "recipe: unknown name 'quick'. Known: fast, paper."),
        ({"chunk": 0}, ValueError, "chunk: got 0; expected an integer of at least 1"),
        ({"policy": "colour"}, ValueError, "Did you mean 'color'"),
        ({"network": "faceapi_expression"}, ValueError, "holds a network, expected a clip"),
    ],
    ids=lambda part: next(iter(part)) if isinstance(part, dict) else None,
)
def test_build_refuses(small, options, error, message):
    with pytest.raises(error, match=message):
        pg.load_control("clip", **{"network": str(small), "text": "a smile"} | options)


def test_control_refuses_images(small):
    with pytest.raises(ValueError, match=r"expected \(batch, height, width, 3\)"):
        build(small)(jax.random.key(0), pg.Sample(images=jnp.asarray(PHOTOS[0]), z=None))
    with pytest.raises(ValueError, match="Crop them to squares"):
        build(small)(jax.random.key(0), pg.Sample(images=jnp.asarray(PHOTOS[:, :20]), z=None))


@pytest.mark.parametrize("name", ["clip_vit_b32", "clip_vit_b16", "clip_vit_l14"])
def test_missing_weights_say_where_to_get_them(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    checkpoint = catalogue.CHECKPOINTS[name]
    with pytest.raises(FileNotFoundError) as caught:
        pg.load_control("clip", network=name, text="a photo of a baby")
    for part in (checkpoint.url, f"`python convert/clip_to_flax.py {checkpoint.file} ported_weights/{name}`"):
        assert part in str(caught.value)


def test_converted_folder_loads_without_torch(small):
    program = f"""
import sys
sys.modules["torch"] = None
import jax, jax.numpy as jnp, promptgen_jax as pg
control = pg.load_control("clip", network={str(small)!r}, text="a smile", num_augmentations=2)
print(control(jax.random.key(0), pg.Sample(images=jnp.full((1, 16, 16, 3), 0.5), z=None)).shape)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "(1,)\n"), done.stderr
