"""Vision transformers that classify, and the blocks that other transformers are made of too.

Source: Dosovitskiy et al. 2020 (arXiv 2010.11929), as in transformers (Apache-2.0), models/vit, and timm (Apache-2.0),
vision_transformer.py.
"""

from __future__ import annotations

import math
import re
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from promptgen_jax.models import recipe
from promptgen_jax.models.layers import Dense
from promptgen_jax.ops import resample
from promptgen_jax.ops.products import einsum

ACTIVATIONS = {
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "gelu_new": nn.gelu,
    "gelu_pytorch_tanh": nn.gelu,
    "relu": nn.relu,
    "silu": nn.silu,
}


class Attention(nn.Module):
    """Multi-head self-attention; `qkv` makes queries, keys and values in this order."""

    heads: int
    causal: bool = False
    qkv_bias: bool = True

    @nn.compact
    def __call__(self, x, mask=None, first=None):
        """Maps (B, N, width) to (B, first, width). Softmax is float32.

        Args:
          x: (B, N, width).
          mask: (B, N), False where a position is not attended to, or None.
          first: how many positions attend, from the first on; None for all.
        """
        batch, length, width = x.shape
        q, k, v = jnp.split(Dense(3 * width, use_bias=self.qkv_bias, name="qkv")(x), 3, axis=-1)
        q, k, v = (part.reshape(batch, -1, self.heads, width // self.heads) for part in (q[:, :first], k, v))
        scores = einsum("bqhd,bkhd->bhqk", q, k).astype(jnp.float32) * (width // self.heads) ** -0.5
        if self.causal:
            scores = jnp.where(jnp.tri(q.shape[1], length, dtype=bool), scores, -jnp.inf)
        if mask is not None:
            scores = jnp.where(mask[:, None, None, :], scores, jnp.finfo(scores.dtype).min)
        mixed = einsum("bhqk,bkhd->bqhd", nn.softmax(scores).astype(x.dtype), v)
        return Dense(width, name="out")(mixed.reshape(batch, -1, width))


class Block(nn.Module):
    """Pre-norm transformer block: x + attention(ln_1(x)), then x + mlp(ln_2(x))."""

    heads: int
    causal: bool = False
    activation: str = "gelu"
    hidden: int = 0
    epsilon: float = 1e-5
    qkv_bias: bool = True

    @nn.compact
    def __call__(self, x, mask=None, first=None):
        """Maps (B, N, width) to (B, first, width); `mask` and `first` as in `Attention`."""
        attention = Attention(self.heads, self.causal, self.qkv_bias, name="attention")
        x = x[:, :first] + attention(layer_norm("ln_1", self.epsilon)(x), mask, first)
        return x + mlp(layer_norm("ln_2", self.epsilon)(x), self.hidden, self.activation)


class ViT(nn.Module):
    """A classifier that reads the state of its class token.

    Attributes:
      image_size: rows and columns of pixels that its positions are for.
      num_labels: K; 0 for a network without classes.
      hidden: width inside the blocks.
      activation: a key of `ACTIVATIONS`.
    """

    image_size: tuple[int, int]
    patch_size: int
    width: int
    layers: int
    heads: int
    hidden: int
    num_labels: int
    activation: str = "gelu"
    epsilon: float = 1e-12
    qkv_bias: bool = True

    @nn.compact
    def __call__(self, pixels) -> dict[str, jax.Array]:
        """Logits {"label": (B, K)} and {"embedding": (B, width)} of normalised pixels (B, H, W, 3).

        Positions are interpolated for images of another size than `image_size`.

        Raises:
          ValueError: images smaller than a patch.
        """
        x = Dense(self.width, name="patch")(patches(pixels, self.patch_size))
        start = self.param("class_embedding", nn.initializers.zeros, (self.width,))
        x = jnp.concatenate([jnp.broadcast_to(start, (x.shape[0], 1, self.width)), x], axis=1)
        grid = tuple(side // self.patch_size for side in self.image_size)
        table = self.param("positional_embedding", nn.initializers.normal(0.02), (1 + math.prod(grid), self.width))
        x = x + positions(table, grid, tuple(side // self.patch_size for side in pixels.shape[1:3]))
        for index in range(self.layers):
            options = (self.heads, False, self.activation, self.hidden, self.epsilon, self.qkv_bias)
            first = 1 if index == self.layers - 1 else None  # of its results, the class token's alone are read
            x = Block(*options, name=f"block{index}")(x, first=first)
        embedding = layer_norm("norm", self.epsilon)(x)[:, 0]
        if not self.num_labels:
            return {"embedding": embedding}
        return {"label": Dense(self.num_labels, name="head")(embedding), "embedding": embedding}


def layer_norm(name: str, epsilon: float = 1e-5) -> nn.LayerNorm:
    """Layer normalisation as PyTorch computes it."""
    return nn.LayerNorm(epsilon=epsilon, use_fast_variance=False, name=name)


def mlp(x: jax.Array, hidden: int, activation: str) -> jax.Array:
    """Dense layers `mlp_in` and `mlp_out` of the module that calls it, (..., width) to the same shape.

    Args:
      x: (..., width).
      hidden: width between them, 0 for four times the width.
      activation: a key of `ACTIVATIONS`.
    """
    width = x.shape[-1]
    between = Dense(hidden or 4 * width, name="mlp_in")(x)
    return Dense(width, name="mlp_out")(ACTIVATIONS[activation](between))


def patches(images: jax.Array, size: int) -> jax.Array:
    """(B, H, W, 3) to (B, rows · columns, size · size · 3), row by row; what is left of a patch is cut off.

    Raises:
      ValueError: images smaller than a patch.
    """
    batch, height, width, channels = images.shape
    rows, columns = height // size, width // size
    if not rows * columns:
        raise ValueError(f"images are {height}x{width} pixels; expected at least {size}, one patch. Resize them.")
    whole = images[:, : rows * size, : columns * size]
    cut = whole.reshape(batch, rows, size, columns, size, channels).transpose(0, 1, 3, 2, 4, 5)
    return cut.reshape(batch, rows * columns, size * size * channels)


def positions(table: jax.Array, grid: tuple[int, ...], wanted: tuple[int, ...], matrix=resample.bicubic_matrix):
    """A table of positions (L + rows · columns, width) for another grid, those of L further tokens in front kept.

    Args:
      table: of the grid that was trained on.
      grid: its rows and columns.
      wanted: rows and columns.
      matrix: the filter; bicubic, as `interpolate_pos_encoding` of transformers.
    """
    if grid == wanted:
        return table
    first = len(table) - math.prod(grid)
    rows, columns = (jnp.asarray(matrix(*sides)) for sides in zip(grid, wanted, strict=True))
    cells = table[first:].reshape(*grid, -1)
    resized = jnp.einsum("rh,cw,hwe->rce", rows, columns, cells, precision="highest")
    return jnp.concatenate([table[:first], resized.reshape(math.prod(wanted), -1)])


class BlockNames(NamedTuple):
    """How a library names the layers of a block; `qkv` is one name or three."""

    ln_1: str
    qkv: tuple[str, ...]
    out: str
    ln_2: str
    mlp_in: str
    mlp_out: str


CLIP_BLOCK = BlockNames(
    ln_1="layer_norm1",
    qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    out="self_attn.out_proj",
    ln_2="layer_norm2",
    mlp_in="mlp.fc1",
    mlp_out="mlp.fc2",
)


def block_recipe(target: str, source: str, names: BlockNames, *, qkv_bias: bool = True) -> dict[str, recipe.Part]:
    """`Block` at a target, from the layers under a prefix."""
    return {
        f"{target}/ln_1": recipe.layer_norm(f"{source}.{names.ln_1}"),
        f"{target}/attention/qkv": recipe.dense(*(f"{source}.{name}" for name in names.qkv), bias=qkv_bias),
        f"{target}/attention/out": recipe.dense(f"{source}.{names.out}"),
        f"{target}/ln_2": recipe.layer_norm(f"{source}.{names.ln_2}"),
        f"{target}/mlp_in": recipe.dense(f"{source}.{names.mlp_in}"),
        f"{target}/mlp_out": recipe.dense(f"{source}.{names.mlp_out}"),
    }


class Layout(NamedTuple):
    """How a library names the layers of a ViT; `{}` in `block` is its number."""

    patch: str
    class_embedding: str
    positional_embedding: str
    block: str
    names: BlockNames
    norm: str
    head: str


TRANSFORMERS = Layout(
    patch="vit.embeddings.patch_embeddings.projection",
    class_embedding="vit.embeddings.cls_token",
    positional_embedding="vit.embeddings.position_embeddings",
    block="vit.encoder.layer.{}",
    names=BlockNames(
        ln_1="layernorm_before",
        qkv=("attention.attention.query", "attention.attention.key", "attention.attention.value"),
        out="attention.output.dense",
        ln_2="layernorm_after",
        mlp_in="intermediate.dense",
        mlp_out="output.dense",
    ),
    norm="vit.layernorm",
    head="classifier",
)
TIMM = Layout(
    patch="patch_embed.proj",
    class_embedding="cls_token",
    positional_embedding="pos_embed",
    block="blocks.{}",
    names=BlockNames("norm1", ("attn.qkv",), "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"),
    norm="norm",
    head="head",
)
RENAMED = (  # in transformers' memory since version 5
    (r"^vit\.layers\.", "vit.encoder.layer."),
    (r"\.attention\.q_proj\.", ".attention.attention.query."),
    (r"\.attention\.k_proj\.", ".attention.attention.key."),
    (r"\.attention\.v_proj\.", ".attention.attention.value."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)
IGNORED = r"vit\.pooler\.dense\.(weight|bias)|vit\.embeddings\.mask_token"


def classifier_recipe(layout: Layout, options: dict[str, Any]) -> dict[str, recipe.Part]:
    """`ViT` of these options."""
    bias = options.get("qkv_bias", True)
    parts = {
        "patch": recipe.patches(layout.patch),
        "class_embedding": recipe.Part((layout.class_embedding,), np.ravel),
        "positional_embedding": recipe.Part((layout.positional_embedding,), np.squeeze),
        "norm": recipe.layer_norm(layout.norm),
    }
    for index in range(options["layers"]):
        parts |= block_recipe(f"block{index}", layout.block.format(index), layout.names, qkv_bias=bias)
    return parts | ({"head": recipe.dense(layout.head)} if options["num_labels"] else {})


def options_of(config) -> dict[str, Any]:
    """Options of `ViT` from transformers' ViTConfig. Raises ValueError naming what is not computed here."""
    recipe.refuse(config, hidden_act=tuple(ACTIVATIONS), num_channels=(3,))
    return {
        "image_size": recipe.pair(config.image_size),
        "patch_size": recipe.side("patch_size", config.patch_size),
        "width": config.hidden_size,
        "layers": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "hidden": config.intermediate_size,
        "num_labels": config.num_labels,
        "activation": config.hidden_act,
        "epsilon": config.layer_norm_eps,
        "qkv_bias": config.qkv_bias,
    }


def options_of_timm(tensors: dict[str, Any], *, heads: int) -> dict[str, Any]:
    """Options of `ViT` read off a state dict of timm's VisionTransformer with a class token.

    Args:
      tensors: by name.
      heads: attention heads, which the tensors do not tell: 3 of the tiny, 6 of the small, 12 of the base models.

    Raises:
      ValueError: no such state dict, or heads that do not divide the width.
    """
    needed = ("patch_embed.proj.weight", "cls_token", "pos_embed", "blocks.0.mlp.fc1.weight", "head.weight")
    if missing := [name for name in needed if name not in tensors]:
        raise ValueError(f"no state dict of timm's VisionTransformer ({', '.join(missing)} missing). Pass another one.")
    width, _, size, _ = tensors["patch_embed.proj.weight"].shape
    if heads < 1 or width % heads:
        raise ValueError(f"heads is {heads}, which does not divide the width {width}. Give those of the model.")
    grid = math.isqrt(tensors["pos_embed"].shape[1] - 1)
    blocks = (re.match(r"blocks\.(\d+)\.", name) for name in tensors)
    return {
        "image_size": [grid * size, grid * size],
        "patch_size": size,
        "width": width,
        "layers": 1 + max(int(found[1]) for found in blocks if found),
        "heads": heads,
        "hidden": len(tensors["blocks.0.mlp.fc1.weight"]),
        "num_labels": len(tensors["head.weight"]),
        "epsilon": 1e-6,
        "qkv_bias": "blocks.0.attn.qkv.bias" in tensors,
    }
