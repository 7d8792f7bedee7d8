"""Every writer, stopped at every event of the file system: the old content or the new, nothing else, nothing left over.

"The process ends" is enumerated, not timed: see `events`. The counts are printed; `pytest -rP` shows them.
"""

import functools
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import events
import jax
import numpy as np
import pytest

import promptgen_jax as pg
from convert import reading
from promptgen_jax.generators import synthetic
from promptgen_jax.runs import report
from promptgen_jax.store import disk, images, logs, weights

ROOT = Path(__file__).parents[2]
CONFIG = {"kind": "network", "name": "n", "module": "faceres.FaceRes"}


def picture(value):
    return np.full((8, 8, 3), value, np.uint8)


@functools.cache
def a_generator():
    return synthetic.build(problem="linear", dim=2)


@functools.cache
def a_prompt(value):
    generator = a_generator()
    flow, params = pg.init_flow(jax.random.key(0), generator.prior, architecture="coupling", num_layers=2, hidden_dim=2)
    return pg.Prompt(generator, flow, params, name=f"p{value}")


def write_report(folder, value):
    (folder / "report.json").write_text(json.dumps({"title": f"title {value}", "stages": []}))  # a run's, not watched
    return lambda: report.write_report(folder)


def converted(folder, value):
    source = folder.parent / "source"
    source.write_bytes(b"x")
    tree = {"a": {"b": np.full(3, value, np.float32)}}
    return lambda: reading.run(lambda _: (tree, CONFIG), [str(source), str(folder / "w")], "")


def read_prompt(folder):
    if not folder.exists():  # between two steps: loading it brings it back
        pg.Prompt.load(folder, generator=a_generator())
    weights.load_weights(folder / "flow_0")
    return int(json.loads((folder / "prompt.json").read_text())["name"][1:])


WRITERS = {
    "bytes": lambda folder, value: lambda: disk.write_bytes(folder / "f", b"%d" % value),
    "json": lambda folder, value: lambda: disk.write_json(folder / "f", value),
    "npz": lambda folder, value: lambda: disk.write_npz(folder / "f.npz", a=np.array(value)),
    "png": lambda folder, value: lambda: images.save_png(folder / "000123.png", picture(value)),
    "weights": lambda folder, value: (
        lambda: weights.save_weights(folder / "w", {"a": {"b": np.full(3, value, np.float32)}}, CONFIG, source="s")
    ),
    "convert": converted,
    "prompt": lambda folder, value: lambda: a_prompt(value).save(folder / "prompt"),
    "report": write_report,
    "metrics": lambda folder, value: lambda: logs._drop_lines(folder / "metrics.jsonl", 1 + value),
}
READERS = {
    "bytes": lambda folder: int((folder / "f").read_bytes()),
    "json": lambda folder: json.loads((folder / "f").read_text()),
    "npz": lambda folder: int(np.load(folder / "f.npz")["a"]),
    "png": lambda folder: int(255 * images.load_image(folder / "000123.png")[0, 0, 0] + 0.5),
    "weights": lambda folder: int(weights.load_weights(folder / "w")[0]["a"]["b"][0]),
    "prompt": lambda folder: read_prompt(folder / "prompt"),
    "report": lambda folder: int((folder / "report.html").read_text().partition("title ")[2][0]),
    "metrics": lambda folder: len(logs.read_metrics(folder)),
}
READERS["convert"] = READERS["weights"]
FOLDERS = ("weights", "convert", "prompt")


def started(name, folder):
    """A folder with the old content of a writer, 2, and what writes the new one, 1."""
    folder.mkdir()
    if name == "metrics":
        (folder / "metrics.jsonl").write_text("".join(f'{{"step": {step}, "time": 0.0}}\n' for step in (1, 2)))
    else:
        WRITERS[name](folder, 2)()
    return WRITERS[name](folder, 1)


@pytest.mark.parametrize(("name", "exchanges"), [(name, True) for name in WRITERS] + [(n, False) for n in FOLDERS])
def test_every_crash_point(name, exchanges, tmp_path, monkeypatch):
    """Of systems that exchange folders in one step, and of those that need two."""
    if not exchanges:
        monkeypatch.setattr(disk, "_exchange", lambda *_: False)  # as the call says on NFS
    write = started(name, tmp_path / "count")
    with events.watched(tmp_path / "count") as found:
        write()
    count, old = found.seen, 0
    assert count >= 2
    for number in range(count):
        folder = tmp_path / str(number)
        write = started(name, folder)
        with events.crash_at(folder, number), pytest.raises(events.Crash):
            write()
        seen = READERS[name](folder)
        assert seen in (1, 2), f"event {number} of {count}"
        old += seen == 2
        write()
        assert READERS[name](folder) == 1
        assert not events.leftovers(folder) or name in ("bytes", "json", "npz", "png", "metrics")
        disk.sweep(folder)  # as the run that such a file belongs to does
        assert not events.leftovers(folder), f"event {number} of {count}"
    print(f"{name}: {count} crash points, {old} old, {count - old} new")
    assert 0 < old


