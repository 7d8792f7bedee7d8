"""Augmentation and CLIP's resize: one linear operator per axis, against the operations one after another.

One image, 50 views; a sum over all of them, and its gradient by the image.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

from benchmarks.case import Case, Side, compiled
from promptgen_jax.ops import augment, resample
from promptgen_jax.ops.views import map_views


def cases(quick: bool) -> list[Case]:
    """One a picture size."""
    views, chunk = (4, 2) if quick else (50, 10)
    return [
        Case(
            name=f"augment/{side}",
            title=f"augmented views and their gradient, {views} views, {side} px",
            ours=functools.partial(side_of, operator, side, views, chunk),
            other=functools.partial(side_of, direct, side, views, chunk),
            label="direct",
        )
        for side in ((24,) if quick else (256, 1024))
    ]


def operator(draws, images, chunk):
    """As the library does it."""
    return map_views(lambda views: views, draws, images, chunk=chunk)


def direct(draws, images, chunk):
    """As the official code does it."""
    del chunk
    return direct_views(draws, images)


def side_of(form, side: int, views: int, chunk: int) -> Side:
    """One of the two forms."""
    images = jax.random.uniform(jax.random.key(0), (1, side, side, 3))
    draws = augment.draw(jax.random.key(1), num_images=1, num_views=views, image_size=side)

    def sum_and_gradient(draws, images):
        total, gradient = jax.value_and_grad(lambda images: jnp.sum(form(draws, images, chunk) ** 2))(images)
        return {"sum": total, "gradient": gradient}

    return compiled(sum_and_gradient, draws, images)


def direct_views(draws, images, *, size=224, antialias=False):
    """`views.augmented_views` as the official code goes about it, with R copies of every image at its own size."""
    copies = jax.vmap(jax.vmap(_augmented_copy, in_axes=(0, None)))(draws, images)
    flat = copies.reshape(-1, *images.shape[1:])
    if size is not None:
        flat = resample.resize_bicubic(flat, size, antialias=antialias)
    return flat.reshape(*copies.shape[:2], *flat.shape[1:])


def _augmented_copy(draws, image):
    """One copy (S, S, 3): brightness, saturation, contrast, translation, resize, cutout."""
    image = image + (draws.brightness - 0.5)
    grey = jnp.mean(image, axis=-1, keepdims=True)
    image = (image - grey) * (2 * draws.saturation) + grey
    mean = jnp.mean(image)
    image = (image - mean) * (draws.contrast + 0.5) + mean
    for axis, shift in enumerate((draws.shift_rows, draws.shift_cols)):
        image = _translate(image, axis, shift)
    for axis in (0, 1):
        image = _resize(image, axis, draws.side)
    return image * (
        1 - _cut(len(image), draws.cutout_rows)[:, None, None] * _cut(len(image), draws.cutout_cols)[:, None]
    )


def _translate(image, axis, shift):
    place = jnp.arange(image.shape[axis]) + shift
    return _masked(jnp.take(image, place, axis, mode="clip"), axis, (place >= 0) & (place < image.shape[axis]))


def _resize(image, axis, side):
    """Bilinear to `side` pixels, then pasted into or cropped to the side it had."""
    whole = image.shape[axis]
    place = jnp.arange(whole) + lax.div(side - whole, 2)
    source = jnp.maximum((place + 0.5) * (jnp.float32(whole) / side) - 0.5, 0)
    lower = jnp.floor(source).astype(jnp.int32)
    share = (source - lower).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
    below, above = (jnp.take(image, index, axis, mode="clip") for index in (lower, lower + 1))
    return _masked(below * (1 - share) + above * share, axis, (place >= 0) & (place < side))


def _masked(image, axis, keep):
    return image * keep.reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))


def _cut(side, middle):
    """1.0 where the black square lies along an axis, else 0.0."""
    square = augment.cutout_size(side)
    first = middle - square // 2
    place = jnp.arange(side)
    return ((place >= first) & (place < first + square)).astype(jnp.float32)
