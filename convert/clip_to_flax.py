"""Converts CLIP with vision transformers: OpenAI's archive, a Hugging Face folder, or what open_clip saves.

    python convert/clip_to_flax.py ViT-B-32.pt ported_weights/clip_vit_b32
    python convert/clip_to_flax.py clip-vit-base-patch32 ported_weights/clip_vit_b32
    python convert/clip_to_flax.py epoch_32.pt ported_weights/my_clip --activation gelu

Reads the TorchScript archives of openai/CLIP, state dicts of the same names saved with torch.save, open_clip's training
checkpoints, and folders with config.json and model.safetensors or pytorch_model.bin, whole or in shards. Sizes are read
off the tensors. These keep the precision of the file, float16 for most of OpenAI's, and are float32 once loaded.
"""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from convert import reading
from promptgen_jax.models import network
from promptgen_jax.models.clip import CLIP, TRANSFORMERS, Layout, clip_recipe
from promptgen_jax.models.vit import ACTIVATIONS, BlockNames
from promptgen_jax.store import disk, documents, hub, weights

HEAD_DIM, HUGE_WIDTH, HUGE_HEAD_DIM = 64, 1280, 80  # the last two: image tower of open_clip's ViT-H
OPEN_CLIP, OPEN_CLIP_CONFIG = "open_clip_", "open_clip_config.json"  # how the files of a folder of open_clip begin
SHARD = r".*-\d+-of-\d+\.\w+"

OPENAI = Layout(
    arrays={
        "logit_scale": "logit_scale",
        "vision/class_embedding": "visual.class_embedding",
        "vision/positional_embedding": "visual.positional_embedding",
        "text/token_embedding/embedding": "token_embedding.weight",
        "text/positional_embedding": "positional_embedding",
    },
    norms={"vision/ln_pre": "visual.ln_pre", "vision/ln_post": "visual.ln_post", "text/ln_final": "ln_final"},
    projections={"vision/projection/kernel": "visual.proj", "text/projection/kernel": "text_projection"},
    transposed=False,
    patch="visual.conv1",
    blocks={"vision": "visual.transformer.resblocks", "text": "transformer.resblocks"},
    names=BlockNames("ln_1", ("attn.in_proj_{}",), "attn.out_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"),
    ignored=r"input_resolution|context_length|vocab_size",
)


def read_sizes(source: Path, layout: Layout, tensors: dict[str, np.ndarray]) -> dict:
    """The sizes of `models.clip.CLIP`, heads excepted, off the shapes of the tensors.

    Raises:
      ValueError: one that is needed is missing or has the wrong number of axes, or there are no blocks.
    """
    names = {
        f"{layout.patch}.weight": 4,
        layout.arrays["vision/positional_embedding"]: 2,
        layout.arrays["text/token_embedding/embedding"]: 2,
        layout.arrays["text/positional_embedding"]: 2,
        layout.projections["text/projection/kernel"]: 2,
    }
    problems = [f"missing {name}" for name in names if name not in tensors]
    problems += [
        f"{name} is {tensors[name].shape}, expected {axes} axes"
        for name, axes in names.items()
        if name in tensors and tensors[name].ndim != axes
    ]
    layers = {tower: _count_blocks(tensors, prefix) for tower, prefix in layout.blocks.items()}
    problems += [f"no {prefix}.0" for tower, prefix in layout.blocks.items() if not layers[tower]]
    if problems:
        raise ValueError(
            f"{source}: not a CLIP with vision transformers ({'; '.join(problems)}). Pass ViT-B-32.pt, ViT-B-16.pt, "
            "ViT-L-14.pt or a Hugging Face folder of the same models."
        )
    patch, positions, table, context, projection = (tensors[name].shape for name in names)
    if math.isqrt(positions[0] - 1) ** 2 != positions[0] - 1:
        raise ValueError(
            f"{source}: reads pictures of {positions[0] - 1} patches, which are not square. Only square ones are "
            "computed here; use another model."
        )
    return {
        "embed_dim": projection[0 if layout.transposed else 1],
        "image_size": math.isqrt(positions[0] - 1) * patch[-1],
        "patch_size": patch[-1],
        "vision_width": patch[0],
        "vision_layers": layers["vision"],
        "vocab_size": table[0],
        "context_length": context[0],
        "text_width": context[1],
        "text_layers": layers["text"],
    }


