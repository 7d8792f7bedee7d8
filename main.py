"""The command of a clone: `python main.py --config=configs/quickstart.py --workdir=runs/quickstart`.

--mode=train, evaluate, sample, list, doctor, report, convert or clean; `promptgen MODE` is the same, installed.
"""

import sys

from promptgen_jax import commands


def main(argv: list[str] | None = None) -> int:
    """Runs the mode that --mode names, "train" by default; returns the exit code."""
    return commands.main_by_mode(argv)


if __name__ == "__main__":
    sys.exit(main())
