"""Converts CLIP with vision transformers: OpenAI's archive, a model of transformers, or what open_clip saves.

    python convert/clip_to_flax.py ViT-B-32.pt ported_weights/clip_vit_b32
    python convert/clip_to_flax.py openai/clip-vit-base-patch32 ported_weights/clip_vit_b32
    python convert/clip_to_flax.py epoch_32.pt ported_weights/my_clip --activation gelu

Reads the TorchScript archives of openai/CLIP, state dicts of the same names saved with torch.save, and open_clip's
training checkpoints. Sizes are read off the tensors; the activation, which they do not show, is asked for unless the
file or what lies beside it tells. These keep the precision of the file, float16 for most of OpenAI's, and are float32
once loaded. A folder of transformers, or owner/name on the Hugging Face Hub, is read as by `hub_to_flax.py`.
"""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from convert import hub_to_flax, reading
from promptgen_jax.models import network
from promptgen_jax.models.clip import CLIP, Layout, clip_recipe
from promptgen_jax.models.vit import ACTIVATIONS, BlockNames
from promptgen_jax.store import catalogue, disk, documents, hub, weights

HEAD_DIM, HUGE_WIDTH, HUGE_HEAD_DIM = 64, 1280, 80  # the last two: image tower of open_clip's ViT-H
OPEN_CLIP, OPEN_CLIP_CONFIG = "open_clip_", "open_clip_config.json"  # how the files of a folder of open_clip begin
FILES = (".pt", ".pth", ".ckpt", ".tar")  # suffixes of files that are not of transformers
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


