"""Official NVAE files from seeded tensors, and its sampler written again in PyTorch on the official names."""

import argparse
import functools
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from golden import seeded
from official import GOLDEN

from convert import nvae_to_flax
from promptgen_jax.store import weights

torch = pytest.importorskip("torch", reason="torch, which writes and runs the official networks, is not installed")
F = torch.nn.functional

SMALL = {
    "num_postprocess_cells": 2,
    "num_latent_per_group": 3,
    "num_cell_per_cond_dec": 2,
    "num_postprocess_blocks": 1,
    "use_se": True,
    "num_mixture_dec": 4,
    "ada_groups": True,
    "min_groups_per_scale": 2,
    "dataset": "ffhq",
    "num_latent_scales": 2,
    "num_groups_per_scale": 3,
}
GROUPS, CHANNELS, BASE = (2, 3), 16, 4  # of SMALL: 4 and 8 pixels, pictures of 16


def layout():
    """Kinds of the entries of dec_tower in order: cells as (features, up), combiners as their features."""
    entries, channels = [], CHANNELS
    for scale, count in enumerate(GROUPS):
        for index in range(count):
            entries += [(channels, False)] * 2 if scale or index else []
            entries.append(channels)
        if scale == 0:
            channels //= 2
            entries.append((channels, True))
    return entries