def _count_blocks(tensors, prefix):
    return reading.consecutive(tensors, rf"{re.escape(prefix)}\.(\d+)\.")


def read_hugging_face(source: Path) -> tuple[dict[str, np.ndarray], dict, list[Path]]:
    """Tensors, attention options and tensor files of a Hugging Face folder, or of the given one of its files.

    Raises:
      FileNotFoundError, ValueError: no such files, damaged, or an option that is not supported.
    """
    folder = source if source.is_dir() else source.parent
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{folder}: expected config.json beside model.safetensors or pytorch_model.bin. Download the whole folder."
        )
    if source.is_dir():
        files = hub.tensor_files(folder, archives=True)
    elif re.fullmatch(SHARD, source.name):
        raise ValueError(f"{source}: one shard of a model in several. Pass its folder.")
    else:
        files = hub.shards(source) if source.suffix == ".json" else [source]
    tensors: dict[str, np.ndarray] = {}
    for file in files:
        is_archive = file.suffix == ".bin"
        tensors |= (
            reading.torch_arrays(file, reading.read_torch(file)) if is_archive else reading.read_safetensors(file)
        )
    path = folder / "config.json"
    with documents.one_sentence(path, "not the configuration of a CLIP model", advice="Download it again."):
        config = disk.read_json(path, advice="Download it again.")
        vision, text = config["vision_config"], config["text_config"]
        # what a config.json leaves out has the defaults of transformers' CLIPVisionConfig and CLIPTextConfig
        heads = {
            "vision_heads": int(vision.get("num_attention_heads", 12)),
            "text_heads": int(text.get("num_attention_heads", 8)),
        }
        activations = {str(tower.get("hidden_act", "quick_gelu")) for tower in (vision, text)}
        epsilons = {float(tower.get("layer_norm_eps", 1e-5)) for tower in (vision, text)}
    if len(activations) > 1 or not activations <= ACTIVATIONS.keys() or epsilons != {1e-5}:
        raise ValueError(
            f"{path}: hidden_act {sorted(activations)} and layer_norm_eps {sorted(epsilons)}; "
            f"expected one of {', '.join(ACTIVATIONS)} for both towers, and 1e-05. Use another model."
        )
    return tensors, {**heads, "activation": activations.pop()}, files


def read_openai(source: Path, activation: str | None = None) -> tuple[dict[str, np.ndarray], dict]:
    """Tensors under OpenAI's names, and the activation, if it is not certainly OpenAI's.

    A state dict on its own is taken for one of OpenAI's network. open_clip's are of either activation: it is what was
    told, or the name of the run says, or the configuration beside it.

    Args:
      source: OpenAI's archive, a state dict, or a file of open_clip.
      activation: what was told.

    Raises:
      FileNotFoundError, ValueError: no such file, damaged, no state dict, or one of which nothing tells the activation.
    """
    content = reading.read_checkpoint(source)
    if not isinstance(content, dict):
        raise ValueError(f"{source}: holds a {type(content).__name__}, no state dict. Pass ViT-B-32.pt or a folder.")
    state = reading.state_in(content)
    is_open_clip = "state_dict" in content or source.name.startswith(OPEN_CLIP)
    if not all(isinstance(value, np.ndarray) for value in state.values()):
        state = reading.torch_arrays(source, state)
    tensors = {name.removeprefix("text."): value for name, value in state.items()}
    found = activation or (_open_clip_activation(source, str(content.get("name", ""))) if is_open_clip else None)
    return tensors, {"activation": found} if found else {}


