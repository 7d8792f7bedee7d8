"""SigLIP and SigLIP 2: an image tower and a text tower that share an embedding space, and classifiers on the former.

Fixed sizes interpolate their positions bicubically for other images. SigLIP 2 with flexible sizes ("naflex") fits the
positions to the aspect of the image by an antialiased bilinear filter; what transformers pads and masks is left out.

Source: Zhai et al. 2023 (arXiv 2303.15343), Tschannen et al. 2025 (arXiv 2502.14786), as in transformers (Apache-2.0),
models/siglip and models/siglip2.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from promptgen_jax.models import recipe, vit
from promptgen_jax.models.clip import normalise
from promptgen_jax.models.layers import Dense
from promptgen_jax.models.vit import ACTIVATIONS, Block, layer_norm, mlp, patches, positions
from promptgen_jax.ops import resample
from promptgen_jax.ops.products import einsum, matmul

EPSILON = 1e-6
HALF = (0.5, 0.5, 0.5)


class Encoder(nn.Module):
    """Images to a token a patch.

    Attributes:
      grid: rows and columns of patches that its positions are for.
      flexible: whether positions are fitted as in SigLIP 2 with flexible sizes.
      activation: a key of `vit.ACTIVATIONS`.
      hidden: width inside the blocks.
    """

    grid: tuple[int, int]
    patch_size: int
    width: int
    layers: int
    heads: int
    hidden: int
    activation: str = "gelu_pytorch_tanh"
    flexible: bool = False

    @nn.compact
    def __call__(self, pixels) -> jax.Array:
        """Tokens (B, N, width) of normalised pixels (B, H, W, 3). Raises ValueError for less than a patch."""
        x = Dense(self.width, name="patch")(patches(pixels, self.patch_size))
        table = (math.prod(self.grid), self.width)
        table = self.param("positional_embedding", nn.initializers.normal(self.width**-0.5), table)
        wanted = tuple(side // self.patch_size for side in pixels.shape[1:3])
        linear = functools.partial(resample.filter_matrix, name="bilinear")
        x = x + positions(table, self.grid, wanted, linear if self.flexible else resample.bicubic_matrix)
        for index in range(self.layers):
            x = Block(self.heads, False, self.activation, self.hidden, EPSILON, name=f"block{index}")(x)
        return layer_norm("ln_post", EPSILON)(x)


class Pooling(nn.Module):
    """One token that attends to all others, and an MLP on it."""

    heads: int
    hidden: int
    activation: str

    @nn.compact
    def __call__(self, x):
        """Maps (B, N, width) to (B, width)."""
        batch, length, width = x.shape
        probe = self.param("probe", nn.initializers.normal(0.02), (width,))
        kernel = self.param("in_kernel", nn.initializers.lecun_normal(), (width, 3 * width))
        bias = self.param("in_bias", nn.initializers.zeros, (3 * width,))
        query = matmul(probe, kernel[:, :width]) + bias[:width]
        keys, values = jnp.split(matmul(x, kernel[:, width:]) + bias[width:], 2, axis=-1)
        query = query.reshape(self.heads, -1)
        keys, values = (part.reshape(batch, length, *query.shape) for part in (keys, values))
        scores = einsum("hd,bkhd->bhk", query, keys).astype(jnp.float32) * query.shape[1] ** -0.5
        mixed = einsum("bhk,bkhd->bhd", nn.softmax(scores).astype(x.dtype), values)
        x = Dense(width, name="out")(mixed.reshape(batch, width))
        return x + mlp(layer_norm("ln", EPSILON)(x), self.hidden, self.activation)


class VisionTower(nn.Module):
    """Images to features.

    Attributes:
      encoder: options of `Encoder`, in their order.
      image_size: side in pixels of the images that a control shows it.
      mean, std: of the colours.
    """

    encoder: tuple
    image_size: int
    mean: tuple[float, ...] = HALF
    std: tuple[float, ...] = HALF

    @nn.compact
    def __call__(self, images) -> dict[str, jax.Array]:
        """{"embedding": (B, width)}, not normalised, of images (B, H, W, 3) in [0, 1]."""
        pixels = (images - jnp.asarray(self.mean, images.dtype)) / jnp.asarray(self.std, images.dtype)
        encoder = Encoder(*self.encoder, name="encoder")
        pooling = Pooling(encoder.heads, encoder.hidden, encoder.activation, name="pooling")
        return {"embedding": pooling(encoder(pixels))}


class TextTower(nn.Module):
    """Token ids to features, read at the last id, which may be padding.

    Attributes:
      vocab_size: number of token ids.
      context_length: ids per text, padding included.
      hidden: width inside the blocks.
      embed_dim: of the features.
    """

    vocab_size: int
    context_length: int
    width: int
    layers: int
    heads: int
    hidden: int
    embed_dim: int
    activation: str = "gelu_pytorch_tanh"

    @nn.compact
    def __call__(self, tokens, mask=None) -> jax.Array:
        """Features (B, embed_dim), not normalised, of token ids (B, context_length).

        Args:
          tokens: (B, context_length).
          mask: (B, context_length), False at padding that the tokenizer asks not to attend to, or None.

        Raises:
          ValueError: rows of another length.
        """
        if tokens.shape[1:] != (self.context_length,):
            raise ValueError(
                f"TextTower: tokens are {tokens.shape}; expected (batch, {self.context_length}). Use the tokenizer of "
                "the model, padded to this length."
            )
        x = nn.Embed(self.vocab_size, self.width, name="token_embedding")(tokens)
        x = x + self.param("positional_embedding", nn.initializers.normal(0.01), x.shape[1:])
        for index in range(self.layers):
            x = Block(self.heads, False, self.activation, self.hidden, EPSILON, name=f"block{index}")(x, mask)
        return Dense(self.embed_dim, name="projection")(layer_norm("ln_final", EPSILON)(x)[:, -1])


class SigLIP(nn.Module):
    """Both towers, with the scale and the bias of their logits. Attributes as in the towers."""

    image_size: int
    grid: tuple[int, int]
    patch_size: int
    vision_width: int
    vision_layers: int
    vision_heads: int
    vision_hidden: int
    vision_activation: str
    flexible: bool
    vocab_size: int
    context_length: int
    text_width: int
    text_layers: int
    text_heads: int
    text_hidden: int
    text_activation: str
    embed_dim: int
    mean: tuple[float, ...] = HALF
    std: tuple[float, ...] = HALF

    @nn.nowrap
    def vision_tower(self) -> VisionTower:
        """The image tower on its own; its parameters are those under `vision`."""
        encoder = (
            *(self.grid, self.patch_size, self.vision_width, self.vision_layers, self.vision_heads),
            *(self.vision_hidden, self.vision_activation, self.flexible),
        )
        return VisionTower(encoder, self.image_size, self.mean, self.std, parent=None)

    @nn.nowrap
    def text_tower(self) -> TextTower:
        """The text tower on its own; its parameters are those under `text`."""
        return TextTower(
            vocab_size=self.vocab_size,
            context_length=self.context_length,
            width=self.text_width,
            layers=self.text_layers,
            heads=self.text_heads,
            hidden=self.text_hidden,
            embed_dim=self.embed_dim,
            activation=self.text_activation,
            parent=None,
        )

    def setup(self):
        """Both towers, as `vision` and `text`."""
        self.vision = self.vision_tower()
        self.text = self.text_tower()
        self.logit_scale = self.param("logit_scale", nn.initializers.zeros, (1,))
        self.logit_bias = self.param("logit_bias", nn.initializers.zeros, (1,))

    def __call__(self, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
        """Logits (B, T) of every image with every text: exp(logit_scale) · cosine + logit_bias.

        Args:
          batch: images (B, H, W, 3) in [0, 1], and token ids (T, context_length).
        """
        images, tokens = batch
        cosines = normalise(self.vision(images)["embedding"]) @ normalise(self.text(tokens)).T
        return jnp.exp(self.logit_scale) * cosines + self.logit_bias

    @nn.nowrap
    def example(self) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
        """Shapes of a batch of one image and one text, to initialise the module with."""
        images = jax.ShapeDtypeStruct((1, self.image_size, self.image_size, 3), jnp.float32)
        return images, jax.ShapeDtypeStruct((1, self.context_length), jnp.int32)


class Classifier(nn.Module):
    """A dense layer on the mean of the tokens.

    Attributes:
      encoder: options of `Encoder`, in their order.
      num_labels: K.
    """

    encoder: tuple
    num_labels: int

    @nn.compact
    def __call__(self, pixels) -> dict[str, jax.Array]:
        """Logits {"label": (B, K)}, and the features of images beside texts {"embedding": (B, width)}.

        Args:
          pixels: normalised, (B, H, W, 3).
        """
        encoder = Encoder(*self.encoder, name="encoder")
        tokens = encoder(pixels)
        embedding = Pooling(encoder.heads, encoder.hidden, encoder.activation, name="pooling")(tokens)
        return {"label": Dense(self.num_labels, name="head")(jnp.mean(tokens, axis=1)), "embedding": embedding}


def _vision_options(config) -> tuple[tuple, int]:
    """Options of `Encoder` in order, and the side of the images. Raises ValueError naming what is not computed."""
    flexible = config.model_type.startswith("siglip2")
    computed = {"hidden_act": tuple(ACTIVATIONS), "num_channels": (3,), "layer_norm_eps": (EPSILON,)}
    recipe.refuse(config, **computed, vision_use_head=(True,))
    size = recipe.side("patch_size", config.patch_size)
    rows = math.isqrt(config.num_patches) if flexible else recipe.side("image_size", config.image_size) // size
    width, layers, heads = config.hidden_size, config.num_hidden_layers, config.num_attention_heads
    options = ([rows, rows], size, width, layers, heads, config.intermediate_size, config.hidden_act, flexible)
    return options, rows * size


def options_of(config) -> dict[str, Any]:
    """Options of `SigLIP` from transformers' SiglipConfig or Siglip2Config.

    Raises:
      ValueError: names what is not computed here.
    """
    text = config.text_config
    recipe.refuse(text, hidden_act=tuple(ACTIVATIONS), layer_norm_eps=(EPSILON,))
    (grid, size, width, layers, heads, hidden, activation, flexible), image_size = _vision_options(config.vision_config)
    return {
        "image_size": image_size,
        "grid": grid,
        "patch_size": size,
        "vision_width": width,
        "vision_layers": layers,
        "vision_heads": heads,
        "vision_hidden": hidden,
        "vision_activation": activation,
        "flexible": flexible,
        "vocab_size": text.vocab_size,
        "context_length": text.max_position_embeddings,
        "text_width": text.hidden_size,
        "text_layers": text.num_hidden_layers,
        "text_heads": text.num_attention_heads,
        "text_hidden": text.intermediate_size,
        "text_activation": text.hidden_act,
        "embed_dim": text.projection_size,
    }


def classifier_options_of(config) -> dict[str, Any]:
    """Options of `Classifier` from the same. Raises ValueError naming what is not computed here."""
    options, _ = _vision_options(config.vision_config)
    return {"encoder": list(options), "num_labels": config.num_labels}


def _vision_recipe(target: str, layers: int, flexible: bool) -> dict[str, recipe.Part]:
    """`Encoder` and `Pooling` under a target, which ends with a slash or is empty."""
    patch = "vision_model.embeddings.patch_embedding"
    pooling, head = f"{target}pooling", "vision_model.head"
    parts = {
        f"{target}encoder/patch": recipe.dense(patch) if flexible else recipe.patches(patch),
        f"{target}encoder/positional_embedding": recipe.keep("vision_model.embeddings.position_embedding.weight"),
        f"{target}encoder/ln_post": recipe.layer_norm("vision_model.post_layernorm"),
        f"{pooling}/probe": recipe.Part((f"{head}.probe",), np.ravel),
        f"{pooling}/in_kernel": recipe.Part((f"{head}.attention.in_proj_weight",), np.transpose),
        f"{pooling}/in_bias": recipe.keep(f"{head}.attention.in_proj_bias"),
        f"{pooling}/out": recipe.dense(f"{head}.attention.out_proj"),
        f"{pooling}/ln": recipe.layer_norm(f"{head}.layernorm"),
        f"{pooling}/mlp_in": recipe.dense(f"{head}.mlp.fc1"),
        f"{pooling}/mlp_out": recipe.dense(f"{head}.mlp.fc2"),
    }
    for index in range(layers):
        source = f"vision_model.encoder.layers.{index}"
        parts |= vit.block_recipe(f"{target}encoder/block{index}", source, vit.CLIP_BLOCK)
    return parts


def siglip_recipe(options: dict[str, Any]) -> dict[str, recipe.Part]:
    """`SigLIP` of these options."""
    parts = {
        **_vision_recipe("vision/", options["vision_layers"], options["flexible"]),
        "text/token_embedding/embedding": recipe.keep("text_model.embeddings.token_embedding.weight"),
        "text/positional_embedding": recipe.keep("text_model.embeddings.position_embedding.weight"),
        "text/ln_final": recipe.layer_norm("text_model.final_layer_norm"),
        "text/projection": recipe.dense("text_model.head"),
        "logit_scale": recipe.keep("logit_scale"),
        "logit_bias": recipe.keep("logit_bias"),
    }
    for index in range(options["text_layers"]):
        parts |= vit.block_recipe(f"text/block{index}", f"text_model.encoder.layers.{index}", vit.CLIP_BLOCK)
    return parts


def classifier_recipe(options: dict[str, Any]) -> dict[str, recipe.Part]:
    """`Classifier` of these options."""
    layers, flexible = options["encoder"][3], options["encoder"][-1]
    return {**_vision_recipe("", layers, flexible), "head": recipe.dense("classifier")}
