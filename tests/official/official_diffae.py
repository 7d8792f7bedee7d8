"""Official DiffAE files from seeded tensors, and its networks and samplers written again in PyTorch on their names."""

import collections
import functools
import sys
import tempfile
import types
from pathlib import Path

import numpy as np
import pytest
from golden import seeded
from official import GOLDEN

from convert import diffae_to_flax
from promptgen_jax.store import weights

torch = pytest.importorskip("torch", reason="torch, which writes and runs the official networks, is not installed")
F = torch.nn.functional

BASE, MULTIPLIERS, STYLE, WIDTH, LAYERS = 32, (1, 2), 8, 12, 4  # small: 16 pixels, attention at 16


def small_state():
    """Seeded tensors of the averaged networks under official names, and the statistics of the latents."""
    state = {}

    def draw(name, *shape, scale=0.1, mean=0.0):
        key = f"ema_model.{name}"
        state[key] = seeded.seeded_tensor(key, {"shape": shape, "dtype": "float32", "init": ["normal", mean, scale]})

    def layer(name, *shape):
        draw(f"{name}.weight", *shape, scale=1 / np.prod(shape[1:]) ** 0.5)
        draw(f"{name}.bias", shape[0])

    def norm(name, channels):
        draw(f"{name}.weight", channels, mean=1)
        draw(f"{name}.bias", channels)

    def block(name, inputs, outputs):
        norm(f"{name}.in_layers.0", inputs)
        layer(f"{name}.in_layers.2", outputs, inputs, 3, 3)
        layer(f"{name}.emb_layers.1", 2 * outputs, 4 * BASE)
        layer(f"{name}.cond_emb_layers.1", outputs, STYLE)
        norm(f"{name}.out_layers.0", outputs)
        layer(f"{name}.out_layers.3", outputs, outputs, 3, 3)
        if inputs != outputs:
            layer(f"{name}.skip_connection", outputs, inputs, 1, 1)

    def attention(name, channels):
        norm(f"{name}.norm", channels)
        layer(f"{name}.qkv", 3 * channels, channels, 1)
        layer(f"{name}.proj_out", channels, channels, 1)

    def time(name, features, dim):
        layer(f"{name}.0", dim, features)
        layer(f"{name}.2", dim, dim)

    time("latent_net.time_embed", 64, STYLE)
    for index in range(LAYERS):
        name, last = f"latent_net.layers.{index}", index == LAYERS - 1
        layer(f"{name}.linear", STYLE if last else WIDTH, STYLE + (WIDTH if index else 0))
        if not last:
            layer(f"{name}.linear_emb", WIDTH, STYLE)
            norm(f"{name}.norm", WIDTH)
    time("time_embed.time_embed", BASE, 4 * BASE)
    fine, coarse = (BASE * each for each in MULTIPLIERS)
    layer("input_blocks.0.0", fine, 3, 3, 3)
    for index, (inputs, outputs) in enumerate(
        [(fine, fine), (fine, fine), (fine, fine), (fine, coarse), (coarse, coarse)], start=1
    ):
        block(f"input_blocks.{index}.0", inputs, outputs)
    for index in (1, 2):
        attention(f"input_blocks.{index}.1", fine)
    block("middle_block.0", coarse, coarse)
    attention("middle_block.1", coarse)
    block("middle_block.2", coarse, coarse)
    seen, current = [fine, fine, fine, fine, coarse, coarse], coarse
    for index in range(6):
        outputs = coarse if index < 3 else fine
        block(f"output_blocks.{index}.0", current + seen.pop(), outputs)
        current = outputs
        if index >= 3:
            attention(f"output_blocks.{index}.1", fine)
    block("output_blocks.2.1", coarse, coarse)
    norm("out.0", fine)
    layer("out.2", 3, fine, 3, 3)
    draw("encoder.out.0.weight", 4)
    statistics = {"conds_mean": (STYLE,), "conds_std": (STYLE,)}
    for name, shape in statistics.items():
        state[name] = seeded.seeded_tensor(name, {"shape": shape, "dtype": "float32", "init": ["normal", 0.3, 0.2]})
    return state


