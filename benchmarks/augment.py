"""Augmentation and CLIP's resize: one linear operator per axis against the operations one after another.

    python -m benchmarks.augment [--sides 256 1024] [--views 50] [--chunk 10] [--repeats 3] [--antialias]

One image. Seconds are the best of the repeats, taken in turns so that both see the same machine: of the processor on
CPUs, where other work then counts little, and on the clock elsewhere. Memory is what the compiled program holds beyond
its arguments. Measured on 1 CPU core (AMD EPYC, `taskset -c 1`, jax 0.10.2, 50 views, 2 repeats, machine shared):

                                direct   operator   ratio        direct   operator   ratio
      256 px forward            0.46 s     0.20 s    2.3x        109 MB      64 MB    1.7x
      256 px with gradient      1.02 s     0.56 s    1.8x        408 MB      74 MB    5.5x
     1024 px forward            7.62 s     1.89 s    4.0x       1290 MB     161 MB    8.0x
     1024 px with gradient     15.88 s     4.34 s    3.7x       6516 MB     183 MB   35.6x
"""

from __future__ import annotations

import argparse
import functools
import time

import jax
import jax.numpy as jnp
from jax import lax

from benchmarks.depthwise import processor
from promptgen_jax.ops import augment, resample


def direct_views(draws, images, *, size=224, antialias=False):
    """`augment.augmented_views` as the official code goes about it, with R copies of every image at its own size."""
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


def compare(side, options):
    """Prints seconds and memory of both forms: all views, then a sum over them and its gradient to the image."""
    images = jax.random.uniform(jax.random.key(0), (1, side, side, 3))
    draws = augment.draw(jax.random.key(1), num_images=1, num_views=options.views, image_size=side)
    operator = functools.partial(augment.map_views, lambda views: views, chunk=options.chunk)
    forms = [functools.partial(form, antialias=options.antialias) for form in (direct_views, operator)]

    def with_gradient(form):
        return lambda draws, images: jax.value_and_grad(lambda images: jnp.sum(form(draws, images) ** 2))(images)

    for label, functions in (("forward", forms), ("with gradient", [with_gradient(form) for form in forms])):
        compiled = [jax.jit(function).lower(draws, images).compile() for function in functions]
        memory = [
            1e-6 * (c.memory_analysis().temp_size_in_bytes + c.memory_analysis().output_size_in_bytes) for c in compiled
        ]
        seconds = best_times(compiled, (draws, images), options.repeats)
        print(
            f"{side:5d} px {label:14s}"
            f"{seconds[0]:9.2f} s {seconds[1]:8.2f} s {seconds[0] / seconds[1]:6.1f}x"
            f"{memory[0]:11.0f} MB {memory[1]:7.0f} MB {memory[0] / memory[1]:6.1f}x"
        )


def best_times(compiled, arguments, repeats):
    """Smallest time in seconds of each compiled function, called in turns."""
    clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter
    best = [float("inf")] * len(compiled)
    for function in compiled:
        jax.block_until_ready(function(*arguments))
    for _ in range(repeats):
        for index, function in enumerate(compiled):
            start = clock()
            jax.block_until_ready(function(*arguments))
            best[index] = min(best[index], clock() - start)
    return best


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sides", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--views", type=int, default=50)
    parser.add_argument("--chunk", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--antialias", action="store_true")
    options = parser.parse_args()

    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}, {processor()}, {options.views} views of one image")
    print(f"{'':23s}" + "".join(f"{'direct':>{wide}s} {'operator':>10s} {'ratio':>7s}" for wide in (11, 14)))
    for side in options.sides:
        compare(side, options)


if __name__ == "__main__":
    main()
