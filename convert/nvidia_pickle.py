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
DAMAGE = (
    *(pickle.UnpicklingError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError),
    *(RecursionError, OverflowError, MemoryError),
)


@dataclasses.dataclass
class Module:
    """A network module: the name of its class, and its attributes."""

    class_name: str
    state: dict

    def __setstate__(self, state):
        """PyTorch's own containers come without a name of their class."""
        self.class_name, self.state = type(self).__name__, dict(state)

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
        """All parameters and buffers by their names in the state dict."""
        own = self.state.get("_parameters", {}) | self.state.get("_buffers", {})
        found = {prefix + name: value for name, value in own.items() if value is not None}
        strangers = [name for name, value in found.items() if not isinstance(value, np.ndarray)]
        if strangers:
            raise ValueError(f"{', '.join(strangers)} are no tensors")
        for name, module in self.state.get("_modules", {}).items():
            if module is not None:
                found |= module.tensors(f"{prefix}{name}.")
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
    """Settings as dicts, lists and values."""
    content = settings.content if isinstance(settings, Setting) else settings
    if isinstance(content, dict):
        return {name: plain(value) for name, value in content.items()}
    return [plain(value) for value in content] if isinstance(content, (list, tuple)) else content


def read(path: str | Path) -> dict:
    """The content of the file, usually {"G": Module, "D": Module, "G_ema": Module, ...}.

    Raises:
      ValueError: damaged, or it holds anything but modules, tensors, numbers and containers.
    """
    try:
        content = _Unpickler(io.BytesIO(Path(path).read_bytes())).load()
        networks = {name: value for name, value in content.items() if isinstance(value, Module)}
        for network in networks.values():
            network.tensors()  # a module that holds itself, or no tensors where they belong, is found here
        return content
    except DAMAGE as error:
        raise ValueError(
            f"{path}: not a complete network pickle of NVIDIA's PyTorch releases ({type(error).__name__}: "
            f"{str(error)[:200]}). Download it again; a file that needs code to load is refused, and one of the "
            "TensorFlow release has to be converted with NVIDIA's legacy.py first."
        ) from None


class _DType:
    """What numpy.dtype builds: a plain number type."""

    def __init__(self, name, *_):
        if not re.fullmatch(r"[fiub]\d", name):
            raise pickle.UnpicklingError(f"it asks for numbers of type {name!r}")
        self.name = name

    def __setstate__(self, state):
        if state[1] not in "<|":
            raise pickle.UnpicklingError("its numbers are not little-endian")


class _Unpickler(pickle.Unpickler):
    """Knows exactly the globals that these files need; bound methods stand in for them and run nothing."""

    def find_class(self, module, name):
        known = {
            "torch_utils.persistence._reconstruct_persistent_obj": self._module,
            "torch._utils._rebuild_parameter": self._parameter,
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch.storage._load_from_bytes": self._storage,
            "collections.OrderedDict": dict,
            "dnnlib.util.EasyDict": dict,
            "builtins.set": set,
            "numpy.core.multiarray.scalar": self._scalar,
            "numpy._core.multiarray.scalar": self._scalar,
            "numpy.dtype": self._dtype,
            "torch.nn.modules.container.Sequential": Sequential,
            "torch.nn.modules.container.ModuleList": ModuleList,
            "collections.defaultdict": self._default,
            "typing.Any": object,
            **{f"builtins.{kind.__name__}": kind for kind in (int, list, dict)},
            **{f"omegaconf.{kind}": Setting for kind in SETTINGS},
        }
        if f"{module}.{name}" not in known:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no part of a network")
        return known[f"{module}.{name}"]

    def _default(self, *_):
        return {}

    def _module(self, content):
        return Module(str(content["class_name"]), dict(content["state"]))

    def _parameter(self, tensor, *_):
        return tensor

    def _tensor(self, storage, offset, size, stride, *_):
        return strided(storage, offset, size, stride)

    def _storage(self, content):
        return _read_storage(content)

    def _dtype(self, *arguments):
        return _DType(*arguments)

    def _scalar(self, dtype, content):
        return np.frombuffer(content, dtype.name, 1)[0]


class _StorageUnpickler(pickle.Unpickler):
    """Reads the parts of torch's legacy stream, whose only name is the type of a storage."""

    def find_class(self, module, name):
        if module != "torch" or name not in STORAGES:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no storage")
        return STORAGES[name]

    def persistent_load(self, pid):
        kind, dtype, key, _, count, view = pid
        if kind != "storage" or dtype not in STORAGES.values() or view is not None:
            raise pickle.UnpicklingError(f"it refers to a {kind!r}, which is no plain storage")
        return dtype, key, count


def _read_storage(content: bytes) -> np.ndarray:
    """The numbers of one storage as `torch.save` wrote it before zip files: five pickles, then the raw values."""
    stream = io.BytesIO(content)
    magic, version, system, (dtype, key, count), keys = [_StorageUnpickler(stream).load() for _ in range(5)]
    if (magic, version, keys) != (LEGACY_MAGIC, LEGACY_VERSION, [key]) or not system["little_endian"]:
        raise pickle.UnpicklingError("it holds a tensor that is not in PyTorch's format")
    stored = int(np.frombuffer(stream.read(8), "<i8", 1)[0])
    if stored != count:
        raise pickle.UnpicklingError(f"a tensor of {count} numbers comes with {stored}")
    return np.frombuffer(stream.read(), dtype, count)


def strided(values: np.ndarray, offset: int, size: tuple, stride: tuple) -> np.ndarray:
    """The tensor that offset, size and strides, in numbers, cut from a storage; refused if it reaches beyond."""
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or not all(type(number) is int and number >= 0 for number in numbers):
        raise pickle.UnpicklingError("a tensor has a malformed shape")
    last = offset + sum((count - 1) * step for count, step in zip(size, stride, strict=True))
    if math.prod(size) > len(values) or (math.prod(size) and last >= len(values)):
        raise pickle.UnpicklingError("a tensor reaches beyond its storage")
    steps = [step * values.itemsize for step in stride]
    return np.ascontiguousarray(np.lib.stride_tricks.as_strided(values[offset:], size, steps)).reshape(size)
