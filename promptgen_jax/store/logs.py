"""What a run says of itself: `metrics.jsonl`, optional TensorBoard, and a console line per `log_every` steps.

Step k is the state after k updates, so the first logged step is 1. A run resumed from a checkpoint of k
updates starts its logger with `start_step=k + 1`: lines from there on are dropped before they are written
again.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from promptgen_jax import checks
from promptgen_jax.store import disk, documents

METRICS, METRICS_BYTES = "metrics.jsonl", 2**28
SHOWN = ("loss", "energy/")  # what the console line shows; the file holds every metric
RESERVED = ("step", "time")


class MetricLogger:
    """Writes metrics and reports progress; a context manager.

    `log` may be called every step: between the steps that are due it does not touch the metrics, so the
    device runs on. Time inside `compiling` and `paused` counts neither for the speed nor for the remaining
    time.

    Attributes:
      compile_seconds: time spent inside `compiling` so far.
      train_seconds: time since construction outside `compiling` and `paused`.
    """

    def __init__(
        self,
        workdir: str | Path,
        *,
        total_steps: int,
        start_step: int = 1,
        log_every: int = 10,
        tensorboard: bool = False,
        enabled: bool = True,
        clock: Callable[[], float] = time.monotonic,
        write_line: Callable[[str], None] | None = None,
    ):
        """Opens `workdir/metrics.jsonl` for appending and drops its lines at or after `start_step`.

        Args:
          workdir: folder of the run or stage; made if missing.
          total_steps: the last step of the run.
          start_step: the first step this process will log; 1 in a fresh run.
          log_every: steps between two lines; step 1 and the last step are always written.
          tensorboard: also write scalars to `workdir/tensorboard`.
          enabled: False on all but one of several hosts: then nothing is written or printed.
          clock: seconds of a monotonic clock.
          write_line: takes one line of console text; default the standard output, flushed.

        Raises:
          ValueError: a count out of range, or a damaged metrics file.
          ImportError: TensorBoard asked for without tensorboardX.
        """
        checks.check_count("MetricLogger: total_steps", total_steps)
        checks.check_count("MetricLogger: start_step", start_step, minimum=0)
        checks.check_count("MetricLogger: log_every", log_every)
        self._total_steps, self._log_every, self._enabled = total_steps, log_every, enabled
        self._clock, self._write_line = clock, write_line or _print_flushed
        self._started, self._stopped_for, self._pauses = clock(), 0.0, 0
        self._marks: deque[tuple[int, float]] = deque(maxlen=11)  # speed over the last ten lines
        self.compile_seconds = 0.0
        self._file: Any = None
        self._board: Any = None
        if enabled:
            workdir = Path(workdir)
            workdir.mkdir(parents=True, exist_ok=True)
            self._board = _open_tensorboard(workdir / "tensorboard", start_step) if tensorboard else None
            _drop_lines(workdir / METRICS, start_step)
            self._file = open(workdir / METRICS, "a", encoding="utf-8")

    @property
    def train_seconds(self) -> float:
        """Seconds since construction outside `compiling` and `paused`."""
        return self._clock() - self._started - self._stopped_for

    def announce(self, text: str) -> None:
        """Prints one console line."""
        if self._enabled:
            self._write_line(text)

    @contextlib.contextmanager
    def paused(self, what: str) -> Iterator[None]:
        """Announces `what` ("saving", "drawing samples") and leaves its time out of speed and ETA."""
        self.announce(f"{what} ...")
        self._pauses += 1
        begin = self._clock()
        try:
            yield
        finally:
            self._pauses -= 1
            if not self._pauses:  # of nested pauses the outermost counts
                self._stopped_for += self._clock() - begin

    @contextlib.contextmanager
    def compiling(self, what: str) -> Iterator[None]:
        """As `paused`, for the compilation of `what` ("the training step"); then says how long it took."""
        begin = self._clock()
        with self.paused(f"compiling {what}"):
            yield
        seconds = self._clock() - begin
        self.compile_seconds += seconds
        self.announce(f"compiled {what} in {seconds:.1f} s")

    def is_due(self, step: int) -> bool:
        """Whether `log` writes this step."""
        return step % self._log_every == 0 or step in (1, self._total_steps)

    def log(self, step: int, metrics: Mapping[str, object]) -> None:
        """Writes and shows the metrics of a due step; between due steps returns at once.

        Args:
          step: number of finished updates.
          metrics: scalars by name (`loss`, `energy/<name>`, `prior`, `log_det`, ...), on the device or not.
            NaN and infinities are written as null.

        Raises:
          ValueError: a metric that is not a scalar, or is called `step` or `time`.
        """
        if not self._marks:
            self._marks.append((step, self.train_seconds))
        if not (self._enabled and self.is_due(step)):
            return
        values = {name: _scalar(name, value) for name, value in metrics.items()}
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps({"step": step, "time": round(time.time(), 3), **finite}) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
        if step > self._marks[-1][0]:
            self._marks.append((step, self.train_seconds))
        self._write_line(self._progress_line(step, values))

    def _progress_line(self, step: int, values: Mapping[str, float]) -> str:
        parts = [f"step {step}/{self._total_steps}"]
        parts += [f"{name} {short(value)}" for name, value in values.items() if name.startswith(SHOWN)]
        (first_step, first_time), (last_step, last_time) = self._marks[0], self._marks[-1]
        if last_time > first_time:
            rate = (last_step - first_step) / (last_time - first_time)
            parts.append(f"{rate:.1f} steps/s" if rate >= 1 else f"{1 / rate:.1f} s/step")
            if step < self._total_steps:
                seconds = math.ceil((self._total_steps - step) / rate)
                parts.append(f"ETA {datetime.timedelta(seconds=seconds)}")
        return "  ".join(parts)

    def close(self) -> None:
        """Closes the files; may be called twice."""
        for writer in (self._file, self._board):
            if writer is not None:
                writer.close()

    def __enter__(self) -> MetricLogger:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def read_metrics(workdir: str | Path) -> list[dict[str, float]]:
    """Reads `workdir/metrics.jsonl`, in order; a null metric (it was not finite) comes back as NaN.

    A last line that was cut off when the process was killed is left out; no file gives an empty list.

    Raises:
      ValueError: another line is damaged.
    """
    return [
        {name: math.nan if value is None else value for name, value in row.items()}
        for _, row in _read_lines(Path(workdir) / METRICS)
    ]


def memory_line(memory) -> str:
    """What XLA plans for one call on each device, of `compiled.memory_analysis()`, for people.

    Inputs are weights, state and data; the rest is temporary, or output that takes no input's place.
    """
    inputs = memory.argument_size_in_bytes
    rest = memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    sizes = [f"{short(size / 2**20)} MiB" for size in (inputs + rest, inputs, rest)]
    return "a step takes {} a device: {} of weights and state, {} of activations".format(*sizes)


def short(value: float) -> str:
    """A number with three significant digits and no exponent in everyday sizes: 4.21, 0.31, 1234, 1.2e-06."""
    if math.isfinite(value) and 1e3 <= abs(value) < 1e6:
        return f"{value:.0f}"
    return f"{value:.3g}"


def _read_lines(path: Path) -> list[tuple[str, dict]]:
    """(text, parsed) of each whole line."""
    content = disk.read_bytes(path, METRICS_BYTES) if path.is_file() else b""
    lines = content.decode(errors="replace").split("\n")  # and not where Unicode ends a line
    lines = [f"{line}\n" for line in lines[:-1]]  # behind the last end there is nothing, or what was cut off
    parsed = []
    for number, line in enumerate(lines, start=1):
        try:
            row = disk.parse_json(line.encode())
            documents.MetricsLine.model_validate(row)
        except ValueError:
            raise ValueError(
                f"{path}, line {number}: not a JSON object with a step and numbers. Repair or remove that line, "
                "or use a new work directory."
            ) from None
        parsed.append((line, row))
    return parsed


def _drop_lines(path: Path, start_step: int) -> None:
    """Rewrites the file without lines at or after `start_step` and without a cut last line."""
    if path.exists() and not path.is_file():
        raise ValueError(f"{path}: no regular file. Delete it.")
    if path.is_file():
        kept = "".join(line for line, row in _read_lines(path) if row["step"] < start_step)
        disk.write_bytes(path, kept.encode())


def _scalar(name: str, value: Any) -> float:
    if name in RESERVED:
        raise ValueError(f"metrics: {name!r} is written by the logger itself; give the metric another name.")
    try:
        return float(value)
    except (TypeError, ValueError):
        got = getattr(value, "shape", type(value).__name__)
        raise ValueError(f"metrics: {name!r} is {got}; expected one number. Take the mean over the batch.") from None


def _open_tensorboard(folder: Path, start_step: int):
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise ImportError(
            "tensorboard=True needs the package tensorboardX. Run pip install tensorboardX, or switch it "
            f"off; {METRICS} holds the same numbers."
        ) from None
    return SummaryWriter(logdir=str(folder), purge_step=start_step)


def _print_flushed(text: str) -> None:
    print(text, flush=True)
