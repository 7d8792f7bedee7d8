"""prompt.json, which tells what a saved prompt stands on and how it was trained: where it is found, and its reading."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from flax.core import FrozenDict

from promptgen_jax import parts
from promptgen_jax.flows.sentences import read_conditions
from promptgen_jax.store import card, disk, documents, weights
from promptgen_jax.types import Generator, Spec, plain

PROMPT = "prompt.json"
WRITTEN = re.compile(r"prompt\.json|README\.md|flow_\d+")  # by us
WORTHLESS = re.compile(r"\.DS_Store|\.ipynb_checkpoints")
REPO_ID = re.compile(r"[\w.-]+/[\w.-]+")


def foreign(folder: Path) -> list[str]:
    """Names of what a folder holds that is no part of a saved prompt; of a plain file its own name.

    Without a prompt.json nothing in it is ours, whatever its name.
    """
    if not folder.is_dir():
        return [folder.name] if folder.exists() else []
    names = sorted(path.name for path in folder.iterdir() if not WORTHLESS.fullmatch(path.name))
    return [name for name in names if not WRITTEN.fullmatch(name)] if PROMPT in names else names


def find(folder_or_repo_id: str | Path) -> str | Path:
    """The folder of a saved prompt: itself, or the snapshot of a repository of the Hugging Face Hub.

    Raises:
      FileNotFoundError: no such folder, and the Hub has nothing of that name or cannot be reached.
    """
    if disk.local_path("prompt", folder_or_repo_id).is_dir():
        return folder_or_repo_id
    if not REPO_ID.fullmatch(str(folder_or_repo_id)):
        raise FileNotFoundError(f"prompt {folder_or_repo_id}: no such folder. Give one that Prompt.save wrote.")
    import huggingface_hub

    try:
        return huggingface_hub.snapshot_download(str(folder_or_repo_id))
    except (OSError, ValueError) as error:  # of the network, of the Hub, of its cache
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise FileNotFoundError(
            f"prompt {folder_or_repo_id}: no such folder here, and not to be had from the Hugging Face Hub "
            f"({reason}). Give a folder that Prompt.save wrote, or owner/name."
        ) from None


def load_generator(path: Path, about: dict, trust: str | Iterable[str], options: dict) -> Generator:
    """The generator of a prompt.json, by the name of its weights if they are here, or by its spec.

    Raises:
      FileNotFoundError, ValueError: it is not here; code of a package that is not trusted; unknown options.
    """
    name, spec = about["name"], about["spec"]
    parts.check_trusted(path, [spec.kind], trust)
    saved = spec.options if "." in spec.kind or spec.kind in parts.available("generators") else {}
    if "." not in spec.kind and name in parts.known_generators():
        saved = {option: value for option, value in saved.items() if option != "weights"}
        return parts.load_generator(name, **{**saved, **options})
    if saved:
        return parts.load("generators", spec.kind, **{**saved, **options})
    raise ValueError(f"{path}: its generator {name} is no installed weight folder. Pass generator=.")


def read_about(path: Path) -> tuple[dict, list[dict]]:
    """Name, checksum and spec of the generator, and the fields of every prompt of the stack, of a prompt.json.

    Raises:
      ValueError: damaged, or of another format version.
    """
    about = disk.read_json(path, advice="Save the prompt again.")
    version = about.get("format_version")
    if version != weights.FORMAT_VERSION:
        raise ValueError(
            f"{path}: format_version {version}; this release reads {weights.FORMAT_VERSION}. "
            "Use the release that wrote it, or train again."
        )
    documents.check(path, about, documents.SavedPrompt, advice="Save the prompt again.")
    with documents.one_sentence(path, "damaged", advice="Save the prompt again."):
        generator, names = about["generator"], about["flows"]
        spec = generator.get("spec") or {"kind": "", "options": {}}  # earlier prompts have none
        generator = {
            "name": generator["name"],
            "checksum": generator["checksum"],
            "spec": Spec.of(spec["kind"], dict(spec["options"])),
        }
        nothing = [None] * len(names)
        told = (about.get(each) or nothing for each in ("conditions", "notes", "trained"))
        details = zip(names, *told, strict=True)
        saved = [
            {
                "name": flow,
                "conditions": read_conditions(ranges) if ranges else None,
                "notes": tuple(map(tuple, notes or ())),
                "recipe": _recipe(trained or {}),
            }
            for flow, ranges, notes, trained in details
        ]
    return generator, saved


def _recipe(trained: dict) -> FrozenDict:
    recipe = plain({name: told for name, told in trained.items() if name != "flow"})
    if recipe:
        card.training_note(**recipe)  # raises if it is damaged
    return recipe
