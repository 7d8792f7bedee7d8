"""Runs that are started twice, whose checkpoints or pictures are damaged, that are interrupted."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import promptgen_jax as pg
from promptgen_jax.generators import dcgan
from promptgen_jax.runs import run
from promptgen_jax.store import disk
from promptgen_jax.store.checkpoints import Checkpoints

ROOT = Path(__file__).parents[2]
CONFIG = {
    "generator": {"name": "synthetic", "problem": "linear", "dim": 2},
    "stages": {"a": {"controls": {"c": {"kind": "synthetic", "energy": "quadratic", "target": [1.0, 0.0]}}}},
}
STATE = {"step": jax.numpy.zeros((), int), "params": {"a": jax.numpy.arange(400.0).reshape(20, 20)}, "opt": ()}
COMMAND = ["main.py", "--config=configs/synthetic_linear.py:smoke"]


def test_a_second_training_is_refused(tmp_path):
    """Also one by the library alone, and a second sampling."""
    ebm = pg.LatentEBM(
        pg.load_generator("synthetic", problem="linear", dim=2),
        (pg.load_control("synthetic", energy="quadratic", target=(1.0, 0.0)),),
    )
    prompt = a_prompt()
    with disk.locked("workdir", tmp_path):
        for start in (
            lambda: run.train_and_evaluate(CONFIG, tmp_path),
            lambda: pg.fit(ebm, workdir=tmp_path, num_steps=1, batch_size=2, quiet=True),
            lambda: pg.write_samples(prompt, tmp_path, num_samples=1),
        ):
            with pytest.raises(ValueError, match=f"{tmp_path}: another process is working in it. Wait until"):
                start()
    assert not list(tmp_path.glob("*.png"))


def a_prompt():
    generator = dcgan.tiny()
    flow, params = pg.init_flow(jax.random.key(0), generator.prior, architecture="coupling", num_layers=2, hidden_dim=4)
    return pg.Prompt(generator, flow, params, name="some")


def start(*arguments):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([sys.executable, *COMMAND, *arguments], cwd=ROOT, **pipes)


@pytest.mark.full
@pytest.mark.parametrize("delay", np.linspace(0.3, 1.5, 10))
def test_of_two_trainings_one_is_refused(delay, tmp_path):
    first = start(f"--workdir={tmp_path}")
    time.sleep(delay)
    second = start(f"--workdir={tmp_path}")
    outputs = {process.wait(): process.communicate()[0] for process in (first, second)}
    assert set(outputs) == {0, 2}
    assert outputs[2].strip().count("\n") <= 1
    assert "another process is working in it" in outputs[2]


@pytest.mark.full
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_training_that_was_stopped_goes_on(number, tmp_path):
    process = start(f"--workdir={tmp_path}")
    while not list(tmp_path.glob("*/metrics.jsonl")):
        time.sleep(0.1)
    process.send_signal(number)
    output = process.communicate()[0]
    assert process.returncode != 0
    assert "Traceback" not in output
    again = start(f"--workdir={tmp_path}")
    output = again.communicate()[0]
    assert again.returncode == 0, output
    assert not [path for path in tmp_path.rglob(".*") if path.name != disk.LOCK]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints") / "c"
    with Checkpoints(folder) as opened:
        for step in (1, 2):
            opened.save(step, STATE | {"step": STATE["step"] + step})
    return folder


def test_damaged_checkpoints(checkpoints, tmp_path):
    """Every file of the newest one missing, cut, or with a bit changed: told, and the one before taken."""
    files = [path.relative_to(checkpoints) for path in (checkpoints / "2").rglob("*") if path.is_file()]
    count = 0
    for number, file in enumerate(files):
        folder = tmp_path / str(number)
        shutil.copytree(checkpoints, folder)
        content = bytearray((folder / file).read_bytes())
        if number % 3 == 0:
            (folder / file).unlink()
        elif number % 3 == 1:
            (folder / file).write_bytes(content[: len(content) // 2])
        else:
            content[len(content) // 2] ^= 1
            (folder / file).write_bytes(content)
        if (folder / file).exists() and (folder / file).read_bytes() == (checkpoints / file).read_bytes():
            continue  # it was empty
        said = []
        with Checkpoints(folder, say=said.append) as opened:
            found = opened.load_latest(STATE)
            if file.name != "files.sha256" or number % 3:
                assert int(found["step"]) == 1
                assert len(said) == 1
                assert "is damaged" in said[0]
                assert "goes on from step 1" in said[0]
            np.testing.assert_array_equal(found["params"]["a"], STATE["params"]["a"])
        count += 1
    print(f"{count} damaged checkpoints")
    assert count >= 5


def test_no_whole_checkpoint_is_no_new_training(checkpoints, tmp_path):
    shutil.copytree(checkpoints, tmp_path / "c")
    for step in (1, 2):
        (tmp_path / "c" / str(step) / "state" / "manifest.ocdbt").unlink()
    for _ in range(2):  # nor the next time
        with pytest.raises(ValueError, match="No whole one is left; delete"):
            Checkpoints(tmp_path / "c", say=print)


def test_cut_pictures_are_made_again(tmp_path):
    prompt, said = a_prompt(), []
    pg.write_samples(prompt, tmp_path, num_samples=4)
    whole = {path.name: path.read_bytes() for path in tmp_path.glob("*.png")}
    (tmp_path / "000000.png").write_bytes(b"")
    (tmp_path / "000001.png").write_bytes(whole["000001.png"][:-20])
    (tmp_path / "000002.png").unlink()
    os.mkfifo(tmp_path / "000002.png")
    (tmp_path / ".000003.png-0123abcd.partial").write_bytes(b"x")
    pg.write_samples(prompt, tmp_path, num_samples=4, say=said.append)
    assert "3 of 4 images left" in said[0]
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.png")} == whole
    assert os.listdir(tmp_path).count(".000003.png-0123abcd.partial") == 0
    with pytest.raises(ValueError, match="expected at most 2147483648 images"):
        pg.write_samples(prompt, tmp_path, num_samples=10**20)
