"""Files that say more than they hold: refused, within twice their size and 200 MB, within ten seconds."""

import json
import pickle
import zipfile
from collections import OrderedDict

import jax
import numpy as np
import pytest
from limits import bounded, flow_folder, tell
from official_clip import ALLOWED

from convert import (
    array_pickle,
    clip_to_flax,
    fairface_to_flax,
    nvidia_pickle,
    reading,
    torchscript,
)
from promptgen_jax.flows import base as flows
from promptgen_jax.store import weights

torch = pytest.importorskip("torch", reason="torch, which writes and runs the official networks, is not installed")
pytestmark = ALLOWED


def nested(depth):
    """A module that holds the one below it twice."""
    module = torch.nn.Sequential()
    for _ in range(depth):
        module = torch.nn.Sequential(OrderedDict(a=module, b=module))
    return module


def shared_storage():
    module, base = torch.nn.Module(), torch.zeros(2**20)
    for index in range(300):
        module.register_buffer(f"b{index}", base[: 2**20 - index])
    return torch.jit.script(module)


def packed(path):
    torch.save({"a": torch.zeros(2**18)}, path.with_suffix(".whole"))
    with zipfile.ZipFile(path.with_suffix(".whole")) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))


def an_array(shape, content):
    """A pickled array of a shape that its content does not have."""
    return {"a": _Reduced("numpy.core.multiarray", "_reconstruct", (0,), (1, shape, np.dtype("O"), False, content))}


class _Reduced:
    def __init__(self, module, name, arguments, state):
        self.made = (module, name, arguments, state)


def pickled(value):
    """A pickle of globals by name, which need not exist here."""
    parts = []

    def put(each):
        if isinstance(each, _Reduced):
            module, name, arguments, state = each.made
            parts.append(f"c{module}\n{name}\n".encode())
            put(arguments)
            parts.append(b"R")
            put(state)
            parts.append(b"b")
        elif isinstance(each, dict):
            parts.append(b"}")
            for key, item in each.items():
                put(key)
                put(item)
                parts.append(b"s")
        elif isinstance(each, (tuple, list)):
            parts.append(b"(")
            for item in each:
                put(item)
            parts.append(b"t" if isinstance(each, tuple) else b"l")
        else:
            parts.append(pickle.dumps(each, protocol=2)[2:-1])

    put(value)
    return b"\x80\x02" + b"".join(parts) + b"."


MEMO = b"\x80\x02]r" + (2**28).to_bytes(4, "little") + b"."
ATTRIBUTE = pickled({"a": _Reduced("numpy", "dtype", ("f4", False, True), {"evil": 1})})
ON_FUNCTION = b"\x80\x02cnumpy.core.multiarray\nscalar\n" + pickle.dumps({"evil": 1}, protocol=2)[2:-1] + b"b."
TOO_MUCH = {
    "memo-nvidia": (nvidia_pickle.read, lambda path: path.write_bytes(MEMO)),
    "memo-arrays": (array_pickle.read, lambda path: path.write_bytes(MEMO)),
    "memo-torch": (reading.read_torch, lambda path: path.write_bytes(MEMO)),
    "many-steps": (nvidia_pickle.read, lambda path: path.write_bytes(b"\x80\x02" + b"}" * 1_200_000 + b".")),
    "long-bytes": (array_pickle.read, lambda path: path.write_bytes(b"\x80\x05\x96" + (2**40).to_bytes(8, "little"))),
    "nested": (nvidia_pickle.read, lambda path: path.write_bytes(pickle.dumps({"G_ema": nested(40)}, protocol=3))),
    "objects": (array_pickle.read, lambda path: path.write_bytes(pickled(an_array((2**28,), [])))),
    "negative": (array_pickle.read, lambda path: path.write_bytes(pickled(an_array((-1,), [])))),
    "build-on-function": (nvidia_pickle.read, lambda path: path.write_bytes(ON_FUNCTION)),
    "build-on-function-arrays": (array_pickle.read, lambda path: path.write_bytes(ON_FUNCTION)),
    "packed": (reading.read_torch, packed),
    "repeated": (fairface_to_flax.convert, lambda path: torch.save({"a": torch.zeros(1).expand(2**20, 2**20)}, path)),
    "layers": (
        clip_to_flax.convert,
        lambda path: torch.save({"visual.transformer.resblocks.999999999999.x": torch.zeros(1)}, path),
    ),
    "not-a-file": (reading.read_torch, lambda path: path.write_bytes(b"")),
}


@pytest.mark.parametrize("case", TOO_MUCH)
def test_files_that_say_more_than_they_hold(case, tmp_path):
    reader, write = TOO_MUCH[case]
    path = tmp_path / "file.pt"
    write(path)
    with bounded(path.stat().st_size):
        message = tell(reader, path)
    assert message, "the file was read, to the end"
    assert not hasattr(nvidia_pickle._scalar, "evil")
    assert not hasattr(array_pickle._number, "evil")
    assert not hasattr(np.dtype, "evil")


def test_tensors_of_one_storage_are_views(tmp_path):
    """They are read, 300 of 4 MiB that are one."""
    path = tmp_path / "shared.pt"
    torch.jit.save(shared_storage(), path)
    assert path.stat().st_size < 2**23
    with bounded(path.stat().st_size):
        tensors = torchscript.read_torchscript(path)
    assert len(tensors) == 300
    assert tensors["b299"].shape == (2**20 - 299,)


@pytest.mark.parametrize(
    "change",
    [
        {"blocks": [10**12]},
        {"blocks": [2] * 10**5},
        {"cond_dim": 10**12},
        {"options": {"num_layers": 10**12}},
        {"options": {"hidden_dim": 10**12}},
        {"options": {"num_layers": 1000}},
        {"blocks": [[2]]},
    ],
    ids=range(7),
)
def test_sizes_of_a_flow_are_compared_with_its_tensors(change, tmp_path):
    path = flow_folder(tmp_path / "flow") / "config.json"
    config = json.loads(path.read_text())
    change = {name: config[name] | value if isinstance(value, dict) else value for name, value in change.items()}
    path.write_text(json.dumps(config | change))
    with bounded(path.stat().st_size):
        assert tell(flows.load_flow, tmp_path / "flow")


@pytest.mark.parametrize("change", ["nan", "type"])
def test_numbers_of_a_flow_are_what_they_are_to_be(change, tmp_path):
    """Though the checksum is that of the file: one that is not finite, or indices that are no integers."""
    folder = flow_folder(tmp_path / "flow")
    tree, config = weights.load_weights(folder)
    kind = np.floating if change == "nan" else np.integer
    change = {"nan": lambda value: value * np.float32(np.nan), "type": np.float32}[change]
    tree = jax.tree.map(lambda value: change(value) if np.issubdtype(value.dtype, kind) else value, tree)
    weights.save_weights(folder, tree, {name: value for name, value in config.items() if name != "sha256"})
    assert "holds NaN" in (told := tell(flows.load_flow, folder)) or "is of float32, expected int32" in told
