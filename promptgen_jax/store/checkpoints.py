"""Training state on disk with Orbax: sharded, atomic, keeps the latest two.

Every checkpoint has the sha256 of its files beside them, as Orbax takes most flipped bits for numbers.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import jax

from promptgen_jax import devices
from promptgen_jax.store import disk
from promptgen_jax.store.weights import file_sha256
from promptgen_jax.types import PyTree

DIGEST, DAMAGED = "files.sha256", ".damaged"


class Checkpoints:
    """Checkpoints of one stage of a run under `folder`; a context manager.

    The state holds the kept-best parameters too, so one checkpoint is all that a resumed run needs.
    """

    def __init__(self, folder: str | Path, *, keep: int = 2, say: Callable[[str], None] = print):
        """Opens `folder`, made if missing (Orbax wants it absolute), and puts damaged checkpoints in it aside.

        Those behind the latest to keep go: the process may have ended while it was removing them.

        Args:
          folder: where the checkpoints go.
          keep: how many of the latest to keep.
          say: takes a sentence about each damaged one.

        Raises:
          ValueError: there are checkpoints, and all are damaged.
        """
        self._folder, self._say, self._failed = Path(folder).resolve(), say, False
        steps = self._steps()
        for step in steps if devices.is_first_host() else ():
            disk.sweep(self._folder / str(step))
        whole = [step for step in steps if _is_whole(self._folder / str(step))]
        surplus = [step for step in steps if sum(each > step for each in whole) >= keep]
        devices.wait_for_hosts("checkpoints read")
        for step in surplus if devices.is_first_host() else ():
            shutil.rmtree(self._folder / str(step), ignore_errors=True)
        for step in [each for each in steps if each not in (*whole, *surplus)]:
            self._put_aside(step, "its files are not as written", left=whole)
        from orbax.checkpoint import v1 as ocp  # half a second, for those who train alone

        self._checkpointer = ocp.training.Checkpointer(
            self._folder,
            preservation_policy=ocp.training.preservation_policies.LatestN(keep),
            cleanup_tmp_directories=True,
        )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *exception) -> None:
        try:
            self._checkpointer.close()
        except Exception:  # Orbax repeats what `save` has told
            if not self._failed:
                raise

    def latest_step(self) -> int | None:
        """The newest complete step, or None."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    def save(self, step: int, state: PyTree) -> None:
        """Writes `state` as `step`; a crash in between leaves the earlier checkpoints whole.

        Raises:
          OSError: it cannot be written.
        """
        try:
            self._checkpointer.save(step, state)
            if devices.is_first_host():
                folder = self._folder / str(step)
                disk.write_bytes(folder / DIGEST, digest(folder).encode())
        except Exception as error:  # Orbax and what it stands on raise what they like
            self._failed = True
            raise OSError(
                f"{self._folder}: the checkpoint of step {step} cannot be written ({_first_line(error)}). Free some "
                "space; the same command then goes on from the checkpoint before."
            ) from error

    def keep_only(self, step: int) -> None:
        """Deletes all checkpoints but that of `step`, once it is written."""
        for path in self._folder.iterdir():
            if path.is_dir() and re.fullmatch(rf"\d+({DAMAGED})?", path.name) and path.name != str(step):
                shutil.rmtree(path, ignore_errors=True)

    def load(self, step: int, like: PyTree) -> PyTree:
        """Reads `step` into the shapes and shardings of `like`, whatever devices wrote it."""
        abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), like)
        return self._checkpointer.load(step, abstract)

    def load_latest(self, like: PyTree) -> PyTree | None:
        """The newest checkpoint that can be read, as `load`; None if there is none at all.

        Raises:
          ValueError: none of them can be read.
        """
        steps = self._steps()
        while steps:
            try:
                return self.load(steps[0], like)
            except Exception as error:  # Orbax and what it stands on raise what they like
                folder = self._folder / str(steps[0])
                if (folder / DIGEST).is_file():
                    raise ValueError(
                        f"{folder}: this checkpoint is whole, but not one of this training by this version "
                        f"({_first_line(error)}). Go on with the version that wrote it, or choose another workdir."
                    ) from error
                self._put_aside(steps[0], _first_line(error), left=steps[1:])
            self._checkpointer.reload()
            steps = steps[1:]
        return None

    def _steps(self) -> list[int]:
        """Of all checkpoints, the newest first."""
        folders = self._folder.iterdir() if self._folder.is_dir() else ()
        return sorted((int(path.name) for path in folders if re.fullmatch(r"\d+", path.name)), reverse=True)

    def _put_aside(self, step: int, why: str, *, left: list[int]) -> None:
        """Renames a damaged checkpoint, if others are left."""
        what = f"{self._folder / str(step)}: this checkpoint is damaged ({why})."
        if not left:
            raise ValueError(f"{what} No whole one is left; delete {self._folder} to begin again.")
        if devices.is_first_host():
            self._say(f"{what} It is put aside; the training goes on from step {left[0]}.")
            aside = self._folder / f"{step}{DAMAGED}"
            shutil.rmtree(aside, ignore_errors=True)
            (self._folder / str(step)).rename(aside)
        devices.wait_for_hosts(f"damaged {step}")


def _is_whole(folder: Path) -> bool:
    """Whether a checkpoint is as written, as far as that is known.

    It is not where the process was killed right behind Orbax, nor of what version 0.1.0 wrote.
    """
    file = folder / DIGEST
    return not file.is_file() or file.read_bytes() == digest(folder).encode()


def digest(folder: Path) -> str:
    """Hexadecimal sha256 of the names and contents of all files in a folder, but of the one that holds it."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != DIGEST and not path.name.startswith("."):
            found.update(f"{path.relative_to(folder).as_posix()} {file_sha256(path)}\n".encode())
    return found.hexdigest()


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:160]}"
