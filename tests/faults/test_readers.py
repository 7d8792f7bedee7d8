"""Every reader on damaged and hostile files: it reads, or says in a sentence which file is wrong; nothing else happens.

Memory stays below twice the file and 200 MB more, time below ten seconds, nothing is run, nothing written elsewhere.
The counts are printed; `pytest -rP` shows them.
"""

import contextlib
import copy
import functools
import io
import json
import math
import os
import pickle
import resource
import time
import zipfile
from collections import OrderedDict
from pathlib import Path

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st
from official_clip import ALLOWED
from sample_report import full_report, make_workdir

import promptgen_jax as pg
from convert import (
    array_pickle,
    biggan_to_flax,
    clip_to_flax,
    fairface_to_flax,
    nvidia_pickle,
    reading,
    tfjs,
    torchscript,
)
from promptgen_jax.flows import base as flows
from promptgen_jax.generators import synthetic
from promptgen_jax.runs import finished, inventory, report
from promptgen_jax.runs import run as runs
from promptgen_jax.store import disk, hub, logs, weights

torch = pytest.importorskip("torch")
pytestmark = ALLOWED
CONSTANT, SECONDS = 200 * 2**20, 10
MANY = 700  # changed inputs a reader: more than ten thousand in all
FULL = pytest.mark.full
STAGE = {
    "controls": {"c": {"kind": "synthetic", "energy": "quadratic", "target": [1.0, 0.0]}},
    "training": {"num_steps": 2},
}
RUN = {
    "generator": {"name": "synthetic", "problem": "linear", "dim": 2},
    "stages": {"a": STAGE},
    "order": ["a"],
    "evaluation": {"num_samples": 8, "judges": {"faceres": ["gender"]}, "metrics": []},
    "mixtures": {"m": {"stages": ["a"], "judges": [[["faceres", "gender", "male"]]]}},
}


