"""Converts CLIP with vision transformers: OpenAI's archive, a Hugging Face folder, or what open_clip saves.

    python convert/clip_to_flax.py ViT-B-32.pt ported_weights/clip_vit_b32
    python convert/clip_to_flax.py clip-vit-base-patch32 ported_weights/clip_vit_b32
    python convert/clip_to_flax.py epoch_32.pt ported_weights/my_clip --activation gelu

Reads the TorchScript archives of openai/CLIP, state dicts of the same names saved with torch.save, open_clip's training
checkpoints, and folders with config.json and model.safetensors or pytorch_model.bin, whole or in shards. Sizes are read
off the tensors; the activation, which they do not show, is asked for unless the file or what lies beside it tells. These keep the precision of the file, float16 for most of OpenAI's, and are float32 once loaded.
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
from promptgen_jax.store import catalogue, disk, documents, hub, weights

HEAD_DIM, HUGE_WIDTH, HUGE_HEAD_DIM = 64, 1280, 80  # the last two: image tower of open_clip's ViT-H
OPEN_CLIP, OPEN_CLIP_CONFIG = "open_clip_", "open_clip_config.json"  # how the files of a folder of open_clip begin
SHARD = r".*-\d+-of-\d+\.\w+"
OPENAI_NUMBERS = {"input_resolution", "context_length", "vocab_size"}  # buffers of OpenAI's archives alone
OPENAI_FILES = {each.sha256 for each in catalogue.CHECKPOINTS.values() if each.converter == "clip_to_flax.py"}

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


def read_openai(source: Path, told: str | None = None) -> tuple[dict[str, np.ndarray], dict, str]:
    """Tensors under OpenAI's names, the options that they do not show, and how the activation is known.

    OpenAI's network is known by the sha256 of its file, or by three numbers that only its archives hold. Any other
    state dict of these names may be of either activation.

    Args:
      source: OpenAI's archive, a state dict, or a file of open_clip.
      told: the activation, by whoever converts it.

    Raises:
      FileNotFoundError, ValueError: no such file, damaged, no state dict, or one of which nothing tells the activation.
    """
    content = reading.read_checkpoint(source)
    if not isinstance(content, dict):
        raise ValueError(f"{source}: holds a {type(content).__name__}, no state dict. Pass ViT-B-32.pt or a folder.")
    state = reading.state_in(content)
    if not all(isinstance(value, np.ndarray) for value in state.values()):
        state = reading.torch_arrays(source, state)
    tensors = {name.removeprefix("text."): value for name, value in state.items()}
    if tensors.keys() >= OPENAI_NUMBERS or weights.file_sha256(source) in OPENAI_FILES:
        if told not in (None, "quick_gelu"):
            raise ValueError(f"{source}: OpenAI's network, whose activation is quick_gelu. Leave out --activation.")
        return tensors, {"activation": "quick_gelu"}, "as in all of OpenAI's archives, of which this is one"
    options = _beside(source)
    taken, why = options.pop("activation", None), f"as {OPEN_CLIP_CONFIG} beside it says"
    if "quickgelu" in str(content.get("name", "")):
        taken, why = "quick_gelu", "as the name of its run says"
    if told:
        taken, why = told, "as --activation said; the file does not tell"
    if taken is None:
        raise ValueError(
            f"{source}: a CLIP whose activation is not in it. Pass --activation quick_gelu if it is OpenAI's network or "
            "was fine-tuned from it, or if open_clip's name of its model says so (ViT-B-32-quickgelu), else --activation "
            "gelu."
        )
    return tensors, {**options, "activation": taken}, why


def _beside(source: Path) -> dict:
    """The options of `CLIP` that the configuration of open_clip beside a file tells; none if there is none.

    Raises:
      ValueError: damaged, or it asks for what is not computed here.
    """
    path, advice = source.with_name(OPEN_CLIP_CONFIG), "Download it again."
    if not path.is_file():
        return {}
    with documents.one_sentence(path, "not a configuration of open_clip", advice=advice):
        config = disk.read_json(path, advice=advice)
        model, colours = config["model_cfg"], config.get("preprocess_cfg", {})
        vision, text = model.get("vision_cfg", {}), model.get("text_cfg", {})
        pools = vision.get("pool_type", "tok"), text.get("pool_type", "argmax")
        options = {"activation": "quick_gelu" if model.get("quick_gelu") else "gelu"}
        if "head_width" in vision:
            options["vision_heads"] = int(vision["width"]) // int(vision["head_width"])
        if "heads" in text:
            options["text_heads"] = int(text["heads"])
        options |= {name: [float(value) for value in colours[name]] for name in ("mean", "std") if name in colours}
    if pools != ("tok", "argmax"):
        raise ValueError(f"{path}: pool_type {pools[0]} and {pools[1]}; expected tok and argmax. Use another model.")
    return options


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
        layout, why = TRANSFORMERS, "as its config.json says"
        tensors, attention, files = read_hugging_face(source)
        if activation:
            raise ValueError(f"{source}: its config.json says which activation it has. Leave out --activation.")
    else:
        layout, files = OPENAI, [source]
        tensors, attention, why = read_openai(source, activation)
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
        f"{module.text_width}, embeddings of {module.embed_dim}, activation {module.activation}, {why}. It learnt from "
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
    options = {"--activation": {"choices": tuple(ACTIVATIONS), "help": "where nothing tells it: of state dicts that are not OpenAI's own"}}
    return reading.run(convert, argv, description, script="clip_to_flax.py", options=options)


if __name__ == "__main__":
    sys.exit(main())
