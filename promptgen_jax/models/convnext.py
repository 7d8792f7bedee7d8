"""ConvNeXt: convolutions of 7 x 7 a channel and dense layers, in stages of patches that double.

Source: Liu et al. 2022 (arXiv 2201.03545), as in transformers (Apache-2.0), models/convnext.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from promptgen_jax.models import recipe
from promptgen_jax.models.layers import Dense
from promptgen_jax.models.vit import ACTIVATIONS, layer_norm, mlp, patches
from promptgen_jax.ops.depthwise import depthwise_conv

EPSILON = 1e-6
SIZE = 7


class Classifier(nn.Module):
    """ConvNeXt of any number of classes.

    Attributes:
      num_labels: K.
      patch_size: of the stem.
      widths: of the stages.
      blocks: of the stages.
      activation: a key of `vit.ACTIVATIONS`.
      epsilon: of the last normalisation; it is 1e-6 in all others.
      scaled: whether blocks end with a learned scale a channel.
    """

    num_labels: int
    patch_size: int
    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    activation: str = "gelu"
    epsilon: float = 1e-12
    scaled: bool = True

    @nn.compact
    def __call__(self, pixels) -> dict[str, jax.Array]:
        """Logits {"label": (B, K)} and {"embedding": (B, F)} of normalised pixels (B, H, W, 3)."""
        x = layer_norm("ln_stem", EPSILON)(Merge(self.widths[0], self.patch_size, name="stem")(pixels))
        for stage, (width, num_blocks) in enumerate(zip(self.widths, self.blocks, strict=True)):
            if stage:
                x = Merge(width, 2, name=f"merge{stage}")(layer_norm(f"ln_merge{stage}", EPSILON)(x))
            for index in range(num_blocks):
                x = Block(self.activation, self.scaled, name=f"stage{stage}_block{index}")(x)
        embedding = layer_norm("norm", self.epsilon)(jnp.mean(x, axis=(1, 2)))
        return {"label": Dense(self.num_labels, name="head")(embedding), "embedding": embedding}


class Merge(nn.Module):
    """A dense layer on patches of size x size that do not overlap; what is left of a patch is cut off."""

    features: int
    size: int

    @nn.compact
    def __call__(self, x):
        """Maps (B, H, W, C) to (B, H // size, W // size, features)."""
        rows, columns = (side // self.size for side in x.shape[1:3])
        merged = Dense(self.features, name="dense")(patches(x, self.size))
        return merged.reshape(len(x), rows, columns, self.features)


class Block(nn.Module):
    """x + scale · mlp(norm(convolution a channel(x)))."""

    activation: str
    scaled: bool

    @nn.compact
    def __call__(self, x):
        """Keeps the shape (B, H, W, C)."""
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (SIZE, SIZE, 1, x.shape[-1]))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        made = mlp(layer_norm("ln", EPSILON)(depthwise_conv(x, kernel) + bias), 0, self.activation)
        return x + (made * self.param("scale", nn.initializers.ones, (x.shape[-1],)) if self.scaled else made)


def classifier_recipe(options: dict[str, Any]) -> dict[str, recipe.Part]:
    """`Classifier` of these options, from the tensors of transformers."""
    parts = {
        "stem/dense": recipe.patches("convnext.embeddings.patch_embeddings"),
        "ln_stem": recipe.layer_norm("convnext.embeddings.layernorm"),
        "norm": recipe.layer_norm("convnext.layernorm"),
        "head": recipe.dense("classifier"),
    }
    for stage, num_blocks in enumerate(options["blocks"]):
        prefix = f"convnext.encoder.stages.{stage}"
        if stage:
            parts[f"ln_merge{stage}"] = recipe.layer_norm(f"{prefix}.downsampling_layer.0")
            parts[f"merge{stage}/dense"] = recipe.patches(f"{prefix}.downsampling_layer.1")
        for index in range(num_blocks):
            target, source = f"stage{stage}_block{index}", f"{prefix}.layers.{index}"
            parts |= {
                target: recipe.conv(f"{source}.dwconv", bias=True),
                f"{target}/ln": recipe.layer_norm(f"{source}.layernorm"),
                f"{target}/mlp_in": recipe.dense(f"{source}.pwconv1"),
                f"{target}/mlp_out": recipe.dense(f"{source}.pwconv2"),
            }
            if options["scaled"]:
                parts[f"{target}/scale"] = recipe.keep(f"{source}.layer_scale_parameter")
    return parts


def options_of(config) -> dict[str, Any]:
    """Options of `Classifier` from transformers' ConvNextConfig. Raises ValueError naming what is not computed here."""
    recipe.refuse(config, hidden_act=tuple(ACTIVATIONS), num_channels=(3,))
    return {
        "num_labels": config.num_labels,
        "patch_size": recipe.side("patch_size", config.patch_size),
        "widths": list(config.hidden_sizes),
        "blocks": list(config.depths),
        "activation": config.hidden_act,
        "epsilon": config.layer_norm_eps,
        "scaled": config.layer_scale_init_value > 0,
    }