@contextlib.contextmanager
def bounded(size):
    """Limits the memory that may be asked for beside what is there; checks the time."""
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[5]) * resource.getpagesize()
    before, started = resource.getrlimit(resource.RLIMIT_DATA), time.process_time()
    resource.setrlimit(resource.RLIMIT_DATA, (now + 2 * size + CONSTANT, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
        assert time.process_time() - started < SECONDS


def tell(reader, path, named=None):
    """What a reader says of a file, or None if it reads it; anything else than one sentence fails."""
    try:
        reader(path)
    except (ValueError, OSError) as error:
        message = str(error)
        assert (named or path.name) in message, message
        assert "MemoryError" not in message
        assert len(message) < 2000
        return message
    return None


# Files that say more than they hold


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
    assert message is not None
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


def flow_folder(folder):
    prior = pg.load_generator("synthetic", problem="linear", dim=2).prior
    flow, params = pg.init_flow(jax.random.key(0), prior, architecture="coupling", num_layers=2, hidden_dim=2)
    flows.save_flow(folder, flow, params)
    return folder


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


# Folders that lead elsewhere


@pytest.mark.parametrize("how", ["outside", "absolute", "link", "pipe", "device", "folder", "loop", "missing", "bomb"])
def test_pictures_of_a_report_are_files_of_its_run(how, tmp_path):
    secret, run = tmp_path / "secret.png", tmp_path / "run" / "a"
    run.mkdir(parents=True)
    secret.write_bytes(picture(8))
    file = {"outside": "../../secret.png", "absolute": str(secret), "device": "/dev/zero"}.get(how, "p.png")
    if how == "link":
        (run / "p.png").symlink_to(secret)
    elif how == "pipe":
        os.mkfifo(run / "p.png")
    elif how == "folder":
        (run / "p.png").mkdir()
    elif how == "loop":
        (run / "p.png").symlink_to(run / "p.png")
    elif how == "bomb":
        (run / "p.png").write_bytes(picture(7000))
    stage = {"name": "a", "folder": "a", "images": [{"file": file}]}
    (tmp_path / "run" / "report.json").write_text(json.dumps({"title": "t", "stages": [stage]}))
    with bounded(0):
        page = report.write_report(tmp_path / "run").read_text()
    assert "<img" not in page
    assert "this picture is not in" in page or "not a picture that can be shown" in page


def picture(size):
    import PIL.Image

    file = io.BytesIO()
    PIL.Image.new("1", (size, size)).save(file, format="PNG")
    return file.getvalue()


@pytest.mark.parametrize("folder", ["..", "../..", "/etc", "\0"])
def test_stages_of_a_report_lie_in_its_run(folder, tmp_path):
    (tmp_path / "report.json").write_text(json.dumps({"title": "t", "stages": [{"name": "a", "folder": folder}]}))
    assert tell(report.write_report, tmp_path, named="not in")
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("name", ["../victim", "/tmp/victim", ".", "..", "a/b", "a\n", "x" * 300])
def test_stage_names_are_plain_names(name, tmp_path):
    config = RUN | {"stages": {name: STAGE, "last": STAGE}, "order": [name, "last"]}
    (tmp_path / "config.json").write_text(json.dumps(config | {"mixtures": {}}))
    assert "cannot be the name of a stage" in tell(finished.read_config, tmp_path, named="config.json")


def test_code_in_the_folder_of_a_run_is_not_run(tmp_path, monkeypatch):
    """As a name of one's own metric could make it, where the folder lies within a place that modules come from."""
    run = tmp_path / "place" / "stranger"
    (run / "a" / "prompt").mkdir(parents=True)
    (run / "a" / "prompt" / "prompt.json").write_text("{}")
    (run / "evil.py").write_text("raise SystemExit('executed')")
    evaluation = {"num_samples": 8, "metrics": ["stranger.evil"]}
    (run / "config.json").write_text(json.dumps(RUN | {"evaluation": evaluation, "mixtures": {}}))
    monkeypatch.syspath_prepend(str(tmp_path / "place"))
    assert "whose code would run" in tell(finished.read_config, run)


# Any change of any document


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


def hugging_face(folder):
    folder.mkdir()
    weights.write_tensors(folder / "model.safetensors", {"a": np.zeros(1, np.float32)})
    towers = {"num_attention_heads": 1, "hidden_act": "gelu", "layer_norm_eps": 1e-5}
    (folder / "config.json").write_text(json.dumps({"vision_config": towers, "text_config": towers}))
    return folder


def in_shards(folder):
    folder.mkdir()
    weights.write_tensors(folder / "a.safetensors", {"a": np.zeros(1, np.float32)})
    index = {"metadata": {"total_size": 4}, "weight_map": {"a": "a.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@functools.cache
def a_generator():
    return synthetic.build(problem="linear", dim=2)


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
    "hugging-face": (hugging_face, "config.json", lambda folder: clip_to_flax.read_hugging_face(folder)),
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


def settings(examples):
    return hypothesis.settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )


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


# Any change of any foreign file


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


# Cards


def test_a_card_has_no_live_markdown_of_others(tmp_path):
    """Not of names, licences, texts, nor of notes that a file has brought."""
    markdown = pytest.importorskip("markdown_it").MarkdownIt("gfm-like", {"linkify": False, "html": True})
    bad = "x | ![i](http://a.b/c) <img src=x> [l](http://a.b) `c` **b** https://a.b\n\n# h\n\n[r]: http://a.b\n\n[r]"
    generator = a_generator().replace(name=bad)
    flow, params = pg.init_flow(jax.random.key(0), generator.prior, architecture="coupling", num_layers=2, hidden_dim=2)
    prompt = pg.Prompt(generator, flow, params, name=bad, notes=((bad, "fine"), ("Title", bad)))
    prompt.save(tmp_path / "p")
    text = (tmp_path / "p" / "README.md").read_text()
    _, _, body = text.partition("\n---\n")
    kinds = {token.type for block in markdown.parse(body) for token in [block, *(block.children or [])]}
    assert not kinds & {"link_open", "image", "html_inline", "html_block"}


def test_disk_reads_regular_files_only(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(ValueError, match="no regular file"):
            disk.read_bytes(path, 100)
    (tmp_path / "large").write_bytes(bytes(101))
    with pytest.raises(ValueError, match="at most 100"):
        disk.read_bytes(tmp_path / "large", 100)
