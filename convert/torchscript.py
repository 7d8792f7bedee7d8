"""TorchScript archives (`torch.jit.save`) read as data: their code is never run, their pickle can make tensors only.

Loading such an archive with PyTorch runs programs that lie in it. Here the tensors are read straight from the zip file,
and the pickle that names them may build nothing else.
"""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from convert.nvidia_pickle import STORAGES, _named, strided
from convert.safe_pickle import SafeUnpickler
from promptgen_jax.store import documents


def is_torchscript(path: str | Path) -> bool:
    """Whether a file is a TorchScript archive, to judge by its table of contents."""
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except Exception:  # a damaged one, as who reads it will tell
        return False


def read_torchscript(path: str | Path) -> dict[str, np.ndarray]:
    """Parameters and buffers of a TorchScript archive by their names in the state dict, with their stored dtype.

    Raises:
      ValueError: damaged, or its pickle asks for anything but tensors.
    """
    advice = "Download it again; a file that needs code to load is refused."
    with documents.one_sentence(path, "not a complete TorchScript archive of plain tensors", advice=advice):
        check_stored(path)
        with zipfile.ZipFile(path) as archive:
            return _read(archive)


def check_stored(path: str | Path) -> None:
    """Raises pickle.UnpicklingError if a zip archive holds more than its own size: PyTorch compresses code alone."""
    with zipfile.ZipFile(path) as archive:
        entries = [entry for entry in archive.infolist() if "/code/" not in entry.filename]
    packed = next((entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED), None)
    if packed is not None:
        raise pickle.UnpicklingError(f"{packed} is compressed, which PyTorch does with code alone")
    if sum(entry.file_size for entry in entries) > Path(path).stat().st_size:
        raise pickle.UnpicklingError("its entries overlap")


class _Storage(NamedTuple):
    name: str
    dtype: str


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class _Module:
    """Stands for every class of the archive: holds what the pickle sets, does nothing."""

    def __setstate__(self, state):
        self.entries = state


def _make_tensor(storage, offset, size, stride, *_):
    return _Tensor(storage, offset, size, stride)


class _Known(dict):
    """Makers of tensors and storages; the archive's own classes all become `_Module`."""

    def __missing__(self, name):
        if name.partition(".")[0] == "__torch__":
            return _Module
        raise KeyError(name)


KNOWN = _Known(
    {
        "torch._utils._rebuild_tensor_v2": _make_tensor,
        "collections.OrderedDict": _named,
        **{f"torch.{name}": dtype for name, dtype in STORAGES.items()},
    }
)


class _Unpickler(SafeUnpickler):
    """Knows tensors, storages and the archive's own classes."""

    stateful = (_Module,)

    def persistent_load(self, pid):
        kind, dtype, name, *_ = pid
        if kind != "storage" or dtype not in STORAGES.values():
            raise pickle.UnpicklingError(f"it refers to a {kind!r}, which is no tensor")
        return _Storage(name, dtype)


def _read(archive):
    root = next(name for name in archive.namelist() if name.endswith("/constants.pkl")).removesuffix("constants.pkl")
    with archive.open(f"{root}data.pkl") as file:
        model = _Unpickler(file, KNOWN, "is no tensor").load()
    tensors, pending, seen, storages = {}, [("", model)], set(), {}
    while pending:
        prefix, module = pending.pop()
        if id(module) in seen:
            raise pickle.UnpicklingError(f"it holds {prefix or 'itself'} twice")
        seen.add(id(module))
        for name, value in module.entries.items():
            if isinstance(value, _Module):
                pending.append((f"{prefix}{name}.", value))
            elif isinstance(value, _Tensor):
                tensors[prefix + name] = _array(archive, root, value, storages)
    return tensors


def _array(archive, root, tensor, storages):
    """A tensor, a view of its storage, which is read once."""
    name, dtype = tensor.storage
    if name not in storages:
        storages[name] = archive.read(f"{root}data/{name}")
    return strided(np.frombuffer(storages[name], dtype), tensor.offset, tensor.size, tensor.stride)
