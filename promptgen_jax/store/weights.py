"""Weight folders: `ported_weights/<name>/{weights.safetensors, config.json, SOURCE.md}`.

`weights.safetensors` holds the tree as flat `/`-joined names; `config.json` says which network reads it, with which
options, and the sha256 of the tensor file. Reading executes nothing from a file; writing is atomic.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tempfile
from pathlib import Path

import flax.traverse_util
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from promptgen_jax import checks, devices
from promptgen_jax.store import catalogue, home

FORMAT_VERSION = 1
TENSORS, CONFIG = "weights.safetensors", "config.json"


def weight_roots() -> list[Path]:
    """Where folders of weights are looked for: `$PROMPTGEN_WEIGHTS`, ./ported_weights, and those that are shipped."""
    roots = [Path(os.environ["PROMPTGEN_WEIGHTS"])] if os.environ.get("PROMPTGEN_WEIGHTS") else []
    return [*roots, Path("ported_weights"), home.folder() / "ported_weights"]


def available_weights(kind: str | None = None) -> dict[str, Path]:
    """Every weight folder that can be found, by name; only those of one kind ("generator", "network") if given."""
    found = {}
    for root in reversed(weight_roots()):
        for path in sorted(root.glob(f"*/{CONFIG}")):
            try:
                config = json.loads(path.read_text())
            except ValueError:
                continue  # not ours, or damaged: named when it is asked for
            if isinstance(config, dict) and "kind" in config and kind in (None, config["kind"]):
                found[path.parent.name] = path.parent
    return found


def find_weights(name_or_path: str | Path) -> Path:
    """The folder of a name (`dcgan_digiface`) or path.

    Raises:
      FileNotFoundError: nothing there; says where a known checkpoint is published and how to convert it, else lists
        what is there, with the nearest match.
    """
    path = Path(name_or_path)
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
            f"{checks.nearest(name_or_path, {*known, *catalogue.CHECKPOINTS})} "
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
    return config


def load_weights(name_or_path: str | Path) -> tuple[dict, dict]:
    """Reads a weight folder.

    Returns:
      (tree, config): nested dict of NumPy arrays with their stored dtype, and the parsed config.json.

    Raises:
      FileNotFoundError: no such folder or file.
      ValueError: the tensor file is truncated or altered (sha256), or config.json is unreadable.
    """
    folder = find_weights(name_or_path)
    config = read_config(folder)
    return read_tensors(folder / TENSORS, config["sha256"]), config


def save_weights(folder: str | Path, tree: dict, config: dict, *, source: str = "") -> None:
    """Writes `weights.safetensors` and `config.json` (with sha256 added) into `folder`, all or nothing.

    Other files already in the folder (SOURCE.md, licences) are kept.

    Args:
      folder: made if missing.
      tree: nested dict of arrays.
      config: which network reads it, with which options.
      source: text of SOURCE.md, if it is to be written as well.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        staged = Path(temporary)
        if folder.is_dir():
            shutil.copytree(folder, staged, dirs_exist_ok=True)
        if source:
            (staged / "SOURCE.md").write_text(source)
        digest = write_tensors(staged / TENSORS, tree)
        write_json(staged / CONFIG, {"format_version": FORMAT_VERSION, **config, "sha256": digest})
        replace_folder(staged, folder)


def replace_folder(staged: Path, folder: Path) -> None:
    """Moves the finished folder `staged` (same file system) into place; a reader sees the old one or the new one."""
    os.chmod(staged, 0o755)
    if folder.exists():
        retired = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-old-"))
        os.rename(folder, retired / "old")
        os.rename(staged, folder)
        shutil.rmtree(retired)
    else:
        os.rename(staged, folder)
    staged.mkdir()  # so that the TemporaryDirectory around it can clean up


def write_json(path: Path, value) -> None:
    """Writes JSON atomically."""
    write_bytes(path, (json.dumps(value, indent=2) + "\n").encode())


