"""CLIP energy (Eq. 3 of the paper): cosine distance between image and text, averaged over augmented views."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from promptgen_jax import checks
from promptgen_jax.models import clip
from promptgen_jax.models.network import Network, image_tower, in_precision, load_params
from promptgen_jax.models.texts import Texts, folder_of
from promptgen_jax.ops import augment
from promptgen_jax.ops.views import map_views, mean_views
from promptgen_jax.types import SILENT, Array, Sample, Spec, spec_field


class Recipe(NamedTuple):
    """How views are spent.

    Attributes:
      num_augmentations: views of each image.
      spread: how they are drawn, as in `augment.draw`.
    """

    num_augmentations: int
    spread: str


RECIPES = {"paper": Recipe(50, "independent"), "fast": Recipe(12, "stratified")}


@struct.dataclass
class ClipControl:
    """E(x) = 1/R Σ_r Σ_t w_t [1 - cos(CLIP_image(view_r(x)), CLIP_text(t))].

    Several CLIP models are several controls; the official clip_model_weights are their weights.

    Attributes:
      network: the image tower; the text tower has done its work when the control is built.
      text_features: (T, E) of unit length.
      text_weights: (T,) w_t.
      num_augmentations: R.
      policy, antialias: as in `ops.augment`.
      chunk: most views of one image in memory at a time.
      recipe: a name in `RECIPES`, which says how views are drawn.
    """

    network: Network
    text_features: Array = struct.field(repr=False)
    text_weights: Array
    weight: float
    name: str = struct.field(pytree_node=False)
    num_augmentations: int = struct.field(pytree_node=False)
    policy: str = struct.field(pytree_node=False)
    antialias: bool = struct.field(pytree_node=False)
    chunk: int = struct.field(pytree_node=False)
    recipe: str = struct.field(pytree_node=False, default="paper", metadata={SILENT: True})
    needs_reference: bool = struct.field(pytree_node=False, default=False)
    spec: Spec | None = spec_field()

    @property
    def exact(self) -> bool:
        """Whether it sees the image as its network does on its own: not augmented, and smoothed when it shrinks."""
        return self.antialias and not self.policy.strip(", ")

    @property
    def networks(self) -> tuple[Network, ...]:
        """The network that it is made of."""
        return (self.network,)

    def __call__(self, key: Array, sample: Sample) -> Array:
        """Energies (B,) in [0, 2] for text weights that add up to 1, no unit; 0 is a perfect match.

        Args:
          key: draws the augmentations, also in evaluation, as the official code does.
          sample: uses `images`, (B, S, S, 3) in [0, 1].

        Raises:
          ValueError, TypeError: images of another shape, dtype or range.

        Source: arXiv 2209.06970, Eq. 3, and the official model/energy/clip_guide.py.
        """
        checks.check_images(self.name, sample.images, minimum_size=2)
        batch, image_size = sample.images.shape[:2]
        draws = augment.draw(
            key,
            num_images=batch,
            num_views=self.num_augmentations,
            image_size=image_size,
            policy=self.policy,
            spread=RECIPES[self.recipe].spread,
        )
        return self.mean_energies(draws, sample.images)

    def mean_energies(self, draws: augment.Draws, images: Array) -> Array:
        """Energies (B,), means over the views of given draws of the augmentations, as `view_energies`."""
        if self.exact:
            return _energies(self, images)
        return mean_views(_energies, self, draws, images, **self._views())

    def view_energies(self, draws: augment.Draws, images: Array) -> Array:
        """Energies (B, R) of every view, for given draws of the augmentations.

        Args:
          draws: fields (B, R).
          images: (B, S, S, 3) in [0, 1].
        """
        if self.exact:
            return jnp.broadcast_to(_energies(self, images)[:, None], draws.side.shape)
        return map_views(functools.partial(_energies, self), draws, images, **self._views())

    def _views(self) -> dict[str, Any]:
        """How views are made."""
        return {"size": self.network.module.image_size, "antialias": self.antialias, "chunk": self.chunk}


def _energies(control: ClipControl, views: Array) -> Array:
    """Energies (N,) of views (N, size, size, 3)."""
    features = clip.normalise(control.network(views)["embedding"])
    cosines = jnp.einsum("ne,te->nt", features, control.text_features, precision="highest")
    return jnp.sum((1 - cosines) * control.text_weights, axis=1)


def build(
    *,
    network: str | Path | Towers,
    text: str | Sequence[str],
    text_weights: Sequence[float] = (),
    weight: float = 1.0,
    recipe: str = "paper",
    num_augmentations: int | None = None,
    policy: str = augment.POLICY,
    antialias: bool = False,
    chunk: int = 10,
    name: str = "",
    precision: str = "",
) -> ClipControl:
    """Loads a converted CLIP, embeds the text once, and keeps the image tower only.

    Args:
      network: name under ported_weights (`clip_vit_b32`), a folder, ours or of transformers, or "owner/name" on the
        Hugging Face Hub, of a CLIP, SigLIP or SigLIP 2; or what `load_towers` returns of one.
      text: what to see, in words, or several such texts.
      text_weights: of several texts; equal and adding up to 1 if left out.
      weight: lambda; the paper's experiments on StyleGAN2 take 500 to 1,000.
      recipe: how views are spent. "paper": 50 of each image, drawn one by one; "fast": 12 that are spread evenly over
        what can be drawn, of the same mean, for about a quarter of the arithmetic and with more noise; what trainings
        reach with either is in docs/performance.md.
      num_augmentations: views per image, in place of the recipe's.
      policy: comma-separated augmentations, "" for none; all of the official ones by default.
      antialias: whether to smooth before shrinking to the size of CLIP; the official code did not. With policy "" the
        images then go in exactly as the preprocessor_config.json of a model of transformers says.
      chunk: most views of one image in memory at a time; changes nothing but memory and speed.
      name: of the control; the first text if left out.
      precision: of the network's products, see `load_network`.

    Raises:
      FileNotFoundError, ValueError, TypeError: unknown or damaged weights, or weights of another kind; a text that is
        empty or too long; options out of range.
    """
    texts = (text,) if isinstance(text, str) else tuple(text)
    where = f"control {name or 'clip'}"
    if not texts or not all(isinstance(one, str) and one.strip() for one in texts):
        raise ValueError(f"{where}: text is {text!r}; expected words, or several texts. Say what you want to see.")
    checks.check_known(f"{where}: recipe", recipe, RECIPES)
    if num_augmentations is None:
        num_augmentations = RECIPES[recipe].num_augmentations
    checks.check_count(f"{where}: num_augmentations", num_augmentations)
    checks.check_count(f"{where}: chunk", chunk)
    augment.draw(jax.random.key(0), num_images=1, num_views=1, image_size=2, policy=policy)  # an unknown policy raises
    shares = np.asarray(text_weights, np.float32) if len(text_weights) else np.full(len(texts), 1 / len(texts), "f4")
    if shares.shape != (len(texts),) or not np.all(np.isfinite(shares)):
        raise ValueError(f"{where}: text_weights are {text_weights!r}; expected {len(texts)} numbers, one per text.")
    tower, text_features = load_clip(network, texts)
    return ClipControl(
        network=in_precision(tower, precision),
        text_features=text_features,
        text_weights=jnp.asarray(shares),
        weight=jnp.float32(weight),
        name=name or texts[0],
        num_augmentations=num_augmentations,
        policy=policy,
        antialias=antialias,
        chunk=chunk,
        recipe=recipe,
    )


@dataclasses.dataclass(frozen=True)
class Towers:
    """Both towers of a CLIP or SigLIP, with its config, to be loaded once for several controls."""

    module: nn.Module
    tree: dict = dataclasses.field(repr=False)
    config: dict = dataclasses.field(repr=False)
    folder: Path

    @property
    def name(self) -> str:
        """Of the weights."""
        return self.config["name"]

    @property
    def checksum(self) -> str:
        """Of the weights."""
        return self.config["sha256"]

    @property
    def texts(self) -> Texts:
        """The text tower."""
        return Texts(self.module, self.tree["text"], self.config, self.folder)


def load_towers(name_or_path: str | Path) -> Towers:
    """Both towers of a CLIP or SigLIP.

    Raises:
      FileNotFoundError, ValueError: as `network.load_params`.
    """
    module, tree, config = load_params(name_or_path, kind="clip", example=lambda module: module.example())
    return Towers(module, tree, config, folder_of(name_or_path))


def load_clip(network: str | Path | Towers, texts: Sequence[str]) -> tuple[Network, Array]:
    """The image tower of a CLIP or SigLIP, and the features (T, E) of texts, of unit length.

    Args:
      network: as in `build`.
      texts: T of them.

    Raises:
      FileNotFoundError, ValueError, TypeError: as `load_towers` and `Texts.embed`; a network that is no CLIP.
    """
    if isinstance(network, Network):
        raise TypeError(
            f"control clip: network {network.name} is no CLIP. Give a name, or what clip.load_towers returns."
        )
    both = network if isinstance(network, Towers) else load_towers(network)
    return image_tower(both.module, both.tree, both.config), both.texts.embed(texts)
