"""Sentences as conditions: one training over many, a new one by the text tower alone."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import FLOW, OPTIONS, leaves_equal, some_prompt

import promptgen_jax as pg
from promptgen_jax.controls import clip as clip_control
from promptgen_jax.flows.sentences import Sentences, read_conditions
from promptgen_jax.models import clip, texts
from promptgen_jax.store import weights
from promptgen_jax.tinyclip import captions

KEY = jax.random.key(2)
KNOWN = ("a smiling man", "a woman looking left", "a photo of a man in the dark", "a surprised lady")
NEW = "a smiling woman looking right"
NETWORK = "tinyclip_faces"
ASKED = {"num_augmentations": 1, "policy": "", "antialias": True, "weight": 5.0}
WORDS = ["a", "man", "woman", "smiling"]
SMALL = dict(embed_dim=8, image_size=16, patch_size=8, vocab_size=600, context_length=32)
SMALL |= {
    f"{tower}_{size}": 1 if size != "width" else 16
    for tower in ("vision", "text")
    for size in ("layers", "heads", "width")
}


def quarters(z):
    """Pictures of 16 pixels a side, a quarter for each of four latents."""
    shades = jax.nn.sigmoid(z).reshape(-1, 2, 2, 1)
    return jnp.tile(jnp.repeat(jnp.repeat(shades, 8, axis=1), 8, axis=2), (1, 1, 1, 3))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A folder of a CLIP with random weights that knows four words."""
    shapes = jax.eval_shape(clip.CLIP(**SMALL).init, KEY, clip.CLIP(**SMALL).example())["params"]
    rng = np.random.default_rng(0)
    tree = jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype("f4"), shapes)
    folder = tmp_path_factory.mktemp("weights") / "small_clip"
    config = {
        "kind": "clip",
        "name": "small_clip",
        "module": "clip.CLIP",
        "options": SMALL,
        "words": WORDS,
        "license": "MIT",
    }
    weights.save_weights(folder, tree, config)
    return folder


@pytest.fixture(scope="module")
def ebm(small):
    generator = pg.FunctionGenerator(prior=pg.Prior.standard(4), function=quarters)
    conditions = Sentences.embedded(["a man", "a woman", "a smiling man"], network=str(small))
    return pg.LatentEBM(generator, (pg.load_control("sentence", network=str(small), **ASKED),), conditions)


@pytest.fixture(scope="module")
def saved(ebm, tmp_path_factory):
    prompt = some_prompt(ebm.generator, "said", cond_dim=8).replace(conditions=ebm.cond_prior)
    folder = tmp_path_factory.mktemp("saved") / "prompt"
    prompt.save(folder)
    return prompt, folder


def test_energy_is_that_of_a_clip_control_of_the_sentence():
    """Also with augmented views: the same draws, each image beside the sentence of its own row."""
    images = jnp.asarray(np.random.default_rng(0).uniform(size=(2, 64, 64, 3)), jnp.float32)
    cond = Sentences.embedded(KNOWN[:2], network=NETWORK).rows
    sample = pg.Sample(images=images, z=jnp.zeros((2, 1)), cond=cond)
    for asked in (ASKED, {"num_augmentations": 4, "chunk": 3}):
        follows = pg.load_control("sentence", network=NETWORK, **asked)
        found = jax.jit(lambda control, sample: control(KEY, sample))(follows, sample)
        assert np.ptp(found) > 1e-3
        for row, text in enumerate(KNOWN[:2]):
            alone = pg.load_control("clip", network=NETWORK, text=text, **asked)
            np.testing.assert_allclose(alone(KEY, sample)[row], found[row], atol=2e-6)


def test_sentences_are_drawn_each_as_often():
    conditions = Sentences.embedded(KNOWN, network=NETWORK)
    _, towers = clip_control.load_clip(NETWORK, KNOWN)
    np.testing.assert_array_equal(conditions.rows, towers)
    drawn = np.asarray(conditions.sample(KEY, 4000))
    counts = [np.sum(np.all(drawn == row, axis=1)) for row in np.asarray(conditions.rows)]
    assert sum(counts) == 4000
    np.testing.assert_allclose(counts, 1000, atol=120)
    assert conditions.grid(2).shape == (4, 128)
    assert [conditions.in_words(row) for row in conditions.grid(2)] == list(KNOWN)


@pytest.mark.full
def test_training_follows_the_sentence(ebm):
    """The energy at each sentence falls below that of the generator, by one training."""
    options = OPTIONS | {"num_steps": 150, "batch_size": 64, "learning_rate": 1e-2}
    heavy = ebm.replace(controls=(ebm.controls[0].replace(weight=jnp.float32(100.0)),))
    prompt, _ = pg.fit(heavy, flow=FLOW, **options)
    assert prompt.flow.module.cond_scale == 2.83  # the square root of 8
    z = ebm.generator.prior.sample(KEY, 512)
    look = jax.jit(lambda ebm, z, cond: ebm.energies(KEY, z, cond)["text"].mean())
    for row in np.asarray(ebm.cond_prior.rows):
        cond = jnp.tile(row, (512, 1))
        assert look(ebm, prompt.latents(z, cond), cond) < look(ebm, z, cond) - 1e-3
    assert not np.allclose(prompt.sample(KEY, 2, text="a man"), prompt.sample(KEY, 2, text="a woman"), atol=1e-3)