@pytest.mark.parametrize("name", WRITERS)
def test_full_disk(name, tmp_path, capsys):
    """The old content stays, nothing is left over, and one sentence names the place."""
    write = started(name, tmp_path / "count")
    with events.watched(tmp_path / "count") as found:
        write()
    for number in range(found.seen):
        folder = tmp_path / str(number)
        write = started(name, folder)
        with events.full_at(folder, number) as at:
            try:
                assert write() == 1  # a converter says it itself
                error = capsys.readouterr().err
            except OSError as raised:
                error = str(raised)
            except AssertionError:
                assert at.seen == found.seen  # renaming and removing was all that was left to do
                continue
        assert str(folder) in error
        assert "cannot be written" in error
        assert "No space left on device" in error
        assert READERS[name](folder) == 2
        assert not events.leftovers(folder)


@pytest.mark.parametrize("name", ["bytes", "npz", "png", "weights", "convert", "prompt"])
def test_file_too_large_for_the_disk(name, tmp_path, capsys):
    """The operating system itself stops the writing in the middle, also that of libraries that are not Python."""
    write = started(name, tmp_path / "a")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    error = ""
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        write()
    except OSError as raised:
        error = str(raised)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    error = error or capsys.readouterr().err
    assert "cannot be written" in error
    assert READERS[name](tmp_path / "a") == 2
    assert not events.leftovers(tmp_path / "a")


HOLDER = """
import sys, time
from pathlib import Path
from promptgen_jax.store import disk
with disk.locked("workdir", Path(sys.argv[1])), disk.new_file(Path(sys.argv[1]) / "f"):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_living_writer_is_left_alone_and_a_dead_one_cleaned_up(tmp_path):
    """Its lock and what it is writing: the system knows who is dead."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"held\n"
        disk.sweep(tmp_path)
        assert any(name.endswith(".partial") for name in events.leftovers(tmp_path))
        with pytest.raises(ValueError, match="another process is working in it"), disk.locked("workdir", tmp_path):
            pass
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    with disk.locked("workdir", tmp_path):
        assert not any(name.endswith(".partial") for name in events.leftovers(tmp_path))
    assert not events.leftovers(tmp_path)


def test_a_folder_behind_a_link_is_replaced_where_it_is(tmp_path):
    started("weights", tmp_path / "real")
    (tmp_path / "linked").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "alias").symlink_to(tmp_path / "real" / "w")
    tree = {"a": {"b": np.ones(3, np.float32)}}
    weights.save_weights(tmp_path / "linked" / "alias", tree, CONFIG)
    assert (tmp_path / "real" / "alias").is_symlink()
    assert READERS["weights"](tmp_path / "real") == 1


def test_a_hidden_leftover_is_no_weight_folder(tmp_path, monkeypatch):
    weights.save_weights(tmp_path / ".w-0123abcd.partial", {"a": np.ones(1)}, CONFIG)
    weights.save_weights(tmp_path / "w", {"a": np.ones(1)}, CONFIG)
    monkeypatch.setenv("PROMPTGEN_WEIGHTS", str(tmp_path))
    from promptgen_jax.runs import inventory

    assert "w" in weights.available_weights()
    assert ".w-0123abcd.partial" not in weights.available_weights()
    assert ".w-0123abcd" not in inventory.describe(inventory.take())


def test_an_address_is_refused_and_a_tilde_is_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    a_prompt(1).save("~/run/prompt")
    assert READERS["prompt"](tmp_path / "run") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    for address in ("gs://bucket/run", "s3://bucket/run", Path("gs://bucket/run")):
        for write in (
            lambda address=address: pg.fit(None, workdir=address),
            lambda address=address: a_prompt(1).save(address),
            lambda address=address: weights.save_weights(address, {"a": np.ones(1)}, CONFIG),
            lambda address=address: pg.write_samples(None, address, num_samples=1),
        ):
            with pytest.raises(ValueError, match="an address, not a folder of this machine"):
                write()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
