"""What the image processors of transformers do, on images (B, H, W, 3) in [0, 1] and differentiable.

They resize, crop, rescale and normalise 8-bit images. Here nothing is rounded to 8 bits, and what overshoots is kept.
Source: transformers (Apache-2.0), image_processing_backends.py and models/*/image_processing_*.py.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

from promptgen_jax import checks
from promptgen_jax.models import recipe
from promptgen_jax.ops import resample
from promptgen_jax.store import documents, hub

LARGEST = 8192  # pixels a side, and patches, that settings may ask for
WARPED_FROM = 384  # pixels from which ConvNeXt's processor does not crop
# processors whose settings are computed, and those of their settings that are not
KNOWN = {"ViT", "DeiT", "Bit", "CLIP", "ConvNext", "Siglip", "Siglip2"}
NOT_COMPUTED = {"do_pad": (None, False), "do_grayscale": (None, False), "do_flip_channel_order": (None, False)}


class Preprocess(NamedTuple):
    """The way from images in [0, 1] to what a network reads: resized, cropped, (x - mean) / std.

    Attributes:
      rule: "" leaves the size, "exact" resizes to `size`, rows and columns, "shortest" to a shorter side of size[0] at
        the same aspect, "patches" to at most size[1] patches of size[0] pixels at about the same aspect.
      size: of the rule.
      filter: a key of `resample.FILTERS`.
      crop: rows and columns of the middle that is kept, black where the image is smaller; empty for the whole.
      mean: of the colours, 0 to 1.
      std: of the colours.
    """

    rule: str = ""
    size: tuple[int, ...] = ()
    filter: str = "bilinear"
    crop: tuple[int, ...] = ()
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Pixels (B, H', W', 3) of images (B, H, W, 3)."""
        if self.rule:
            images = resample.resize(images, self.resized(*images.shape[1:3]), self.filter)
        if self.crop:
            images = _center_crop(images, self.crop)
        return (images - jnp.asarray(self.mean, images.dtype)) / jnp.asarray(self.std, images.dtype)

    def resized(self, height: int, width: int) -> tuple[int, ...]:
        """Rows and columns that an image has after the rule, before the crop."""
        if self.rule == "exact":
            return self.size
        if self.rule == "shortest":
            short, long = sorted((height, width))
            other = int(self.size[0] * long / short)
            return (self.size[0], other) if height <= width else (other, self.size[0])
        if self.rule == "patches":
            return _within_patches(height, width, *self.size)
        return height, width

    def without_colours(self) -> Preprocess:
        """The same sizes, colours as they are."""
        return self._replace(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))

    @classmethod
    def from_json(cls, values: dict) -> Preprocess:
        """From an entry of config.json."""
        fields: dict = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        return cls(**fields)

    def to_json(self) -> dict:
        """As an entry of config.json."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in self._asdict().items()}


def read(folder: str | Path, **settings) -> Preprocess:
    """What the image processor of a folder of transformers does.

    Args:
      folder: with a preprocessor_config.json.
      **settings: entries of it that differ, e.g. `do_resize=False` or `size={"height": 96, "width": 96}`.

    Raises:
      FileNotFoundError: no such file.
      ValueError: damaged, an unknown setting, or one that is not computed here, named.
    """
    from transformers import AutoImageProcessor

    path = Path(folder) / hub.PROCESSORS[0]
    if not any((Path(folder) / name).is_file() for name in hub.PROCESSORS):
        raise FileNotFoundError(
            f"{folder}: no {path.name}. It says how images are resized and normalised. Download it too, or write one."
        )
    what, advice = "not settings that transformers reads", "Download them again."
    with documents.one_sentence(path, what, advice=advice, foreign=True):
        processor = AutoImageProcessor.from_pretrained(str(folder), local_files_only=True)
        changed = AutoImageProcessor.from_pretrained(str(folder), local_files_only=True, **settings)
    for name in settings:
        checks.check_known(f"{folder}: setting", name, processor.to_dict())
    with documents.one_sentence(path, "not settings that can be computed here", advice="Use another model."):
        way = of_processor(changed)
        if not all(0 < side <= LARGEST for side in (*way.size, *way.crop)):
            raise ValueError(f"{path}: asks for images of {way.size or way.crop}; expected 1 to {LARGEST}. {advice}")
        return way


def of_processor(processor) -> Preprocess:
    """What an image processor of transformers does. Raises ValueError naming a setting that is not computed here."""
    kind = type(processor).__name__.removesuffix("Pil").removesuffix("Fast").removesuffix("ImageProcessor")
    if kind not in KNOWN:
        names = ", ".join(f"{name}ImageProcessor" for name in sorted(KNOWN))
        raise ValueError(f"{type(processor).__name__} is not computed here; expected {names}. Use another model.")
    recipe.refuse(processor, **NOT_COMPUTED)
    crop = getattr(processor, "crop_size", None) if getattr(processor, "do_center_crop", None) else None
    crop = (crop["height"], crop["width"]) if crop else ()
    rule, size, crop = _resizing(kind, processor, crop) if processor.do_resize else ("", (), crop)
    scale = 255 * processor.rescale_factor if processor.do_rescale else 255.0
    mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else (0.0, 1.0)
    return Preprocess(
        rule=rule,
        size=size,
        filter=list(resample.FILTERS)[int(processor.resample)],
        crop=crop,
        mean=tuple(value / scale for value in _three(mean)),
        std=tuple(value / scale for value in _three(std)),
    )


def _resizing(kind: str, processor, crop: tuple[int, ...]) -> tuple[str, tuple[int, ...], tuple[int, ...]]:
    """Rule, its size, and crop."""
    if kind == "Siglip2":
        return "patches", (processor.patch_size, processor.max_num_patches), ()
    size = {name: value for name, value in dict(processor.size).items() if value is not None}
    if kind == "ConvNext" and size.keys() == {"shortest_edge"}:
        side = size["shortest_edge"]
        if side >= WARPED_FROM:
            return "exact", (side, side), crop
        return "shortest", (int(side / processor.crop_pct),), (side, side)
    if size.keys() == {"height", "width"}:
        return "exact", (size["height"], size["width"]), crop
    if size.keys() == {"shortest_edge"}:
        return "shortest", (size["shortest_edge"],), crop
    raise ValueError(
        f"size is {size}, which is not computed here; expected height and width, or shortest_edge. Pass another size."
    )


def _three(values) -> tuple[float, ...]:
    return tuple(map(float, values)) if isinstance(values, (list, tuple)) else (float(values),) * 3


def _center_crop(images: jax.Array, crop: tuple[int, ...]) -> jax.Array:
    missing = [max(wanted - side, 0) for wanted, side in zip(crop, images.shape[1:3], strict=True)]
    if any(missing):
        images = jnp.pad(images, ((0, 0), *((part // 2, -(-part // 2)) for part in missing), (0, 0)))
    top, left = ((side - wanted) // 2 for wanted, side in zip(crop, images.shape[1:3], strict=True))
    return images[:, top : top + crop[0], left : left + crop[1]]


def _within_patches(height: int, width: int, patch_size: int, most: int) -> tuple[int, ...]:
    """The largest multiples of a patch, of about the same aspect, with at most so many patches, by bisection."""

    def scaled(scale: float) -> tuple[int, ...]:
        return tuple(max(1, math.ceil(side * scale / patch_size)) for side in (height, width))

    low, high = 1e-6, 100.0
    while high - low >= 1e-5:
        middle = (low + high) / 2
        low, high = (middle, high) if math.prod(scaled(middle)) <= most else (low, middle)
    rows, columns = scaled(low)
    return rows * patch_size, columns * patch_size