def test_a_saved_prompt_embeds_by_the_text_tower_alone(saved, ebm, monkeypatch):
    prompt, folder = saved
    texts._load.cache_clear()
    read = []
    monkeypatch.setattr(texts, "load_params", _noting(texts.load_params, read))
    again = pg.Prompt.load(folder, generator=ebm.generator)
    assert not read, "loading a prompt reads no tower"
    assert again.conditions.rows is None
    assert again.conditions.texts == ("a man", "a woman", "a smiling man")
    for text in ("a smiling woman", ["a man", "a smiling woman", "a woman"]):
        np.testing.assert_array_equal(again.sample(KEY, 3, text=text), prompt.sample(KEY, 3, text=text))
    (tree,) = read
    assert set(tree) == {"text"}
    several = again.sample(KEY, 2, text=["a man", "a woman"])
    np.testing.assert_allclose(several[1], again.sample(KEY, 2, text="a woman")[1], atol=1e-6)
    one = again.sample(KEY, 1, cond=again.condition(text="a man"))
    np.testing.assert_allclose(one, several[:1], atol=1e-6)


def _noting(load, read):
    def noting(*args, **options):
        found = load(*args, **options)
        read.append(found[1])
        return found

    return noting


def test_only_the_text_tower_leaves_the_file(small):
    tree, _ = weights.load_weights(small, part="text")
    whole, _ = weights.load_weights(small)
    assert set(whole) == {"text", "vision", "logit_scale"}
    assert leaves_equal(tree, {"text": whole["text"]})


def test_card_and_json_say_which_sentences(saved, small):
    _, folder = saved
    card = (folder / "README.md").read_text()
    assert ', text="a man")' in card
    assert "Trained on: “a man”, “a woman”, “a smiling man”." in card
    (told,) = json.loads((folder / "prompt.json").read_text())["conditions"]
    assert told["text"]["sentences"] == ["a man", "a woman", "a smiling man"]
    assert told["text"]["sha256"] == weights.read_config(small)["sha256"]
    assert read_conditions(told).to_json() == told


def test_words_that_the_network_never_saw_are_named(saved):
    prompt, _ = saved
    with pytest.warns(UserWarning, match=r"small_clip never saw 'zebra', 'hats' in training, .*them means nothing"):
        prompt.sample(KEY, 1, text="A man, a Zebra: smiling hats")
    with pytest.warns(UserWarning, match="tinyclip_faces never saw 'bearded' in training"):
        Sentences.embedded(["a bearded man"], network=NETWORK)


def test_the_shipped_clip_lists_the_words_of_its_captions():
    known = texts.load_texts(NETWORK)
    said = [
        text
        for row in captions.label_sets()[::7]
        for held_out in (0, 1)
        for text in captions.phrases(row, 4, held_out=held_out)
    ]
    assert known.unknown(said) == []
    assert known.config["words"] == captions.words()
    assert known.unknown(["an old man"]) == ["old"]


def test_the_command_line_reads_a_sentence_with_its_commas(saved):
    prompt, _ = saved
    np.testing.assert_array_equal(
        prompt.conditions.read(["text=smiling man", "a woman"]), prompt.condition(text="smiling man, a woman")
    )


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda prompt, _: prompt.sample(KEY, 2), "no text; pass one, as text='a man'"),
        (lambda prompt, _: prompt.sample(KEY, 2, text=""), "text is ''; expected a sentence"),
        (lambda prompt, _: prompt.sample(KEY, 2, text=3), "text is 3; expected a sentence"),
        (lambda prompt, _: prompt.sample(KEY, 2, text=["a man"] * 3), r"cond is \(3, 8\); expected \(2, 8\)"),
        (
            lambda prompt, _: prompt.sample(KEY, 2, text="a man", cond=jnp.ones(8)),
            "cond beside strength, shares or text",
        ),
        (lambda prompt, _: prompt.sample(KEY, 2, text="a man", strength={"smile": 1}), "trained without any strength"),
        (lambda prompt, _: prompt.replace(conditions=None).sample(KEY, 2, text="a man"), "trained without sentences"),
        (lambda prompt, _: prompt.conditions.read(["a man"]), "condition=a man: expected a sentence, e.g. text=a man"),
        (
            lambda prompt, _: prompt.conditions.replace(checksum="0" * 64).embed("a man"),
            "sha256 000000000000.*same wei",
        ),
        (lambda *_: Sentences.embedded([], network=NETWORK), "text is .*expected a sentence"),
        (lambda *_: Sentences.embedded(["man " * 40], network=NETWORK), "expected at most 32"),
        (lambda *_: read_conditions({"text": {"sentences": ["a man"]}, "turn": (0, 1)}), "expected sentences alone"),
        (lambda *_: read_conditions({"text": {"sentence": ["a man"]}}), "expected sentences alone"),
        (
            lambda _, ebm: pg.fit(ebm.replace(cond_prior=Sentences.embedded(KNOWN, network=NETWORK)), **OPTIONS),
            "embedded by tinyclip_faces, while controls see with small_clip. Add a control of kind sentence",
        ),
        (lambda _, ebm: ebm.energy(KEY, jnp.zeros((2, 4))), "condition is none; expected embeddings of sentences"),
        (lambda _, ebm: ebm.energy(KEY, jnp.zeros((2, 4)), jnp.ones((2, 3))), "condition has 3 numbers; expected 8"),
    ],
    ids=range(16),
)
def test_bad_input(saved, ebm, call, match):
    with pytest.raises(ValueError, match=match) as raised:
        call(saved[0], ebm)
    assert "\n" not in str(raised.value)


def test_embeddings_of_another_length_are_warned_of(saved):
    with pytest.warns(UserWarning, match="beyond what said was trained on: embeddings of unit length"):
        saved[0].sample(KEY, 1, cond=jnp.full(8, 2.0))
