"""Training state on disk with Orbax: sharded, atomic, keeps the latest two."""

from __future__ import annotations

import shutil
from pathlib import Path

import jax
from orbax.checkpoint import v1 as ocp

from promptgen_jax.types import PyTree


class Checkpoints:
    """Checkpoints of one stage of a run under `folder`; a context manager.

    The state holds the kept-best parameters too, so one checkpoint is all that a resumed run needs.
    """

    def __init__(self, folder: str | Path, *, keep: int = 2):
        """Opens `folder`, made if missing (Orbax wants it absolute).

        Args:
          folder: where the checkpoints go.
          keep: how many of the latest to keep.
        """
        self._folder = Path(folder).resolve()
        self._checkpointer = ocp.training.Checkpointer(
            self._folder, preservation_policy=ocp.training.preservation_policies.LatestN(keep)
        )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *exception) -> None:
        self._checkpointer.close()

    def latest_step(self) -> int | None:
        """The newest complete step, or None."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    def save(self, step: int, state: PyTree) -> None:
        """Writes `state` as `step`; a crash in between leaves the earlier checkpoints whole."""
        self._checkpointer.save(step, state)

    def keep_only(self, step: int) -> None:
        """Deletes all checkpoints but that of `step`, once it is written."""
        for path in self._folder.glob("[0-9]*"):
            if path.is_dir() and path.name.isdecimal() and int(path.name) != step:
                shutil.rmtree(path, ignore_errors=True)

    def load(self, step: int, like: PyTree) -> PyTree:
        """Reads `step` into the shapes and shardings of `like`, whatever devices wrote it."""
        abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), like)
        return self._checkpointer.load(step, abstract)