def official_state(name):
    """Seeded tensors of a manifest, copies of shared layers included."""
    manifest = seeded.load_manifest(name, GOLDEN)
    state = seeded.seeded_state_dict(manifest)
    return state | {alias: state[original] for alias, original in manifest["aliases"].items()}


def write(path, state, **beside):
    """The pair of official files, as Lightning 1.4 writes the first, naming some of its classes; returns the first."""
    tensors = {name: torch.from_numpy(np.asarray(value)) for name, value in state.items()}
    statistics = {name: tensors.pop(name).reshape(-1) for name in ("conds_mean", "conds_std") if name in tensors}
    tensors["model.out.0.bias"] = tensors["x_T"] = tensors["conds_mean"] = torch.zeros(2)
    modules = {
        "pytorch_lightning": types.ModuleType("pytorch_lightning"),
        "pytorch_lightning.callbacks": types.ModuleType("pytorch_lightning.callbacks"),
        "pytorch_lightning.utilities": types.ModuleType("pytorch_lightning.utilities"),
        "pytorch_lightning.callbacks.model_checkpoint": types.SimpleNamespace(),
        "pytorch_lightning.utilities.parsing": types.SimpleNamespace(),
    }

    def named(module, name, *bases):
        made = type(name, bases, {"__module__": module})
        setattr(modules[module], name, made)
        return made

    callback = named("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint")
    settings = named("pytorch_lightning.utilities.parsing", "AttributeDict", dict)
    content = {
        "global_step": 3,
        "pytorch-lightning_version": "1.4.5",
        "callbacks": {callback: {"best_model_score": None}},
        "hyper_parameters": settings(seed=0),
        "state_dict": collections.OrderedDict(tensors),
    }
    sys.modules.update(modules)
    try:
        torch.save(content | beside, path)
    finally:
        for module in modules:
            del sys.modules[module]
    torch.save({"conds": torch.zeros(5, 2), **statistics}, path.with_name(f"{path.stem}_latent.pkl"))
    return path


@functools.cache
def converted(name="small"):
    """Tree and config of the official files with seeded tensors, by way of the command line."""
    state = small_state() if name == "small" else official_state(name)
    with tempfile.TemporaryDirectory() as folder:
        source = write(Path(folder) / "official.ckpt", state)
        assert diffae_to_flax.main([str(source), f"{folder}/mine"]) == 0
        return weights.load_weights(f"{folder}/mine")


