"""Every reader on any change of what it reads: it reads, or a sentence says which file is wrong; nothing else happens.

Memory stays below twice the file and 200 MB more, time below ten seconds, nothing is run, nothing written elsewhere.
The counts are printed; `pytest -rP` shows them.
"""

import copy
import functools
import json
import math
import pickle

import hypothesis
import jax
import numpy as np
import official_transformers
import pytest
from hypothesis import strategies as st
from limits import MANY, RUN, a_generator, bounded, flow_folder, settings, tell
from official_clip import ALLOWED
from sample_report import full_report, make_workdir

import promptgen_jax as pg
from convert import (
    array_pickle,
    biggan_to_flax,
    nvidia_pickle,
    reading,
    tfjs,
    torchscript,
)
from promptgen_jax.controls.clip import load_clip
from promptgen_jax.flows import base as flows
from promptgen_jax.generators import synthetic
from promptgen_jax.runs import finished, inventory, report
from promptgen_jax.runs import run as runs
from promptgen_jax.store import hub, logs, weights

torch = pytest.importorskip("torch", reason="torch, which writes and runs the official networks, is not installed")
pytestmark = ALLOWED
FULL = pytest.mark.full


def saved_prompt(folder):
    generator = synthetic.build(problem="linear", dim=2)
    flow, params = pg.init_flow(jax.random.key(0), generator.prior, architecture="coupling", num_layers=2, hidden_dim=2)
    pg.Prompt(generator, flow, params, name="p", notes=(("Title", "Text"),)).save(folder)
    return folder


def a_run(folder):
    make_workdir(folder, full_report())
    (folder / "config.json").write_text(json.dumps(RUN))
    (folder / "a" / "prompt").mkdir(parents=True)
    (folder / "a" / "prompt" / "prompt.json").write_text("{}")
    return folder


def tensorflow(folder):
    folder.mkdir()
    (folder / "s.bin").write_bytes(bytes(24))
    specs = [{"name": "a", "shape": [2, 3], "dtype": "float32"}]
    (folder / "m.json").write_text(json.dumps({"weightsManifest": [{"paths": ["s.bin"], "weights": specs}]}))
    return folder


def biggan(folder):
    folder.mkdir()
    config = {"channel_width": 4, "layers": [[False, 2, 2], [True, 2, 1]], "attention_layer_position": 1, "eps": 1e-4}
    (folder / "c.json").write_text(json.dumps(config | {"z_dim": 4, "num_classes": 3, "n_stats": 2}))
    return folder


def classifier(folder):
    return official_transformers.write(folder, official_transformers.vit())


def clip_folder(folder):
    official_transformers.write(folder, official_transformers.clip())
    official_transformers.write_tokenizer(folder, end=1)
    return folder


def in_shards(folder):
    folder.mkdir()
    weights.write_tensors(folder / "a.safetensors", {"a": np.zeros(1, np.float32)})
    index = {"metadata": {"total_size": 4}, "weight_map": {"a": "a.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


DOCUMENTS = {
    "flow": (flow_folder, "config.json", lambda folder: flows.load_flow(folder)),
    "prompt": (saved_prompt, "prompt.json", lambda folder: pg.Prompt.load(folder, generator=a_generator())),
    "report": (a_run, "report.json", lambda folder: report.write_report(folder)),
    "config-in-report": (a_run, "config.json", lambda folder: report.write_report(folder)),
    "run": (a_run, "config.json", lambda folder: finished.read_config(folder)),
    "workdir": (a_run, "config.json", lambda folder: runs.open_workdir(folder, RUN)),
    "tfjs": (tensorflow, "m.json", lambda folder: tfjs.read_tfjs(folder / "m.json")),
    "biggan": (biggan, "c.json", lambda folder: biggan_to_flax.read_options(folder / "c.json")),
    "shards": (in_shards, "model.safetensors.index.json", lambda folder: hub.read_tensors(folder)),
    "hub-classifier": (classifier, "config.json", pg.load_network),
    "hub-processor": (classifier, "preprocessor_config.json", pg.load_network),
    "hub-clip": (clip_folder, "config.json", lambda folder: load_clip(str(folder), ["rain"])),
    "hub-tokenizer": (clip_folder, "tokenizer.json", lambda folder: load_clip(str(folder), ["rain"])),
    "hub-tokenizer-config": (clip_folder, "tokenizer_config.json", lambda folder: load_clip(str(folder), ["rain"])),
}
JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, -1, 1, 2**31, 2**64, 10**12, 10**400, 0.5, math.inf, math.nan, "", "..", "a", "\ud800", "\0"]),
    st.sampled_from([[], {}, [[]], [{}], {"a": []}, [1, 2, 3], ["a"], {"name": "x"}, "DEEP"]),
)


def places(value, path=()):
    """The paths to everything in a document."""
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from places(child, (*path, key))


def changed(document, path, junk):
    """A copy with one thing replaced, or, by Ellipsis, removed."""
    if not path:
        return {} if junk is ... else junk
    result = copy.deepcopy(document)
    inner = functools.reduce(lambda value, key: value[key], path[:-1], result)
    if junk is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = junk
    return result


