"""`Texts`: the text tower of a CLIP or SigLIP with its tokenizer, from sentences to embeddings of unit length."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import flax.linen as nn
import jax

from promptgen_jax.models import clip, tokenizer
from promptgen_jax.models.network import load_params
from promptgen_jax.store import hub, weights
from promptgen_jax.types import Array

WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?")


@dataclasses.dataclass(frozen=True)
class Texts:
    """What embeds sentences.

    Attributes:
      module: the whole CLIP or SigLIP, of which the text tower is applied.
      params: of the text tower.
      config: of the weights.
      folder: of the weights, and of a tokenizer of their own.
    """

    module: nn.Module
    params: dict = dataclasses.field(repr=False)
    config: dict = dataclasses.field(repr=False)
    folder: Path

    @property
    def name(self) -> str:
        """Of the weights."""
        return self.config["name"]

    @property
    def checksum(self) -> str:
        """Of the weights, both towers together."""
        return self.config["sha256"]

    def embed(self, texts: Sequence[str]) -> Array:
        """Features (T, E) of unit length of T texts.

        Raises:
          ValueError: a text that is too long; a tokenizer that does not fit the network.
        """
        module, mask = self.module, None
        if hub.has_tokenizer(self.folder):
            tokens, mask = tokenizer.tokenize_as(self.folder, texts, context_length=module.context_length)
            if not 0 <= tokens.min() <= tokens.max() < module.vocab_size:
                raise ValueError(
                    f"{self.folder}: its tokenizer gives ids from {tokens.min()} to {tokens.max()}, but the network "
                    f"has {module.vocab_size}. Download the folder again."
                )
        else:
            tokens = tokenizer.tokenize(texts, context_length=module.context_length, vocab_size=module.vocab_size)
        return _embed(module.text_tower(), self.params, tokens, mask)

    def unknown(self, texts: Iterable[str]) -> list[str]:
        """Words that training never showed, in the order in which they come; none where the weights list no words."""
        known = set(self.config.get("words") or ())
        said = dict.fromkeys(word for text in texts for word in WORD.findall(text.lower()))
        return [word for word in said if known and word not in known]


def load_texts(name_or_path: str | Path) -> Texts:
    """The text tower of a CLIP or SigLIP, by name, folder, or "owner/name" on the Hugging Face Hub; kept for the next.

    The image tower of a weight folder is not read; that of a model of transformers is read and dropped.

    Raises:
      FileNotFoundError, ValueError: as `network.load_params`.
    """
    if hub.is_pretrained(name_or_path):
        return _load(str(name_or_path), "")
    return _load(str(weights.find_weights(name_or_path)), weights.read_config(name_or_path)["sha256"])


@functools.lru_cache(maxsize=2)
def _load(name_or_path: str, checksum: str) -> Texts:
    """The tower of these weights; a checksum that has changed reads them anew."""
    del checksum
    module, tree, config = load_params(name_or_path, kind="clip", example=lambda module: module.example(), part="text")
    return Texts(module, tree["text"], config, folder_of(name_or_path))


def folder_of(name_or_path: str | Path) -> Path:
    """The folder of weights of either sort."""
    return hub.find(name_or_path) if hub.is_pretrained(name_or_path) else weights.find_weights(name_or_path)


@functools.partial(jax.jit, static_argnums=0)
def _embed(tower, params, tokens, mask):
    with jax.default_matmul_precision("highest"):  # once per run, so it may be exact everywhere
        return clip.normalise(tower.apply({"params": params}, tokens, mask))
