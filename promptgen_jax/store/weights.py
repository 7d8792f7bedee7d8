"""Weight folders: `ported_weights/<name>/{weights.safetensors, config.json, SOURCE.md}`.

`weights.safetensors` holds the tree as flat `/`-joined names; `config.json` says which network reads it, with which
options, and the sha256 of the tensor file. Reading executes nothing from a file; writing is atomic.
"""

from __future__ import annotations

import hashlib
import math
import os
import reprlib
import shutil
from pathlib import Path
from typing import Any

import flax.traverse_util
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from promptgen_jax import checks
from promptgen_jax.store import catalogue, disk, documents, home
from promptgen_jax.store.claims import claim as claim
from promptgen_jax.store.disk import open_folder as open_folder
from promptgen_jax.store.disk import read_json as read_json
from promptgen_jax.store.disk import write_bytes as write_bytes
from promptgen_jax.store.disk import write_json as write_json
from promptgen_jax.store.disk import write_npz as write_npz

FORMAT_VERSION = 1
TENSORS, CONFIG = "weights.safetensors", "config.json"
SIZES = ("blocks", "cond_dim", "latent_dim", "image_size")  # of config.json, beside its options
LARGEST_RATIO = 64  # of a size to the longest axis of all tensors: pictures of 1024 pixels from layers of 16 channels


def weight_roots() -> list[Path]:
    """Where folders of weights are looked for: `$PROMPTGEN_WEIGHTS`, ./ported_weights, and those that are shipped."""
    roots = [Path(os.environ["PROMPTGEN_WEIGHTS"])] if os.environ.get("PROMPTGEN_WEIGHTS") else []
    return [*roots, Path("ported_weights"), home.folder() / "ported_weights"]


def available_weights(kind: str | None = None) -> dict[str, Path]:
    """Every weight folder that can be found, by name; only those of one kind ("generator", "network") if given."""
    found = {}
    for root in reversed(weight_roots()):
        for folder in folders_in(root):
            try:
                config = read_json(folder / CONFIG, advice="")
            except (ValueError, OSError):
                continue  # not ours, or damaged: named when it is asked for
            if "kind" in config and kind in (None, config["kind"]):
                found[folder.name] = folder
    return found


def folders_in(root: Path) -> list[Path]:
    """What may be weight folders; what is being written, or was left by a killed writer, is hidden and none."""
    return [path.parent for path in sorted(root.glob(f"*/{CONFIG}")) if not path.parent.name.startswith(".")]


def find_weights(name_or_path: str | Path) -> Path:
    """The folder of a name (`dcgan_digiface`) or path.

    Raises:
      FileNotFoundError: nothing there; says where a known checkpoint is published and how to convert it, else lists
        what is there, with the nearest match.
    """
    path = disk.local_path("weights", name_or_path)
    disk.recover(path)
    if (path / CONFIG).is_file():
        return path.resolve()
    known = available_weights()
    if str(name_or_path) not in known:
        if path.name in catalogue.CHECKPOINTS:
            raise FileNotFoundError(
                f"weights {str(name_or_path)!r}: not converted yet. {catalogue.how_to_get(path.name)}"
            )
        raise FileNotFoundError(
            f"weights {str(name_or_path)!r}: no folder of that name holds a {CONFIG}. "
            f"{checks.nearest(str(name_or_path), {*known, *catalogue.CHECKPOINTS})} "
            f"Convert your own checkpoint with `{home.converter('MODEL_to_flax.py')}`, or pass the path of a folder."
        )
    return known[str(name_or_path)].resolve()


def read_config(name_or_path: str | Path) -> dict:
    """The parsed config.json of a weight folder.

    Raises:
      ValueError: damaged, or written by a newer format.
    """
    path = find_weights(name_or_path) / CONFIG
    config = read_json(path, advice="Restore the file or convert the checkpoint again.")
    version = config.get("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{path}: format_version is {version!r}; this release reads {FORMAT_VERSION}. Convert the checkpoint again."
        )
    kind = config.get("kind")
    schema: Any = documents.FOLDERS.get(kind if isinstance(kind, str) else "", documents.WeightFolder)
    documents.check(path, config, schema, advice="Restore the file or convert the checkpoint again.")
    _check_sizes(path, config)
    return config


def _check_sizes(path: Path, config: dict) -> None:
    """Raises ValueError for sizes that the tensors beside a config.json cannot have, before anything is made of them.

    No network has more layers than its file has tensors, nor a size far beyond the longest axis of them, nor, where
    latents are maps as those of an NVAE are, more latents than weights.
    """
    file = path.parent / TENSORS
    if not file.is_file():
        return  # missing, as whoever needs it will tell
    try:
        with safe_open(file, "numpy") as tensors:
            shapes = [tensors.get_slice(name).get_shape() for name in tensors.keys()]
    except SafetensorError:
        return  # damaged, as its sha256 will tell
    longest = LARGEST_RATIO * max((size for shape in shapes for size in shape), default=1)
    weights = max(longest, sum(math.prod(shape) for shape in shapes))
    sizes = {**config.get("options", {}), **{name: config[name] for name in SIZES if name in config}}
    for name, value in sizes.items():
        values = value if isinstance(value, list) else [value]
        limit = len(shapes) if "layers" in name else weights if name == "latent_dim" else longest
        integers = [each for each in values if isinstance(each, int)]
        if len(values) > len(shapes) or any(abs(each) > limit for each in integers):
            raise ValueError(
                f"{path}: {name} is {reprlib.repr(value)}, which does not fit the {len(shapes)} tensors of {TENSORS} "
                "beside it. Restore both or convert the checkpoint again."
            )


