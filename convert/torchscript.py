"""TorchScript archives (`torch.jit.save`) read as data: their code is never run, their pickle can make tensors only.

Loading such an archive with PyTorch runs programs that lie in it. Here the tensors are read straight from the zip file,
and the pickle that names them may build nothing else.
"""

from __future__ import annotations

import collections
import pickle
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from convert.nvidia_pickle import STORAGES, strided

DAMAGE = (
    *(pickle.UnpicklingError, zipfile.BadZipFile, EOFError, KeyError, ValueError, IndexError, TypeError),
    *(AttributeError, RecursionError, OSError, NotImplementedError, OverflowError),
)


def is_torchscript(path: str | Path) -> bool:
    """Whether a file is a TorchScript archive, to judge by its table of contents."""
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except zipfile.BadZipFile:
        return False


def read_torchscript(path: str | Path) -> dict[str, np.ndarray]:
    """Parameters and buffers of a TorchScript archive by their names in the state dict, with their stored dtype.

    Raises:
      ValueError: damaged, or its pickle asks for anything but tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(archive)
    except DAMAGE as error:
        raise ValueError(
            f"{path}: not a complete TorchScript archive of plain tensors "
            f"({type(error).__name__}: {str(error)[:160]}). Download it again; a file that needs code to load is "
            "refused."
        ) from None


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


class _Unpickler(pickle.Unpickler):
    """Knows tensors, storages and the archive's own classes, which all become `_Module`."""

    def find_class(self, module, name):
        if module.split(".")[0] == "__torch__":
            return _Module
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _make_tensor
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no tensor")

    def persistent_load(self, pid):
        kind, dtype, name, *_ = pid
        if kind != "storage" or dtype not in STORAGES.values():
            raise pickle.UnpicklingError(f"it refers to a {kind!r}, which is no tensor")
        return _Storage(name, dtype)


def _read(archive):
    root = next(name for name in archive.namelist() if name.endswith("/constants.pkl")).removesuffix("constants.pkl")
    with archive.open(f"{root}data.pkl") as file:
        model = _Unpickler(file).load()
    tensors, pending, seen = {}, [("", model)], set()
    while pending:
        prefix, module = pending.pop()
        if id(module) in seen:
            raise pickle.UnpicklingError(f"it holds {prefix or 'itself'} twice")
        seen.add(id(module))
        for name, value in module.entries.items():
            if isinstance(value, _Module):
                pending.append((f"{prefix}{name}.", value))
            elif isinstance(value, _Tensor):
                tensors[prefix + name] = _array(archive, root, value)
    return tensors


def _array(archive, root, tensor):
    entry = archive.getinfo(f"{root}data/{tensor.storage.name}")
    if entry.compress_type != zipfile.ZIP_STORED:
        raise pickle.UnpicklingError(f"{entry.filename} is compressed, which PyTorch never does")
    values = np.frombuffer(archive.read(entry), tensor.storage.dtype)
    return strided(values, tensor.offset, tensor.size, tensor.stride)
