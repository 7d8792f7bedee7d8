"""Pickles of arrays by name, such as FLAME's, read as data: what they ask for becomes arrays or stays unread.

The unpickler knows the names that make NumPy arrays, SciPy's sparse columns, PyTorch tensors and chumpy's variables,
and refuses every other; none of these libraries' own functions is called.
"""

from __future__ import annotations

import math
import os
import pickle
from pathlib import Path

import numpy as np

from convert.nvidia_pickle import _DType, _named, read_storage, strided
from convert.safe_pickle import SafeUnpickler
from promptgen_jax.store import documents

OBJECTS, NPY = "O8", b"\x93NUMPY"
MAX_DENSE = 2**24  # numbers of a sparse matrix once it is dense


def read(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a pickled dict, or of an .npy file that holds one, by name; all else in it is left out.

    Raises:
      ValueError: damaged, no dict of arrays, or asking for anything but arrays.
    """
    advice = "Download it again; a file that needs code to load is refused."
    with documents.one_sentence(path, "not a complete pickle of arrays", advice=advice), open(path, "rb") as file:
        if file.read(len(NPY)) == NPY:
            file.seek(0)
            version = np.lib.format.read_magic(file)
            header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            header[version](file)
        else:
            file.seek(0)
        found = _Unpickler(file, _known(os.fstat(file.fileno()).st_size), "makes no array", encoding="latin1").load()
        found = found.value.item() if isinstance(found, _Array) else found
        arrays = {str(name): _dense(value) for name, value in found.items()}
        return {name: value for name, value in arrays.items() if value is not None}


def _dense(value) -> np.ndarray | None:
    """An array, of whichever form it was kept in; None of anything else."""
    if isinstance(value, _Array):
        return value.value
    if isinstance(value, np.ndarray):
        return value
    state = getattr(value, "state", None)
    if not isinstance(state, dict):
        return None
    if "x" in state:  # chumpy keeps its values there
        return _dense(state["x"])
    if {"data", "indices", "indptr"} <= state.keys():
        return _sparse(state)
    return None


def _sparse(state: dict) -> np.ndarray:
    """A matrix of sparse columns."""
    rows, columns = (int(size) for size in state.get("_shape", state.get("shape")))
    data, indices, starts = (_dense(state[name]) for name in ("data", "indices", "indptr"))
    if len(starts) != columns + 1 or len(data) != len(indices) or rows * columns > MAX_DENSE:
        raise pickle.UnpicklingError("a sparse matrix does not fit its shape")
    dense = np.zeros((rows, columns), data.dtype)
    dense[indices, np.repeat(np.arange(columns), np.diff(starts))] = data
    return dense


class _Array:
    """An array while it is being read."""

    value = None

    def __setstate__(self, state):
        _, shape, dtype, fortran, content = state
        order, size = "F" if fortran else "C", math.prod(shape)
        if not all(type(each) is int and each >= 0 for each in shape):
            raise pickle.UnpicklingError("an array has a malformed shape")
        if dtype.name == OBJECTS:
            if not isinstance(content, list) or len(content) != size:
                raise pickle.UnpicklingError(f"an array of {size} objects comes without them")
            self.value = np.empty(shape, object)
            self.value.reshape(-1)[:] = content
            return
        content = content.encode("latin1") if isinstance(content, str) else content
        self.value = np.frombuffer(content, dtype.name, size).reshape(shape, order=order)


class _Objects(_DType):
    """A number type, or objects."""

    def __init__(self, name, *rest):
        if name == OBJECTS:
            self.name = name
        else:
            super().__init__(name, *rest)

    def __setstate__(self, state):
        if self.name != OBJECTS:
            super().__setstate__(state)


class _Holder:
    """Any object of a known class: its state and nothing of its code."""

    state = None

    def __init__(self, *_):
        pass

    def __setstate__(self, state):
        self.state = state


class _Unpickler(SafeUnpickler):
    """Of whole files."""

    stateful = (_Array, _Objects, _Holder)


def _known(size: int) -> dict:
    """The globals that such files need, of a file of so many bytes: what they encode is in it as text."""
    left = [2 * size]

    def encode(text, encoding="latin1"):
        left[0] -= len(text)
        if left[0] < 0:
            raise pickle.UnpicklingError("it makes more of its text than there is")
        return text.encode("latin1")

    known = {
        "numpy.dtype": _Objects,
        "numpy.ndarray": _Array,
        "torch._utils._rebuild_tensor_v2": _tensor,
        "torch.storage._load_from_bytes": read_storage,
        "collections.OrderedDict": _named,
        "copy_reg._reconstructor": _reconstruct,
        "copyreg._reconstructor": _reconstruct,
        "__builtin__.object": _Holder,
        "builtins.object": _Holder,
        "_codecs.encode": encode,
    }
    for core in ("core", "_core"):
        known[f"numpy.{core}.multiarray._reconstruct"] = _new_array
        known[f"numpy.{core}.multiarray.scalar"] = _number
    for place in ("csc", "_csc"):
        known[f"scipy.sparse.{place}.csc_matrix"] = _Holder
    for kind in ("ch.Ch", "reordering.Select", "ch.MatVecMult"):
        known[f"chumpy.{kind}"] = _Holder
    return known


def _new_array(*_):
    return _Array()


def _number(dtype, content):
    return np.frombuffer(content.encode("latin1") if isinstance(content, str) else content, dtype.name, 1)[0]


def _tensor(storage, offset, size, stride, *_):
    return strided(storage, offset, size, stride)


def _reconstruct(*_):
    return _Holder()
