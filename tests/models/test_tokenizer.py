"""CLIP's tokenizer: the official ids of every golden text, over-long texts, smaller vocabularies, bad input."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

import promptgen_jax as pg
from promptgen_jax.models import tokenizer

GOLDEN = Path(__file__).parents[1] / "golden" / "clip_vit_b32"
ROWS = json.loads((GOLDEN / "tokens.json").read_text())["rows"]
LONG = [row for row in ROWS if row["openai_length"] > 77]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: ascii(row["text"][:24]))
def test_clip_vit_b32_ids(row):
    assert tokenizer.encode(row["text"]) == row["openai"]


@pytest.mark.parametrize("number", ["", "2"])
def test_clip_vit_b32_padding(number):
    texts = json.loads((GOLDEN / "texts.json").read_text())[f"texts{number}"]
    with np.load(GOLDEN / "golden.npz") as arrays:
        expected = arrays[f"in{number}_tokens"]
    tokens = tokenizer.tokenize(texts, truncate=True)
    assert tokens.dtype == np.int32
    np.testing.assert_array_equal(tokens, expected)


@pytest.mark.parametrize("row", LONG, ids=lambda row: ascii(row["text"][:24]))
def test_clip_vit_b32_long_texts(row):
    with pytest.raises(ValueError, match=f"has {row['openai_length']} tokens with start and end; expected at most 77"):
        tokenizer.tokenize(["short", row["text"]])
    np.testing.assert_array_equal(tokenizer.tokenize(row["text"], truncate=True), [row["openai_truncated"]])


def test_vocabulary_is_the_official_file():
    packed = Path(pg.__file__).parent / "data" / "clip" / "bpe_simple_vocab_16e6.txt.gz"
    expected = json.loads((GOLDEN / "tokens.json").read_text())["vocab"]["sha256"]
    assert hashlib.sha256(packed.read_bytes()).hexdigest() == expected


@pytest.mark.parametrize("vocab_size", [514, 515, 1000, 4000])
@pytest.mark.parametrize("text", ["a photo of a smiling woman", "日本の猫 🐈", "<|endoftext|> x"], ids=ascii)
def test_smaller_vocabularies_spell_the_same_text(text, vocab_size):
    """Fewer merges give smaller pieces of the same bytes, all below vocab_size, with start and end at the top."""

    def spelling(size):
        symbols = {id: symbol for symbol, id in tokenizer._vocabulary()[1].items()}
        symbols |= {size - 2: "", size - 1: "end"}
        return "".join(symbols[id] for id in tokenizer.encode(text, vocab_size=size))

    ids = tokenizer.encode(text, vocab_size=vocab_size)
    assert ids[0] == vocab_size - 2
    assert ids[-1] == vocab_size - 1 == max(ids)
    assert spelling(vocab_size) == spelling(tokenizer.VOCAB_SIZE)
    assert len(ids) >= len(tokenizer.encode(text))


@pytest.mark.parametrize(
    ("texts", "options", "error", "message"),
    [
        ([], {}, ValueError, "got no text"),
        (7, {}, TypeError, "got int for a text"),
        (["a", None], {}, TypeError, "got NoneType for a text"),
        (b"a photo", {}, TypeError, "got bytes for a text"),
        ("a", {"context_length": 1}, ValueError, "context_length: got 1; expected an integer of at least 2"),
        ("a", {"vocab_size": 513}, ValueError, "vocab_size is 513; expected 514 to 49408"),
        ("a", {"vocab_size": 49409}, ValueError, "vocab_size is 49409; expected 514 to 49408"),
    ],
    ids=["none", "number", "nothing", "bytes", "context", "small vocabulary", "large vocabulary"],
)
def test_refuses(texts, options, error, message):
    with pytest.raises(error, match=message):
        tokenizer.tokenize(texts, **options)
