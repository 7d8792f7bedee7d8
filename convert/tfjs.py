"""Reading the weights of TensorFlow.js packages: a JSON manifest, and binary shards beside it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from convert import reading
from promptgen_jax.store import disk, documents

DTYPES = {"float32": "<f4", "int32": "<i4", "bool": "|b1", "uint8": "|u1"}
QUANTISED = {"uint8": "|u1", "uint16": "<u2", "float16": "<f2"}


def depthwise(name: str) -> reading.Part:
    """A depthwise kernel (3, 3, C, 1) of TensorFlow as HWIO, (3, 3, 1, C)."""
    return reading.Part((name,), lambda kernel: kernel.transpose(0, 1, 3, 2))


def read_tfjs(path: str | Path) -> dict[str, np.ndarray]:
    """All tensors of a TensorFlow.js model or weights manifest (JSON beside its binary shards).

    8- and 16-bit affine quantisation (value = q · scale + min) is undone to float32; float16 stays float16.

    Raises:
      FileNotFoundError: the JSON file or a shard is missing.
      ValueError: not such a file, or its shards have the wrong length.
    """
    path = reading.existing(path)
    what, advice = "not a TensorFlow.js model or weights manifest", "Pass the .json file of the package."
    with documents.one_sentence(path, what, advice=advice):
        content = disk.parse_json(disk.read_bytes(path, disk.DOCUMENT_BYTES))
        groups = content["weightsManifest"] if isinstance(content, dict) else content
        entries = [([path.parent / Path(shard).name for shard in group["paths"]], group["weights"]) for group in groups]
        shards = [shard for group, _ in entries for shard in group]
        if len(set(shards)) < len(shards):
            raise ValueError("a shard is named twice")
        tensors = {}
        for group, specs in entries:
            tensors |= _read_group(path, group, specs)
        return tensors


def _read_group(path, shards, specs):
    """Tensors of one manifest group, whose shards are read as one stream of bytes."""
    content = b"".join(reading.existing(shard).read_bytes() for shard in shards)
    tensors, start = {}, 0
    for spec in specs:
        try:
            name, shape, stored, affine = _read_spec(spec)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"{path}: unreadable tensor entry {str(spec)[:120]} ({type(error).__name__}: {error}). This "
                f"converter reads {', '.join(DTYPES)}, quantised to {', '.join(QUANTISED)}."
            ) from None
        if name in tensors:
            raise ValueError(f"{path}: names {name} twice. Download the file again.")
        count = math.prod(shape)
        stop = start + count * np.dtype(stored).itemsize
        if stop > len(content):
            raise ValueError(
                f"{path}: its shards hold {len(content)} bytes but {name} ends at byte {stop}; a shard is "
                "truncated. Download it again."
            )
        values = np.frombuffer(content, stored, count, start).reshape(shape)
        if affine:
            scale, minimum = affine
            values = (values.astype(np.float64) * scale + minimum).astype(np.float32)
        tensors[name] = values
        start = stop
    if start != len(content):
        raise ValueError(
            f"{path}: its shards hold {len(content)} bytes, but the manifest describes {start}. The files belong "
            "to different models; download both again."
        )
    return tensors


def _read_spec(spec):
    """Name, shape, stored dtype and (scale, min) or None of a manifest entry."""
    shape = tuple(int(size) for size in spec["shape"])
    if any(size < 0 for size in shape):
        raise ValueError("negative size")
    quantisation = spec.get("quantization")
    if not quantisation:
        return spec["name"], shape, DTYPES[spec["dtype"]], None
    stored = QUANTISED[quantisation["dtype"]]
    if stored == QUANTISED["float16"]:
        return spec["name"], shape, stored, None
    return spec["name"], shape, stored, (float(quantisation["scale"]), float(quantisation["min"]))
