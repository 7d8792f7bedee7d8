"""Measures a case: each side in a process of its own, in turns, so that both see the same machine."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import resource
import statistics
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import case as case_module
from benchmarks.case import Case

LEAST_TURNS = 3
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Different(ValueError):
    """Two sides that do not compute the same."""


def measure(part: str, case: Case, *, quick: bool, turns: int, seconds: float) -> dict:
    """One case as a record: both sides with times, memory and facts, their ratios and their largest difference.

    Args:
      part: that the case is of.
      case: what is measured.
      quick: the small sizes.
      turns: calls of each side after the first, which warms up, is compared and tells the memory.
      seconds: that all turns may take together; there are at least three.

    Raises:
      Different: the sides give different numbers, so that times would say nothing.
    """
    with _started(part, case, "ours", quick) as ours, _started(part, case, "other", quick) as other:
        sides = {"ours": ours, case.label: other}
        found: dict[str, dict] = {name: {**side.answer(), "times": []} for name, side in sides.items()}
        first = {name: side.ask("first") for name, side in sides.items()}
        differences = compare(case, first["ours"]["numbers"], first[case.label]["numbers"])
        for name in sides:
            found[name]["peak_mib"] = first[name]["peak_mib"]
        started = time.monotonic()
        for turn in range(turns):
            if turn >= min(LEAST_TURNS, turns) and time.monotonic() - started > seconds:
                break
            for name in list(sides)[:: 1 if turn % 2 == 0 else -1]:
                found[name]["times"].append(sides[name].ask("again")["seconds"])
    for entry in found.values():
        entry["median"] = statistics.median(entry["times"])
        entry["spread"] = (max(entry["times"]) - min(entry["times"])) / entry["median"]
    one, two = found["ours"], found[case.label]
    return {
        "name": case.name,
        "part": part,
        "title": case.title,
        "label": case.label,
        "kind": "case",
        "differences": differences,
        "ratio": one["median"] / two["median"],
        "memory_ratio": one["peak_mib"] / two["peak_mib"] if two["peak_mib"] else None,
        "ours": one,
        "other": two,
    }


def compare(case: Case, ours: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> dict[str, float]:
    """Difference of every array, its norm as a share of the array's.

    Not the largest of its entries: where rounding puts a number on the other side of a ReLU's corner, one may be off.

    Raises:
      Different: one is larger than the case allows, or there are other arrays or shapes.
    """
    advice = "Times of different computations say nothing: correct the side that is wrong."
    if shapes(ours) != shapes(other):
        raise Different(f"{case.name}: ours gives {shapes(ours)}, {case.label} {shapes(other)}. {advice}")
    found = {}
    for name, value in ours.items():
        one, two = np.asarray(value, np.float64), np.asarray(other[name], np.float64)
        found[name] = float(np.linalg.norm(one - two) / max(np.linalg.norm(two), 1e-30))
        if not found[name] <= case.tolerance:
            raise Different(
                f"{case.name}: {name} of ours and of {case.label} differ by {found[name]:.1e} of its norm, more than "
                f"{case.tolerance:.0e}. {advice}"
            )
    return found


def shapes(numbers: dict[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    """Shape of every array by name."""
    return {name: np.shape(value) for name, value in sorted(numbers.items())}


class _Process:
    """A side in its process; the first answer, once it is ready, are its facts."""

    def __init__(self, connection: Any):
        self.connection = connection

    def ask(self, command: str) -> dict:
        self.connection.send(command)
        return self.answer()

    def answer(self) -> dict:
        try:
            failed, content = self.connection.recv()
        except EOFError:
            raise RuntimeError("a side ended without an answer; was there too little memory? Try --quick.") from None
        if failed:
            raise RuntimeError(content)
        return content


@contextlib.contextmanager
def _started(part: str, case: Case, side: str, quick: bool) -> Iterator[_Process]:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    arguments = (there, part, case.name, side, quick)
    process = context.Process(target=serve, args=arguments, daemon=False)
    process.start()
    there.close()
    try:
        yield _Process(here)
    finally:
        with contextlib.suppress(OSError):
            here.send("stop")
        process.join(timeout=10)
        process.kill()


def serve(connection: Any, part: str, name: str, side: str, quick: bool) -> None:
    """The process of a side: makes it, sends its facts, then answers "first" and "again" until told to stop."""
    try:
        _without_cache()
        made = getattr(case_module.find(part, name, quick=quick), side)()
        connection.send((False, made.facts))
        while (command := connection.recv()) != "stop":
            before = _start_of_peak()
            start = time.perf_counter()
            result = made.run()
            answer: dict = {"seconds": time.perf_counter() - start}
            if command == "first":
                answer["peak_mib"] = made.peak() if made.peak else _peak() - before
                answer["numbers"] = made.numbers(result)
            del result
            connection.send((False, answer))
    except Exception:  # told to the parent, which raises it there
        connection.send((True, f"{name}, {side}:\n{traceback.format_exc()}"))


def _without_cache() -> None:
    """Compilation is timed, so nothing is read that was compiled before."""
    import jax

    jax.config.update("jax_enable_compilation_cache", False)


def _start_of_peak() -> float:
    """Gives free memory back to the system and forgets the peak so far; MiB resident now."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    with contextlib.suppress(OSError):
        CLEAR.write_text("5")
    return _status("VmRSS")


def _peak() -> float:
    """MiB resident at most, since the start of the peak where the system can tell, else of the process."""
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _status(field: str) -> float:
    try:
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field))
    except (OSError, StopIteration):
        return 0.0
    return int(line.split()[1]) / 1024
