"""`Sentences`: conditions that are the embeddings of sentences, drawn from a list; a new sentence is one more."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from promptgen_jax.flows.conditions import FULL, Conditions
from promptgen_jax.types import Array

if TYPE_CHECKING:
    from promptgen_jax.models.texts import Texts

NAME, KIND = "text", "embedding"
KEYS = ("network", "sentences", "sha256", "dim")  # of the entry of a config or a prompt.json
EXAMPLE = "{'text': {'network': 'tinyclip_faces', 'sentences': ['a smiling man', 'a woman looking left']}}"


class Sentences(Conditions):
    """The embeddings of sentences by the text tower of a CLIP or SigLIP, each drawn as often as the others.

    They are of unit length, so the box of these conditions is that of -1 to 1. A flow that is trained over many takes
    new ones: `prompt.sample(key, n, text=...)` embeds them by the same tower, which is loaded for it.

    Attributes:
      texts: T sentences to train on.
      network: name or folder of the weights, or "owner/name" on the Hugging Face Hub.
      checksum: of these weights, both towers together.
      rows: (T, E) embeddings, or None of a saved prompt, which needs none.
    """

    network: str = struct.field(pytree_node=False, default="")
    checksum: str = struct.field(pytree_node=False, default="")
    rows: Array | None = struct.field(default=None, repr=False)

    @classmethod
    def embedded(cls, texts: Sequence[str], *, network: str = "tinyclip_faces") -> Sentences:
        """Of T sentences, with a warning that names words that the network never saw.

        Args:
          texts: what to train on: many, and of all sorts that will be asked for.
          network: name or folder of a CLIP or SigLIP, or "owner/name" on the Hugging Face Hub, whose image tower the
            control `sentence` has.

        Raises:
          FileNotFoundError, ValueError: unknown or damaged weights, or of another kind; no sentence, an empty or too
            long one.
        """
        texts = _checked(texts)
        tower = _tower(network)
        _warn_unknown(tower, texts)
        return cls._of(texts, network, tower.checksum, tower.embed(texts))

    @classmethod
    def _of(cls, texts: tuple[str, ...], network: str, checksum: str, rows: Array | None, *, dim: int = 0) -> Sentences:
        ends = jnp.ones(rows.shape[1] if rows is not None else dim, jnp.float32)
        about: Any = {"texts": texts, "network": str(network), "checksum": checksum, "rows": rows}
        return cls(low=-ends, high=ends, names=(NAME,), kinds=(KIND,), **about)

    @property
    def components(self) -> tuple[tuple[str, str], ...]:
        """The one name and kind of all E numbers."""
        return ((NAME, KIND),)

    def tower(self) -> Texts:
        """The text tower that embeds.

        Raises:
          FileNotFoundError, ValueError: its weights are not here, or others of that name are.
        """
        tower = _tower(self.network)
        if tower.checksum != self.checksum:
            raise ValueError(
                f"conditions: sentences were embedded by {self.network} with sha256 {self.checksum[:12]}…, found "
                f"{tower.checksum[:12]}…. Use the same weights."
            )
        return tower

    def embed(self, texts: str | Sequence[str]) -> Array:
        """The condition (E,) of a sentence, or (N, E) of N, with a warning that names words never seen.

        Raises:
          FileNotFoundError, ValueError: as `tower`; no sentence, an empty or too long one.
        """
        several, tower = _checked(texts), self.tower()
        _warn_unknown(tower, several)
        rows = tower.embed(several)
        return rows[0] if isinstance(texts, str) else rows

    def table(self) -> Array:
        """The embeddings (T, E) of the sentences to train on."""
        return self.rows if self.rows is not None else self.tower().embed(self.texts)

    def sample(self, key: Array, num_samples: int) -> Array:
        """Draws (num_samples, E) conditions."""
        rows = self.table()
        return rows[jax.random.randint(key, (num_samples,), 0, len(rows))]

    def grid(self, size: int = 3) -> np.ndarray:
        """(size², E) conditions, of sentences evenly spread over the list."""
        return np.asarray(self.table())[np.linspace(0, len(self.texts) - 1, size * size).round().astype(int)]

    def named(self, where: str, values: Mapping[str, Any]) -> np.ndarray:
        """The condition (E,) or (N, E) of `{"text": sentences}`; raises as `embed`."""
        if set(values) != {NAME}:
            raise ValueError(f"{where}: got {', '.join(values) or 'nothing'}; expected {NAME}, a sentence or several.")
        return np.asarray(self.embed(values[NAME]))

    def read(self, texts: Sequence[str]) -> np.ndarray:
        """The condition (E,) of `text=a sentence` as people write it, its commas included; raises as `embed`."""
        name, equals, sentence = ", ".join(text.strip() for text in texts).partition("=")
        if name.strip() != NAME or not equals:
            raise ValueError(f"condition={name}{equals}{sentence}: expected a sentence, e.g. text={self.texts[0]}.")
        return self.named("condition", {NAME: sentence.strip()})

    def write(self, cond: Array) -> np.ndarray:
        """Conditions (..., E) as they are, float64."""
        return np.asarray(cond, np.float64)

    def ranges(self) -> dict[str, tuple[float, float, str]]:
        """Of the one name: -1 to 1, where each of its E numbers is."""
        return {NAME: (-1.0, 1.0, KIND)}

    def told(self) -> dict[str, str]:
        """How many sentences there are, in words."""
        return {NAME: f"{len(self.texts)} sentence{'s' * (len(self.texts) > 1)}"}

    def varying(self) -> list[str]:
        """Nothing, since sentences have no order."""
        return []

    def beyond(self, cond: Any) -> list[str]:
        """Says so where some of the conditions (N, E) are not of unit length."""
        lengths = np.linalg.norm(cond, axis=-1)
        return [] if np.allclose(lengths, 1, atol=1e-3) else ["embeddings of unit length"]

    def in_words(self, cond: Array) -> str:
        """The sentence of the list whose embedding is nearest to a condition (E,)."""
        return self.texts[int(np.argmax(np.asarray(self.table()) @ np.asarray(cond)))]

    def to_json(self) -> dict[str, Any]:
        """What `read_conditions` reads: network, its checksum, length of embeddings, sentences."""
        about = {"network": self.network, "sha256": self.checksum, "dim": self.dim, "sentences": list(self.texts)}
        return {NAME: about}


def read_conditions(written: Mapping[str, Any], *, corners: float = FULL) -> Conditions:
    """What a config or a prompt.json says: ranges by name, see `Conditions.of`, or sentences.

    Sentences are `{"text": {"network": ..., "sentences": [...]}}`, and embedded here; with `sha256` and `dim`, as a
    saved prompt has them, they are not, and nothing is loaded.

    Raises:
      FileNotFoundError, ValueError: as `Conditions.of` and `Sentences.embedded`; sentences beside ranges.
    """
    if not any(isinstance(each, Mapping) for each in written.values()):
        return Conditions.of(written, corners=corners)
    about = check_written(written)
    texts, network = about["sentences"], about.get("network", "tinyclip_faces")
    if "sha256" in about:
        return Sentences._of(_checked(texts), network, str(about["sha256"]), None, dim=int(about["dim"]))
    return Sentences.embedded(texts, network=network)


def check_written(written: Mapping[str, Any]) -> Mapping[str, Any]:
    """The one entry of `read_conditions` for sentences, with keys and sentences checked, and nothing loaded.

    Raises:
      ValueError: another form.
    """
    about = written.get(NAME)
    if len(written) != 1 or not isinstance(about, Mapping) or "sentences" not in about or set(about) - set(KEYS):
        raise ValueError(f"condition: {', '.join(written)} cannot be read; expected sentences alone, as {EXAMPLE}.")
    _checked(about["sentences"])
    return about


def _checked(texts: Any) -> tuple[str, ...]:
    several = (texts,) if isinstance(texts, str) else tuple(texts) if isinstance(texts, Sequence) else ()
    if not several or not all(isinstance(each, str) and each.strip() for each in several):
        raise ValueError(f"conditions: text is {texts!r}; expected a sentence, or several. Say what you want to see.")
    return several


def _tower(network: str) -> Texts:
    from promptgen_jax.models.texts import load_texts  # with a tokenizer, which few prompts need

    return load_texts(network)


def _warn_unknown(tower: Texts, texts: Sequence[str]) -> None:
    if words := tower.unknown(texts):
        warnings.warn(
            f"text: {tower.name} never saw {', '.join(map(repr, words))} in training, so what it makes of "
            f"{'them' if len(words) > 1 else 'it'} means nothing. Say it in other words.",
            stacklevel=3,
        )
