"""Shows and frees what is not worth keeping of a finished run: checkpoints, compiled programs, event files.

Prompts, report, config, logs and pictures stay, so that it can be sampled and measured as before.
"""

import shutil
import sys

from promptgen_jax.commands import _arguments

USAGE = "WORKDIR [--yes] [flags]"
EXAMPLES = ("runs/quickstart", "--workdir=runs/quickstart --yes")


def add_arguments(parser: _arguments.Parser) -> None:
    """Its flags."""
    _arguments.add_run(parser, "folder of a finished run")
    parser.add_argument("--yes", action="store_true", help="do not ask")


def run(arguments) -> _arguments.Outcome:
    """Shows what can go, asks, and deletes it."""
    from promptgen_jax.runs import leftovers
    from promptgen_jax.store import disk

    workdir = disk.local_path("workdir", _arguments.workdir_of(arguments)).resolve()
    found = leftovers.spare(workdir)
    kept = leftovers.size(workdir) - sum(found.values())
    if not found:
        return _arguments.Outcome(f"{workdir}: nothing to free; {_mebibytes(kept)} worth keeping.")
    for path, size in found.items():
        print(f"{_mebibytes(size):>12}  {path.relative_to(workdir)}")
    total = f"{_mebibytes(sum(found.values()))} in {workdir}, beside {_mebibytes(kept)} worth keeping"
    if not arguments.yes and not _agreed(f"Free {total}? [y/N] "):
        return _arguments.Outcome(f"not freed: {total}. Say yes, or give --yes.", code=1)
    with disk.locked("workdir", workdir):
        for path in found:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return _arguments.Outcome(f"freed: {total}.")


def _agreed(question: str) -> bool:
    return sys.stdin is not None and sys.stdin.isatty() and input(question).strip().lower() in ("y", "yes")


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
