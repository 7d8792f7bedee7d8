"""`Prompt`: G ∘ f, a trained control. It is a generator again, so controls iterate (Algorithm 1)."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from flax.core import FrozenDict

from promptgen_jax import checks, devices, parts
from promptgen_jax.devices import map_batches  # noqa: F401  notebooks of version 0.1.0 find it here
from promptgen_jax.draws import Draws, images_by_number, images_of, images_of_numbers, sample_keys
from promptgen_jax.flows import saved
from promptgen_jax.flows.base import load_flow, save_flow
from promptgen_jax.flows.conditions import Conditions, asked, warn_beyond
from promptgen_jax.store import card, disk, programs, stablehlo, weights
from promptgen_jax.types import (
    FOLLOWS,
    Array,
    Density,
    Generator,
    Invertible,
    Prior,
    PyTree,
    makes,
    thaw,
    view,
)


class Prompt(struct.PyTreeNode):
    """A generator whose latents pass a trained flow first; needs no control model.

    Attributes:
      generator: the frozen inner generator, or another prompt.
      flow: the trained flow with its fixed buffers.
      params: trained arrays of the flow.
      conditions: what the conditions of a conditional flow were drawn from in training, or None.
      notes: (title, Markdown) pairs of its card, on what it does.
      recipe: how it was trained: what `training.fit` tells of controls, objective and options, as plain values.
    """

    generator: Generator
    flow: Density
    params: PyTree = struct.field(repr=False)
    conditions: Conditions | None = struct.field(default=None, metadata={FOLLOWS: True})
    name: str = struct.field(pytree_node=False, default="prompt")
    notes: tuple[tuple[str, str], ...] = struct.field(pytree_node=False, default=(), metadata={FOLLOWS: True})
    recipe: FrozenDict = struct.field(pytree_node=False, default=FrozenDict(), repr=False, metadata={FOLLOWS: True})

    @property
    def prior(self) -> Prior:
        """Base distribution of the noise eps, the same as the generator's prior."""
        return self.generator.prior

    @property
    def image_size(self) -> int:
        """Pixels a side."""
        return self.generator.image_size

    @property
    def makes(self) -> str:
        """What the generator makes, see `types.OUTPUTS`."""
        return makes(self.generator)

    def view(self, made: Any) -> Any:
        """Samples as pictures (B, H, W, 3), as the generator shows them."""
        return view(self.generator, made)

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

    def noise(self, z: Array, cond: Array | None = None) -> Array:
        """Noise eps = f^{-1}(z) (B, D) behind latents (B, D), the inverse of `latents`.

        Raises:
          ValueError: the flow is a mixture, whose samples do not say which of its flows they are of.
        """
        if not isinstance(self.flow, Invertible):
            raise ValueError(
                f"prompt.noise: {self.name!r} is a {self.flow.spec.kind} of flows, a density without a way back to its "
                "noise. Train a single flow."
            )
        return self.flow.inverse_and_log_det(self.params, z, cond)[0]

    def condition(
        self,
        *,
        strength: Mapping | None = None,
        shares: Mapping | None = None,
        text: str | Sequence[str] | None = None,
    ) -> Array:
        """The condition (A,), or (N, A), of strengths, shares or sentences: `cond` of `sample`, `edit` and `draws`.

        Args:
          strength: of dials, by name of the control; a number, or (N,) of them. Dials left out are 0, which is off.
          shares: wanted shares by label, likewise; all of them are needed.
          text: a sentence, or N of them, of a prompt that was trained over sentences; the text tower that embeds it is
            loaded, and words that it never saw are named in a warning.

        Raises:
          FileNotFoundError: the text tower is not here.
          ValueError: a name without a dial, with the nearest match; a number beyond what was trained; sentences of a
            prompt that takes none.
        """
        return jnp.asarray(asked(self.name, self.conditions, strength, shares, text))

    def sample(
        self,
        key: Array,
        num_samples: int,
        *,
        cond: Array | None = None,
        strength: Mapping | None = None,
        shares: Mapping | None = None,
        text: str | Sequence[str] | None = None,
        batch_size: int | None = None,
    ) -> Array:
        """Draws images (num_samples, H, W, 3), nominally in [0, 1], over all devices of this host.

        Image i depends on key, i and its condition alone. `write_samples` writes any number into a folder.

        Args:
          key: the same key gives the same noise, whatever the conditions.
          num_samples: n.
          cond: (n, A) conditions of a conditional prompt, or (A,) for all; any value, with a warning outside those
            trained on.
          strength: in place of `cond`, of dials by name of the control, e.g. `{"smile": 0.5}`, see `condition`.
          shares: in place of `cond`, wanted shares by label, e.g. `{"female": 0.7}`, see `condition`.
          text: in place of `cond`, a sentence for all, or n of them, e.g. "a smiling man", see `condition`.
          batch_size: images per device at a time, of one compiled size; None for what `devices.images_at_a_time` says.

        Raises:
          TypeError, ValueError: raw key, num_samples or batch_size below 1, condition of a wrong shape; as `condition`.
        """
        checks.check_key("prompt.sample", key)
        checks.check_count("prompt.sample: num_samples", num_samples)
        batch_size = devices.images_at_a_time(self.image_size, batch_size)
        checks.check_count("prompt.sample: batch_size", batch_size)
        if strength is not None or shares is not None or text is not None:
            if cond is not None:
                raise ValueError(
                    "prompt.sample: cond beside strength, shares or text, which say the same. Leave one out."
                )
            cond = self.condition(strength=strength, shares=shares, text=text)
        elif cond is None and self.conditions is not None and (dials := self.conditions.of_kind("strength")):
            raise ValueError(f"prompt.sample: no strength; pass one, as strength={dict.fromkeys(dials, 1.0)}.")
        elif cond is None and self.conditions is not None and (texts := self.conditions.texts):
            raise ValueError(f"prompt.sample: no text; pass one, as text={texts[0]!r}.")
        rows = checks.rows_of("prompt.sample", cond, self.flow.cond_dim, num_samples)
        warn_beyond(self.name, self.conditions, rows)
        arrays = (np.arange(num_samples), *devices.filter_none(rows))
        return devices.map_batches(images_by_number, batch_size, *arrays, shared=(self, key))

    def edit(
        self, key: Array, z: Array, *, cond_to: Any = None, cond_from: Any = None, batch_size: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Moves pictures to other conditions, as StyleFlow (arXiv 2008.02401): z' = f(f^{-1}(z, cond_from), cond_to).

        Without `cond_from`, z is taken as noise of the prior, z' = f(z, cond_to): for pictures as the generator makes
        them, before this prompt, and the only way of one without conditions.

        Args:
          key: of the generator's own noise; that of `invert` keeps it.
          z: (N, D) latents of `prompt.generator`, such as `invert` finds.
          cond_to: what is wanted, (A,) for all or (N, A); needed if and only if the prompt is conditional.
          cond_from: what the pictures show, likewise, or None.
          batch_size: images per device at a time; None for what `devices.images_at_a_time` says.

        Returns:
          (images (N, H, W, 3), latents z' (N, D)).

        Raises:
          TypeError, ValueError: raw key, latents or conditions of a wrong shape; the flow is a mixture.
        """
        checks.check_key("prompt.edit", key)
        batch_size = devices.images_at_a_time(self.image_size, batch_size)
        checks.check_count("prompt.edit: batch_size", batch_size)
        checks.check_latents("prompt.edit", z, self.prior.dim)
        given = (cond_to,) if cond_from is None else (cond_to, cond_from)
        conds = [checks.rows_of("prompt.edit", cond, self.flow.cond_dim, len(z)) for cond in given]
        arrays = (sample_keys(key, np.arange(len(z))), z, *devices.filter_none(*conds))
        return devices.map_batches(_edited, batch_size, *arrays, shared=(self,))

    def draws(self, key: Array, num_samples: int, *, cond: Array | None = None) -> Draws:
        """The latents of `sample` under the same key, with their log density, for weighing and measuring.

        Args:
          key: as `sample`.
          num_samples: n.
          cond: (n, A) conditions of a conditional prompt, or (A,) for all.

        Raises:
          TypeError, ValueError: raw key, num_samples below 1, condition of a wrong shape.
        """
        rows = checks.rows_of("prompt.draws", cond, self.flow.cond_dim, num_samples)
        cond = None if rows is None else jnp.asarray(rows)
        return Draws.of_prior(self.prior, key, num_samples, cond=cond).through(self)

    def log_prob(self, z: Array, cond: Array | None = None) -> Array:
        """Exact log density (B,), nats, of latents z of the *innermost* generator, through the whole stack.

        `cond` conditions this prompt's own flow.
        """
        inner, log_det = self._unwind(z)
        return self.flow.log_prob(self.params, inner, cond) + log_det

    def _unwind(self, z: Array) -> tuple[Array, Array]:
        """Latents of the innermost generator back to this prompt's z, with the log-det of that map."""
        if not isinstance(self.generator, Prompt):
            return z, jnp.zeros(z.shape[0])
        inner, log_det = self.generator._unwind(z)
        if not isinstance(self.generator.flow, Invertible):
            raise ValueError(
                f"prompt.log_prob: the prompt {self.generator.name!r} below is a {self.generator.flow.spec.kind} of "
                "flows, a density without a way back to its noise. Only the last prompt of a stack may be one."
            )
        eps, last = self.generator.flow.inverse_and_log_det(self.generator.params, inner)
        return eps, log_det + last

    def with_note(self, title: str, text: str) -> Prompt:
        """This prompt with a section of its card added, or replaced if there is one of that title."""
        return self.replace(notes=(*((old, kept) for old, kept in self.notes if old != title), (title, text)))

    def save(self, folder: str | Path) -> None:
        """Writes the flows of the whole stack, how each was trained, and a card, all or nothing.

        Of the generator it writes name, checksum and spec, not the weights.

        Raises:
          PermissionError: the folder beside which it is staged cannot be written.
          ValueError: the folder holds something else than an older prompt, which would be lost.
        """
        folder = disk.local_path("prompt.save: folder", folder)
        disk.open_folder("prompt.save: folder", folder.parent)
        if foreign := saved.foreign(folder):
            raise ValueError(
                f"prompt.save: folder {folder} holds {', '.join(foreign[:3])}, which would be lost, as a prompt has a "
                "folder of its own. Choose a new one."
            )
        stack, generator = self.stack()
        about = {
            "format_version": weights.FORMAT_VERSION,
            "name": self.name,
            "generator": {"name": generator.name, "checksum": generator.checksum, "spec": parts.describe(generator)},
            "flows": [prompt.name for prompt in stack],
            "conditions": [prompt.conditions and prompt.conditions.to_json() for prompt in stack],
            "trained": [{"flow": parts.describe(prompt.flow), **thaw(prompt.recipe)} for prompt in stack],
            "notes": [prompt.notes for prompt in stack],
        }
        with disk.new_folder(folder) as staged:
            for index, prompt in enumerate(stack):
                save_flow(staged / f"flow_{index}", prompt.flow, prompt.params)
            disk.write_json(staged / saved.PROMPT, about)
            disk.write_bytes(staged / "README.md", card.card(self).encode())

    def export(self, path: str | Path, *, platforms: Sequence[str] = stablehlo.PLATFORMS) -> Path:
        """Writes flow, generator and their weights as one program: StableHLO, run by JAX alone, or ONNX, without JAX.

        Of .stablehlo, `jax.export.deserialize(bytearray(Path(path).read_bytes())).call(eps)` gives images (B, H, W, 3)
        of noise (B, D) float32 for any B, each as `sample` makes it. A conditional prompt takes conditions (B, A)
        float32 as well, and, after them, a generator with noise of its own keys (B, 2) uint32, a row an image: any two
        numbers, or `jax.random.key_data` of those of `draws`. In .onnx the inputs are named `eps` and `cond`, and the
        output `images`; the generator may have no noise of its own.

        Args:
          path: ends in .stablehlo or .onnx; folders on the way are made.
          platforms: where a .stablehlo file has to run.

        Returns:
          The path written.

        Raises:
          ImportError: .onnx without the extra `onnx`.
          ValueError: another suffix, a folder, an unknown platform, what ONNX cannot say; PermissionError: it cannot be
            written.
        """
        sizes = {"eps": self.prior.dim, "cond": self.flow.cond_dim}
        rows = {name: jax.ShapeDtypeStruct((size,), jnp.float32) for name, size in sizes.items() if size}
        rows["key"] = jax.ShapeDtypeStruct((2,), jnp.uint32)
        return programs.save_program(path, images_of_numbers, self, rows, platforms=platforms)

    def push_to_hub(self, repo_id: str, *, private: bool = False) -> str:
        """Uploads what `save` writes to a model repository of the Hugging Face Hub; returns its address.

        Args:
          repo_id: "owner/name", made if missing. Log in with `hf auth login` first.
          private: of a new repository.

        Raises:
          ImportError: without huggingface_hub; what that raises if it is not allowed to write there.
        """
        import huggingface_hub

        hub = huggingface_hub.HfApi()
        hub.create_repo(repo_id, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as temporary:
            self.save(Path(temporary) / "prompt")
            return str(hub.upload_folder(repo_id=repo_id, folder_path=Path(temporary) / "prompt"))

    def stack(self) -> tuple[list[Prompt], Generator]:
        """(prompts from the innermost to this one, the innermost generator)."""
        inner, generator = self.generator.stack() if isinstance(self.generator, Prompt) else ([], self.generator)
        return [*inner, self], generator

    @classmethod
    def from_pretrained(
        cls,
        folder_or_repo_id: str | Path,
        *,
        generator: Generator | None = None,
        trust: str | Iterable[str] = (),
        **options: Any,
    ) -> Prompt:
        """A saved prompt of a folder, or, if there is no such folder, of the Hugging Face Hub.

        Args:
          folder_or_repo_id: path, or "owner/name" on the Hub.
          generator: as `load`.
          trust: as `load`.
          **options: as `load`.

        Raises:
          FileNotFoundError: no such folder, and the Hub has nothing of that name or cannot be reached; else as `load`.
        """
        return cls.load(saved.find(folder_or_repo_id), generator=generator, trust=trust, **options)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        generator: Generator | None = None,
        trust: str | Iterable[str] = (),
        **options: Any,
    ) -> Prompt:
        """Reads a saved prompt; no control model is needed.

        Args:
          folder: written by `save`.
          generator: the innermost generator, if it is own code or weights that are not here under their name.
          trust: packages outside the library, by name, whose code may run to build what the folder names.
          **options: of the generator if it is loaded here, e.g. `truncation_psi=0.7`; else it has those it was saved
            with.

        Raises:
          FileNotFoundError: no prompt there, or its generator's weights are missing.
          ValueError: damaged, another format version, a generator of another checksum, or options it does not have, or
            options beside a generator; a part of a package that is not trusted.
        """
        folder = disk.local_path("prompt", folder)
        disk.recover(folder)
        path = folder / saved.PROMPT
        if generator is not None and options:
            raise ValueError(
                f"prompt {folder}: options {', '.join(options)} beside generator=, which is taken as it is. Set them "
                "on it: generator.replace(...)."
            )
        if not path.is_file():
            raise FileNotFoundError(f"{folder}: holds no {saved.PROMPT}. Pass the folder that Prompt.save wrote.")
        about, stack = saved.read_about(path)
        result: Any = saved.load_generator(path, about, trust, options) if generator is None else generator
        if result.checksum != about["checksum"]:
            raise ValueError(
                f"{path}: trained on generator {about['name']} with sha256 {about['checksum'][:12]}…, found "
                f"{result.name} with {result.checksum[:12]}…. Use the same weights."
            )
        for index, fields in enumerate(stack):
            part = folder / f"flow_{index}"
            if not (part / weights.CONFIG).is_file() or not (part / weights.TENSORS).is_file():
                raise FileNotFoundError(f"{part}: missing or incomplete. Copy the whole folder that Prompt.save wrote.")
            flow, params = load_flow(part, trust=trust)
            result = cls(generator=result, flow=flow, params=params, **fields)
        return result


@jax.jit
def _edited(
    prompt: Prompt, key: Array, z: Array, cond_to: Array | None = None, cond_from: Array | None = None
) -> tuple[Array, Array]:
    z = prompt.latents(z if cond_from is None else prompt.noise(z, cond_from), cond_to)
    return images_of(prompt.generator, key, z), z
