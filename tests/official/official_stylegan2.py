"""Rebuilds official StyleGAN2 files, rosinality's and NVIDIA's, from the manifests in golden/."""

import collections
import functools
import pickle
import sys
import tempfile
import types
from pathlib import Path

import numpy as np
import pytest
from golden import seeded
from official import GOLDEN

from convert import stylegan2_to_flax
from promptgen_jax.store import weights

torch = pytest.importorskip("torch", reason="torch, which writes and runs the official networks, is not installed")


def official_state(name, *, small=False):
    """Seeded tensors by official name; small: two mapping layers, 16 pixels, 8 channels everywhere."""
    manifest = seeded.load_manifest(name, GOLDEN)
    if small:
        kept = ("style.1.", "style.2.", "input", "conv1", "to_rgb1", "to_rgbs.0", "to_rgbs.1")
        kept += tuple(f"convs.{i}." for i in range(4)) + tuple(f"noises.noise_{i}" for i in range(5))
        kept += tuple(f"synthesis.b{r}." for r in (4, 8, 16)) + ("mapping.fc0", "mapping.fc1", "mapping.w_avg")
        manifest["tensors"] = {
            key: spec | {"shape": [8 if size == 512 else size for size in spec["shape"]]}
            for key, spec in manifest["tensors"].items()
            if key.startswith(kept) and key not in ("noises.noise_10", "noises.noise_11", "noises.noise_12")
        }
    return seeded.seeded_state_dict(manifest)


def write_rosinality(path, state, *, legacy=False, **beside):
    tensors = {key: torch.from_numpy(np.asarray(value)) for key, value in state.items()}
    content = {"g_ema": tensors, "latent_avg": torch.zeros(512), **beside}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


class Persistent:
    """A module as NVIDIA pickles it: one call of a function with a dict, source text of the class included."""

    def __init__(self, class_name, source, **state):
        self.class_name, self.source, self.state = class_name, source, state

    def __reduce__(self):
        content = {"type": "class", "version": 6, "module_src": self.source, "class_name": self.class_name}
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (content | {"state": self.state},)


def nvidia_module(state, source, **attributes):
    """A tree of modules from a flat state dict; convolutions are stored channels-last."""
    children, own = {}, {}
    for key, value in state.items():
        child, _, rest = key.partition(".")
        if rest:
            children.setdefault(child, {})[rest] = value
        else:
            own[key] = torch.from_numpy(np.asarray(value))
            if own[key].ndim == 4:
                own[key] = own[key].to(memory_format=torch.channels_last)
    buffers = ("resample_filter", "noise_const", "w_avg")
    is_layer = "affine" in children or "weight" in own
    layer = {"activation": "lrelu", "conv_clamp": 256, "act_gain": np.sqrt(np.float64(2)), "bias_gain": 0.01}
    return Persistent(
        "Layer",
        source,
        training=False,
        _parameters=collections.OrderedDict(
            (key, torch.nn.Parameter(value)) for key, value in own.items() if key not in buffers
        ),
        _buffers=collections.OrderedDict((key, value) for key, value in own.items() if key in buffers),
        _non_persistent_buffers_set=set(),
        _forward_hooks=collections.OrderedDict(),
        _modules=collections.OrderedDict(
            {"absent": None} | {key: nvidia_module(value, source) for key, value in children.items()}
        ),
        **(layer if is_layer else {}) | attributes,
    )


def write_nvidia(path, state, *, source="raise SystemExit('executed')", protocol=3, **attributes):
    """A file like those of stylegan2-ada-pytorch, without any of its code."""

    def _reconstruct_persistent_obj(content):
        raise AssertionError(content)

    _reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    easy_dict = type("EasyDict", (dict,), {"__module__": "dnnlib.util"})
    stubs = {
        "torch_utils": types.ModuleType("torch_utils"),
        "torch_utils.persistence": types.SimpleNamespace(_reconstruct_persistent_obj=_reconstruct_persistent_obj),
        "dnnlib": types.ModuleType("dnnlib"),
        "dnnlib.util": types.SimpleNamespace(EasyDict=easy_dict),
    }
    attributes = {"c_dim": 0, "_init_kwargs": easy_dict(channel_base=16384)} | attributes
    generator = nvidia_module(state, source, **attributes)
    content = {"training_set_kwargs": {"path": "x"}, "G": None, "D": None, "G_ema": generator, "augment_pipe": None}
    sys.modules.update(stubs)
    try:
        path.write_bytes(pickle.dumps(content, protocol=protocol))
    finally:
        for name in stubs:
            del sys.modules[name]
    return path


def write(path, name, state):
    return (write_nvidia if name == "stylegan2_ada_256" else write_rosinality)(path, state)


@functools.cache
def converted(name, *, small=False):
    """Tree and config of the official file with seeded weights, by way of the command line."""
    with tempfile.TemporaryDirectory() as folder:
        source = write(Path(folder) / "official", name, official_state(name, small=small))
        assert stylegan2_to_flax.main([str(source), f"{folder}/{name}"]) == 0
        return weights.load_weights(f"{folder}/{name}")
