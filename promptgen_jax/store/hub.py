"""Models as transformers saves them: folders here, or repositories of the Hugging Face Hub, fetched once and cached.

Only configurations, tokenizers, cards and safetensors are fetched: nothing that is code, and no pickles.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from promptgen_jax.store import disk, weights

REPOSITORY = re.compile(r"(?P<repo_id>[\w][\w.-]*/[\w][\w.-]*)(@(?P<revision>[\w./-]+))?")
TENSORS, INDEX, ARCHIVE = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"
SETTINGS = ("config.json", "preprocessor_config.json", "processor_config.json", "README.md")
TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "tokenizer.model",
)
FETCHED = [*SETTINGS, *TOKENIZER, TENSORS, INDEX, "model-*-of-*.safetensors"]


def is_pretrained(name_or_path: str | Path) -> bool:
    """Whether a name is that of a folder of transformers, or looks like a repository of the Hub and is nothing else."""
    path = Path(name_or_path)
    if path.is_dir():
        return (path / "config.json").is_file() and "model_type" in _config(path)
    found = REPOSITORY.fullmatch(str(name_or_path))
    return found is not None and not Path(found["repo_id"].partition("/")[0]).exists()


def find(name_or_path: str | Path) -> Path:
    """The folder of a model: itself, or the snapshot of a repository, from the cache or fetched into it.

    Args:
      name_or_path: a folder, or "owner/name" on the Hub, with "@revision" to pin it.

    Raises:
      FileNotFoundError: neither here nor to be had.
    """
    if Path(name_or_path).is_dir():
        return Path(name_or_path).resolve()
    asked = REPOSITORY.fullmatch(str(name_or_path))
    if asked is None:
        raise FileNotFoundError(
            f"{name_or_path}: no such file or folder. Give one, or owner/name on the Hugging Face Hub."
        )
    import huggingface_hub

    try:
        return Path(
            huggingface_hub.snapshot_download(
                asked["repo_id"], revision=asked["revision"], allow_patterns=FETCHED, ignore_patterns="*/*"
            )
        )
    except (OSError, ValueError) as error:  # of the network, of the Hub, of its cache
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise FileNotFoundError(
            f"{name_or_path}: no such file or folder here, and not to be had from the Hugging Face Hub ({reason}). "
            "Give a folder, or owner/name as it stands there; a private one needs `hf auth login`."
        ) from None


def source_of(name: str) -> str:
    """The address of a model by its name, "owner/name", on the Hub; "" if it is no such name."""
    found = REPOSITORY.fullmatch(name)
    return f"https://huggingface.co/{found['repo_id']}" if found else ""


def has_tokenizer(folder: Path) -> bool:
    """Whether the files of a tokenizer are in a folder."""
    return any((folder / name).is_file() for name in TOKENIZER)


def revision(folder: Path) -> str:
    """The commit that a snapshot of the cache is of; "" for any other folder."""
    return folder.name if folder.parent.name == "snapshots" else ""


def read_tensors(
    folder: Path, read_archive: Callable[[Path], dict[str, np.ndarray]] | None = None
) -> tuple[dict[str, np.ndarray], str]:
    """All tensors of a model, whole or in shards, as float32, and a checksum of the files.

    Args:
      folder: of transformers.
      read_archive: reads a pytorch_model.bin where there are no safetensors; None refuses it.

    Raises:
      FileNotFoundError: no tensors, or a shard is missing.
      ValueError: a file is damaged.
    """
    if (folder / INDEX).is_file() and not (folder / TENSORS).is_file():
        index = weights.read_json(folder / INDEX, advice="Download it again.")
        files = [folder / Path(name).name for name in sorted(set(index.get("weight_map", {}).values()))]
    else:
        files = [folder / TENSORS]
    archive = folder / ARCHIVE
    if not files[0].is_file() and archive.is_file() and read_archive:
        return _float32(read_archive(archive)), weights.file_sha256(archive)
    if missing := [file.name for file in files if not file.is_file()]:
        hint = "Download the whole folder."
        if archive.is_file():
            hint = f"{ARCHIVE} is a pickle: convert it with `python convert/hub_to_flax.py {folder} OUT`."
        raise FileNotFoundError(f"{folder}: {', '.join(missing)} missing. {hint}")
    tensors: dict = {}
    for file in files:
        try:
            tensors |= load_file(file)
        except (SafetensorError, KeyError, TypeError) as error:
            raise ValueError(f"{file}: not a complete safetensors file ({error}). Download it again.") from None
    sums = [weights.file_sha256(file) for file in files]
    return _float32(tensors), sums[0] if len(sums) == 1 else hashlib.sha256(" ".join(sums).encode()).hexdigest()


def license_of(folder: Path) -> str:
    """The licence that the card of a model names, or ""."""
    import huggingface_hub

    card = folder / "README.md"
    if not card.is_file():
        return ""
    try:
        facts = huggingface_hub.metadata_load(card) or {}
    except ValueError:
        return ""
    named = facts.get("license_name") if facts.get("license") == "other" else facts.get("license")
    return str(named or "")


def cached() -> list[tuple[str, Path]]:
    """Name and newest snapshot of every model in the cache of the Hub."""
    import huggingface_hub
    from huggingface_hub import constants

    try:
        repositories = huggingface_hub.scan_cache_dir(constants.HF_HUB_CACHE).repos
    except huggingface_hub.CacheNotFound:
        return []
    newest = {
        repository.repo_id: max(repository.revisions, key=lambda each: each.last_modified).snapshot_path
        for repository in repositories
        if repository.repo_type == "model" and repository.revisions
    }
    return sorted((name, path) for name, path in newest.items() if (path / "config.json").is_file())


def size_of(folder: Path) -> int:
    """Bytes of the tensors of a model."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _float32(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.asarray(value, np.float32) for name, value in tensors.items()}


def _config(folder: Path) -> dict:
    try:
        return disk.read_json(folder / "config.json", advice="Download it again.")
    except (ValueError, OSError):
        return {}
