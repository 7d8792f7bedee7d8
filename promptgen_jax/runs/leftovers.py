"""What a finished run takes on disk, and what of it is not worth keeping."""

from __future__ import annotations

from pathlib import Path

from promptgen_jax.runs import finished
from promptgen_jax.training import CHECKPOINTS

TENSORBOARD = "tensorboard"
COMPILED = "compilation_cache"  # in folders of runs and of samples


def spare(workdir: Path) -> dict[Path, int]:
    """Bytes of what a finished run no longer needs: checkpoints of trained stages, compiled programs, event files.

    What links lead to is not the run's, and not among them.

    Args:
      workdir: of the run, resolved.

    Raises:
      FileNotFoundError: no run, or one that is not trained to the end, whose checkpoints are its training.
    """
    stages = [workdir / name for name in finished.read_config(workdir)["stages"]]
    trained = [stage for stage in stages if (stage / "prompt" / "prompt.json").is_file()]
    paths = [stage / name for stage in trained for name in (CHECKPOINTS, TENSORBOARD)]
    paths += [workdir / COMPILED, *sorted(workdir.glob(f"samples/**/{COMPILED}"))]
    return {path: size(path) for path in paths if path.exists() and path.resolve() == path}


def size(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())
