"""NVIDIA's `.pkl` networks (stylegan2-ada-pytorch and its successors) read as data, without running what they embed.

Every module in such a file carries the source text of its class, which NVIDIA's own loader executes. Here a module
becomes a `Module`, a name and its attributes; the text is dropped unread. The unpickler knows a few names, all of which
make tensors, numbers, containers or settings, and refuses every other.
"""

from __future__ import annotations

import dataclasses
import io
import math
import pickle
import re
from pathlib import Path

import numpy as np

from convert.safe_pickle import SafeUnpickler
from promptgen_jax.store import documents

STORAGES = {
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "DoubleStorage": "<f8",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ByteStorage": "|u1",
    "BoolStorage": "|b1",
}
SETTINGS = (
    *("dictconfig.DictConfig", "listconfig.ListConfig", "nodes.AnyNode"),
    *("base.ContainerMetadata", "base.Metadata"),
)
LEGACY_MAGIC, LEGACY_VERSION = 0x1950A86A20F9469CFC6C, 1001
MAX_SETTINGS = 100_000


@dataclasses.dataclass
class Module:
    """A network module: the name of its class, and its attributes."""

    class_name: str
    state: dict

    def __setstate__(self, state):
        """PyTorch's own containers come without a name of their class."""
        self.class_name, self.state = type(self).__name__, _checked_state(state)

    def child(self, *names: str) -> Module:
        """A module inside this one. Raises ValueError naming what is there, if it is not."""
        module = self
        for name in names:
            children = module.state.get("_modules", {})
            if not isinstance(children.get(name), Module):
                raise ValueError(f"{module.class_name} has no module {name}; it has {', '.join(map(str, children))}")
            module = children[name]
        return module

    def tensors(self, prefix: str = "") -> dict[str, np.ndarray]:
        """All parameters and buffers by their names in the state dict.

        Raises:
          ValueError: some are no tensors, or a module is in several places, or in itself.
        """
        found, pending, seen = {}, [(prefix, self)], set()
        while pending:
            prefix, module = pending.pop()
            if id(module) in seen:
                raise ValueError(f"{prefix or 'the network'} is there twice")
            seen.add(id(module))
            for own in (module.state.get("_parameters", {}), module.state.get("_buffers", {})):
                found |= {prefix + name: value for name, value in own.items() if value is not None}
            for name, child in module.state.get("_modules", {}).items():
                if child is not None:
                    pending.append((f"{prefix}{name}.", child))
        strangers = [name for name, value in found.items() if not isinstance(value, np.ndarray)]
        if strangers:
            raise ValueError(f"{', '.join(strangers[:10])} are no tensors")
        return found


class Sequential(Module):
    """PyTorch's list of modules, as it is pickled."""


class ModuleList(Module):
    """PyTorch's other list of modules."""


class Setting:
    """A node of the settings that StyleNeRF keeps, of omegaconf: it holds others, a value, or facts about itself."""

    content = None

    def __setstate__(self, state):
        """Keeps what a node holds, and drops the rest."""
        self.content = state.get("_content", state.get("_val"))


def plain(settings):
    """Settings as dicts, lists and values.

    Raises:
      ValueError: more of them than anyone has, as of nodes that hold one another.
    """
    left = iter(range(MAX_SETTINGS))

    def opened(value):
        if next(left, None) is None:
            raise ValueError("settings without an end")
        content = value.content if isinstance(value, Setting) else value
        if isinstance(content, dict):
            return {name: opened(each) for name, each in content.items()}
        return [opened(each) for each in content] if isinstance(content, (list, tuple)) else content

    return opened(settings)


def read(path: str | Path) -> dict:
    """The content of the file, usually {"G": Module, "D": Module, "G_ema": Module, ...}.

    Raises:
      ValueError: damaged, or it holds anything but modules, tensors, numbers and containers.
    """
    advice = (
        "Download it again; a file that needs code to load is refused, and one of the TensorFlow release has to be "
        "converted with NVIDIA's legacy.py first."
    )
    what = "not a complete network pickle of NVIDIA's PyTorch releases"
    with documents.one_sentence(path, what, advice=advice), open(path, "rb") as file:
        content = _Unpickler(file, KNOWN, "is no part of a network").load()
        for network in content.values():
            if isinstance(network, Module):
                network.tensors()  # no tensors where they belong are found here
        return content


