"""Progress of a training in lines, files or a bar, and its orderly stop on a signal."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from promptgen_jax import devices
from promptgen_jax.store.logs import MetricLogger, memory_line
from promptgen_jax.training.config import TrainConfig
from promptgen_jax.types import PyTree


class Watch:
    """Lines and files in the workdir of a training, or a bar where it has none."""

    def __init__(self, config: TrainConfig, workdir: str | Path | None, quiet: bool, callback: Callable | None):
        self.config, self.quiet, self.callback = config, quiet, callback
        self.workdir = None if workdir is None else Path(workdir)
        self.logger: MetricLogger | None = None
        self.bar: Any = None

    def start(self, step: int) -> None:
        """Opens logs or bar; `step` updates have been made before."""
        if self.workdir is None:
            seconds = 0.2 if sys.stderr.isatty() else 10.0  # a bar in a file of logs is a line each time
            self.bar = tqdm(total=self.config.num_steps, disable=self.quiet, unit="step", mininterval=seconds)
            return
        self.logger = MetricLogger(
            self.workdir,
            total_steps=self.config.num_steps,
            start_step=step + 1,
            log_every=self.config.log_every,
            tensorboard=self.config.tensorboard,
            enabled=devices.is_first_host(),
            write_line=(lambda line: None) if self.quiet else None,
        )
        if step:
            self.logger.announce(f"resumed at step {step} of {self.config.num_steps}")

    def compiling(self, compile_step: Callable) -> None:
        """Compiles the step, telling how long it takes and what memory it needs."""
        if self.logger:
            with self.logger.compiling("the training step"):
                memory = compile_step().memory_analysis()
            self.logger.announce(memory_line(memory))

    def log(self, number: int, metrics: dict, params: PyTree, due: bool) -> None:
        """Notes the metrics of a step; `due` if they are numbers that people are to see."""
        if self.logger:
            self.logger.log(number, metrics)
        if self.bar is not None:
            if due:
                self.bar.set_postfix_str(f"loss {metrics['loss']:.4g}" if "loss" in metrics else "", refresh=False)
            self.bar.update()
        if self.callback and due:
            self.callback(number, metrics, params)

    def close(self) -> None:
        """Closes logs and bar."""
        for each in (self.logger, self.bar):
            if each is not None:
                each.close()


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """A list that SIGINT and SIGTERM fill, so that the step under way is finished; a second signal stops at once."""
    if threading.current_thread() is not threading.main_thread():
        yield []
        return
    received: list[int] = []

    def note(number, frame):
        if received:
            raise KeyboardInterrupt
        received.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
