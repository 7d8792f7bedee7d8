"""What the adapters of ported generators share: their fields, how a weight folder fills them, small ones for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from promptgen_jax.models import network
from promptgen_jax.ops import products
from promptgen_jax.store import weights as weight_folders
from promptgen_jax.types import Prior, Spec, precision_field, spec_field


@struct.dataclass(kw_only=True)
class Frozen:
    """The fields of a generator whose weights a converter wrote.

    Attributes:
      weights: parameters of `module`, or its parameters and buffers.
      prior: of the latents, in R^D.
      name, checksum: of the weights.
      image_size: pixels a side.
      license: terms of the weights.
      precision: of its products, see `ops.products.arithmetic`: "float32", "tf32" or "bfloat16".
      makes: what it makes, see `types.OUTPUTS`.
    """

    makes: ClassVar[str] = "images"

    weights: Any = struct.field(repr=False)
    prior: Prior
    module: nn.Module = struct.field(pytree_node=False)
    name: str = struct.field(pytree_node=False)
    image_size: int = struct.field(pytree_node=False)
    checksum: str = struct.field(pytree_node=False, default="")
    license: str = struct.field(pytree_node=False, default="")
    precision: str = precision_field()
    spec: Spec | None = spec_field()

    def __post_init__(self):
        """Checks the options, also those of `replace`."""
        products.check(self.name, self.precision, self.weights)


def load_fields(name_or_path: str | Path, *, adapter: str, title: str, precision: str = "float32") -> dict[str, Any]:
    """All fields of `Frozen` from a weight folder, with N(0, I) on its `latent_dim` numbers as the prior.

    Args:
      name_or_path: name under ported_weights, or a folder.
      adapter: which one the folder must be for.
      title: what it holds, for the message if it is another's.
      precision: of its products; of "bfloat16" its kernels are also stored in it.

    Raises:
      FileNotFoundError, ValueError: as `network.load_params`; a folder of another adapter; an unknown precision.
    """
    products.check(str(name_or_path), precision, ())
    config = weight_folders.read_config(name_or_path)
    if config.get("adapter") != adapter:
        raise ValueError(
            f"{name_or_path}: holds no {title} (adapter {config.get('adapter')!r}). Choose another folder."
        )
    example = jax.ShapeDtypeStruct((1, config["latent_dim"]), jnp.float32)
    module, tree, config = network.load_params(name_or_path, kind="generator", example=example)
    return {
        "weights": products.halved(tree) if precision == "bfloat16" else tree,
        "prior": Prior.standard(config["latent_dim"]),
        "module": module,
        "name": config["name"],
        "image_size": config["image_size"],
        "checksum": config["sha256"],
        "license": config["license"],
        "precision": precision,
    }


def random_weights(module: nn.Module, latent_dim: int, *, scale: float) -> dict:
    """What a weight folder of the module would hold, every entry drawn from N(0, scale²): small ones for tests."""
    shapes = network.expected_tree(module, jax.ShapeDtypeStruct((1, latent_dim), jnp.float32))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, scale, leaf.shape), jnp.float32), shapes)
