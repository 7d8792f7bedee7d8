"""CLIP with vision transformers: an image tower and a text tower that share an embedding space.

All sizes are options, so one module serves every published ViT and small ones trained from scratch. The towers are
modules of their own: a control carries the image tower only.

Source: Radford et al. 2021 (arXiv 2103.00020), openai/CLIP (MIT), clip/model.py.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from promptgen_jax.models.vit import Block, layer_norm, patches

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
LOGIT_SCALE = 2.6592600  # ln(1 / 0.07), where training starts


def normalise(features: jax.Array) -> jax.Array:
    """Features (..., E) at unit length, float32."""
    features = features.astype(jnp.float32)
    return features / jnp.linalg.norm(features, axis=-1, keepdims=True)


class VisionTower(nn.Module):
    """Images to features.

    Attributes:
      image_size: side of the images in pixels, a multiple of `patch_size`.
      heads: attention heads, width / 64 in every published model.
      activation: "quick_gelu", as OpenAI's models, or "gelu".
    """

    image_size: int
    patch_size: int
    width: int
    layers: int
    heads: int
    embed_dim: int
    activation: str = "quick_gelu"

    @nn.compact
    def __call__(self, images) -> dict[str, jax.Array]:
        """Reads images (B, image_size, image_size, 3) in [0, 1].

        Returns:
          embedding: (B, embed_dim), not normalised.

        Raises:
          ValueError: images of another size.
        """
        size = self.image_size
        if images.shape[1:] != (size, size, 3):
            raise ValueError(
                f"VisionTower: images are {images.shape}; expected (batch, {size}, {size}, 3). Resize them first."
            )
        pixels = (images - jnp.asarray(MEAN, images.dtype)) / jnp.asarray(STD, images.dtype)
        x = nn.Dense(self.width, use_bias=False, name="patch")(patches(pixels, self.patch_size))
        start = self.param("class_embedding", nn.initializers.normal(self.width**-0.5), (self.width,))
        x = jnp.concatenate([jnp.broadcast_to(start, (x.shape[0], 1, self.width)), x], axis=1)
        x = x + self.param("positional_embedding", nn.initializers.normal(self.width**-0.5), x.shape[1:])
        x = layer_norm("ln_pre")(x)
        for index in range(self.layers):
            x = Block(self.heads, causal=False, activation=self.activation, name=f"block{index}")(x)
        return {"embedding": _projection(layer_norm("ln_post")(x[:, 0]), self.embed_dim)}


class TextTower(nn.Module):
    """Token ids to features.

    Attributes:
      vocab_size: number of token ids; the largest one ends a text.
      context_length: ids per text, padding included.
      heads, activation: as in `VisionTower`.
    """

    vocab_size: int
    context_length: int
    width: int
    layers: int
    heads: int
    embed_dim: int
    activation: str = "quick_gelu"

    @nn.compact
    def __call__(self, tokens) -> jax.Array:
        """Features (B, embed_dim), not normalised, of token ids (B, context_length).

        They are read at the largest id of each row, the end of the text.

        Raises:
          ValueError: rows of another length.
        """
        if tokens.shape[1:] != (self.context_length,):
            raise ValueError(
                f"TextTower: tokens are {tokens.shape}; expected (batch, {self.context_length}). "
                "Use promptgen_jax.tokenizer.tokenize."
            )
        x = nn.Embed(self.vocab_size, self.width, embedding_init=nn.initializers.normal(0.02), name="token_embedding")(
            tokens
        )
        x = x + self.param("positional_embedding", nn.initializers.normal(0.01), x.shape[1:])
        for index in range(self.layers):
            x = Block(self.heads, causal=True, activation=self.activation, name=f"block{index}")(x)
        x = layer_norm("ln_final")(x)
        return _projection(x[jnp.arange(x.shape[0]), jnp.argmax(tokens, axis=-1)], self.embed_dim)


class CLIP(nn.Module):
    """Both towers, and the logit scale they were trained with. Attributes as in the towers."""

    embed_dim: int
    image_size: int
    patch_size: int
    vision_width: int
    vision_layers: int
    vision_heads: int
    vocab_size: int
    context_length: int
    text_width: int
    text_layers: int
    text_heads: int
    activation: str = "quick_gelu"

    @nn.nowrap
    def vision_tower(self) -> VisionTower:
        """The image tower on its own; its parameters are those under `vision`."""
        return VisionTower(
            image_size=self.image_size,
            patch_size=self.patch_size,
            width=self.vision_width,
            layers=self.vision_layers,
            heads=self.vision_heads,
            embed_dim=self.embed_dim,
            activation=self.activation,
            parent=None,
        )

    @nn.nowrap
    def text_tower(self) -> TextTower:
        """The text tower on its own; its parameters are those under `text`."""
        return TextTower(
            vocab_size=self.vocab_size,
            context_length=self.context_length,
            width=self.text_width,
            layers=self.text_layers,
            heads=self.text_heads,
            embed_dim=self.embed_dim,
            activation=self.activation,
            parent=None,
        )

    def setup(self):
        """Both towers, as `vision` and `text`."""
        self.vision = self.vision_tower()
        self.text = self.text_tower()
        self.logit_scale = self.param("logit_scale", nn.initializers.constant(LOGIT_SCALE), ())

    def __call__(self, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
        """Logits (B, T) of every image with every text: exp(logit_scale) · cosine.

        Args:
          batch: images (B, image_size, image_size, 3) in [0, 1], and token ids (T, context_length).
        """
        images, tokens = batch
        cosines = normalise(self.vision(images)["embedding"]) @ normalise(self.text(tokens)).T
        return jnp.exp(self.logit_scale) * cosines

    @nn.nowrap
    def example(self) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
        """Shapes of a batch of one image and one text, to initialise the module with."""
        images = jax.ShapeDtypeStruct((1, self.image_size, self.image_size, 3), jnp.float32)
        return images, jax.ShapeDtypeStruct((1, self.context_length), jnp.int32)


def _projection(x, embed_dim):
    return nn.Dense(embed_dim, use_bias=False, name="projection")(x)
