"""Rebuilds official checkpoints of the flow from the manifests in golden/, and compares with golden arrays."""

import json
import pathlib

import numpy as np
import torch
from golden import seeded

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
SLICES = {"global_scale": "global_scale", "subnet.2.bias": "bias2", "subnet.0.weight": "weight0_corner"}


def load_golden(name):
    with np.load(GOLDEN / name / "golden.npz") as arrays:
        return dict(arrays)


def load_json(name):
    return json.loads((GOLDEN / name).read_text())


def state_dict(manifest):
    """Every tensor of a manifest under its official key; rotations are derived by QR."""
    state = seeded.seeded_state_dict(manifest)
    for key, rule in manifest["derived"].items():
        if rule["rule"] == "special_orthogonal":
            q, r = np.linalg.qr(seeded.seeded_tensor(key, rule["draw"], manifest["seed"]))
            q = q * np.sign(np.diag(r))
            q[:, 0] *= np.linalg.det(q)
            state[key] = q.astype(np.float32)
    for key, rule in manifest["derived"].items():
        if rule["rule"] == "transpose":
            state[key] = state[rule["of"]].T.copy()
    return state


def write_bin(path, state):
    torch.save({key: torch.from_numpy(value) for key, value in state.items()}, path)


def by_official_name(tree, flow_index=0):
    """Entries of one of our parameter trees in official layout, `module_list.{k}.{name}`."""
    named = {}
    for layer, entry in tree[f"flows_{flow_index}"].items():
        prefix = f"module_list.{layer.removeprefix('layers_')}."
        named |= {prefix + name: np.asarray(entry[name])[None] for name in ("global_scale", "global_offset")}
        for dense, linear in (("Dense_0", "subnet.0"), ("Dense_1", "subnet.2")):
            named[f"{prefix}{linear}.weight"] = np.asarray(entry["conditioner"][dense]["kernel"]).T
            named[f"{prefix}{linear}.bias"] = np.asarray(entry["conditioner"][dense]["bias"])
    return named


def assert_close(name, got, want, tolerance=1e-4):
    """Largest error relative to the range of the wanted values; scalars relative to themselves."""
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape, f"{name}: {got.shape} instead of {want.shape}"
    error = np.max(np.abs(got - want)) / np.max(np.abs(want))
    print(f"{name}: {error:.1e}")
    assert error < tolerance, f"{name}: relative error {error:.2e}"
