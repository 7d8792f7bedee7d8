"""Whole processes: killed and run again, and two hosts on one machine."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import helpers
import jax
import numpy as np
import pytest

import promptgen_jax as pg

ROOT = Path(__file__).parents[2]
HEAD = 'import sys; sys.path.insert(0, "tests/support")\nimport jax, numpy as np, promptgen_jax as pg, helpers as t\n'
TRAIN = (
    HEAD
    + """
import os, signal
from promptgen_jax.store import logs
log = logs.MetricLogger.log

def log_and_die(self, step, metrics):
    log(self, step, metrics)
    if step == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)

if len(sys.argv) > 2:
    logs.MetricLogger.log = log_and_die
options = t.OPTIONS | {"num_steps": 160, "save_every": 20, "eval_every": 50}
prompt, _ = pg.fit(t.make_ebm(), workdir=sys.argv[1], flow=t.FLOW, **options)
prompt.save(sys.argv[1] + "/prompt")
"""
)
LOSSES = """
_, history = pg.fit(t.make_ebm(), flow=t.FLOW, **t.OPTIONS)
print("losses", jax.device_count(), *[line["loss"] for line in history])
"""
JOIN = "import sys\nfrom promptgen_jax import sharding\nsharding.start_hosts(sys.argv[1], 2, int(sys.argv[2]))\n"


def start(program, *arguments):
    command = [sys.executable, "-c", program, *map(str, arguments)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process):
    output, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    return output


@pytest.mark.full
def test_killed_at_a_random_step_then_run_again(tmp_path):
    finish(start(TRAIN, tmp_path / "whole"))
    wanted = int(np.random.default_rng().integers(25, 150))  # any step must do
    process = start(TRAIN, tmp_path / "killed", wanted)
    _, error = process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL, error
    assert (tmp_path / "killed" / "metrics.jsonl").read_text().count("\n") == wanted
    finish(start(TRAIN, tmp_path / "killed"))
    trees = [pg.load_flow(tmp_path / run / "prompt" / "flow_0")[1] for run in ("whole", "killed")]
    for one, other in zip(*map(jax.tree.leaves, trees), strict=True):
        assert np.array_equal(one, other), f"differs after a kill at step {wanted}"
    lines = [(tmp_path / run / "metrics.jsonl").read_text().count("\n") for run in ("whole", "killed")]
    assert lines[0] == lines[1]


def test_two_processes_train_the_same_thing():
    address = helpers.free_address()
    outputs = [finish(process) for process in [start(JOIN + HEAD + LOSSES, address, rank) for rank in (0, 1)]]
    first, second = (_losses(output) for output in outputs)
    assert first[0] == second[0] == 2 * jax.device_count()
    np.testing.assert_array_equal(first[1:], second[1:])
    _, history = pg.fit(helpers.make_ebm(), flow=helpers.FLOW, **helpers.OPTIONS)
    np.testing.assert_allclose(first[1:], [line["loss"] for line in history], rtol=1e-5)


@pytest.mark.full
def test_two_hosts_share_a_workdir(tmp_path):
    """The command line on two hosts writes one run, as one host does; and both end well."""
    arguments = ["main.py", "--config=configs/synthetic_linear.py:smoke"]
    hosts = [f"--coordinator={helpers.free_address()}", "--num_processes=2"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}

    def begin(workdir, *more):
        command = [sys.executable, *arguments, f"--workdir={workdir}", *more]
        return subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)

    both = [begin(tmp_path / "two", *hosts, f"--process_id={rank}") for rank in (0, 1)]
    outputs = [finish(process) for process in both]
    finish(begin(tmp_path / "one"))
    assert outputs[0].strip().endswith("report.html")
    trained = [pg.Prompt.load(tmp_path / name / "quadratic" / "prompt", generator=linear()) for name in ("one", "two")]
    for one, two in zip(*(jax.tree.leaves(prompt.params) for prompt in trained), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)
    metrics = [(tmp_path / name / "quadratic" / "metrics.jsonl").read_text().count("\n") for name in ("one", "two")]
    assert metrics[0] == metrics[1]


def linear():
    return pg.load_generator("synthetic", problem="linear")


def _losses(output):
    line = next(line for line in output.splitlines() if line.startswith("losses"))
    return np.array(line.split()[1:], float)
