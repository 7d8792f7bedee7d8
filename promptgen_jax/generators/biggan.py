"""BigGAN-deep as a generator: noise and class embedding, two blocks of one latent, to images (Eq. 11)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from promptgen_jax import checks
from promptgen_jax.generators._frozen import Frozen, load_fields, random_weights
from promptgen_jax.models import biggan
from promptgen_jax.ops import products
from promptgen_jax.types import Array, Prior

EMBEDDING_PRIORS = ("moments", "rms")
NOISE_BOUND = 2.0


@struct.dataclass(kw_only=True)
class BigGAN(Frozen):
    """A frozen BigGAN-deep: `x = G(z, y)` of the latent (z, y), y in the space of class embeddings.

    z is clamped to ±2 and multiplied by the truncation, as the official code has it: entries outside have no gradient.
    y is used as it is. The embedding of class k is `generator.weights["buffers"]["embeddings"][k]`.

    Attributes:
      prior: two blocks, N(0, I) of the noise and N(mu, sigma²) of the class embedding.
      truncation: above 0, at most 1; also chooses the statistics of the batch normalisations.
    """

    truncation: float = struct.field(pytree_node=False, default=0.4)

    def __post_init__(self):
        """Checks the options, also those of `replace`."""
        super().__post_init__()
        checks.check_number(f"{self.name}: truncation", self.truncation, 0, 1, above=True)

    def __call__(self, key: Array, z: Array) -> Array:
        """Images (B, S, S, 3) in [0, 1] of latents (B, D).

        Args:
          key: not used; this network has no noise of its own.
          z: (B, D) latents, the noise first.

        Raises:
          ValueError, TypeError: latents of another shape or dtype, or not finite.
        """
        del key
        checks.check_latents(self.name, z, self.prior.dim)
        noise, embedding = jnp.split(z, self.prior.blocks[:1], axis=1)
        noise = self.truncation * jnp.clip(noise, -NOISE_BOUND, NOISE_BOUND)
        cond = jnp.concatenate([noise, embedding], axis=1)
        with products.arithmetic(self.precision):
            return self.module.apply(self.weights, cond, truncation=self.truncation)


def build(
    *,
    weights: str = "biggan_deep_512",
    truncation: float = 0.4,
    embedding_prior: str = "moments",
    precision: str = "float32",
) -> BigGAN:
    """Loads a converted BigGAN-deep.

    Args:
      weights: name under ported_weights, or a folder. Names of `catalogue.CHECKPOINTS` that are missing are answered
        with where to get them.
      truncation: above 0, at most 1.
      embedding_prior: "moments", mean and standard deviation of the class embeddings per dimension, as in the paper; or
        "rms", mean zero and one scale, the root mean square of all their entries, as in the official code.
      precision: of its products, see `ops.products.arithmetic`: "float32", "tf32" or "bfloat16".

    Raises:
      FileNotFoundError, ValueError: as `frozen.load_fields`; a wrong option.
    """
    checks.check_known(f"{weights}: embedding_prior", embedding_prior, EMBEDDING_PRIORS)
    fields = load_fields(weights, adapter="biggan", title="BigGAN", precision=precision)
    fields["prior"] = make_prior(fields["weights"]["buffers"]["embeddings"], embedding_prior)
    return BigGAN(**fields, truncation=truncation)


def make_prior(embeddings: Array, kind: str) -> Prior:
    """N(0, I) of the noise and the normal of the class embedding, "moments" or "rms", of embeddings (K, E)."""
    dim = embeddings.shape[1]
    if kind == "rms":
        loc, scale = jnp.zeros(dim), jnp.full(dim, jnp.sqrt(jnp.mean(embeddings**2)))
    else:
        loc, scale = jnp.mean(embeddings, axis=0), jnp.std(embeddings, axis=0, ddof=1)
    zeros = jnp.zeros(dim)
    return Prior(loc=jnp.concatenate([zeros, loc]), scale=jnp.concatenate([zeros + 1, scale]), blocks=(dim, dim))


def tiny() -> BigGAN:
    """A small one with random weights, for tests: 2 x 4 latents to 16 x 16 pixels."""
    module = biggan.BigGAN(
        channels=(16, 16, 8), upsampling=(True, True), attention_position=1, embedding_dim=4, num_classes=9
    )
    tree = random_weights(module, 8, scale=0.3)
    tree["buffers"] = jax.tree.map_with_path(
        lambda path, leaf: jnp.abs(leaf) + 0.5 if path[-1].key == "variances" else leaf, tree["buffers"]
    )
    prior = make_prior(tree["buffers"]["embeddings"], "moments")
    return BigGAN(weights=tree, prior=prior, module=module, name="tiny_biggan", image_size=16)