def read_sizes(source: Path, tensors: dict[str, np.ndarray]) -> dict:
    """The sizes of `models.clip.CLIP`, heads excepted, off the shapes of the tensors.

    Raises:
      ValueError: one that is needed is missing or has the wrong number of axes, or there are no blocks.
    """
    names = {
        f"{OPENAI.patch}.weight": 4,
        OPENAI.arrays["vision/positional_embedding"]: 2,
        OPENAI.arrays["text/token_embedding/embedding"]: 2,
        OPENAI.arrays["text/positional_embedding"]: 2,
        OPENAI.projections["text/projection/kernel"]: 2,
    }
    problems = [f"missing {name}" for name in names if name not in tensors]
    problems += [
        f"{name} is {tensors[name].shape}, expected {axes} axes"
        for name, axes in names.items()
        if name in tensors and tensors[name].ndim != axes
    ]
    layers = {tower: _count_blocks(tensors, prefix) for tower, prefix in OPENAI.blocks.items()}
    problems += [f"no {prefix}.0" for tower, prefix in OPENAI.blocks.items() if not layers[tower]]
    if problems:
        raise ValueError(
            f"{source}: not a CLIP with vision transformers ({'; '.join(problems)}). Pass ViT-B-32.pt, ViT-B-16.pt, "
            "ViT-L-14.pt or a folder of transformers."
        )
    patch, positions, table, context, projection = (tensors[name].shape for name in names)
    if math.isqrt(positions[0] - 1) ** 2 != positions[0] - 1:
        raise ValueError(
            f"{source}: reads pictures of {positions[0] - 1} patches, which are not square. Only square ones are "
            "computed here; use another model."
        )
    return {
        "embed_dim": projection[1],
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


def read_openai(source: Path) -> tuple[dict[str, np.ndarray], str]:
    """Tensors under OpenAI's names, and the name of the run of open_clip that saved them, if one did.

    Raises:
      FileNotFoundError, ValueError: no such file, damaged, or no state dict.
    """
    content = reading.read_checkpoint(source)
    if not isinstance(content, dict):
        raise ValueError(f"{source}: holds a {type(content).__name__}, no state dict. Pass ViT-B-32.pt or a folder.")
    state = reading.state_in(content)
    if not all(isinstance(value, np.ndarray) for value in state.values()):
        state = reading.torch_arrays(source, state)
    return {name.removeprefix("text."): value for name, value in state.items()}, str(content.get("name", ""))


def read_settings(source: Path, tensors: dict[str, np.ndarray], run: str, told: str | None) -> tuple[dict, str]:
    """The options of `CLIP` that the tensors do not show, and how the activation is known.

    OpenAI's network is known by the sha256 of its file, or by three numbers that only its archives hold. Any other
    state dict of these names may be of either activation.

    Args:
      source: the file.
      tensors: of it.
      run: as `read_openai` gives it.
      told: the activation, by whoever converts the file.

    Raises:
      ValueError: nothing tells the activation, or what was told is wrong.
    """
    if tensors.keys() >= OPENAI_NUMBERS or weights.file_sha256(source) in OPENAI_FILES:
        if told not in (None, "quick_gelu"):
            raise ValueError(f"{source}: OpenAI's network, whose activation is quick_gelu. Leave out --activation.")
        return {"activation": "quick_gelu"}, "as in all of OpenAI's archives, of which this is one"
    options = _beside(source)
    taken, why = options.pop("activation", None), f"as {OPEN_CLIP_CONFIG} beside it says"
    if "quickgelu" in run:
        taken, why = "quick_gelu", "as the name of its run says"
    if told:
        taken, why = told, "as --activation said; the file does not tell"
    if taken is None:
        raise ValueError(
            f"{source}: a CLIP whose activation is not in it. Pass --activation quick_gelu if it is OpenAI's network, "
            "was fine-tuned from it, or has a name in open_clip that says so (ViT-B-32-quickgelu), else --activation "
            "gelu."
        )
    return {**options, "activation": taken}, why


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
        options |= {name: tuple(map(float, colours[name])) for name in ("mean", "std") if name in colours}
    if pools != ("tok", "argmax"):
        raise ValueError(f"{path}: pool_type {pools[0]} and {pools[1]}; expected tok and argmax. Use another model.")
    return options


@reading.one_door
def convert(source: str | Path, *, activation: str | None = None) -> tuple[dict, dict]:
    """Reads a CLIP.

    Args:
      source: OpenAI's archive, a state dict, or a file of open_clip.
      activation: a key of `vit.ACTIVATIONS`, where nothing else tells it.

    Returns:
      (tree, config) for `promptgen_jax.models.clip.CLIP`.

    Raises:
      FileNotFoundError, ValueError: missing, damaged, or another model.
    """
    if of_transformers(source):
        raise ValueError(f"{source}: its config.json says which activation it has. Leave out --activation.")
    source = Path(source)
    tensors, run = read_openai(source)
    tensors = {
        name: value if value.dtype == np.float16 else np.asarray(value, np.float32) for name, value in tensors.items()
    }
    sizes = read_sizes(source, tensors)
    heads = {f"{tower}_heads": sizes[f"{tower}_width"] // HEAD_DIM for tower in ("vision", "text")}
    if sizes["vision_width"] == HUGE_WIDTH:
        heads["vision_heads"] = HUGE_WIDTH // HUGE_HEAD_DIM
    ignored = [name for name in tensors if re.fullmatch(OPENAI.ignored, name)]
    layers = {tower: sizes[f"{tower}_layers"] for tower in ("vision", "text")}
    tree = reading.build_tree(source, tensors, clip_recipe(OPENAI, layers), ignored)
    told, why = read_settings(source, tensors, run, activation)
    module = CLIP(**{**sizes, **heads, **told})
    _check(source, tree, module)
    config = {
        "kind": "clip",
        "module": "clip.CLIP",
        "options": {**sizes, **heads, **told},
        "image_size": module.image_size,
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


def of_transformers(source: str | Path) -> str:
    """The folder of transformers, or owner/name on the Hub, that a source names or lies in; "" for any other file.

    Raises:
      ValueError: a file in such a folder that is not what is read of it.
    """
    path = Path(source)
    if path.is_dir() or (path.suffix not in FILES and hub.is_pretrained(source)):
        return str(source)
    if not path.is_file() or path.suffix in FILES or not hub.is_pretrained(path.parent):
        return ""
    files = hub.tensor_files(path.parent, archives=True)
    if path not in (*files, *(path.with_name(hub.INDEX.format(name)) for name in (hub.TENSORS, hub.ARCHIVE))):
        raise ValueError(f"{source}: in a folder of which {files[0].name} is read. Pass the folder, or move that away.")
    return str(path.parent)


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    description = "Converts CLIP with vision transformers to a weight folder."
    options = {"--activation": {"choices": tuple(ACTIVATIONS), "help": "of a state dict, where nothing else tells it"}}
    arguments = reading.parse(argv, description, script="clip_to_flax.py", options=options)
    try:
        found = "" if arguments.activation else of_transformers(arguments.source)
    except (ValueError, OSError) as error:
        return reading.refused(error)
    if found:
        return hub_to_flax.main([found, arguments.folder])
    return reading.write(convert, arguments, script="clip_to_flax.py")


if __name__ == "__main__":
    sys.exit(main())