def small_state():
    """Seeded tensors of the generating half under official names."""
    state = {}

    def draw(name, *shape, scale=0.2, mean=0.05):
        state[name] = seeded.seeded_tensor(name, {"shape": shape, "dtype": "float32", "init": ["normal", mean, scale]})

    def normalised(name, outputs, inputs, size=1, bias=True):
        draw(f"{name}.weight", outputs, inputs, size, size)
        draw(f"{name}.log_weight_norm", outputs, 1, 1, 1, mean=-0.7)
        if bias:
            draw(f"{name}.bias", outputs)

    def norm(name, channels):
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            draw(f"{name}.{leaf}", channels, mean=1 if leaf == "weight" else 0)
        state[f"{name}.running_var"] = np.abs(state[f"{name}.running_var"]) + np.float32(0.3)
        state[f"{name}.num_batches_tracked"] = np.int64(7)

    def plain(name, *shape):
        draw(f"{name}.weight", *shape, scale=0.1)
        state[f"{name}.weight_normalized"] = state[f"{name}.weight"]

    def cell(name, inputs, outputs, up, expansion=6):
        hidden, layers = inputs * expansion, f"{name}._ops.0.conv"
        norm(f"{layers}.{up + 0}.bn", inputs)
        plain(f"{layers}.{up + 1}.conv.0", hidden, inputs, 1, 1)
        norm(f"{layers}.{up + 1}.conv.1", hidden)
        plain(f"{layers}.{up + 2}.conv.0", hidden, 1, 5, 5)
        norm(f"{layers}.{up + 2}.conv.1", hidden)
        plain(f"{layers}.{up + 3}", outputs, hidden, 1, 1)
        norm(f"{layers}.{up + 4}.bn", outputs)
        squeezed = max(outputs // 16, 4)
        for number, shape in ((0, (squeezed, outputs)), (2, (outputs, squeezed))):
            draw(f"{name}.se.se.{number}.weight", *shape)
            draw(f"{name}.se.se.{number}.bias", shape[0])
        if up:
            normalised(f"{name}.skip.1", outputs, inputs, bias=False)

    latents = SMALL["num_latent_per_group"]
    draw("prior_ftr0", CHANNELS, BASE, BASE, scale=1)
    channels, sampler = CHANNELS, 0
    for index, entry in enumerate(layout()):
        name = f"dec_tower.{index}"
        if isinstance(entry, int):
            normalised(f"{name}.conv", entry, entry + latents)
            if index:
                normalised(f"dec_sampler.{sampler}.1", 2 * latents, entry)
                sampler += 1
        else:
            cell(name, channels, entry[0], entry[1])
            channels = entry[0]
    cell("post_process.0", channels, channels // 2, True, expansion=3)
    cell("post_process.1", channels // 2, channels // 2, False, expansion=3)
    normalised("image_conditional.1", 10 * SMALL["num_mixture_dec"], channels // 2, size=3)
    draw("stem.weight", 4, 3, 3, 3)
    draw("enc_tower.0.se.se.0.weight", 4, 4)
    return state


def write(path, state, settings, **beside):
    content = {
        "epoch": 3,
        "state_dict": {name: torch.from_numpy(np.asarray(value)) for name, value in state.items()},
        "optimizer": {"state": {0: {"step": 1}}},
        "global_step": 1,
        "args": argparse.Namespace(**settings),
        "arch_instance": {"normal_dec": ["mconv_e6k5g0"]},
    }
    torch.save(content | beside, path)
    return path


def official_state(name):
    """Seeded tensors of a whole checkpoint, the encoder's as zeros, and its settings."""
    manifest = seeded.load_manifest(name, GOLDEN)
    state = seeded.seeded_state_dict(manifest)
    state |= {alias: state[original] for alias, original in manifest["aliases"].items()}
    encoder = json.loads((GOLDEN / name / "encoder_keys.json").read_text())
    state |= {key: np.zeros([min(size, 1) for size in shape], np.float32) for key, shape in encoder.items()}
    return state, manifest["source"]["args"]


@functools.cache
def converted(name="small"):
    """Tree and config of the official file with seeded tensors, by way of the command line."""
    state, settings = (small_state(), SMALL) if name == "small" else official_state(name)
    with tempfile.TemporaryDirectory() as folder:
        source = write(Path(folder) / "checkpoint.pt", state, settings)
        assert nvae_to_flax.main([str(source), f"{folder}/mine"]) == 0
        return weights.load_weights(f"{folder}/mine")


def generate(state, eps, temperature, num_truncated=0, adjust=False):
    """Logits (B, K, H, W) of a list of noises (B, Z, H, W); `adjust` changes the statistics in `state`."""

    def normalised(name, x):
        weight = state[f"{name}.weight"]
        norm = weight.flatten(1).norm(dim=1)[:, None, None, None]
        weight = state[f"{name}.log_weight_norm"].exp() * weight / (norm + 1e-5)
        return F.conv2d(x, weight, state.get(f"{name}.bias"), padding=weight.shape[-1] // 2)

    def norm(name, x):
        running = [state[f"{name}.running_{kind}"] for kind in ("mean", "var")]
        affine = [state[f"{name}.{kind}"] for kind in ("weight", "bias")]
        return F.batch_norm(x, *running, *affine, training=adjust, momentum=0.05, eps=1e-5)

    def cell(name, x):
        up, layers, skip = f"{name}.skip.1.weight" in state, f"{name}._ops.0.conv", x
        if up:
            skip = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
            skip = normalised(f"{name}.skip.1", skip)
            x = F.interpolate(x, scale_factor=2, mode="nearest")
        x = F.conv2d(norm(f"{layers}.{up + 0}.bn", x), state[f"{layers}.{up + 1}.conv.0.weight"])
        x = F.silu(norm(f"{layers}.{up + 1}.conv.1", x))
        x = F.conv2d(x, state[f"{layers}.{up + 2}.conv.0.weight"], padding=2, groups=x.shape[1])
        x = F.conv2d(F.silu(norm(f"{layers}.{up + 2}.conv.1", x)), state[f"{layers}.{up + 3}.weight"])
        x = norm(f"{layers}.{up + 4}.bn", x)
        gate = x.mean((2, 3))
        for number, function in ((0, torch.relu), (2, torch.sigmoid)):
            gate = function(F.linear(gate, *(state[f"{name}.se.se.{number}.{leaf}"] for leaf in ("weight", "bias"))))
        return skip + 0.1 * x * gate[..., None, None]

    x = state["prior_ftr0"].expand(len(eps[0]), -1, -1, -1)
    group = 0
    for index, entry in enumerate(layout()):
        name = f"dec_tower.{index}"
        if not isinstance(entry, int):
            x = cell(name, x)
            continue
        mean = log_scale = torch.zeros_like(eps[group])
        if group:
            mean, log_scale = normalised(f"dec_sampler.{group - 1}.1", F.elu(x)).chunk(2, dim=1)
        if group < num_truncated:
            z = mean + temperature * log_scale.exp() * eps[group].clamp(-1.25, 1.25)
        else:
            sigma = (5 * torch.tanh(log_scale / 5)).exp() + 0.01
            z = 5 * torch.tanh(mean / 5) + temperature * sigma * eps[group]
        x = normalised(f"{name}.conv", torch.cat([x, z], dim=1))
        group += 1
    for index in range(2):
        x = cell(f"post_process.{index}", x)
    return normalised("image_conditional.1", F.elu(x))


def tensors(state):
    return {name: torch.from_numpy(np.array(value)) for name, value in state.items()}
