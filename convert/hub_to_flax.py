"""Converts a model of transformers to a weight folder: an image classifier, CLIP or SigLIP.

    python convert/hub_to_flax.py openai/clip-vit-base-patch32 ported_weights/clip_vit_b32
    python convert/hub_to_flax.py runs/my-finetuned-vit ported_weights/mood

The source is a folder that `save_pretrained` wrote, or owner/name on the Hugging Face Hub, with @revision to pin it.
Not needed to use one: configs and `load_control` take its name as it is. What is converted needs neither network nor
transformers (its tokenizer apart), and a pytorch_model.bin is read here only, as data.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import jax

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from convert import reading
from promptgen_jax.models import pretrained
from promptgen_jax.store import hub, weights


def convert(source: str, folder: str | Path) -> tuple[dict, dict]:
    """Reads a model of transformers.

    Args:
      source: a folder, or owner/name on the Hugging Face Hub.
      folder: what it will be called by.

    Returns:
      (tree, config) of the module that `pretrained.FAMILIES` names.

    Raises:
      FileNotFoundError, ValueError: as `pretrained.read`.
    """
    tree, config = pretrained.read(source, read_archive=read_archive)
    found = hub.find(source)
    revision = hub.revision(found)
    license, attributes = config["license"], config["attributes"]
    labels = list(attributes) if config["independent"] else attributes.get("label", [])
    config |= {
        "name": Path(folder).resolve().name,
        "license": license if license else "not stated by the publisher",
        "source": f"{source} at revision {revision}" if revision else str(source),
        "source_sha256": config.pop("sha256"),
        "url": f"https://huggingface.co/{source.partition('@')[0]}/tree/{revision}" if revision else "a folder",
        "converter": f"python convert/hub_to_flax.py {source} {folder}",
        "about": f"A model of transformers, {config['architecture']}."
        + (f" Labels: {', '.join(labels)}." if labels else ""),
    }
    return tree, config


def read_archive(path: Path) -> dict:
    """The tensors of a pytorch_model.bin, by the reader that runs no code."""
    return reading.torch_arrays(path, reading.read_torch(path))


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Converts a model of transformers to a weight folder.")
    parser.add_argument("source", help="a folder, or owner/name on the Hugging Face Hub, with @revision to pin it")
    parser.add_argument("folder", help="weight folder to write, e.g. ported_weights/<name>")
    arguments = parser.parse_args(argv)
    try:
        tree, config = convert(arguments.source, arguments.folder)
        weights.save_weights(arguments.folder, tree, config, source=reading.source_md(config))
        for name in hub.TOKENIZER:
            if (hub.find(arguments.source) / name).is_file():
                shutil.copyfile(hub.find(arguments.source) / name, Path(arguments.folder) / name)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{arguments.folder}: wrote {len(jax.tree.leaves(tree))} tensors from {config['source']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
