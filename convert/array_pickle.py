"""Pickles of arrays by name, such as FLAME's, read as data: what they ask for becomes arrays or stays unread.

The unpickler knows the names that make NumPy arrays, SciPy's sparse columns, PyTorch tensors and chumpy's variables,
and refuses every other; none of these libraries' own functions is called.
"""

from __future__ import annotations

import io
import math
import pickle
from pathlib import Path

import numpy as np

from convert.nvidia_pickle import DAMAGE, _DType, _read_storage, strided

OBJECTS = "O8"


def read(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a pickled dict, or of an .npy file that holds one, by name; all else in it is left out.

    Raises:
      ValueError: damaged, no dict of arrays, or asking for anything but arrays.
    """
    content = Path(path).read_bytes()
    try:
        stream = io.BytesIO(content)
        if content.startswith(b"\x93NUMPY"):
            version = np.lib.format.read_magic(stream)
            header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            header[version](stream)
        found = _Unpickler(stream, encoding="latin1").load()
        found = found.value.item() if isinstance(found, _Array) else found
        arrays = {str(name): _dense(value) for name, value in found.items()}
    except DAMAGE as error:
        raise ValueError(
            f"{path}: not a complete pickle of arrays ({type(error).__name__}: {str(error)[:160]}). Download it again; "
            "a file that needs code to load is refused."
        ) from None
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
    if len(starts) != columns + 1 or len(data) != len(indices):
        raise pickle.UnpicklingError("a sparse matrix does not fit its shape")
    dense = np.zeros((rows, columns), data.dtype)
    dense[indices, np.repeat(np.arange(columns), np.diff(starts))] = data
    return dense


class _Array:
    """An array while it is being read."""

    value = None

    def __setstate__(self, state):
        _, shape, dtype, fortran, content = state
        order = "F" if fortran else "C"
        if dtype.name == OBJECTS:
            self.value = np.empty(shape, object)
            self.value.reshape(-1)[:] = content
            return
        content = content.encode("latin1") if isinstance(content, str) else content
        size = math.prod(shape)
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


class _Unpickler(pickle.Unpickler):
    """Knows exactly the globals that such files need."""

    def find_class(self, module, name):
        known = {
            "numpy.dtype": _Objects,
            "numpy.ndarray": _Array,
            "torch._utils._rebuild_tensor_v2": _tensor,
            "torch.storage._load_from_bytes": _read_storage,
            "collections.OrderedDict": dict,
            "copy_reg._reconstructor": _reconstruct,
            "copyreg._reconstructor": _reconstruct,
            "__builtin__.object": _Holder,
            "builtins.object": _Holder,
            "_codecs.encode": _encode,
        }
        for core in ("core", "_core"):
            known[f"numpy.{core}.multiarray._reconstruct"] = _new_array
            known[f"numpy.{core}.multiarray.scalar"] = _number
        for place in ("csc", "_csc"):
            known[f"scipy.sparse.{place}.csc_matrix"] = _Holder
        for kind in ("ch.Ch", "reordering.Select", "ch.MatVecMult"):
            known[f"chumpy.{kind}"] = _Holder
        if f"{module}.{name}" not in known:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which makes no array")
        return known[f"{module}.{name}"]


def _new_array(*_):
    return _Array()


def _number(dtype, content):
    return np.frombuffer(content.encode("latin1") if isinstance(content, str) else content, dtype.name, 1)[0]


def _tensor(storage, offset, size, stride, *_):
    return strided(storage, offset, size, stride)


def _reconstruct(*_):
    return _Holder()


def _encode(text, encoding="latin1"):
    return text.encode("latin1")
