"""Trains the small CLIP from a seed: faces, readings, captions, contrastive training, measures, weight folder.

python -m promptgen_jax.tinyclip.train --output ported_weights/tinyclip_faces
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax

from promptgen_jax import checks
from promptgen_jax.models import clip, tokenizer
from promptgen_jax.ops import augment
from promptgen_jax.ops.views import augmented_views
from promptgen_jax.store import weights
from promptgen_jax.tinyclip import captions, data, measures
from promptgen_jax.tinyclip.captions import UNKNOWN

COMMAND = "python -m promptgen_jax.tinyclip.train"
MODEL = {
    "embed_dim": 128,
    "image_size": 64,
    "patch_size": 16,
    "vision_width": 128,
    "vision_layers": 4,
    "vision_heads": 4,
    "vocab_size": 4096,
    "context_length": 32,
    "text_width": 64,
    "text_layers": 2,
    "text_heads": 2,
}
COLOURED = 0.5  # share of the images that get other colours
PHRASES_PER_SET = 64
STATED = 0.8  # probability that a caption states a label that is sure
LARGEST_LOGIT_SCALE = np.log(100.0)  # as CLIP
HELD_OUT_SEED, NUM_HELD_OUT = 1, 2048


def contrastive_loss(logits: jax.Array, labels: jax.Array, stated: jax.Array) -> jax.Array:
    """Symmetric cross-entropy of CLIP, for captions that fit many images.

    Caption j fits image i if the image has every label that it states, and contradicts it if a sure label differs;
    what is neither is left out. Caption j is as good for each of the n_j images that it fits: with F_ij = 1 where it
    does, the targets are

        P(image i | caption j) = F_ij / n_j,    P(caption j | image i) ∝ F_ij / n_j

    Args:
      logits: (B, T) of images and captions.
      labels: (B, 4) of the images, `UNKNOWN` where not sure.
      stated: (T, 4) by the captions, `UNKNOWN` where not stated. Each fits at least one image.

    Returns:
      Scalar, nats; 0 is not reached, as targets are spread.
    """
    differs = (stated[None] != UNKNOWN) & (stated[None] != labels[:, None])
    fits = ~jnp.any(differs, axis=-1)
    contradicts = jnp.any(differs & (labels[:, None] != UNKNOWN), axis=-1)
    target = fits / jnp.sum(fits, axis=0)
    logits = jnp.where(fits | contradicts, logits, -1e9)
    of_images = -jnp.sum(target * jax.nn.log_softmax(logits, axis=0)) / logits.shape[1]
    of_captions = target / jnp.maximum(jnp.sum(target, axis=1, keepdims=True), 1e-9)
    return (of_images - jnp.sum(of_captions * jax.nn.log_softmax(logits, axis=1)) / logits.shape[0]) / 2


def phrase_table(model: clip.CLIP) -> np.ndarray:
    """Token ids (144, 64, context_length) of captions of every set of labels."""
    texts = [text for labels in captions.label_sets() for text in captions.phrases(labels, PHRASES_PER_SET)]
    tokens = tokenizer.tokenize(texts, context_length=model.context_length, vocab_size=model.vocab_size)
    return tokens.reshape(-1, PHRASES_PER_SET, model.context_length)


def draw_shares(labels: np.ndarray) -> np.ndarray:
    """Probabilities (N,) that draw a set of labels (N, 4) by the square root of its share: rare ones more often."""
    _, group, count = np.unique(captions.set_index(labels), return_inverse=True, return_counts=True)
    rarity = count[group] ** -0.5
    return (rarity / rarity.sum()).astype(np.float32)


def augmented(key: jax.Array, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A view of each image (B, S, S, 3), and the labels (B, 4) that it has.

    Half are mirrored, which exchanges left and right. Some have other colours: such a view says nothing of the light
    any more, so light is unknown there, and nothing else can be told by how light a face is. Views are not moved or cut
    out: the generator's faces are aligned, and what tells expressions apart is small.
    """
    mirror_key, colour_key, draw_key = jax.random.split(key, 3)
    mirrored = jax.random.bernoulli(mirror_key, 0.5, (len(images),))
    coloured = jax.random.bernoulli(colour_key, COLOURED, (len(images),))
    images = jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)
    draws = augment.draw(draw_key, num_images=len(images), num_views=1, image_size=images.shape[1], policy="color")
    images = jnp.where(coloured[:, None, None, None], augmented_views(draws, images, size=None)[:, 0], images)
    names = list(captions.ATTRIBUTES)
    direction, light = labels[:, names.index("direction")], labels[:, names.index("light")]
    exchanged = jnp.where(direction == UNKNOWN, UNKNOWN, len(captions.ATTRIBUTES["direction"]) - 1 - direction)
    labels = labels.at[:, names.index("direction")].set(jnp.where(mirrored, exchanged, direction))
    return images, labels.at[:, names.index("light")].set(jnp.where(coloured, UNKNOWN, light))


def make_step(model: clip.CLIP, optimizer: optax.GradientTransformation, batch_size: int):
    """A jitted `step((params, state), key, images, labels, shares, table) -> ((params, state), loss)`.

    It draws a batch of the images (N, 64, 64, 3) uint8 by their shares (N,), a view of each, what its caption states,
    and one of the phrases in `table` for that.
    """

    def loss(params, key, images, labels, table):
        view_key, state_key, phrase_key = jax.random.split(key, 3)
        views, labels = augmented(view_key, data.as_float(images), labels)
        stated = jnp.where(jax.random.bernoulli(state_key, STATED, labels.shape), labels, UNKNOWN)
        phrase = jax.random.randint(phrase_key, (batch_size,), 0, table.shape[1])
        logits = model.apply({"params": params}, (views, table[captions.set_index(stated), phrase]))
        return contrastive_loss(logits, labels, stated)

    @jax.jit
    def step(carry, key, images, labels, shares, table):
        params, state = carry
        row_key, loss_key = jax.random.split(key)
        rows = jax.random.choice(row_key, len(images), (batch_size,), p=shares)
        value, gradient = jax.value_and_grad(loss)(params, loss_key, images[rows], labels[rows], table)
        update, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, update)
        params["logit_scale"] = jnp.minimum(params["logit_scale"], LARGEST_LOGIT_SCALE)
        return (params, state), value

    return step


