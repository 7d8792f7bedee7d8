"""Rebuild the seeded weights behind the golden outputs in this folder. NumPy only.

A manifest names every tensor of an official PyTorch checkpoint: key, shape, dtype and how to draw it.
Drawing is deterministic on every machine: `numpy.random.RandomState` keeps its stream for good, and each
tensor has its own seed, so the order of keys does not matter.

    manifest = load_manifest("stylegan2_256")
    state_dict = seeded_state_dict(manifest)          # {official key: np.ndarray}
    golden = np.load("stylegan2_256/golden.npz")      # in_* and out_* arrays
"""

import json
import pathlib
import zlib

import numpy as np

HERE = pathlib.Path(__file__).parent


def load_manifest(name, root=HERE):
    return json.loads((pathlib.Path(root) / name / "manifest.json").read_text())


def seeded_tensor(key, spec, seed=0):
    """One tensor. `spec` is {"shape": [...], "dtype": str, "init": [kind, *args]}."""
    shape, dtype = tuple(spec["shape"]), np.dtype(spec["dtype"])
    kind, *args = spec["init"]
    rng = np.random.RandomState((zlib.crc32(key.encode()) ^ seed) & 0xFFFFFFFF)
    if kind == "normal":
        mean, std = args
        return (mean + std * rng.standard_normal(shape)).astype(dtype)
    if kind == "uniform":
        low, high = args
        return rng.uniform(low, high, shape).astype(dtype)
    if kind == "const":
        return np.full(shape, args[0], dtype)
    if kind == "values":
        return np.asarray(args[0], dtype).reshape(shape)
    raise ValueError(f"{key}: unknown init {kind!r}")


def seeded_state_dict(manifest):
    """Every tensor of the manifest, under its official key."""
    seed = manifest.get("seed", 0)
    return {key: seeded_tensor(key, spec, seed) for key, spec in manifest["tensors"].items()}
