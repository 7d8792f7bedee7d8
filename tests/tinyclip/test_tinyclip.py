"""The small CLIP: what captions say, the loss, training from a seed, and how well the shipped weights tell faces."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from promptgen_jax.controls.clip import load_clip
from promptgen_jax.models import clip, network, tokenizer
from promptgen_jax.tinyclip import captions, data, measures, train
from promptgen_jax.tinyclip.captions import UNKNOWN

SHIPPED = "tinyclip_faces"
OTHER = "other weights"
SETS = captions.label_sets()
OPTIONS = {"steps": 3, "num_images": 48, "batch_size": 8, "num_held_out": 40}


def readings(**changed):
    """A sure smiling woman who looks left in bright light, with some readings changed."""
    fields = {
        "images": np.zeros((1, 64, 64, 3), np.uint8),
        "expression": np.array([[0.05, 0.9, 0.05, 0, 0, 0, 0]]),
        "gender": np.array([[0.1, 0.9]]),
        "face": np.array([0.99]),
        "yaw": np.array([20.0]),
        "luma": np.array([0.5]),
    }
    return data.Faces(**fields | {name: np.array([value]) for name, value in changed.items()})


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """Faces of a seed that neither training nor the measures of the shipped weights took."""
    return data.make_faces(7, 96, cache=tmp_path_factory.mktemp("faces"))


def test_every_phrase_fits_the_model():
    """All captions have ids within context, and held-out patterns hold trained words only."""
    ids = {}
    for held_out in (False, True):
        texts = [text for labels in SETS for text in captions.phrases(labels, 24, held_out=held_out)]
        options = {name: train.MODEL[name] for name in ("context_length", "vocab_size")}
        ids[held_out] = set(np.unique(tokenizer.tokenize(texts, **options)))
        ids[held_out, "texts"] = set(texts)
        assert all(text == " ".join(text.split()) and text[-1] != "," for text in texts)
    assert max(ids[False]) < train.MODEL["vocab_size"]
    assert ids[True] <= ids[False]
    assert len(ids[True, "texts"] - ids[False, "texts"]) > 0.9 * len(ids[True, "texts"])


def test_phrases_state_exactly_the_labels():
    """Some word of every stated label, and none of another one."""
    says = {
        "left": {"left"},
        "right": {"right"},
        "straight": {"straight", "camera", "forward"},
        "dark": {"dark", "dim"},
        "bright": {"bright", "light", "daylight"},
        "male": {"man", "guy", "gentleman", "male"},
        "female": {"woman", "lady", "female"},
        "happy": {"smiling", "happy", "laughing", "cheerful", "grinning", "smile"},
        "neutral": {"serious", "calm", "neutral", "expressionless", "closed"},
        "surprised": {"surprised", "astonished", "amazed", "open"},
    }
    for labels in SETS:
        named = zip(captions.ATTRIBUTES.items(), labels, strict=True)
        stated = {names[label] for (_, names), label in named if label != UNKNOWN}
        for held_out in (False, True):
            for text in captions.phrases(labels, 8, held_out=held_out):
                words = set(text.replace(",", "").replace("in dim light", "in dim").split())
                assert {label for label, known in says.items() if words & known} == stated, text


def test_set_index_is_the_row():
    np.testing.assert_array_equal(captions.set_index(SETS), np.arange(len(SETS)))


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, ("happy", "female", "left", "bright")),
        ({"yaw": -20.0}, ("happy", "female", "right", "bright")),
        ({"yaw": 1.0}, ("happy", "female", "straight", "bright")),
        ({"yaw": 9.0, "luma": 0.3}, ("happy", "female", None, None)),
        ({"gender": [0.9, 0.1], "luma": 0.1}, ("happy", "male", "left", "dark")),
        ({"gender": [0.5, 0.5]}, ("happy", None, "left", "bright")),
        ({"expression": [0, 0, 0, 0, 0, 0, 1.0]}, ("surprised", "female", "left", "bright")),
        ({"expression": [0, 0, 1.0, 0, 0, 0, 0]}, (None, "female", "left", "bright")),
        ({"face": 0.1}, (None, None, None, None)),
    ],
    ids=["all", "right", "straight", "between", "man", "unsure gender", "surprised", "sad is not told", "no face"],
)
def test_sure_labels(changed, expected):
    found = captions.sure_labels(readings(**changed))[0]
    names = [
        None if label == UNKNOWN else options[label]
        for options, label in zip(captions.ATTRIBUTES.values(), found, strict=True)
    ]
    assert tuple(names) == expected


@pytest.mark.full
def test_left_is_the_viewers(faces):
    """The nose of a face that looks left lies on the left of the middle of its cheeks, as seen by the viewer."""
    nose_tip, right_cheek, left_cheek = 1, 234, 454
    landmarks = network.load_network("facemesh")(data.as_float(faces.images[:64]))["landmarks"]
    offset = landmarks[:, nose_tip, 0] - (landmarks[:, right_cheek, 0] + landmarks[:, left_cheek, 0]) / 2
    direction = captions.sure_labels(faces.take(slice(64)))[:, 2]
    assert np.sum(direction == 0) > 5
    assert np.sum(direction == 2) > 5
    assert np.mean(offset[direction == 0] < 0) > 0.95
    assert np.mean(offset[direction == 2] > 0) > 0.95


def test_loss_of_captions_that_fit_many_images():
    """By hand: caption 0 fits images 0 and 1, caption 1 only image 1; image 2 is unknown to both."""
    labels = jnp.array([[0, UNKNOWN, 0, 0], [0, 1, 0, 0], [UNKNOWN, 1, 0, 0]])
    stated = jnp.array([[0, UNKNOWN, UNKNOWN, UNKNOWN], [0, 1, UNKNOWN, UNKNOWN]])
    logits = jnp.array([[0.3, -0.4], [1.0, 0.2], [5.0, 5.0]])
    column = -np.mean(jax.nn.log_softmax(logits[:2, 0]))  # of caption 0; caption 1 is sure of image 1
    row = -(jax.nn.log_softmax(logits[1]) @ np.array([1 / 3, 2 / 3]))
    expected = (column / 2 + row / 3) / 2
    np.testing.assert_allclose(train.contrastive_loss(logits, labels, stated), expected, rtol=1e-6)


@pytest.mark.full
def test_training_writes_a_folder(tmp_path):
    """A few steps give a loadable folder; notes in the folder are kept."""
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "SOURCE.md").write_text("kept")
    results = train.train(tmp_path / "one", **OPTIONS)
    assert set(results["zero_shot"]) == set(captions.ATTRIBUTES)
    assert (tmp_path / "one" / "SOURCE.md").read_text() == "kept"
    assert load_clip(tmp_path / "one", ["a photo of a man"])[1].shape == (1, train.MODEL["embed_dim"])


@pytest.mark.full
def test_the_same_seed_trains_the_same_weights(tmp_path):
    results = [train.train(tmp_path / name, cache=tmp_path / "cache", **OPTIONS) for name in ("one", "two")]
    assert results[0] == results[1]
    written = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("one", "two")]
    assert written[0]["sha256"] == written[1]["sha256"]


@pytest.mark.parametrize(
    ("images_are", "labels_become"),
    [("mirrored", "exchanged"), ("coloured", "unknown")],
)
def test_views_have_the_labels_that_they_show(images_are, labels_become):
    """Left and right change places in a mirrored view; a recoloured one says nothing of the light."""
    names = list(captions.ATTRIBUTES)
    images = jnp.asarray(np.random.default_rng(0).random((64, 16, 16, 3)), jnp.float32)
    labels = jnp.tile(jnp.array([[1, 1, 0, 1]]), (64, 1))
    views, seen = train.augmented(jax.random.key(0), images, labels)
    changed = {
        "mirrored": [
            not np.allclose(view, image) and np.allclose(view, image[:, ::-1], atol=1e-6)
            for view, image in zip(views, images, strict=True)
        ],
        "coloured": [
            not (np.allclose(view, image, atol=1e-6) or np.allclose(view, image[:, ::-1], atol=1e-6))
            for view, image in zip(views, images, strict=True)
        ],
    }[images_are]
    assert 5 < sum(changed) < 59
    column = names.index({"mirrored": "direction", "coloured": "light"}[images_are])
    expected = {"exchanged": 2, "unknown": UNKNOWN}[labels_become]
    assert np.all(np.asarray(seen)[np.array(changed), column] == expected)
    np.testing.assert_array_equal(seen[:, :2], labels[:, :2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "0"], "train: steps: got 0; expected an integer of at least 1"),
        (["--batch_size", "64", "--num_images", "16"], "num_images is 16; expected at least batch_size = 64"),
        (["--learning_rate", "nan"], "learning_rate is nan; expected a number between 0 and 1"),
        (["--seed", "1"], "seed is 1, which makes the held-out faces"),
        ([OTHER], "holds other weights"),
    ],
    ids=["steps", "too few faces", "learning rate", "seed", "output"],
)
def test_refuses(tmp_path, capsys, options, message):
    if options == [OTHER]:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "config.json").write_text(
            '{"format_version": 1, "kind": "x", "sha256": "", "converter": "python convert/x.py"}'
        )
        options = []
    assert train.main(["--output", str(tmp_path / "out"), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out" / "weights.safetensors").exists()


def test_shipped_weights_tell_fresh_faces(faces):
    module, params, config = network.load_params(SHIPPED, kind="clip", example=clip.CLIP.example)
    found = measures.measure(module, params, faces)
    assert config["options"] == train.MODEL
    assert min(found["zero_shot"].values()) > 0.6
    assert found["image_to_text"] > 0.3
    assert found["text_to_image"] > 0.3


def test_shipped_weights_know_left_from_right(faces):
    tower, texts = load_clip(SHIPPED, ["a photo of a person looking left", "a photo of a person looking right"])
    turned = np.abs(faces.yaw) > 15
    features = clip.normalise(tower(data.as_float(faces.images[turned]))["embedding"])
    says_left = features @ texts[0] > features @ texts[1]
    assert np.mean(says_left == (faces.yaw[turned] > 0)) > 0.9