def train(
    output: str | Path,
    *,
    steps: int = 2000,
    num_images: int = 12288,
    batch_size: int = 128,
    learning_rate: float = 1.5e-3,
    seed: int = 0,
    cache: str | Path | None = None,
    num_held_out: int = NUM_HELD_OUT,
) -> dict:
    """Trains, measures on held-out faces and phrasings, and writes a weight folder (float16), all or nothing.

    Args:
      output: folder of weights; other files in it, such as SOURCE.md, are kept.
      steps: of AdamW, warmed up for a tenth of them and then lowered to 0 along a cosine.
      num_images: faces to train on.
      batch_size: images, and captions, of a step.
      learning_rate: at its peak.
      seed: of faces, initialisation and training.
      cache: folder for the faces, so that another training need not make them.
      num_held_out: faces to measure on, of a seed of their own.

    Returns:
      The measures, which are also in the config.json of the folder.

    Raises:
      ValueError: an option out of range, or an output that holds other weights.
    """
    _check_options(output, steps, num_images, batch_size, learning_rate, num_held_out, seed)
    started = time.monotonic()
    faces = data.make_faces(seed, num_images, cache=cache)
    labels = captions.sure_labels(faces)
    model = clip.CLIP(**MODEL)
    key = jax.random.key(seed)
    params = model.init(key, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), model.example()))["params"]
    schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, -(-steps // 10), steps)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=0.1, mask=_is_matrix)
    )
    step = make_step(model, optimizer, batch_size)
    arrays = jax.tree.map(jnp.asarray, (faces.images, labels, draw_shares(labels), phrase_table(model)))
    carry, recent = (params, optimizer.init(params)), []
    for number in range(steps):
        carry, loss = step(carry, jax.random.fold_in(key, number), *arrays)
        recent.append(loss)
        if (number + 1) % 100 == 0 or number + 1 == steps:
            mean, recent = float(np.mean(recent)), []
            if not np.isfinite(mean):
                raise FloatingPointError(f"train: the loss is {mean} by step {number + 1}. Lower --learning_rate.")
            print(f"step {number + 1}: loss {mean:.3f}, {time.monotonic() - started:.0f} s", flush=True)
    stored = jax.tree.map(lambda leaf: np.asarray(leaf, np.float16), carry[0])
    held_out = data.make_faces(HELD_OUT_SEED, num_held_out, cache=cache)
    results = measures.measure(model, jax.tree.map(jnp.float32, stored), held_out)
    weights.save_weights(
        output, stored, _config(Path(output).name, results, steps, num_images, batch_size, learning_rate, seed)
    )
    return results


def _check_options(output, steps, num_images, batch_size, learning_rate, num_held_out, seed) -> None:
    for name, value, minimum in (
        ("steps", steps, 1),
        ("num_images", num_images, 1),
        ("batch_size", batch_size, 2),
        ("num_held_out", num_held_out, 1),
        ("seed", seed, 0),
    ):
        checks.check_count(f"train: {name}", value, minimum=minimum)
    if num_images < batch_size:
        raise ValueError(
            f"train: num_images is {num_images}; expected at least batch_size = {batch_size}. Make more faces."
        )
    if not 0 < learning_rate < 1:
        raise ValueError(f"train: learning_rate is {learning_rate}; expected a number between 0 and 1, such as 1e-3.")
    if seed == HELD_OUT_SEED:
        raise ValueError(f"train: seed is {seed}, which makes the held-out faces. Choose another one.")
    config = Path(output) / weights.CONFIG
    if config.exists() and COMMAND not in weights.read_config(output).get("converter", ""):
        raise ValueError(f"train: {output} holds other weights. Choose another --output.")


def _config(name, results, steps, num_images, batch_size, learning_rate, seed) -> dict:
    return {
        "kind": "clip",
        "module": "clip.CLIP",
        "options": MODEL,
        "name": name,
        "license": "MIT; trained on images of dcgan_digiface, whose training data allow non-commercial research only",
        "source": f"{num_images} images of {data.GENERATOR}, captions from readings of {', '.join(data.NETWORKS)}",
        "converter": f"{COMMAND} --steps {steps} --num_images {num_images} --batch_size {batch_size} "
        f"--learning_rate {learning_rate:g} --seed {seed}",
        "words": captions.words(),  # no others mean anything to it
        "held_out": results,
    }


def _is_matrix(params):
    """What weight decay acts on: kernels."""
    flat = flax.traverse_util.flatten_dict(params)
    return flax.traverse_util.unflatten_dict({path: path[-1] == "kernel" for path in flat})


def main(argv: list[str]) -> int:
    """Parses the options and trains; a mistake of the user prints one sentence and returns 2."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--output", required=True, help="folder of weights to write")
    parser.add_argument("--cache", help="folder that keeps the faces for another training")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--num_images", type=int, default=12288)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--learning_rate", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num_held_out", type=int, default=NUM_HELD_OUT)
    options = vars(parser.parse_args(argv))
    try:
        results = train(options.pop("output"), **options)
    except (ValueError, FileNotFoundError, PermissionError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(results, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