def load_weights(name_or_path: str | Path, *, part: str = "") -> tuple[dict, dict]:
    """Reads a weight folder.

    Args:
      name_or_path: as `find_weights`.
      part: as `read_tensors`.

    Returns:
      (tree, config): nested dict of NumPy arrays with their stored dtype, and the parsed config.json.

    Raises:
      FileNotFoundError: no such folder or file.
      ValueError: the tensor file is truncated or altered (sha256), or config.json is unreadable.
    """
    folder = find_weights(name_or_path)
    config = read_config(folder)
    return read_tensors(folder / TENSORS, config["sha256"], part=part), config


def save_weights(folder: str | Path, tree: dict, config: dict, *, source: str = "") -> None:
    """Writes `weights.safetensors` and `config.json` (with sha256 added) into `folder`, all or nothing.

    Other files already in the folder (SOURCE.md, licences) are kept.

    Args:
      folder: made if missing.
      tree: nested dict of arrays.
      config: which network reads it, with which options.
      source: text of SOURCE.md, if it is to be written as well.
    """
    folder = disk.local_path("weights", folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with disk.new_folder(folder) as staged:
        if folder.is_dir():
            shutil.copytree(folder, staged, dirs_exist_ok=True)
        if source:
            (staged / "SOURCE.md").write_text(source)
        digest = write_tensors(staged / TENSORS, tree)
        write_json(staged / CONFIG, {"format_version": FORMAT_VERSION, **config, "sha256": digest})


def write_tensors(path: Path, tree: dict) -> str:
    """Writes a nested dict as safetensors with `/`-joined names; returns the file's sha256."""
    flat = flax.traverse_util.flatten_dict(tree, sep="/")
    try:
        save_file({name: np.asarray(value, order="C") for name, value in flat.items()}, path)
    except SafetensorError as error:
        raise OSError(f"{path}: cannot be written ({error}). Free some space, or choose another place.") from None
    os.chmod(path, 0o644)
    return file_sha256(path)


def read_tensors(path: Path, sha256: str, *, part: str = "") -> dict:
    """Reads a nested dict written by `write_tensors` and verifies its sha256.

    Args:
      path: of the file.
      sha256: of the whole file.
      part: the one entry of the dict to read, such as `text`; all of them by default.

    Raises:
      FileNotFoundError, ValueError: as `load_weights`.
    """
    check_sha256(path, sha256)
    try:
        with safe_open(path, "numpy") as tensors:
            wanted = [name for name in tensors.keys() if name.startswith(f"{part}/" if part else "")]
            return flax.traverse_util.unflatten_dict({name: tensors.get_tensor(name) for name in wanted}, sep="/")
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file ({error}). Convert the checkpoint again.") from None


def check_sha256(path: Path, sha256: str) -> None:
    """Raises FileNotFoundError or ValueError unless a tensor file is there and as it was written."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: file is missing. Restore it or convert the checkpoint again.")
    found = file_sha256(path)
    if found != sha256:
        raise ValueError(
            f"{path}: sha256 is {found[:12]}…, expected {sha256[:12]}…; the file is truncated or altered "
            f"({path.stat().st_size} bytes). Restore it or convert the checkpoint again."
        )


def file_sha256(path: str | Path) -> str:
    """Hexadecimal sha256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_tree(where: str, tree: dict, expected: dict, *, converter: str) -> None:
    """Raises one ValueError naming all missing, unexpected, misshapen and mistyped entries (first ten, then a count).

    Args:
      where: the file that was read.
      tree: nested dict of arrays.
      expected: nested dict of arrays or ShapeDtypeStructs, e.g. `jax.eval_shape(module.init, ...)["params"]`.
      converter: the command that makes a right file.
    """
    found, wanted = (flax.traverse_util.flatten_dict(each, sep="/") for each in (tree, expected))
    got = {name: np.shape(value) for name, value in found.items()}
    want = {name: tuple(value.shape) for name, value in wanted.items()}
    problems = [f"missing {name} {want[name]}" for name in sorted(want.keys() - got.keys())]
    problems += [f"unexpected {name} {got[name]}" for name in sorted(got.keys() - want.keys())]
    problems += [
        f"{name} is {got[name]}, expected {want[name]}"
        for name in sorted(want.keys() & got.keys())
        if want[name] != got[name]
    ]
    problems += [
        f"{name} is of {found[name].dtype}, expected {wanted[name].dtype}"
        for name in sorted(want.keys() & got.keys())
        if _is_integer(found[name]) != _is_integer(wanted[name])
    ]
    if problems:
        more = f"; and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise ValueError(
            f"{where}: {len(problems)} wrong entries: {'; '.join(problems[:10])}{more}. Run {converter} again."
        )


def _is_integer(value: Any) -> bool:
    return bool(np.issubdtype(value.dtype, np.integer))