def _open_clip_activation(source, run):
    config = source.with_name(OPEN_CLIP_CONFIG)
    if "quickgelu" in run:
        return "quick_gelu"
    if config.is_file():
        with documents.one_sentence(config, "not a configuration of open_clip", advice="Download it again."):
            model = disk.read_json(config, advice="Download it again.")["model_cfg"]
            return "quick_gelu" if model.get("quick_gelu") else "gelu"
    raise ValueError(
        f"{source}: a CLIP of open_clip, whose activation is not in it. Pass --activation quick_gelu if its model is "
        "called so (ViT-B-32-quickgelu) or was fine-tuned from OpenAI's weights, else --activation gelu."
    )


@reading.one_door
def convert(source: str | Path, *, activation: str | None = None) -> tuple[dict, dict]:
    """Reads a CLIP.

    Args:
      source: OpenAI's archive, a state dict, a file of open_clip, or a Hugging Face folder or one of its files.
      activation: a key of `vit.ACTIVATIONS`, where the file does not tell.

    Returns:
      (tree, config) for `promptgen_jax.models.clip.CLIP`.

    Raises:
      FileNotFoundError, ValueError: missing, damaged, or another model.
    """
    source = Path(source)
    is_hugging_face = source.suffix in (".safetensors", ".bin", ".json") and not source.name.startswith(OPEN_CLIP)
    if source.is_dir() or is_hugging_face:
        layout = TRANSFORMERS
        tensors, attention, files = read_hugging_face(source)
        if activation:
            raise ValueError(f"{source}: its config.json says which activation it has. Leave out --activation.")
    else:
        layout, files = OPENAI, [source]
        tensors, attention = read_openai(source, activation)
    tensors = {
        name: value if value.dtype == np.float16 else np.asarray(value, np.float32) for name, value in tensors.items()
    }
    sizes = read_sizes(source, layout, tensors)
    heads = {f"{tower}_heads": sizes[f"{tower}_width"] // HEAD_DIM for tower in ("vision", "text")}
    if sizes["vision_width"] == HUGE_WIDTH:
        heads["vision_heads"] = HUGE_WIDTH // HUGE_HEAD_DIM
    ignored = [name for name in tensors if re.fullmatch(layout.ignored, name)]
    layers = {tower: sizes[f"{tower}_layers"] for tower in ("vision", "text")}
    tree = reading.build_tree(source, tensors, clip_recipe(layout, layers), ignored)
    module = CLIP(**{**sizes, **heads, **attention})
    _check(source, tree, module)
    index = hub.INDEX.format(hub.ARCHIVE if files[0].suffix == ".bin" else hub.TENSORS)
    config = {
        "kind": "clip",
        "module": "clip.CLIP",
        "options": {**sizes, **heads, **attention},
        "image_size": module.image_size,
        "file": (files[0].name if len(files) == 1 else index) if source.is_dir() else "",
        "source_sha256": hub.checksum(files),
        "flags": f"--activation {activation}" if activation else "",
        "about": f"CLIP, both towers: {module.image_size} pixels in patches of {module.patch_size}, image tower of "
        f"{module.vision_layers} blocks of width {module.vision_width}, text tower of {module.text_layers} of "
        f"{module.text_width}, embeddings of {module.embed_dim}, activation {module.activation}. It learnt from "
        "pictures and captions of the internet and controls a generator with whatever bias it took from them.",
    }
    return tree, config


def _check(source, tree, module):
    """Raises ValueError unless heads divide the widths, and every shape is the one that the module expects."""
    for tower, width, heads in (
        ("vision", module.vision_width, module.vision_heads),
        ("text", module.text_width, module.text_heads),
    ):
        if heads < 1 or width % heads:
            raise ValueError(f"{source}: {tower} width {width} is no multiple of {heads} heads. Check config.json.")
    expected = network.expected_tree(module, module.example())
    weights.check_tree(str(source), tree, expected, converter="this converter on the official file")


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    description = "Converts CLIP with vision transformers to a weight folder."
    options = {"--activation": {"choices": tuple(ACTIVATIONS), "help": "where the file of open_clip does not tell"}}
    return reading.run(convert, argv, description, script="clip_to_flax.py", options=options)


if __name__ == "__main__":
    sys.exit(main())
