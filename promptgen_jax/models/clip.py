"""CLIP with vision transformers: an image tower and a text tower that share an embedding space.

All sizes are options, so one module serves every published ViT and small ones trained from scratch. The towers are
modules of their own: a control carries the image tower only.

Source: Radford et al. 2021 (arXiv 2103.00020), openai/CLIP (MIT), clip/model.py.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from promptgen_jax.models import recipe, vit
from promptgen_jax.models.layers import MAPS, Dense
from promptgen_jax.models.vit import ACTIVATIONS, Block, layer_norm, patches, positions

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
      image_size: side of the images in pixels that its positions are for, a multiple of `patch_size`.
      heads: attention heads, width / 64 in every published model.
      activation: "quick_gelu", as OpenAI's models, or another key of `vit.ACTIVATIONS`.
      hidden: width inside the blocks, 0 for four times the width.
      mean, std: of the colours.
    """

    image_size: int
    patch_size: int
    width: int
    layers: int
    heads: int
    embed_dim: int
    activation: str = "quick_gelu"
    hidden: int = 0
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD

    @nn.compact
    def __call__(self, images) -> dict[str, jax.Array]:
        """Reads images (B, H, W, 3) in [0, 1]; positions are interpolated for another size than `image_size`.

        Returns:
          embedding: (B, embed_dim), not normalised.

        Raises:
          ValueError: images smaller than a patch.
        """
        pixels = (images - jnp.asarray(self.mean, images.dtype)) / jnp.asarray(self.std, images.dtype)
        x = Dense(self.width, use_bias=False, name="patch")(patches(pixels, self.patch_size))
        start = self.param("class_embedding", nn.initializers.normal(self.width**-0.5), (self.width,))
        x = jnp.concatenate([jnp.broadcast_to(start, (x.shape[0], 1, self.width)), x], axis=1)
        rows = self.image_size // self.patch_size
        table = (1 + rows * rows, self.width)
        table = self.param("positional_embedding", nn.initializers.normal(self.width**-0.5), table)
        x = x + positions(table, (rows, rows), tuple(side // self.patch_size for side in images.shape[1:3]))
        x = layer_norm("ln_pre")(x)
        asked_for_maps = self.is_mutable_collection("intermediates")
        for index in range(self.layers):
            # of the last block's results, the class token's alone are read
            first = 1 if index == self.layers - 1 and not asked_for_maps else None
            x = Block(self.heads, False, self.activation, self.hidden, name=f"block{index}")(x, first=first)
            self.sow("intermediates", MAPS, x[:, 1:])
        return {"embedding": _projection(layer_norm("ln_post")(x[:, 0]), self.embed_dim)}


class TextTower(nn.Module):
    """Token ids to features.

    Attributes:
      vocab_size: number of token ids.
      context_length: ids per text, padding included.
      heads, activation, hidden: as in `VisionTower`.
      end: the id that ends a text; -1 if that is the largest one.
    """

    vocab_size: int
    context_length: int
    width: int
    layers: int
    heads: int
    embed_dim: int
    activation: str = "quick_gelu"
    hidden: int = 0
    end: int = -1

    @nn.compact
    def __call__(self, tokens, mask=None) -> jax.Array:
        """Features (B, embed_dim), not normalised, of token ids (B, context_length).

        They are read at the end of the text, the first if there are several.

        Args:
          tokens: (B, context_length).
          mask: (B, context_length), False at what is padding before a text; what is behind it makes no difference.

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
            x = Block(self.heads, True, self.activation, self.hidden, name=f"block{index}")(x, mask)
        x = layer_norm("ln_final")(x)
        end = jnp.argmax(tokens if self.end < 0 else tokens == self.end, axis=-1)
        return _projection(x[jnp.arange(x.shape[0]), end], self.embed_dim)


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
    vision_hidden: int = 0
    text_hidden: int = 0
    end: int = -1
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD

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
            hidden=self.vision_hidden,
            mean=self.mean,
            std=self.std,
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
            hidden=self.text_hidden,
            end=self.end,
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
    return Dense(embed_dim, use_bias=False, name="projection")(x)


class Layout(NamedTuple):
    """How one publisher names the tensors.

    Attributes:
      arrays: name by target, for what needs no change.
      norms: prefix by target.
      projections: name by target; `transposed` if they are applied from the left.
      patch: the first convolution.
      blocks: prefix of the transformer blocks by tower.
      names: within a block.
      ignored: pattern of names that are not needed.
    """

    arrays: dict[str, str]
    norms: dict[str, str]
    projections: dict[str, str]
    transposed: bool
    patch: str
    blocks: dict[str, str]
    names: vit.BlockNames
    ignored: str


TRANSFORMERS = Layout(
    arrays={
        "logit_scale": "logit_scale",
        "vision/class_embedding": "vision_model.embeddings.class_embedding",
        "vision/positional_embedding": "vision_model.embeddings.position_embedding.weight",
        "text/token_embedding/embedding": "text_model.embeddings.token_embedding.weight",
        "text/positional_embedding": "text_model.embeddings.position_embedding.weight",
    },
    norms={
        "vision/ln_pre": "vision_model.pre_layrnorm",  # spelt so
        "vision/ln_post": "vision_model.post_layernorm",
        "text/ln_final": "text_model.final_layer_norm",
    },
    projections={
        "vision/projection/kernel": "visual_projection.weight",
        "text/projection/kernel": "text_projection.weight",
    },
    transposed=True,
    patch="vision_model.embeddings.patch_embedding",
    blocks={"vision": "vision_model.encoder.layers", "text": "text_model.encoder.layers"},
    names=vit.CLIP_BLOCK,
    ignored=r"(text|vision)_model\.embeddings\.position_ids",
)


def clip_recipe(layout: Layout, layers: dict[str, int]) -> dict[str, recipe.Part]:
    """`CLIP`, from the tensors of a layout.

    Args:
      layout: the names.
      layers: number of blocks by tower.
    """
    parts = {target: recipe.keep(name) for target, name in layout.arrays.items()}
    parts["vision/patch"] = recipe.patches(layout.patch, bias=False)
    for target, name in layout.projections.items():
        parts[target] = recipe.Part((name,), np.transpose) if layout.transposed else recipe.keep(name)
    parts |= {target: recipe.layer_norm(name) for target, name in layout.norms.items()}
    for tower, prefix in layout.blocks.items():
        for index in range(layers[tower]):
            parts |= vit.block_recipe(f"{tower}/block{index}", f"{prefix}.{index}", layout.names)
    return parts


def options_of(config) -> dict[str, Any]:
    """Options of `CLIP` from transformers' CLIPConfig. Raises ValueError naming what is not computed here."""
    vision, text = config.vision_config, config.text_config
    recipe.refuse(vision, hidden_act=tuple(ACTIVATIONS), num_channels=(3,), layer_norm_eps=(1e-5,))
    recipe.refuse(text, hidden_act=(vision.hidden_act,), layer_norm_eps=(1e-5,))
    return {
        "embed_dim": config.projection_dim,
        "image_size": recipe.side("image_size", vision.image_size),
        "patch_size": recipe.side("patch_size", vision.patch_size),
        "vision_width": vision.hidden_size,
        "vision_layers": vision.num_hidden_layers,
        "vision_heads": vision.num_attention_heads,
        "vision_hidden": vision.intermediate_size,
        "vocab_size": text.vocab_size,
        "context_length": text.max_position_embeddings,
        "text_width": text.hidden_size,
        "text_layers": text.num_hidden_layers,
        "text_heads": text.num_attention_heads,
        "text_hidden": text.intermediate_size,
        "activation": vision.hidden_act,
        "end": -1 if text.eos_token_id == 2 else text.eos_token_id,  # 2 was written there by mistake
    }
