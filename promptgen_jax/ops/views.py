"""DiffAugment and CLIP's resize as one separable linear operator per view.

Translation, resize with padding or cropping, and bicubic sampling are linear maps with zero padding, one matrix per
axis; cutout is one minus an outer product; colour is affine in the pixel. So a view is

    c·s·Z + c·(1 - s)·mean_channels(Z) + ((1 - c)·mean(x) + b)·coverage,    Z = A_y x A_xᵀ - C_y x C_xᵀ

with A the whole map, C the same behind the mask of the cutout, coverage the view of an image of ones, and b, s, c the
brightness, saturation and contrast. No augmented copy of the image is ever made at its own size.

Source: model/lib/diffaug of the official repository (Zhao et al., arXiv 2006.10738, with a resize added).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from promptgen_jax.ops import resample
from promptgen_jax.ops.augment import POLICY, Draws, cutout_size, draw


def augmented_views(
    key_or_draws: jax.Array | Draws,
    images: jax.Array,
    *,
    num_views: int = 50,
    policy: str = POLICY,
    size: int | None = 224,
    antialias: bool = False,
) -> jax.Array:
    """Augmented views (B, R, size, size, 3) of images, all in memory at once; see `map_views` for many.

    Args:
      key_or_draws: a key to draw with, or draws with fields (B, R); the latter make `num_views` and `policy` moot.
      images: (B, S, S, 3), nominally in [0, 1], not clamped. 0 is black.
      num_views: R.
      policy: as in `draw`.
      size: pixels a side of a view, by bicubic sampling as in CLIP's preprocessing (whose normalisation is left to
        the caller); None leaves S.
      antialias: as in `resample.bicubic_matrix`.

    Raises:
      ValueError: images that are not square, or as `draw`.
    """
    image_size = _square(images)
    draws = key_or_draws
    if not isinstance(draws, Draws):
        draws = draw(draws, num_images=len(images), num_views=num_views, image_size=image_size, policy=policy)
    return _render(draws, images, _taps(image_size, size, antialias))


def map_views(
    function: Callable[[jax.Array], Any],
    draws: Draws,
    images: jax.Array,
    *,
    size: int | None = 224,
    antialias: bool = False,
    chunk: int = 10,
) -> Any:
    """Applies a function to all views of all images, `chunk` views of each image at a time.

    Only one chunk is in memory, also in the backward pass, which makes every chunk again. Gradients are those of
    `augmented_views` followed by `function`, with respect to images and whatever `function` closes over.

    Args:
      function: views (N, size, size, 3) to one array, or tree of arrays, of (N, ...); independent of the order of
        views. It is called with N = B · (up to chunk).
      draws: fields (B, R).
      images: (B, S, S, 3), nominally in [0, 1], not clamped.
      size: as in `augmented_views`.
      antialias: as in `augmented_views`.
      chunk: most views of one image in memory, at least 1.

    Returns:
      What `function` returns, with (B, R, ...) in place of (N, ...).

    Raises:
      ValueError: images that are not square, or a chunk below 1.
    """
    taps = _taps(_square(images), size, antialias)
    num_images, num_views = draws.side.shape
    parts = _split(draws, chunk)
    num_chunks, _, length = parts.side.shape

    def join(values):
        """(chunks, B · length, ...) to (B, R, ...)."""
        values = values.reshape(num_chunks, num_images, length, *values.shape[2:]).swapaxes(0, 1)
        return values.reshape(num_images, num_chunks * length, *values.shape[3:])[:, :num_views]

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def one_chunk(part):
        views = _render(part, images, taps)
        return function(views.reshape(-1, *views.shape[2:]))

    return jax.tree.map(join, lax.map(one_chunk, parts))


def mean_views(
    function: Callable[[Any, jax.Array], jax.Array],
    weights: Any,
    draws: Draws,
    images: jax.Array,
    *,
    size: int | None = 224,
    antialias: bool = False,
    chunk: int = 10,
) -> jax.Array:
    """Mean (B,) over the R views of every image of a number per view, `chunk` views of each image at a time.

    Where the gradient by images is asked for, each chunk's is taken together with its values: the way back is a
    product, and `function` runs forward once. Where it is not, only values are computed. A gradient by `weights`,
    which frozen networks need not have, makes every chunk again, as `map_views` does. There is no forward-mode
    derivative.

    Args:
      function: of weights and views (N, size, size, 3), to numbers (N,); it closes over no traced array.
      weights: what `function` needs, any pytree.
      draws: as in `map_views`.
      images: as in `map_views`.
      size: as in `augmented_views`.
      antialias: as in `augmented_views`.
      chunk: as in `map_views`.

    Raises:
      ValueError: as `map_views`.
    """
    options = (_square(images), size, antialias, chunk)
    return _mean_views(function, options, weights, draws, images)


def _mean_of_values(function, options, weights, draws, images):
    _, size, antialias, chunk = options
    views = functools.partial(function, weights)
    return jnp.mean(map_views(views, draws, images, size=size, antialias=antialias, chunk=chunk), axis=1)


def _mean_and_gradient(function, options, *primals):
    """The mean (B,), and its gradient by images, or what it takes to make that of everything."""
    weights, draws, images = jax.tree.map(lambda leaf: leaf.value, primals)
    if any(leaf.perturbed for leaf in jax.tree.leaves(primals[:2])):
        return _mean_of_values(function, options, weights, draws, images), (None, (weights, draws, images))
    *resize, chunk = options
    taps, num_views = _taps(*resize), draws.side.shape[1]
    parts = _split(draws, chunk)
    num_chunks, _, length = parts.side.shape
    shares = (np.arange(num_chunks * length) < num_views).reshape(num_chunks, length) / np.float32(num_views)

    def add(total, part_and_share):
        part, share = part_and_share

        def mean(images):
            views = _render(part, images, taps)
            values = function(weights, views.reshape(-1, *views.shape[2:]))
            return jnp.sum(values.reshape(-1, length) * share, axis=1)

        made, pullback = jax.vjp(mean, images)
        return jax.tree.map(jnp.add, total, (made, *pullback(jnp.ones_like(made)))), None

    zero = jnp.where(False, images, 0)  # of the images, so that within `shard_map` every shard has its own
    (mean, gradient), _ = lax.scan(add, (jnp.sum(zero, axis=(1, 2, 3)), zero), (parts, shares))
    return mean, (gradient, None)


def _pull_back(function, options, residuals, cotangent):
    gradient, inputs = residuals
    if inputs is None:
        return None, None, cotangent[:, None, None, None] * gradient
    _, pullback = jax.vjp(functools.partial(_mean_of_values, function, options), *inputs)
    return pullback(cotangent)


_mean_views = jax.custom_vjp(_mean_of_values, nondiff_argnums=(0, 1))
_mean_views.defvjp(_mean_and_gradient, _pull_back, symbolic_zeros=True)


def _split(draws: Draws, chunk: int) -> Draws:
    """Fields (B, R) to (chunks, B, length); the last views are repeated to fill up the last chunk."""
    if chunk < 1:
        raise ValueError(f"views: got chunk={chunk}; expected at least 1. Give the number of views in memory.")
    num_images, num_views = draws.side.shape
    num_chunks = -(-num_views // chunk)
    length = -(-num_views // num_chunks)

    def split(field):
        filled = jnp.pad(field, ((0, 0), (0, num_chunks * length - num_views)), mode="edge")
        return filled.reshape(num_images, num_chunks, length).swapaxes(0, 1)

    return jax.tree.map(split, draws)


def _square(images: jax.Array) -> int:
    """Side of the images."""
    if images.ndim != 4 or images.shape[1] != images.shape[2] or images.shape[3] != 3:
        raise ValueError(f"augment: images are {images.shape}; expected (batch, side, side, 3). Crop them to squares.")
    return images.shape[1]


def _taps(image_size: int, size: int | None, antialias: bool) -> tuple[np.ndarray, np.ndarray]:
    """The pixels (O, K) that each of O output positions reads of the augmented image, and their weights (O, K)."""
    if size is None:
        matrix = np.eye(image_size, dtype=np.float32)
    else:
        matrix = resample.bicubic_matrix(image_size, size, antialias=antialias)
    most = np.max(np.count_nonzero(matrix, axis=1))
    pixels = np.argsort(matrix == 0, axis=1, kind="stable")[:, :most]
    return pixels, np.take_along_axis(matrix, pixels, axis=1)


def _axis_operators(taps, image_size, shift, side, cutout):
    """Both operators along one axis, (B, R, 2, O, S): A, the whole, and C, only what lies behind the cutout."""
    shift, side, cutout = (field[..., None, None] for field in (shift, side, cutout))
    half, square = cutout_size(image_size) // 2, cutout_size(image_size)
    cells = (jnp.arange(image_size) - shift).astype(jnp.float32)
    whole = behind = 0.0
    for pixel, weight in zip(*(part.T[..., None] for part in taps), strict=True):
        # division truncates: a smaller picture is pasted at (S - n) // 2, a larger one cropped from (n - S) // 2
        resized = pixel + lax.div(side - image_size, 2)
        scale = jnp.float32(image_size) / side.astype(jnp.float32)
        source = jnp.clip((resized + 0.5) * scale - 0.5, 0, image_size - 1)
        bilinear = jnp.maximum(1 - jnp.abs(cells - source), 0)
        term = jnp.where((resized >= 0) & (resized < side), weight * bilinear, 0)
        whole = whole + term
        behind = behind + jnp.where((pixel >= cutout - half) & (pixel < cutout - half + square), term, 0)
    return jnp.stack([whole, behind], axis=2)


def _render(draws: Draws, images: jax.Array, taps) -> jax.Array:
    """Views (B, R, O, O, 3) of images (B, S, S, 3)."""
    image_size = images.shape[1]
    rows = _axis_operators(taps, image_size, draws.shift_rows, draws.side, draws.cutout_rows)
    cols = _axis_operators(taps, image_size, draws.shift_cols, draws.side, draws.cutout_cols)
    rows = rows * jnp.array([1.0, -1.0])[:, None, None]
    # t: the two terms A x A' and - C x C'
    half = jnp.einsum("brtoh,bhwc->brtowc", rows, images, precision="highest")
    views = jnp.einsum("brtowc,brtpw->bropc", half, cols, precision="highest")
    coverage = jnp.einsum("brto,brtp->brop", rows.sum(-1), cols.sum(-1), precision="highest")

    brightness, saturation, contrast = (
        field[..., None, None, None] for field in (draws.brightness - 0.5, 2 * draws.saturation, draws.contrast + 0.5)
    )
    # a sum over an axis of 3 is slow on CPUs
    grey = (views[..., :1] + views[..., 1:2] + views[..., 2:]) / 3
    mean = jnp.mean(images, axis=(1, 2, 3))[:, None, None, None, None]
    offset = (1 - contrast) * mean + brightness
    return contrast * (saturation * (views - grey) + grey) + offset * coverage[..., None]
