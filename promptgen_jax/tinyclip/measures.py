"""How well a small CLIP tells held-out faces by captions of patterns that it was not trained on."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from promptgen_jax.models import clip, tokenizer
from promptgen_jax.tinyclip import captions, data
from promptgen_jax.tinyclip.captions import ATTRIBUTES, UNKNOWN

NUM_CAPTIONS = 32
NUM_TRIALS = 50
PHRASES_PER_LABEL = 16


def measure(model: clip.CLIP, params: dict, faces: data.Faces) -> dict:
    """Accuracies in [0, 1] on faces that were not trained on, without augmentation.

    Returns:
      zero_shot: by attribute, mean over its labels of the share of sure faces whose nearest label (mean feature of
        captions that state nothing else) is theirs; chance is one over the number of labels.
      image_to_text, text_to_image: share of rank 1 among `num_captions` faces of different label sets, all labels
        sure, each with one caption that states them all; mean over trials. Chance is 1 / num_captions.
    """
    embed = jax.jit(
        lambda params, images: clip.normalise(model.vision_tower().apply({"params": params}, images)["embedding"])
    )
    parts = [
        embed(params["vision"], data.as_float(faces.images[i : i + 128])) for i in range(0, len(faces.images), 128)
    ]
    features, labels = np.concatenate(parts), captions.sure_labels(faces)
    zero_shot = {
        attribute: _zero_shot(model, params, features, labels[:, column], column)
        for column, attribute in enumerate(ATTRIBUTES)
    }
    return {"zero_shot": zero_shot} | _retrieval(model, params, features, labels) | {"num_faces": len(features)}


def embed_texts(model: clip.CLIP, params: dict, texts: list[str]) -> np.ndarray:
    """Features (T, E) of unit length."""
    tokens = tokenizer.tokenize(texts, context_length=model.context_length, vocab_size=model.vocab_size)
    return np.asarray(clip.normalise(model.text_tower().apply({"params": params["text"]}, tokens)))


def _zero_shot(model, params, features, labels, column) -> float:
    means = []
    num_labels = len(list(ATTRIBUTES.values())[column])
    for label in range(num_labels):
        stated = np.full(len(ATTRIBUTES), UNKNOWN)
        stated[column] = label
        means.append(embed_texts(model, params, captions.phrases(stated, PHRASES_PER_LABEL, held_out=True)).mean(0))
    nearest = np.argmax(features @ clip.normalise(jnp.stack(means)).T, axis=1)
    recalls = [np.mean(nearest[labels == label] == label) for label in range(num_labels) if np.any(labels == label)]
    return float(np.mean(recalls)) if recalls else 0.0


def _retrieval(model, params, features, labels) -> dict:
    sure = np.flatnonzero(np.all(labels != UNKNOWN, axis=1))
    groups = captions.set_index(labels[sure])
    sets = np.unique(groups)
    num = min(NUM_CAPTIONS, len(sets))
    rng = np.random.default_rng(0)
    hits = np.zeros(2)
    for trial in range(NUM_TRIALS if num else 0):
        rows = [rng.choice(sure[groups == chosen]) for chosen in rng.choice(sets, num, replace=False)]
        texts = [captions.phrases(labels[row], 1, held_out=True, seed=trial)[0] for row in rows]
        similarity = features[rows] @ embed_texts(model, params, texts).T
        hits += [np.mean(np.argmax(similarity, axis=axis) == np.arange(num)) / NUM_TRIALS for axis in (1, 0)]
    return {"image_to_text": float(hits[0]), "text_to_image": float(hits[1]), "num_captions": num}