def read_json(path: Path, *, advice: str) -> dict:
    """Reads a JSON object; `advice` says what to do if the file holds none.

    Raises:
      ValueError: damaged.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error}). {advice}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: holds no JSON object. {advice}")
    return value


def write_bytes(path: str | Path, content: bytes) -> None:
    """Writes a file atomically: it is either the old one or the whole new one."""
    path = Path(path)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}-", delete=False) as file:
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            os.chmod(file.name, 0o644)
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def write_npz(path: Path, **arrays) -> None:
    """Writes arrays as .npz atomically."""
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    write_bytes(path, content.getbuffer())


def open_folder(what: str, folder: str | Path) -> Path:
    """The absolute path of a folder to write to, made if missing.

    Args:
      what: the option that named it, for messages.
      folder: its path.

    Raises:
      PermissionError: it cannot be made or written to.
    """
    folder = Path(folder).resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PermissionError(f"{what} {folder}: cannot be made ({error.strerror}). Choose another one.") from None
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{what} {folder}: not writable. Choose another one.")
    return folder


def claim(path: Path, about: dict, *, refusal: str) -> None:
    """Writes what a folder is of, or checks that it is of that already. Of several hosts the first one writes.

    Args:
      path: the JSON file in it that says so.
      about: the entries.
      refusal: the message if they differ, with {} for the folder and {} for what differs, and then what to do.

    Raises:
      ValueError: the file has other entries, which are named, or is damaged.
    """
    about = json.loads(json.dumps(about, default=float))  # numbers of NumPy too
    if path.exists():
        found = read_json(path, advice=refusal.partition(". ")[2])
        if differing := sorted(_differences(found, about)):
            raise ValueError(refusal.format(path.parent, ", ".join(differing[:5])))
    elif devices.is_first_host():
        write_json(path, about)
    devices.wait_for_hosts(path.name)


def _differences(one, other, prefix="") -> set[str]:
    """Names, joined by dots, of the entries in which two trees of JSON differ."""
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return set() if one == other else {prefix.rstrip(".")}
    return {
        name
        for key in one.keys() | other.keys()
        for name in _differences(one.get(key), other.get(key), f"{prefix}{key}.")
    }


def write_tensors(path: Path, tree: dict) -> str:
    """Writes a nested dict as safetensors with `/`-joined names; returns the file's sha256."""
    flat = flax.traverse_util.flatten_dict(tree, sep="/")
    save_file({name: np.asarray(value, order="C") for name, value in flat.items()}, path)
    os.chmod(path, 0o644)
    return file_sha256(path)


def read_tensors(path: Path, sha256: str) -> dict:
    """Reads a nested dict written by `write_tensors` and verifies its sha256.

    Raises:
      FileNotFoundError, ValueError: as `load_weights`.
    """
    check_sha256(path, sha256)
    try:
        return flax.traverse_util.unflatten_dict(load_file(path), sep="/")
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
    """Raises one ValueError naming all missing, unexpected and misshapen entries (first ten, then a count).

    Args:
      where: the file that was read.
      tree: nested dict of arrays.
      expected: nested dict of arrays or ShapeDtypeStructs, e.g. `jax.eval_shape(module.init, ...)["params"]`.
      converter: the command that makes a right file.
    """
    got = {name: np.shape(value) for name, value in flax.traverse_util.flatten_dict(tree, sep="/").items()}
    want = {name: tuple(value.shape) for name, value in flax.traverse_util.flatten_dict(expected, sep="/").items()}
    problems = [f"missing {name} {want[name]}" for name in sorted(want.keys() - got.keys())]
    problems += [f"unexpected {name} {got[name]}" for name in sorted(got.keys() - want.keys())]
    problems += [
        f"{name} is {got[name]}, expected {want[name]}"
        for name in sorted(want.keys() & got.keys())
        if want[name] != got[name]
    ]
    if problems:
        more = f"; and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise ValueError(
            f"{where}: {len(problems)} wrong entries: {'; '.join(problems[:10])}{more}. Run {converter} again."
        )