class Networks:
    """Both networks of a state dict as functions of tensors."""

    def __init__(self, state):
        tensors = {name: torch.from_numpy(np.asarray(value)) for name, value in state.items()}
        self.state = {name.removeprefix("ema_model."): value for name, value in tensors.items()}

    def _leaves(self, name):
        return self.state[f"{name}.weight"], self.state[f"{name}.bias"]

    def _norm(self, name, x):
        return F.group_norm(x, 32, *self._leaves(name))

    def _time(self, name, time):
        weight, _ = self._leaves(f"{name}.0")
        half = weight.shape[1] // 2
        angles = time[:, None] * torch.exp(-np.log(10_000) * torch.arange(half) / half)
        x = F.linear(torch.cat([angles.cos(), angles.sin()], dim=1), *self._leaves(f"{name}.0"))
        return F.linear(F.silu(x), *self._leaves(f"{name}.2"))

    def latent(self, x, time):
        embedding, h = self._time("latent_net.time_embed", time), x
        for index in range(LAYERS):
            name = f"latent_net.layers.{index}"
            h = F.linear(torch.cat([h, x], dim=1) if index else h, *self._leaves(f"{name}.linear"))
            if index < LAYERS - 1:
                h = h * (1 + F.linear(F.silu(embedding), *self._leaves(f"{name}.linear_emb")))
                h = F.silu(F.layer_norm(h, h.shape[1:], *self._leaves(f"{name}.norm")))
        return h

    def _block(self, name, x, embedding, style, resample=None):
        h = F.silu(self._norm(f"{name}.in_layers.0", x))
        if resample:
            h, x = resample(h), resample(x)
        h = F.conv2d(h, *self._leaves(f"{name}.in_layers.2"), padding=1)
        level = F.linear(F.silu(embedding), *self._leaves(f"{name}.emb_layers.1"))[..., None, None]
        scale, shift = level.chunk(2, dim=1)
        gain = F.linear(F.silu(style), *self._leaves(f"{name}.cond_emb_layers.1"))[..., None, None]
        h = F.silu((self._norm(f"{name}.out_layers.0", h) * (1 + scale) + shift) * (1 + gain))
        h = F.conv2d(h, *self._leaves(f"{name}.out_layers.3"), padding=1)
        if f"{name}.skip_connection.weight" in self.state:
            x = F.conv2d(x, *self._leaves(f"{name}.skip_connection"))
        return x + h

    def _attend(self, name, x):
        if f"{name}.qkv.weight" not in self.state:
            return x
        tokens = self._norm(f"{name}.norm", x).flatten(2)
        query, key, value = F.conv1d(tokens, *self._leaves(f"{name}.qkv")).chunk(3, dim=1)
        attention = torch.softmax(query.transpose(1, 2) @ key / query.shape[1] ** 0.5, dim=-1)
        attended = F.conv1d(value @ attention.transpose(1, 2), *self._leaves(f"{name}.proj_out"))
        return x + attended.reshape(x.shape)

    def image(self, x, time, style):
        embedding = self._time("time_embed.time_embed", time)
        x = F.conv2d(x, *self._leaves("input_blocks.0.0"), padding=1)
        seen = [x]
        for index in range(1, 3 * len(MULTIPLIERS)):
            down = None if index % 3 else lambda each: F.avg_pool2d(each, 2)
            x = self._block(f"input_blocks.{index}.0", x, embedding, style, down)
            x = self._attend(f"input_blocks.{index}.1", x)
            seen.append(x)
        x = self._block("middle_block.0", x, embedding, style)
        x = self._block("middle_block.2", self._attend("middle_block.1", x), embedding, style)
        for index in range(3 * len(MULTIPLIERS)):
            name = f"output_blocks.{index}"
            x = self._block(f"{name}.0", torch.cat([x, seen.pop()], dim=1), embedding, style)
            x = self._attend(f"{name}.1", x)
            if f"{name}.1.in_layers.0.weight" in self.state:
                x = self._block(f"{name}.1", x, embedding, style, lambda each: F.interpolate(each, scale_factor=2))
        return F.conv2d(F.silu(self._norm("out.0", x)), *self._leaves("out.2"), padding=1)

    def generate(self, z, noise, latent_steps, image_steps):
        latent = ddim(self.latent, z, np.full(1000, 0.008), latent_steps)
        style = latent * self.state["conds_std"] + self.state["conds_mean"]
        images = ddim(lambda x, t: self.image(x, t, style), noise, np.linspace(1e-4, 0.02, 1000), image_steps, True)
        return (images + 1) / 2


def ddim(denoise, x, betas, steps, clip=False):
    """The official sampler, from the highest kept level down; steps must divide 1000."""
    signal = np.cumprod(1 - betas)
    for time in range(1000 - 1000 // steps, -1, -(1000 // steps)):
        now, after = float(signal[time]), float(signal[time - 1000 // steps]) if time else 1.0
        data = x / now**0.5 - (1 / now - 1) ** 0.5 * denoise(x, torch.full([len(x)], float(time)))
        data = data.clamp(-1, 1) if clip else data
        noise = (x / now**0.5 - data) / (1 / now - 1) ** 0.5
        x = after**0.5 * data + (1 - after) ** 0.5 * noise
    return x
