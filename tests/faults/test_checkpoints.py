"""Checkpoints, killed in front of every event of the file system that saving one makes: the old step or the new one.

Orbax writes from several threads and, by TensorStore, from C++, so that events are counted below Python: see events.c.
The counts are printed; `pytest -rP` shows them.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from promptgen_jax.store.checkpoints import Checkpoints

ROOT = Path(__file__).parents[2]
STATE = {"step": jax.numpy.zeros((), int), "params": {"a": jax.numpy.arange(400.0).reshape(20, 20)}, "opt": ()}
QUICK, EVERY = 12, 1  # one event of how many
# Imports once and forks for every event; nothing has been computed then, so there are no threads yet.
SAVER = """
import ctypes, os, sys
import jax
from promptgen_jax.store.checkpoints import Checkpoints
library = ctypes.CDLL(None)

def save(folder, step, at):
    number = jax.numpy.arange(400.0)
    state = {"step": jax.numpy.zeros((), int) + step, "params": {"a": number.reshape(20, 20)}, "opt": ()}
    with Checkpoints(folder) as opened:
        library.watch(os.fsencode(folder), ctypes.c_long(at))
        opened.save(step, state)
    print(library.events_seen(), flush=True)

for line in sys.stdin:
    folder, step, at = line.rsplit(maxsplit=2)
    if os.fork() == 0:
        save(folder, int(step), int(at))
        os._exit(0)
    killed = os.waitstatus_to_exitcode(os.wait()[1])
    print("end", killed, flush=True)
"""


class Saver:
    """A process that saves checkpoints, in children that are killed in front of an event."""

    def __init__(self, library):
        variables = {"PYTHONPATH": str(ROOT), "LD_PRELOAD": str(library)}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen([sys.executable, "-c", SAVER], env=os.environ | variables, **pipes)

    def save(self, folder, step, at=-1):
        """Saves a step, dying in front of event `at`; the number of events, or None if it died."""
        print(folder, step, at, file=self._process.stdin, flush=True)
        seen = None
        while not (line := self._process.stdout.readline()).startswith("end"):
            assert line, "the saver has ended"
            seen = int(line)
        assert line.split()[1] == ("0" if seen is not None else "-9"), line
        return seen

    def close(self):
        self._process.communicate()


@pytest.fixture(scope="module")
def saver(tmp_path_factory):
    compiler = shutil.which("cc")
    if not sys.platform.startswith("linux") or compiler is None:
        pytest.skip("needs Linux and a C compiler")
    library = tmp_path_factory.mktemp("events") / "events.so"
    source = Path(__file__).with_name("events.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    made = Saver(library)
    yield made
    made.close()


@pytest.mark.parametrize("each", [QUICK, pytest.param(EVERY, marks=pytest.mark.full)])
@pytest.mark.parametrize(
    "before",
    [
        pytest.param(0, id="first", marks=pytest.mark.full),
        pytest.param(1, id="second", marks=pytest.mark.full),
        pytest.param(2, id="third, which removes the first"),
    ],
)
def test_every_crash_point_of_a_checkpoint(saver, before, each, tmp_path):
    """The step before or the new one is read, none only where there was none; the next save leaves two and no more."""
    for step in range(1, before + 1):
        saver.save(tmp_path / "start", step)
    (tmp_path / "start").mkdir(exist_ok=True)
    shutil.copytree(tmp_path / "start", tmp_path / "count")
    count, found = saver.save(tmp_path / "count", before + 1), []
    assert count > 50
    for number in range(before % each, count, each):
        folder = tmp_path / str(number)
        shutil.copytree(tmp_path / "start", folder)
        if saver.save(folder, before + 1, number) is not None:
            break  # threads take turns differently: this time there were fewer events
        said = []
        with Checkpoints(folder, say=said.append) as opened:
            state = opened.load_latest(STATE)
            found.append(0 if state is None else int(state["step"]))
            assert found[-1] in (before, before + 1), f"event {number} of {count}"
            assert not said, f"event {number} of {count}"
            if state is not None:
                np.testing.assert_array_equal(state["params"]["a"], STATE["params"]["a"])
            opened.save(found[-1] + 1, STATE | {"step": STATE["step"] + found[-1] + 1})
        left = {str(step) for step in range(max(1, found[-1]), found[-1] + 2)}
        assert {path.name for path in folder.iterdir()} == left, f"event {number} of {count}"
        assert not [path for path in folder.rglob("*") if "tmp" in path.name or path.name.startswith(".")]
        shutil.rmtree(folder)
    print(f"{len(found)} of {count} crash points, {found.count(before)} old, {found.count(before + 1)} new")
    assert found.count(before)


FULL_DISK = """
import resource, sys
import jax
from promptgen_jax.store.checkpoints import Checkpoints
state = {"step": jax.numpy.zeros((), int), "params": {"a": jax.numpy.arange(400.0)}}
with Checkpoints(sys.argv[1]) as opened:
    opened.save(1, state)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    try:
        opened.save(2, state)
    except OSError as error:
        print(error, flush=True)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
with Checkpoints(sys.argv[1], say=sys.exit) as opened:
    assert opened.load_latest(state)["params"]["a"][399] == 399
    opened.save(2, state)
"""


def test_a_checkpoint_too_large_for_the_disk(tmp_path):
    """One sentence; the step before is read, and the next save leaves nothing of the other.

    In a process of its own, since Orbax leaves an event loop behind that complains later.
    """
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert re.search("the checkpoint of step 2 cannot be written .*goes on from the", done.stdout)
    assert {path.name for path in tmp_path.iterdir()} == {"1", "2"}
