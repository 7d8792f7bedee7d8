"""What is random in DiffAugment's views: colours, shift, side and cutout of every view. `ops.views` makes them.

Source: model/lib/diffaug of the official repository (Zhao et al., arXiv 2006.10738, with a resize added).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from promptgen_jax import checks

OPERATIONS = ("color", "translation", "resize", "cutout")
POLICY = ",".join(OPERATIONS)
SPREADS = ("independent", "stratified", "antithetic")

SHIFT_SHARE = 0.125
CUTOUT_SHARE = 0.5
RATIO_LOW, RATIO_HIGH = 0.8, 1.2


class Draws(NamedTuple):
    """What is random in R views of each of B images of side S; every field is (B, R).

    Attributes:
      brightness, saturation, contrast: uniform on [0, 1); 0.5 changes nothing.
      shift_rows, shift_cols: pixels by which the picture moves up and left, -s to s with s = int(S / 8 + 1/2).
      side: pixels to which the image is resized, int(ratio · S) for one ratio in [0.8, 1.2) per image; S changes
        nothing.
      cutout_rows, cutout_cols: middle of the black square of k = int(S / 2 + 1/2) pixels, 0 to S - k % 2.
    """

    brightness: jax.Array
    saturation: jax.Array
    contrast: jax.Array
    shift_rows: jax.Array
    shift_cols: jax.Array
    side: jax.Array
    cutout_rows: jax.Array
    cutout_cols: jax.Array


def draw(
    key: jax.Array,
    *,
    num_images: int,
    num_views: int,
    image_size: int,
    policy: str = POLICY,
    spread: str = "independent",
) -> Draws:
    """Draws the augmentations of `num_views` views of each of `num_images` images.

    Every view alone has the same distribution however the views of an image are spread, so that a mean over them stays
    unbiased; what changes is its variance. The side, one for all views of an image, is always drawn on its own.

    Args:
      key: one typed key.
      num_images: B.
      num_views: R, views per image; the paper takes 50.
      image_size: S, pixels a side, at least 2.
      policy: names out of `OPERATIONS`, comma-separated, in that order; what is left out is drawn neutral.
      spread: "independent", the official code's; "stratified", of each number one view in each of R equal strata, in an
        order of its own (a Latin hypercube); or "antithetic", pairs of views with numbers u and 1 - u.

    Raises:
      ValueError: unknown, repeated or differently ordered names; an unknown spread; image_size below 2.

    Source: independent draws are those of the official diffaug; McKay, Beckman and Conover 1979 for the hypercube.
    """
    chosen = _parse_policy(policy)
    checks.check_known("augment: spread", spread, SPREADS)
    if image_size < 2:
        raise ValueError(f"augment: images are {image_size} pixels a side; expected at least 2. Use larger images.")
    shape = (num_images, num_views)
    colour_key, shift_key, side_key, cutout_key = jax.random.split(key, 4)
    colour, shift = jnp.full((3, *shape), 0.5, jnp.float32), jnp.zeros((2, *shape), jnp.int32)
    side = jnp.full(shape, image_size, jnp.int32)
    cutout = jnp.full((2, *shape), -image_size, jnp.int32)
    if "color" in chosen:
        colour = _uniform(colour_key, (3, *shape), spread)
    if "translation" in chosen:
        most = int(image_size * SHIFT_SHARE + 0.5)
        shift = _whole(shift_key, (2, *shape), -most, most, spread)
    if "resize" in chosen:
        uniform = jax.random.uniform(side_key, (num_images, 1), jnp.float32)
        side = jnp.broadcast_to(side_of_draw(uniform, image_size), shape)
    if "cutout" in chosen:
        last = image_size - cutout_size(image_size) % 2
        cutout = _whole(cutout_key, (2, *shape), 0, last, spread)
    return Draws._make([*colour, *shift, side, *cutout])


def _uniform(key: jax.Array, shape: tuple[int, ...], spread: str) -> jax.Array:
    """Numbers on [0, 1), spread over the last axis, of R views."""
    if spread == "independent":
        return jax.random.uniform(key, shape, jnp.float32)
    num_views = shape[-1]
    if spread == "stratified":
        order_key, key = jax.random.split(key)
        order = jax.random.uniform(order_key, shape).argsort(axis=-1)
        values = (order + jax.random.uniform(key, shape, jnp.float32)) / num_views
    else:
        half = jax.random.uniform(key, (*shape[:-1], -(-num_views // 2)), jnp.float32)
        values = jnp.concatenate([half, 1 - half], axis=-1)[..., :num_views]
    return jnp.minimum(values, np.nextafter(np.float32(1), np.float32(0)))  # where rounding gave 1


def _whole(key: jax.Array, shape: tuple[int, ...], first: int, last: int, spread: str) -> jax.Array:
    """Whole numbers from first to last, equally likely, spread over the last axis."""
    if spread == "independent":
        return jax.random.randint(key, shape, first, last + 1, jnp.int32)
    steps = jnp.floor(_uniform(key, shape, spread) * (last - first + 1)).astype(jnp.int32)
    return jnp.minimum(first + steps, last)


def cutout_size(image_size: int) -> int:
    """Side k in pixels of the black square."""
    return int(image_size * CUTOUT_SHARE + 0.5)


def resized_side(uniform: float | np.ndarray, image_size: int) -> np.ndarray:
    """The official rule, in float64 on the host: int(ratio · S), ratio = uniform · (1.2 - 0.8) + 0.8."""
    ratio = np.asarray(uniform, np.float64) * (RATIO_HIGH - RATIO_LOW) + RATIO_LOW
    return (ratio * image_size).astype(np.int64)


def side_of_draw(uniform: jax.Array, image_size: int) -> jax.Array:
    """`resized_side` of traced float32 draws on [0, 1), bit for bit, int32.

    The rule rises with the draw, so it is a staircase. Where each step lies among the float32 numbers is found on the
    host with the float64 rule; counting the steps at or below a draw needs no float64 on the device.
    """
    lowest = int(resized_side(0.0, image_size))
    return lowest + jnp.sum(uniform[..., None] >= _steps(image_size), axis=-1, dtype=jnp.int32)


def _steps(image_size: int) -> np.ndarray:
    """The smallest float32 draw that reaches each side above the lowest; bisects bit patterns, which are in order."""
    sides = np.arange(int(resized_side(0.0, image_size)) + 1, int(resized_side(1.0, image_size)) + 1)
    below = np.zeros(len(sides), np.int32)
    reached = np.full(len(sides), np.float32(1.0).view(np.int32))
    while np.any(reached - below > 1):
        middle = (below + reached) // 2
        reaches = resized_side(middle.view(np.float32), image_size) >= sides
        below, reached = np.where(reaches, below, middle), np.where(reaches, middle, reached)
    return reached.view(np.float32)


def _parse_policy(policy: str) -> list[str]:
    names = [name.strip() for name in policy.split(",") if name.strip()]
    for name in names:
        if name not in OPERATIONS:
            raise ValueError(f"policy: unknown operation {name!r}. {checks.nearest(name, OPERATIONS)}")
    ordered = [name for name in OPERATIONS if name in names]
    if names != ordered:
        raise ValueError(
            f"policy: got {policy!r}; expected each operation once and in order. Use {','.join(ordered)!r}."
        )
    return names
