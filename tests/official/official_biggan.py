"""Official BigGAN-deep files from seeded tensors, and the generator written again in PyTorch on its own names."""

import functools
import json
import math
import tempfile
from pathlib import Path

import numpy as np
import pytest
from golden import seeded
from official import GOLDEN

from convert import biggan_to_flax
from promptgen_jax.store import weights

torch = pytest.importorskip("torch", reason="torch, which writes and runs the official networks, is not installed")
F = torch.nn.functional

SMALL = {
    "attention_layer_position": 2,
    "channel_width": 4,
    "class_embed_dim": 7,
    "eps": 1e-4,
    "layers": [[False, 8, 8], [True, 8, 4], [False, 4, 4], [True, 4, 2]],
    "n_stats": 51,
    "num_classes": 9,
    "output_dim": 16,
    "z_dim": 6,
}


def small_state():
    """Seeded tensors under official names of a generator of 16 pixels."""
    dim, width = SMALL["z_dim"], SMALL["channel_width"]
    state = {}

    def draw(name, *shape, scale=0.3):
        state[name] = seeded.seeded_tensor(name, {"shape": shape, "dtype": "float32", "init": ["normal", 0.05, scale]})

    def spectral(name, outputs, *rest):
        draw(f"{name}.weight_orig", outputs, *rest)
        draw(f"{name}.weight_u", outputs)
        draw(f"{name}.weight_v", math.prod(rest))
        u, v, weight = (state[f"{name}.weight_{part}"] for part in ("u", "v", "orig"))
        state[f"{name}.weight_u"] = np.float32(u / (u @ weight.reshape(outputs, -1) @ v) * 1.7)

    def norm(name, channels, conditional=True):
        draw(f"{name}.running_means", 51, channels)
        draw(f"{name}.running_vars", 51, channels)
        state[f"{name}.running_vars"] = np.abs(state[f"{name}.running_vars"]) + np.float32(0.5)
        for kind, plain in (("scale", "weight"), ("offset", "bias")):
            if conditional:
                spectral(f"{name}.{kind}", channels, 2 * dim)
            else:
                draw(f"{name}.{plain}", channels, scale=1)

    def conv(name, outputs, inputs, size):
        spectral(name, outputs, inputs, size, size)
        draw(f"{name}.bias", outputs)

    draw("embeddings.weight", dim, SMALL["num_classes"])
    first, last = (width * SMALL["layers"][index][multiple] for index, multiple in ((0, 1), (-1, 2)))
    spectral("generator.gen_z", 16 * first, 2 * dim)
    draw("generator.gen_z.bias", 16 * first)
    for index, (_, inputs, outputs) in enumerate(SMALL["layers"]):
        name = f"generator.layers.{index + (index >= SMALL['attention_layer_position'])}"
        inputs, outputs, middle = width * inputs, width * outputs, width * inputs // 4
        for number, (i, o, size) in enumerate(
            [(inputs, middle, 1), (middle, middle, 3), (middle, middle, 3), (middle, outputs, 1)]
        ):
            norm(f"{name}.bn_{number}", i)
            conv(f"{name}.conv_{number}", o, i, size)
    name, channels = f"generator.layers.{SMALL['attention_layer_position']}", width * 4
    for kind, outputs, inputs in (("theta", 8, 1), ("phi", 8, 1), ("g", 2, 1), ("o_conv", 1, 2)):
        spectral(f"{name}.snconv1x1_{kind}", channels // outputs, channels // inputs, 1, 1)
    draw(f"{name}.gamma", 1)
    norm("generator.bn", last, conditional=False)
    conv("generator.conv_to_rgb", last, last, 3)
    return state


def write(folder, state, config, *, name="biggan-deep-16", legacy=True):
    """The official pair of files; returns the tensor file."""
    tensors = {key: torch.from_numpy(np.asarray(value)) for key, value in state.items()}
    path = Path(folder) / f"{name}-pytorch_model.bin"
    torch.save(tensors, path, _use_new_zipfile_serialization=not legacy)
    (Path(folder) / f"{name}-config.json").write_text(json.dumps(config))
    return path


@functools.cache
def converted(name="small"):
    """Tree and config of the official file with seeded tensors, by way of the command line."""
    if name == "small":
        state, config = small_state(), SMALL
    else:
        manifest = seeded.load_manifest(name, GOLDEN)
        state, config = seeded.seeded_state_dict(manifest), manifest["config"]
    with tempfile.TemporaryDirectory() as folder:
        source = write(folder, state, config)
        assert biggan_to_flax.main([str(source), f"{folder}/mine"]) == 0
        return weights.load_weights(f"{folder}/mine")


def generate(state, config, z, y, truncation):
    """Raw images (B, 3, S, S) in [-1, 1] of tensors z and y, by the official tensors."""
    state = {key: torch.from_numpy(np.asarray(value)) for key, value in state.items()}
    cond = torch.cat([z, y], dim=1)

    def weight(name):
        original, u, v = (state[f"{name}.weight_{part}"] for part in ("orig", "u", "v"))
        return original / torch.dot(u, original.flatten(1) @ v)

    def norm(name, x, conditional=True):
        position = truncation / (1.0 / (config["n_stats"] - 1))
        fraction, index = math.modf(position)
        mean, variance = (state[f"{name}.running_{kind}"] for kind in ("means", "vars"))
        mean, variance = (
            fraction * each[int(index)] + (1 - fraction) * each[int(index) + 1] if fraction else each[int(index)]
            for each in (mean, variance)
        )
        x = (x - mean[:, None, None]) / torch.sqrt(variance[:, None, None] + config["eps"])
        if not conditional:
            return x * state[f"{name}.weight"][:, None, None] + state[f"{name}.bias"][:, None, None]
        scale, offset = (cond @ weight(f"{name}.{kind}").T for kind in ("scale", "offset"))
        return x * (1 + scale[..., None, None]) + offset[..., None, None]

    def conv(name, x):
        kernel = weight(name)
        return F.conv2d(x, kernel, state.get(f"{name}.bias"), padding=kernel.shape[-1] // 2)

    def attend(name, x):
        theta, phi, g = (conv(f"{name}.snconv1x1_{kind}", x) for kind in ("theta", "phi", "g"))
        phi, g = (F.max_pool2d(each, 2).flatten(2) for each in (phi, g))
        attention = torch.softmax(theta.flatten(2).transpose(1, 2) @ phi, dim=-1)
        attended = (g @ attention.transpose(1, 2)).reshape(len(x), -1, *x.shape[2:])
        return x + state[f"{name}.gamma"] * conv(f"{name}.snconv1x1_o_conv", attended)

    x = cond @ weight("generator.gen_z").T + state["generator.gen_z.bias"]
    x = x.reshape(len(x), 4, 4, -1).permute(0, 3, 1, 2)
    for index, (upsample, _, outputs) in enumerate(config["layers"]):
        position = config["attention_layer_position"]
        if index == position:
            x = attend(f"generator.layers.{position}", x)
        name = f"generator.layers.{index + (index >= position)}"
        shortcut = x[:, : outputs * config["channel_width"]]
        for number in range(4):
            x = torch.relu(norm(f"{name}.bn_{number}", x))
            if upsample and number == 1:
                x, shortcut = (F.interpolate(each, scale_factor=2) for each in (x, shortcut))
            x = conv(f"{name}.conv_{number}", x)
        x = x + shortcut
    x = torch.relu(norm("generator.bn", x, conditional=False))
    return torch.tanh(conv("generator.conv_to_rgb", x)[:, :3])
