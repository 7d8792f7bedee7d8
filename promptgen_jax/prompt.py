"""`Prompt`: G ∘ f, a trained control. It is a generator again, so controls iterate (Algorithm 1)."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from promptgen_jax import checks, parts, weights
from promptgen_jax import flow as flows
from promptgen_jax.types import Array, Prior, PyTree

PROMPT = "prompt.json"


@struct.dataclass
class Prompt:
    """A generator whose latents pass a trained flow first; needs no control model.

    Attributes:
      generator: the frozen inner generator, or another prompt.
      flow: the trained flow with its fixed buffers.
      params: trained arrays of the flow.
    """

    generator: Any
    flow: flows.Flow
    params: PyTree
    name: str = struct.field(pytree_node=False, default="prompt")

    @property
    def prior(self) -> Prior:
        """Base distribution of the noise eps, the same as the generator's prior."""
        return self.generator.prior

    @property
    def image_size(self) -> int:
        """Pixels a side."""
        return self.generator.image_size

    @property
    def checksum(self) -> str:
        """Checksum of the innermost generator's weights."""
        return self.generator.checksum

    def __call__(self, key: Array, eps: Array, cond: Array | None = None) -> Array:
        """Images (B, H, W, 3) of noise (B, D), and of conditions (B, A) if the prompt is conditional."""
        return self.generator(key, self.latents(eps, cond))

    def latents(self, eps: Array, cond: Array | None = None) -> Array:
        """Latents z = f(eps) (B, D) of noise (B, D)."""
        return self.flow.forward_and_log_det(self.params, eps, cond)[0]

    def sample(self, key: Array, num_samples: int, *, cond: Array | None = None, batch_size: int = 64) -> Array:
        """Draws images (num_samples, H, W, 3), nominally in [0, 1], in batches of one compiled size.

        Image i depends on key, i and its condition alone; on batch_size too if the generator draws noise of its own.

        Args:
          key: the same key gives the same noise, whatever the conditions.
          num_samples: n.
          cond: (n, A) conditions of a conditional prompt, or (A,) for all; any value, also outside those trained on.
          batch_size: images at a time.

        Raises:
          TypeError, ValueError: raw key, num_samples or batch_size below 1, condition of a wrong shape.
        """
        checks.check_key("prompt.sample", key)
        checks.check_count("prompt.sample: num_samples", num_samples)
        checks.check_count("prompt.sample: batch_size", batch_size)
        if cond is not None and np.ndim(cond) == 1:
            cond = np.broadcast_to(cond, (num_samples, np.size(cond)))
        checks.check_cond("prompt.sample", cond, self.flow.cond_dim, num_samples)
        key_eps, key_image = jax.random.split(key)
        eps = self.prior.sample(key_eps, num_samples)

        def generate(index, *batch):
            return _generate(self, jax.random.fold_in(key_image, index[0]), *batch)

        return map_batches(generate, batch_size, jnp.arange(num_samples), eps, *filter_none(cond))

    def log_prob(self, z: Array, cond: Array | None = None) -> Array:
        """Exact log density (B,), nats, of latents z of the *innermost* generator, through the whole stack.

        `cond` conditions this prompt's own flow.
        """
        inner, log_det = self._unwind(z)
        eps, last = self.flow.inverse_and_log_det(self.params, inner, cond)
        return self.prior.log_prob(eps) + log_det + last

    def _unwind(self, z: Array) -> tuple[Array, Array]:
        """Latents of the innermost generator back to this prompt's z, with the log-det of that map."""
        if not isinstance(self.generator, Prompt):
            return z, jnp.zeros(z.shape[0])
        inner, log_det = self.generator._unwind(z)
        eps, last = self.generator.flow.inverse_and_log_det(self.generator.params, inner)
        return eps, log_det + last

    def save(self, folder: str | Path) -> None:
        """Writes the flows of the whole stack and the *name and checksum* of the generator, all or nothing."""
        folder = Path(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        stack, generator = self.stack()
        about = {
            "format_version": weights.FORMAT_VERSION,
            "name": self.name,
            "generator": {"name": generator.name, "checksum": generator.checksum},
            "flows": [prompt.name for prompt in stack],
        }
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
            staged = Path(temporary)
            for index, prompt in enumerate(stack):
                flows.save_flow(staged / f"flow_{index}", prompt.flow, prompt.params)
            weights.write_json(staged / PROMPT, about)
            weights.replace_folder(staged, folder)

    def stack(self) -> tuple[list, Any]:
        """(prompts from the innermost to this one, the innermost generator)."""
        inner, generator = self.generator.stack() if isinstance(self.generator, Prompt) else ([], self.generator)
        return [*inner, self], generator

    @classmethod
    def load(cls, folder: str | Path, *, generator: Any = None) -> Prompt:
        """Reads a saved prompt; no control model is needed.

        Args:
          folder: written by `save`.
          generator: the innermost generator, if it is not one of the installed weight folders.

        Raises:
          FileNotFoundError: no prompt there, or its generator's weights are missing.
          ValueError: damaged, another format version, or a generator of another checksum.
        """
        path = Path(folder) / PROMPT
        if not path.is_file():
            raise FileNotFoundError(f"{folder}: holds no {PROMPT}. Pass the folder that Prompt.save wrote.")
        try:
            about = json.loads(path.read_text())
            version, wanted, names = about["format_version"], about["generator"], about["flows"]
        except (ValueError, KeyError) as error:
            raise ValueError(f"{path}: damaged ({error}). Save the prompt again.") from None
        if version != weights.FORMAT_VERSION:
            raise ValueError(f"{path}: format_version {version}; this release reads {weights.FORMAT_VERSION}.")
        if generator is None and wanted["name"] not in parts.known_generators():
            raise ValueError(f"{path}: its generator {wanted['name']} is no installed weight folder. Pass generator=.")
        result = parts.load_generator(wanted["name"]) if generator is None else generator
        if result.checksum != wanted["checksum"]:
            raise ValueError(
                f"{path}: trained on generator {wanted['name']} with sha256 {wanted['checksum'][:12]}…, found "
                f"{result.name} with {result.checksum[:12]}…. Use the same weights."
            )
        for index, name in enumerate(names):
            flow, params = flows.load_flow(Path(folder) / f"flow_{index}")
            result = cls(generator=result, flow=flow, params=params, name=name)
        return result


@jax.jit
def _generate(generator, key: Array, eps: Array, *cond: Array) -> Array:
    return generator(key, eps, *cond)


def filter_none(*arrays) -> list:
    """The arrays that are not None."""
    return [array for array in arrays if array is not None]


def map_batches(function, batch_size: int, *arrays):
    """Applies a jitted function of batches to whole arrays, padding the last batch; results as NumPy."""
    total = arrays[0].shape[0]
    size = min(batch_size, total)
    pieces = []
    for start in range(0, total, size):
        batch = [array[start : start + size] for array in arrays]
        missing = size - batch[0].shape[0]
        batch = [jnp.concatenate([piece, jnp.repeat(piece[-1:], missing, 0)]) if missing else piece for piece in batch]
        pieces.append(jax.tree.map(lambda leaf, keep=size - missing: np.asarray(leaf)[:keep], function(*batch)))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *pieces)
