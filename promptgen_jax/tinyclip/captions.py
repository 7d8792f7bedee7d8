"""Captions from readings: which attributes of a face are sure, and many ways to say them.

Left and right are the viewer's: a face that looks left has its nose towards the left edge of the image.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from promptgen_jax.tinyclip.data import Faces

UNKNOWN = -1
ATTRIBUTES = {
    "expression": ("neutral", "happy", "surprised"),
    "gender": ("male", "female"),
    "direction": ("left", "straight", "right"),
    "light": ("dark", "bright"),
}
EXPRESSION_COLUMNS = (0, 1, 6)  # the others are not credible on these faces

SURE_EXPRESSION, SURE_GENDER, SURE_FACE = 0.7, 0.7, 0.8
TURNED, STRAIGHT = 12.0, 6.0  # degrees of yaw
DARK, BRIGHT = 0.26, 0.40  # mean luma

PEOPLE = {
    UNKNOWN: ("person", "face", "human"),
    "male": ("man", "man", "guy", "gentleman", "male person"),
    "female": ("woman", "woman", "lady", "female person"),
}
MOODS = {
    "neutral": ("serious", "calm", "neutral", "expressionless"),
    "happy": ("smiling", "happy", "laughing", "cheerful", "grinning"),
    "surprised": ("surprised", "astonished", "amazed"),
}
FACES = {
    "neutral": ("with a neutral expression", "with a serious face", "with a closed mouth"),
    "happy": ("with a smile", "with a big smile", "with a happy face"),
    "surprised": ("with an open mouth", "with a surprised look", "with the mouth open"),
}
DIRECTIONS = {
    "left": ("looking left", "looking to the left", "facing left", "turned to the left"),
    "straight": ("looking straight ahead", "looking at the camera", "facing the camera", "looking forward"),
    "right": ("looking right", "looking to the right", "facing right", "turned to the right"),
}
LIGHTS = {"dark": ("in the dark", "in dim light"), "bright": ("in bright light", "in daylight")}
TONES = {"dark": ("dark", "dim"), "bright": ("bright", "light")}
PICTURES = ("photo", "photo", "picture", "portrait", "image")

JOINTS = "a an and here in is of the this".split()  # what patterns put between them


def words() -> list[str]:
    """All words that captions are made of."""
    tables = (PEOPLE, MOODS, FACES, DIRECTIONS, LIGHTS, TONES)
    said = [PICTURES, JOINTS, *(phrases for table in tables for phrases in table.values())]
    return sorted({word for phrases in said for phrase in phrases for word in phrase.split()})


def sure_labels(faces: Faces) -> np.ndarray:
    """Labels (N, 4) in the order of `ATTRIBUTES`, as index of the label, `UNKNOWN` where the reading is not sure.

    Where no face is seen, nothing is sure.
    """
    expression = faces.expression[:, EXPRESSION_COLUMNS]
    sure: dict[str, Any] = {
        "expression": expression.T > SURE_EXPRESSION,
        "gender": faces.gender.T > SURE_GENDER,
        "direction": (faces.yaw > TURNED, np.abs(faces.yaw) < STRAIGHT, faces.yaw < -TURNED),
        "light": (faces.luma < DARK, faces.luma > BRIGHT),
    }
    columns = [np.where(np.any(rows, axis=0), np.argmax(rows, axis=0), UNKNOWN) for rows in sure.values()]
    return np.where((faces.face > SURE_FACE)[:, None], np.stack(columns, axis=1), UNKNOWN).astype(np.int32)


def label_sets() -> np.ndarray:
    """Every choice of labels, unknown included, (144, 4); row `set_index(labels)` is `labels`."""
    return np.array(list(itertools.product(*(range(UNKNOWN, len(labels)) for labels in ATTRIBUTES.values()))), np.int32)


def set_index(labels):
    """Row of labels (..., 4) in `label_sets()`; NumPy or JAX arrays."""
    index = 0
    for column, names in enumerate(ATTRIBUTES.values()):
        index = index * (len(names) + 1) + labels[..., column] + 1
    return index


def sentences(num: int = 2, *, seed: int = 0) -> list[str]:
    """Captions of every choice of labels that states something, `num` of each one after the other, in mixed order.

    A split of this list at a multiple of `num` leaves choices of labels to the one part that the other never states.
    """
    sets = label_sets()[1:]
    return [text for row in np.random.default_rng(seed).permutation(sets) for text in phrases(row, num, seed=seed)]


def phrases(labels, num: int, *, held_out: bool = False, seed: int = 0) -> list[str]:
    """Captions that state the given labels and nothing else.

    Args:
      labels: (4,), `UNKNOWN` for what is not stated.
      num: how many; they may repeat.
      held_out: sentences of patterns that training never sees, of words that it does.
      seed: with the labels, decides which.
    """
    rng = np.random.default_rng([seed, held_out, int(set_index(np.asarray(labels)))])
    named = {
        attribute: UNKNOWN if label == UNKNOWN else ATTRIBUTES[attribute][label]
        for attribute, label in zip(ATTRIBUTES, labels, strict=True)
    }
    patterns = (_declared, _inverted) if held_out else (_photo, _photo, _photo, _sentence, _keywords)
    return [patterns[rng.integers(len(patterns))](rng, **named) for _ in range(num)]


def _photo(rng, expression, gender, direction, light):
    """A bright photo of a smiling woman looking left."""
    as_mood, as_tone = rng.integers(2, size=2)
    who = _article(_join(as_mood and _pick(rng, MOODS, expression), _pick(rng, PEOPLE, gender)))
    details = [
        not as_mood and _pick(rng, FACES, expression),
        _pick(rng, DIRECTIONS, direction),
        not as_tone and _pick(rng, LIGHTS, light),
    ]
    rng.shuffle(details)
    picture = _article(_join(as_tone and _pick(rng, TONES, light), PICTURES[rng.integers(len(PICTURES))]))
    return _join("this is" if rng.random() < 0.15 else "", picture, "of", who, *details)


def _sentence(rng, expression, gender, direction, light):
    """The woman is smiling and looking left, in bright light."""
    doing = [_pick(rng, MOODS, expression), _pick(rng, DIRECTIONS, direction)]
    rng.shuffle(doing)
    start = ("the", "this")[rng.integers(2)]
    states = " and ".join(filter(None, doing)) or "here"
    return _join(start, _pick(rng, PEOPLE, gender), "is", states, _pick(rng, LIGHTS, light))


def _keywords(rng, expression, gender, direction, light):
    """Smiling woman, looking left, bright."""
    who = _join(_pick(rng, MOODS, expression), _pick(rng, PEOPLE, gender))
    return ", ".join(filter(None, (who, _pick(rng, DIRECTIONS, direction), _pick(rng, TONES, light))))


def _declared(rng, expression, gender, direction, light):
    """In this bright picture the woman is looking left, with a smile."""
    person = _join("the", _pick(rng, PEOPLE, gender), "is", _pick(rng, DIRECTIONS, direction) or "here")
    first = _join("in this", _pick(rng, TONES, light), "picture")
    return f"{_join(first, person)}, {_pick(rng, FACES, expression)}".removesuffix(", ")


def _inverted(rng, expression, gender, direction, light):
    """Looking left, in bright light, a photo of the smiling woman."""
    first = ", ".join(filter(None, (_pick(rng, DIRECTIONS, direction), _pick(rng, LIGHTS, light))))
    last = _join("a photo of the", _pick(rng, MOODS, expression), _pick(rng, PEOPLE, gender))
    return f"{first}, {last}".removeprefix(", ")


def _pick(rng, words: dict, label) -> str:
    """One of the words for a label; nothing if it is unknown and there is no word for that."""
    known = words.get(label, ("",))
    return known[rng.integers(len(known))]


def _join(*words) -> str:
    return " ".join(word for word in words if word)


def _article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
