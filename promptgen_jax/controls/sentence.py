"""CLIP energy (Eq. 3) whose text is the condition: cosine distance between image and the sentence that is asked for."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
from flax import struct

from promptgen_jax import checks
from promptgen_jax.models import clip
from promptgen_jax.models.network import Network, load_network
from promptgen_jax.ops import augment
from promptgen_jax.ops.views import mean_views
from promptgen_jax.types import Array, Sample, Spec, spec_field


@struct.dataclass
class SentenceControl:
    """E(x, c) = 1/R Σ_r [1 - cos(CLIP_image(view_r(x)), c)], with c the embedding of a sentence, the condition.

    Attributes:
      network: the image tower, whose text tower embeds the sentences.
      num_augmentations: R.
      policy, antialias, chunk: as in `controls.clip.ClipControl`.
    """

    network: Network
    weight: float
    name: str = struct.field(pytree_node=False)
    num_augmentations: int = struct.field(pytree_node=False)
    policy: str = struct.field(pytree_node=False)
    antialias: bool = struct.field(pytree_node=False)
    chunk: int = struct.field(pytree_node=False)
    needs_reference: bool = struct.field(pytree_node=False, default=False)
    spec: Spec | None = spec_field()

    @property
    def networks(self) -> tuple[Network, ...]:
        """The network that it is made of."""
        return (self.network,)

    def __call__(self, key: Array, sample: Sample) -> Array:
        """Energies (B,) in [0, 2], no unit; 0 is a perfect match.

        Args:
          key: draws the augmentations.
          sample: uses `images`, (B, S, S, 3) in [0, 1], and `cond`, (B, E) of unit length.

        Raises:
          ValueError, TypeError: images of another shape, dtype or range; no condition.
        """
        checks.check_images(self.name, sample.images, minimum_size=2)
        if sample.cond is None:
            raise ValueError(
                f"control {self.name}: condition is none; expected embeddings of sentences. Give the LatentEBM "
                "pg.Sentences.embedded([...]), in a config `condition`."
            )
        batch, image_size = sample.images.shape[:2]
        draws = augment.draw(
            key, num_images=batch, num_views=self.num_augmentations, image_size=image_size, policy=self.policy
        )
        if self.antialias and not self.policy.strip(", "):  # as the network sees the image on its own
            return _energies((self, sample.cond), sample.images)
        views = {"size": self.network.module.image_size, "antialias": self.antialias, "chunk": self.chunk}
        return mean_views(_energies, (self, sample.cond), draws, sample.images, **views)


def _energies(control_and_cond: tuple[SentenceControl, Array], views: Array) -> Array:
    """Energies (N,) of views (N, size, size, 3), as many one after the other of each of the conditions (B, E)."""
    control, cond = control_and_cond
    features = clip.normalise(control.network(views)["embedding"])
    if features.shape[1] != cond.shape[1]:
        raise ValueError(
            f"control {control.name}: condition has {cond.shape[1]} numbers; expected {features.shape[1]}, as "
            f"{control.network.name} embeds. Embed the sentences with that network."
        )
    each = features.reshape(len(cond), -1, features.shape[1])
    return (1 - jnp.einsum("bre,be->br", each, cond, precision="highest")).reshape(-1)


def build(
    *,
    network: str | Path | Network = "tinyclip_faces",
    weight: float = 1.0,
    num_augmentations: int = 50,
    policy: str = augment.POLICY,
    antialias: bool = False,
    chunk: int = 10,
    name: str = "text",
    precision: str = "",
) -> SentenceControl:
    """Loads the image tower of a converted CLIP; which sentence is meant, the condition says.

    Args:
      network: name under ported_weights, a folder, or "owner/name" on the Hugging Face Hub, of a CLIP, SigLIP or
        SigLIP 2: the same that embeds the sentences of the conditions.
      weight: lambda.
      num_augmentations: views per image, 50 in the paper.
      policy: comma-separated augmentations, "" for none; all of the official ones by default.
      antialias: whether to smooth before shrinking to the size of CLIP.
      chunk: most views of one image in memory at a time; changes nothing but memory and speed.
      name: of the control.
      precision: of the network's products, see `load_network`.

    Raises:
      FileNotFoundError, ValueError: unknown or damaged weights, or that embed nothing; options out of range.
    """
    where = f"control {name}"
    checks.check_count(f"{where}: num_augmentations", num_augmentations)
    checks.check_count(f"{where}: chunk", chunk)
    augment.draw(jax.random.key(0), num_images=1, num_views=1, image_size=2, policy=policy)  # an unknown policy raises
    return SentenceControl(
        network=load_network(network, precision=precision).that_returns("embedding"),
        weight=jnp.float32(weight),
        name=name,
        num_augmentations=num_augmentations,
        policy=policy,
        antialias=antialias,
        chunk=chunk,
    )


def tiny() -> SentenceControl:
    """One for tests: faces of the shipped small CLIP, two views of each."""
    return build(num_augmentations=2, chunk=2)
