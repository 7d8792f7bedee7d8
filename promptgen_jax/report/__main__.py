"""`python -m promptgen_jax.report WORKDIR`: makes report.html from the files of a run and prints its path."""

from __future__ import annotations

import argparse
import sys

from promptgen_jax.runs.report.page import write_report


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; 0 on success, 2 with one sentence on a folder that cannot be rendered."""
    parser = argparse.ArgumentParser(
        prog="python -m promptgen_jax.report",
        description="Renders report.json of a finished run to one self-contained report.html.",
        epilog="example: python -m promptgen_jax.report runs/smile",
    )
    parser.add_argument("workdir", metavar="WORKDIR", help="work directory of the run")
    workdir = parser.parse_args(arguments).workdir
    try:
        print(write_report(workdir))
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