@pytest.mark.parametrize("examples", [12, pytest.param(MANY, marks=FULL)])
@pytest.mark.parametrize("name", DOCUMENTS)
def test_changed_documents(name, examples, tmp_path):
    """One thing in it replaced by something else, removed, or nested beyond measure."""
    make, file, reader = DOCUMENTS[name]
    folder = make(tmp_path / "a")
    document, told = json.loads((folder / file).read_text()), []

    @settings(examples)
    @hypothesis.given(st.sampled_from(list(places(document))), st.one_of(st.just(...), JUNK))
    def check(path, junk):
        text = json.dumps(changed(document, path, junk)).replace('"DEEP"', "[" * 10**5 + "]" * 10**5)
        (folder / file).write_text(text)
        with bounded(len(text)):
            told.append(tell(lambda _: reader(folder), folder / file, named=str(tmp_path)))

    check()
    print(f"{name}: {len(told)} changed documents, {sum(each is not None for each in told)} refused")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


@pytest.mark.parametrize(
    "line", ["[" * 10**5, '{"step": "1"}', '{"step": 1, "loss": "x"}', '{"step": 1, "a": {}}', "\0"]
)
def test_changed_metrics(line, tmp_path):
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1, "time": 0.0, "loss": null}}\n{line}\n')
    assert "line 2" in tell(logs.read_metrics, tmp_path, named="metrics.jsonl")


def test_a_damaged_folder_does_not_end_the_list(tmp_path, monkeypatch):
    deep = tmp_path / "deep"
    deep.mkdir()
    (deep / "config.json").write_text("[" * 10**5 + "]" * 10**5)
    monkeypatch.setenv("PROMPTGEN_WEIGHTS", str(tmp_path))
    assert "dcgan_digiface" in weights.available_weights()
    listed = inventory.describe(inventory.take())
    assert "damaged: " in listed
    assert "dcgan_digiface" in listed


def torch_file(path, *, legacy=False):
    state = {"a.weight": torch.arange(12.0).reshape(3, 4), "b": torch.ones(5).half()}
    torch.save({"model": state, "args": {"x": 1}}, path, _use_new_zipfile_serialization=not legacy)


def arrays(path):
    path.write_bytes(pickle.dumps({"a": np.arange(6.0).reshape(2, 3), "b": np.array([1, "x"], object)}, protocol=2))


def script(path):
    module = torch.nn.Module()
    module.child = torch.nn.Linear(2, 3)
    torch.jit.save(torch.jit.script(module), path)


FILES = {
    "torch": (torch_file, reading.read_torch),
    "torch-legacy": (functools.partial(torch_file, legacy=True), reading.read_torch),
    "torch-state": (torch_file, lambda path: reading.read_state(path, "the file", "model")),
    "torchscript": (script, torchscript.read_torchscript),
    "nvidia": (
        lambda path: path.write_bytes(pickle.dumps({"G_ema": torch.nn.Sequential(torch.nn.Flatten())}, protocol=3)),
        nvidia_pickle.read,
    ),
    "arrays": (arrays, array_pickle.read),
    "safetensors": (lambda path: weights.write_tensors(path, {"a": {"b": np.arange(4.0)}}), reading.read_safetensors),
    "checkpoint": (torch_file, reading.read_checkpoint),
}


@pytest.mark.parametrize("examples", [15, pytest.param(MANY, marks=FULL)])
@pytest.mark.parametrize("name", FILES)
def test_changed_files(name, examples, tmp_path):
    """Bytes replaced, cut off, removed, repeated."""
    make, reader = FILES[name]
    path, told = tmp_path / "file.pt", []
    make(path)
    content = path.read_bytes()
    position = st.integers(0, len(content) - 1)
    edits = st.lists(
        st.one_of(
            st.tuples(st.just("set"), position, st.sampled_from([0, 1, 0x7F, 0x80, 0xFF, *b"}]().RbcNts"])),
            st.tuples(st.just("flip"), position, st.sampled_from([1 << bit for bit in range(8)])),
            st.tuples(st.just("cut"), position, st.just(0)),
            st.tuples(st.just("drop"), position, st.integers(1, 9)),
            st.tuples(st.just("repeat"), position, st.integers(1, 9)),
        ),
        min_size=1,
        max_size=4,
    )

    @settings(examples)
    @hypothesis.given(edits)
    def check(edits):
        changed = bytearray(content)
        for kind, at, amount in edits:
            at = min(at, max(0, len(changed) - 1))
            if kind == "set":
                changed[at : at + 1] = bytes([amount])
            elif kind == "flip" and changed:
                changed[at] ^= amount
            elif kind == "cut":
                del changed[at:]
            elif kind == "drop":
                del changed[at : at + amount]
            else:
                changed[at:at] = changed[at : at + amount]
        path.write_bytes(changed)
        with bounded(len(changed)):
            told.append(tell(reader, path))

    check()
    print(f"{name}: {len(told)} changed files, {sum(each is not None for each in told)} refused")
    assert [each.name for each in tmp_path.iterdir()] == ["file.pt"]
