"""The byte-pair tokenizer of CLIP, offline: the same ids as the official one; and those of models of transformers.

A model of transformers brings a tokenizer of its own, which transformers reads.
Source: openai/CLIP (MIT), clip/simple_tokenizer.py and clip.tokenize; the merges are in data/clip.
"""

from __future__ import annotations

import functools
import gzip
import html
import importlib.resources
from collections.abc import Sequence
from pathlib import Path

import ftfy
import numpy as np
import regex

from promptgen_jax import checks
from promptgen_jax.store import documents

VOCAB_SIZE = 49408
NUM_BYTES = 256
NUM_FIXED = 2 * NUM_BYTES + 2  # bytes, bytes that end a word, start and end of the text
WORD = regex.compile(
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+", regex.IGNORECASE
)


def tokenize(
    texts: str | Sequence[str],
    *,
    context_length: int = 77,
    vocab_size: int = VOCAB_SIZE,
    truncate: bool = False,
) -> np.ndarray:
    """Token ids (N, context_length), int32: start, the text, end, then zeros.

    Args:
      texts: one text or several.
      context_length: ids per row; at most context_length - 2 of them are text.
      vocab_size: below 49408, only the first vocab_size - 514 merges are used. Every text still has ids, in smaller
        pieces, which lets a small model do with a small table.
      truncate: cut a longer text, its last id becoming the end, instead of refusing it.

    Raises:
      TypeError: something else than text.
      ValueError: no text, or one that is too long; a vocab_size or context_length that cannot be.
    """
    texts = list(texts) if isinstance(texts, (list, tuple)) else [texts]  # type: ignore[list-item]  # one text
    if not texts:
        raise ValueError("tokenize: got no text; expected at least one. Pass a string or a list of strings.")
    checks.check_count("tokenize: context_length", context_length, minimum=2)
    tokens = np.zeros((len(texts), context_length), np.int32)
    for row, text in zip(tokens, texts, strict=True):
        ids = encode(text, vocab_size=vocab_size)
        if len(ids) > context_length and not truncate:
            raise ValueError(
                f"tokenize: {text[:60]!r} has {len(ids)} tokens with start and end; expected at most {context_length}. "
                "Shorten it, or pass truncate=True to cut it."
            )
        row[: len(ids)] = ids[:context_length]
        if len(ids) > context_length:
            row[-1] = ids[-1]
    return tokens


def tokenize_as(folder: Path, texts: Sequence[str], *, context_length: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Token ids (N, context_length), int32, by the tokenizer in a folder of transformers, and its mask if it has one.

    Args:
      folder: with the files of a tokenizer.
      texts: N of them.
      context_length: ids per row, padding included.

    Returns:
      (ids, mask): the mask (N, context_length) is False at padding that is not attended to, or None.

    Raises:
      ValueError: a text that is too long, or a tokenizer that transformers cannot read.
    """
    from transformers import AutoTokenizer

    what, advice = "no tokenizer that transformers reads", "Download it again."
    with documents.one_sentence(folder, what, advice=advice, foreign=True):
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        rows = tokenizer(list(texts))["input_ids"]
    for text, ids in zip(texts, rows, strict=True):
        if len(ids) > context_length:
            raise ValueError(
                f"tokenize: {text[:60]!r} has {len(ids)} tokens with start and end; expected at most {context_length}. "
                "Shorten it."
            )
    with documents.one_sentence(folder, what, advice=advice, foreign=True):
        found = tokenizer(list(texts), padding="max_length", max_length=context_length)
        mask = found.get("attention_mask")
        return np.asarray(found["input_ids"], np.int32), None if mask is None else np.asarray(mask, bool)


def encode(text: str, *, vocab_size: int = VOCAB_SIZE) -> list[int]:
    """Token ids of one text of any length, with start and end.

    Raises:
      TypeError: not a string.
      ValueError: vocab_size outside 514 to 49408.
    """
    if not isinstance(text, str):
        raise TypeError(f"tokenize: got {type(text).__name__} for a text; expected a string. Pass str or a list.")
    if not NUM_FIXED <= vocab_size <= VOCAB_SIZE:
        raise ValueError(
            f"tokenize: vocab_size is {vocab_size}; expected {NUM_FIXED} to {VOCAB_SIZE}. Use the model's own."
        )
    special = {"<|startoftext|>": vocab_size - 2, "<|endoftext|>": vocab_size - 1}
    num_merges = vocab_size - NUM_FIXED
    ids = [vocab_size - 2]
    for word in WORD.findall(_clean(text)):
        ids += [special[word]] if word in special else _word_ids(word, num_merges)
    return [*ids, vocab_size - 1]


def _clean(text):
    text = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
    return regex.sub(r"\s+", " ", text).strip().lower()


@functools.lru_cache(maxsize=4096)
def _word_ids(word, num_merges):
    """Merges the bytes of a word, the earliest merge of the list first, all its occurrences at once."""
    ranks, ids = _vocabulary()
    symbols = [_byte_symbols()[byte] for byte in word.encode()]
    symbols[-1] += "</w>"
    while len(symbols) > 1:
        pairs = list(zip(symbols, symbols[1:], strict=False))
        best = min(pairs, key=lambda pair: ranks.get(pair, VOCAB_SIZE))
        if ranks.get(best, VOCAB_SIZE) >= num_merges:
            break
        merged, position = [], 0
        while position < len(symbols):
            width = 2 if tuple(symbols[position : position + 2]) == best else 1
            merged.append("".join(symbols[position : position + width]))
            position += width
        symbols = merged
    return [ids[symbol] for symbol in symbols]


@functools.cache
def _vocabulary():
    """Rank of every merge, and id of every symbol: bytes, bytes that end a word, merges."""
    packed = importlib.resources.files("promptgen_jax") / "data" / "clip" / "bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.decompress(packed.read_bytes()).decode().split("\n")
    merges = [tuple(line.split()) for line in lines[1 : 1 + VOCAB_SIZE - NUM_FIXED]]
    symbols = list(_byte_symbols().values())
    symbols += [f"{symbol}</w>" for symbol in symbols] + ["".join(merge) for merge in merges]
    return {merge: rank for rank, merge in enumerate(merges)}, {symbol: id for id, symbol in enumerate(symbols)}


@functools.cache
def _byte_symbols():
    """A printable character for every byte, in the order of their ids: printable Latin-1 first, as themselves."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(NUM_BYTES) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(NUM_BYTES + i) for i, byte in enumerate(others)}
