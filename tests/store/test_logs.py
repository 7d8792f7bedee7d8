import contextlib
import json
import math
import os
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from promptgen_jax.store import logs


class Console:
    """A clock that moves by hand, and the lines that were printed."""

    def __init__(self):
        self.now, self.lines = 100.0, []

    def logger(self, workdir, **options):
        return logs.MetricLogger(workdir, clock=lambda: self.now, write_line=self.lines.append, **options)


def run(console, workdir, *, total, start=1, until=None, log_every=10, seconds=0.25):
    with console.logger(workdir, total_steps=total, start_step=start, log_every=log_every) as logger:
        with logger.compiling("the training step"):
            console.now += 40
        for step in range(start, (until or total) + 1):
            console.now += seconds
            logger.log(step, {"loss": jnp.float32(1 / step), "energy/smile": 0.31, "prior": 9})
    return logger


def test_console_lines(tmp_path):
    console = Console()
    logger = run(console, tmp_path, total=200, log_every=60)
    assert console.lines == [
        "compiling the training step ...",
        "compiled the training step in 40.0 s",
        "step 1/200  loss 1  energy/smile 0.31",
        "step 60/200  loss 0.0167  energy/smile 0.31  4.0 steps/s  ETA 0:00:35",
        "step 120/200  loss 0.00833  energy/smile 0.31  4.0 steps/s  ETA 0:00:20",
        "step 180/200  loss 0.00556  energy/smile 0.31  4.0 steps/s  ETA 0:00:05",
        "step 200/200  loss 0.005  energy/smile 0.31  4.0 steps/s",
    ]
    assert logger.compile_seconds == 40
    assert logger.train_seconds == 50


def test_memory_of_a_step_counts_what_is_donated_once():
    shape = jax.ShapeDtypeStruct((2**20,), jnp.float32)
    for donated, sizes in (((), ("8", "4")), ((0,), ("4", "0"))):
        memory = jax.jit(lambda x: x + 1, donate_argnums=donated).lower(shape).compile().memory_analysis()
        total, rest = sizes
        wanted = f"a step takes {total} MiB a device: 4 MiB of weights and state, {rest} MiB of activations"
        assert logs.memory_line(memory) == wanted


def test_slow_steps_read_as_seconds_per_step(tmp_path):
    console = Console()
    run(console, tmp_path, total=2000, until=10, seconds=2.5)
    assert console.lines[-1].endswith("2.5 s/step  ETA 1:22:55")


def test_pauses_do_not_count(tmp_path):
    console = Console()
    with console.logger(tmp_path, total_steps=100, log_every=10) as logger:
        for step in range(1, 31):
            console.now += 0.5
            logger.log(step, {"loss": 1.0})
            with logger.paused("saving"):
                console.now += 7
                with logger.compiling("the sampler"):
                    console.now += 3
        with contextlib.suppress(RuntimeError), logger.paused("drawing samples"):
            console.now += 1000
            raise RuntimeError
        assert logger.train_seconds == 15
    assert "step 30/100  loss 1  2.0 steps/s  ETA 0:00:35" in console.lines
    assert logger.compile_seconds == 90


def test_file(tmp_path):
    run(Console(), tmp_path / "new" / "stage", total=25)
    rows = logs.read_metrics(tmp_path / "new" / "stage")
    assert [row["step"] for row in rows] == [1, 10, 20, 25]
    assert rows[1]["loss"] == pytest.approx(0.1)
    assert rows[1]["prior"] == 9
    assert all(row["time"] > 1.6e9 for row in rows)


def without_time(rows):
    return [{name: value for name, value in row.items() if name != "time"} for row in rows]


@pytest.mark.parametrize("checkpoint", [0, 7, 10, 20, 24], ids=lambda step: f"resumed-after-{step}")
def test_resume_equals_uninterrupted(tmp_path, checkpoint):
    run(Console(), tmp_path / "whole", total=45)
    run(Console(), tmp_path / "cut", total=45, until=33)
    run(Console(), tmp_path / "cut", total=45, start=checkpoint + 1)
    assert without_time(logs.read_metrics(tmp_path / "cut")) == without_time(logs.read_metrics(tmp_path / "whole"))
    assert os.listdir(tmp_path / "cut") == [logs.METRICS]


