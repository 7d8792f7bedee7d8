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
TENSORS, ARCHIVE, INDEX = "model.safetensors", "pytorch_model.bin", "{}.index.json"
PROCESSORS = ("preprocessor_config.json", "processor_config.json")  # the second holds all settings of newer models
SETTINGS = ("config.json", *PROCESSORS, "README.md")
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
FETCHED = [*SETTINGS, *TOKENIZER, TENSORS, INDEX.format(TENSORS), "model-*-of-*.safetensors"]


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
      FileNotFoundError: neither here nor to be had; ValueError: something else than a file in the place of one.
    """
    if Path(name_or_path).is_dir():
        folder = Path(name_or_path).resolve()
        for path in (folder / name for name in (*SETTINGS, *TOKENIZER)):
            if path.exists() and not path.is_file():  # a pipe, a device: transformers would wait for its end
                raise ValueError(f"{path}: no regular file. Put the file itself there.")
        return folder
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


def tensor_files(folder: Path, *, archives: bool) -> list[Path]:
    """The files that hold the tensors of a model, whole or in shards.

    Args:
      folder: of transformers.
      archives: whether those of PyTorch are wanted where there are no safetensors.

    Raises:
      FileNotFoundError: none, or a shard is missing.
      ValueError: a damaged index of shards.
    """
    for name in (TENSORS, ARCHIVE)[: 1 + archives]:
        if (folder / name).is_file():
            return [folder / name]
        if (folder / INDEX.format(name)).is_file():
            return shards(folder / INDEX.format(name))
    hint = "Download the whole folder."
    if any((folder / name).is_file() for name in (ARCHIVE, INDEX.format(ARCHIVE))):
        hint = f"{ARCHIVE} is a pickle: convert it with `python convert/hub_to_flax.py {folder} OUT`."
    raise FileNotFoundError(f"{folder}: {TENSORS} missing. {hint}")


def shards(index: Path) -> list[Path]:
    """The files that an index of shards names, which lie beside it.

    Raises:
      FileNotFoundError: one is missing; ValueError: the index is damaged.
    """
    where = disk.read_json(index, advice="Download it again.").get("weight_map")
    if not isinstance(where, dict) or not where or not all(isinstance(name, str) for name in where.values()):
        raise ValueError(f"{index}: names no shards in weight_map. Download it again.")
    files = [index.parent / Path(name).name for name in sorted(set(where.values()))]
    if missing := [file.name for file in files if not file.is_file()]:
        raise FileNotFoundError(f"{index.parent}: {', '.join(missing)} missing. Download the whole folder.")
    return files


def checksum(files: list[Path]) -> str:
    """The sha256 of a file, or of those of several."""
    sums = [weights.file_sha256(file) for file in files]
    return sums[0] if len(sums) == 1 else hashlib.sha256(" ".join(sums).encode()).hexdigest()


def read_tensors(
    folder: Path, read_archive: Callable[[Path], dict[str, np.ndarray]] | None = None
) -> tuple[dict[str, np.ndarray], str]:
    """All tensors of a model, whole or in shards, as float32, and a checksum of the files.

    Args:
      folder: of transformers.
      read_archive: reads a pytorch_model.bin, or a shard of it, where there are no safetensors; None refuses it.

    Raises:
      FileNotFoundError, ValueError: as `tensor_files`; or a file is damaged.
    """
    files = tensor_files(folder, archives=read_archive is not None)
    tensors: dict = {}
    for file in files:
        try:
            tensors |= read_archive(file) if read_archive and file.suffix == ".bin" else load_file(file)
        except (SafetensorError, KeyError, TypeError) as error:
            raise ValueError(f"{file}: not a complete safetensors file ({error}). Download it again.") from None
    return {name: np.asarray(value, np.float32) for name, value in tensors.items()}, checksum(files)


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


def _config(folder: Path) -> dict:
    try:
        return disk.read_json(folder / "config.json", advice="Download it again.")
    except (ValueError, OSError):
        return {}
