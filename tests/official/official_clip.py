"""Official CLIP files made here: OpenAI's archive and state dict, and a Hugging Face folder."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import official
import pytest
from safetensors.numpy import save_file

from convert import clip_to_flax

torch = pytest.importorskip("torch", reason="torch, which writes and runs the official networks, is not installed")
# 2026-11: torch deprecates TorchScript, in which OpenAI's checkpoints are published
ALLOWED = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

SCALARS = {"input_resolution": 16, "context_length": 16, "vocab_size": 600}
SMALL = {
    "positional_embedding": (16, 64),
    "text_projection": (64, 32),
    "logit_scale": (),
    "token_embedding.weight": (600, 64),
    "visual.class_embedding": (128,),
    "visual.positional_embedding": (5, 128),
    "visual.proj": (128, 32),
    "visual.conv1.weight": (128, 3, 8, 8),
}


@functools.cache
def small_state():
    """A small CLIP under OpenAI's names: 16 pixels in patches of 8, two blocks of width 128 and one of 64."""
    rng = np.random.default_rng(0)
    shapes = dict(SMALL)
    for prefix, width in (
        ("visual.transformer.resblocks.0", 128),
        ("visual.transformer.resblocks.1", 128),
        ("transformer.resblocks.0", 64),
    ):
        for name, shape in {
            "attn.in_proj_weight": (3 * width, width),
            "attn.in_proj_bias": (3 * width,),
            "attn.out_proj.weight": (width, width),
            "attn.out_proj.bias": (width,),
            "mlp.c_fc.weight": (4 * width, width),
            "mlp.c_fc.bias": (4 * width,),
            "mlp.c_proj.weight": (width, 4 * width),
            "mlp.c_proj.bias": (width,),
        }.items():
            shapes[f"{prefix}.{name}"] = shape
        shapes |= {f"{prefix}.{norm}.{part}": (width,) for norm in ("ln_1", "ln_2") for part in ("weight", "bias")}
    for norm, width in (("visual.ln_pre", 128), ("visual.ln_post", 128), ("ln_final", 64)):
        shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    state = {}
    for name, shape in shapes.items():
        value = rng.normal(1.0 if "ln_" in name and "weight" in name else 0.0, 0.1, shape)
        state[name] = value.astype(np.float16 if "attn" in name or "mlp" in name else np.float32)
    return state


def script_module(state):
    """A module whose parameters have these names."""
    root = torch.nn.Module()
    for name, value in state.items():
        module, (*path, leaf) = root, name.split(".")
        for part in path:
            if not hasattr(module, part):
                module.add_module(part, torch.nn.Module())
            module = getattr(module, part)
        module.register_parameter(leaf, torch.nn.Parameter(torch.from_numpy(value), requires_grad=False))
    for name, value in SCALARS.items():
        root.register_buffer(name, torch.tensor(value))
    return torch.jit.script(root)


def write_archive(path, state):
    torch.jit.save(script_module(state), path)
    return path


def write_state(path, state):
    torch.save({name: torch.from_numpy(value) for name, value in state.items()}, path)
    return path


def hugging_face_state(state):
    """The tensors of OpenAI's layout as a Hugging Face folder holds them."""
    entries = official.load_json("clip_vit_b32/hf_mapping.json")
    made = {"text_model.embeddings.position_ids": np.arange(77)[None]}
    for name, entry in entries.items():
        tensor, (operation, *rows) = state[entry["from"]].astype(np.float32), entry["op"].split()
        if operation == "rows":
            tensor = tensor[slice(*map(int, rows[0].split(":")))]
        made[name] = np.asarray(tensor.T if operation == "transpose" else tensor, order="C")
    return made


def small_hugging_face_state():
    """The tensors of the small state as a Hugging Face folder holds them."""
    made, state = {}, small_state()
    for name, entry in official.load_json("clip_vit_b32/hf_mapping.json").items():
        if entry["from"] in state:
            tensor, (operation, *rows) = state[entry["from"]].astype(np.float32), entry["op"].split()
            if operation == "rows":  # of the full size
                start, stop = map(int, rows[0].split(":"))
                tensor = np.split(tensor, 3)[start // (stop - start)]
            made[name] = np.asarray(tensor.T if operation == "transpose" else tensor, order="C")
    return made


SMALL_TOWERS = {
    "vision": {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 2}
    | {"image_size": 16, "patch_size": 8},
    "text": {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 1, "num_attention_heads": 1}
    | {"vocab_size": 600, "max_position_embeddings": 16, "eos_token_id": 599, "bos_token_id": 598},
    "projection_dim": 32,
}
PROCESSOR = {
    "image_processor_type": "CLIPImageProcessor",
    "size": {"shortest_edge": 224},
    "crop_size": {"height": 224, "width": 224},
}


def write_config(folder, *, vision=None, text=None, **options):
    """config.json and preprocessor_config.json of a Hugging Face folder; what is left out is that of ViT-B/32."""
    config = {"model_type": "clip", "architectures": ["CLIPModel"], **options}
    towers = {"vision_config": vision or {}, "text_config": text or {}}
    (folder / "config.json").write_text(json.dumps(config | towers))
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))


def write_shards(folder, tensors, kind):
    """A Hugging Face folder of the small network in two shards, safetensors or bin, with their index."""
    write_config(folder, **SMALL_TOWERS)
    stem, suffix = ("model", "safetensors") if kind == "safetensors" else ("pytorch_model", "bin")
    names, write = sorted(tensors), save_file if kind == "safetensors" else lambda part, path: write_state(path, part)
    where = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"{stem}-0000{number}-of-00002.{suffix}"
        write({name: tensors[name] for name in part}, folder / file)
        where |= dict.fromkeys(part, file)
    index = folder / f"{stem}.{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": where}))
    return index


def write_open_clip(path, state, name, prefix="module."):
    """A training checkpoint of open_clip."""
    tensors = {prefix + key: torch.from_numpy(value) for key, value in state.items()}
    optimizer = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 1e-3}]}
    torch.save(
        {"epoch": 32, "name": name, "state_dict": tensors, "optimizer": optimizer, "scaler": {"scale": 1.0}}, path
    )
    return path


def convert(source, folder):
    assert clip_to_flax.main([str(source), str(folder)]) == 0
    return folder


def write_hugging_face(folder, tensors, kind="safetensors", **config):
    write_config(folder, **config)
    if kind == "bin":
        return write_state(folder / "pytorch_model.bin", tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder / "model.safetensors"


@jax.jit
def view_energies_and_gradient(control, draws, images):
    """Energies (B, R) of views and (B,) of images, and the gradient (B, S, S, 3), as training takes them."""

    def total(images):
        energies = control.mean_energies(draws, images)
        return jnp.sum(energies), energies

    gradient, energies = jax.grad(total, has_aux=True)(images)
    return control.view_energies(draws, images), energies, gradient