class _DType:
    """What numpy.dtype builds: a plain number type."""

    def __init__(self, name, *_):
        if not re.fullmatch(r"[fiub]\d", name):
            raise pickle.UnpicklingError(f"it asks for numbers of type {name!r}")
        self.name = name

    def __setstate__(self, state):
        if state[1] not in "<|":
            raise pickle.UnpicklingError("its numbers are not little-endian")


class _Unpickler(SafeUnpickler):
    """Of whole files."""

    stateful = (Module, Setting, _DType)


def _checked_state(state) -> dict:
    if not isinstance(state, dict) or not all(
        isinstance(state.get(name, {}), dict) for name in ("_parameters", "_buffers", "_modules")
    ):
        raise pickle.UnpicklingError("a module without its parts")
    return state


def _module(content):
    return Module(str(content["class_name"]), _checked_state(content["state"]))


def _tensor(storage, offset, size, stride, *_):
    return strided(storage, offset, size, stride)


def _scalar(dtype, content):
    return np.frombuffer(content, dtype.name, 1)[0]


def _same(items=()):
    """Stands for a set that is not needed."""
    return items


def _empty(*_):
    return {}


def _named(*pairs):
    return dict(*pairs)


class _StorageUnpickler(SafeUnpickler):
    """Reads the parts of torch's legacy stream, whose only name is the type of a storage."""

    def persistent_load(self, pid):
        kind, dtype, key, _, count, view = pid
        if kind != "storage" or dtype not in STORAGES.values() or view is not None:
            raise pickle.UnpicklingError(f"it refers to a {kind!r}, which is no plain storage")
        return dtype, key, count


def read_storage(content: bytes) -> np.ndarray:
    """The numbers of one storage as `torch.save` wrote it before zip files: five pickles, then the raw values."""
    stream = io.BytesIO(content)
    known = {f"torch.{name}": dtype for name, dtype in STORAGES.items()}
    magic, version, system, (dtype, key, count), keys = [
        _StorageUnpickler(stream, known, "is no storage").load() for _ in range(5)
    ]
    if (magic, version, keys) != (LEGACY_MAGIC, LEGACY_VERSION, [key]) or not system["little_endian"]:
        raise pickle.UnpicklingError("it holds a tensor that is not in PyTorch's format")
    stored = int(np.frombuffer(stream.read(8), "<i8", 1)[0])
    if stored != count or type(count) is not int or count < 0:
        raise pickle.UnpicklingError(f"a tensor of {count} numbers comes with {stored}")
    return np.frombuffer(content, dtype, count, stream.tell())


def strided(values: np.ndarray, offset: int, size: tuple, stride: tuple) -> np.ndarray:
    """The tensor that offset, size and strides, in numbers, cut from a storage, a view of it.

    Raises:
      pickle.UnpicklingError: it reaches beyond the storage, or would hold more numbers than that.
    """
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or not all(type(number) is int and number >= 0 for number in numbers):
        raise pickle.UnpicklingError("a tensor has a malformed shape")
    last = offset + sum((count - 1) * step for count, step in zip(size, stride, strict=True))
    if math.prod(size) > len(values) or (math.prod(size) and last >= len(values)):
        raise pickle.UnpicklingError("a tensor reaches beyond its storage")
    steps = [step * values.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(values[offset:], size, steps, writeable=False)


KNOWN = {
    "torch_utils.persistence._reconstruct_persistent_obj": _module,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch.storage._load_from_bytes": read_storage,
    "collections.OrderedDict": _named,
    "dnnlib.util.EasyDict": _named,
    "builtins.set": _same,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray.scalar": _scalar,
    "numpy.dtype": _DType,
    "torch.nn.modules.container.Sequential": Sequential,
    "torch.nn.modules.container.ModuleList": ModuleList,
    "collections.defaultdict": _empty,
    **{f"builtins.{kind}": _same for kind in ("int", "list", "dict")},  # named as types only
    "typing.Any": _same,
    **{f"omegaconf.{kind}": Setting for kind in SETTINGS},
}