def test_a_killed_writer_leaves_a_readable_file(tmp_path):
    run(Console(), tmp_path, total=45, until=30)
    path = tmp_path / logs.METRICS
    path.write_text(path.read_text()[:-20])
    assert [row["step"] for row in logs.read_metrics(tmp_path)] == [1, 10, 20]
    run(Console(), tmp_path, total=45, start=21)
    assert [row["step"] for row in logs.read_metrics(tmp_path)] == [1, 10, 20, 30, 40, 45]


def test_a_failed_trim_keeps_every_line(tmp_path, monkeypatch):
    run(Console(), tmp_path, total=30)
    before = (tmp_path / logs.METRICS).read_bytes()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        run(Console(), tmp_path, total=30, start=11)
    assert (tmp_path / logs.METRICS).read_bytes() == before
    assert os.listdir(tmp_path) == [logs.METRICS]


def test_values_that_are_not_finite_stay_valid_json(tmp_path):
    with Console().logger(tmp_path, total_steps=1) as logger:
        logger.log(1, {"loss": np.nan, "prior": np.inf})
    line = (tmp_path / logs.METRICS).read_text()
    assert json.loads(line, parse_constant=pytest.fail)["loss"] is None
    assert math.isnan(logs.read_metrics(tmp_path)[0]["prior"])


def test_steps_between_do_not_touch_the_metrics(tmp_path):
    class Untouchable:
        def items(self):
            raise AssertionError("fetched from the device")

    with Console().logger(tmp_path, total_steps=100, log_every=50) as logger:
        logger.log(49, Untouchable())
        with pytest.raises(AssertionError, match="fetched"):
            logger.log(50, Untouchable())


def test_other_hosts_are_silent(tmp_path):
    console = Console()
    with console.logger(tmp_path / "run", total_steps=2, enabled=False, tensorboard=True) as logger:
        logger.log(1, {"loss": 1.0})
    assert console.lines == []
    assert not (tmp_path / "run").exists()


def test_prints_to_standard_output(tmp_path, capsys):
    with logs.MetricLogger(tmp_path, total_steps=1) as logger:
        logger.log(1, {"loss": 1234.4})
    assert capsys.readouterr().out == "step 1/1  loss 1234\n"


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboardX", reason="tensorboardX, which writes the events, is not installed")
    with Console().logger(tmp_path, total_steps=1, tensorboard=True) as logger:
        logger.log(1, {"energy/smile": 2.0})
    (event,) = (tmp_path / "tensorboard").iterdir()
    assert b"energy/smile" in event.read_bytes()


def test_tensorboard_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ImportError, match="pip install tensorboardX"):
        logs.MetricLogger(tmp_path, total_steps=1, tensorboard=True)


@pytest.mark.parametrize(
    ("metrics", "match"),
    [
        ({"loss": np.zeros(3)}, r"'loss' is \(3,\); expected one number. Take the mean"),
        ({"loss": "low"}, "'loss' is str"),
        ({"step": 1.0}, "another name"),
    ],
)
def test_bad_metrics(tmp_path, metrics, match):
    with Console().logger(tmp_path, total_steps=1) as logger, pytest.raises(ValueError, match=match):
        logger.log(1, metrics)


@pytest.mark.parametrize("option", ["total_steps", "start_step", "log_every"])
def test_bad_counts(tmp_path, option):
    with pytest.raises(ValueError, match=f"MetricLogger: {option}"):
        logs.MetricLogger(tmp_path, **{"total_steps": 1, option: -1})


@pytest.mark.parametrize("line", ["{not json", "[1]", '{"loss": 1}'])
def test_damaged_file_names_the_line(tmp_path, line):
    (tmp_path / logs.METRICS).write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
    with pytest.raises(ValueError, match="line 2: not a JSON object with a step"):
        logs.read_metrics(tmp_path)


def test_no_file_reads_empty(tmp_path):
    assert logs.read_metrics(tmp_path) == []


@pytest.mark.parametrize(
    ("value", "text"),
    [(4.2149, "4.21"), (0.31, "0.31"), (1234.4, "1234"), (-2e6, "-2e+06"), (1.23e-6, "1.23e-06"), (0, "0")],
)
def test_short_numbers(value, text):
    assert logs.short(value) == text


def test_short_nan():
    assert logs.short(math.nan) == "nan"
