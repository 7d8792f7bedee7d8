"""Times, memory and counts of the library beside plain PyTorch that computes the same.

    python -m benchmarks --list
    python -m benchmarks clip faces --turns 5 --json benchmarks/performance.json
    python -m benchmarks --accelerator --json benchmarks/performance.json
    python -m benchmarks --page

Without names, all parts. A part is a file of benchmarks/parts; its cases have two sides, each in a process of its own,
that run in turns. Both sides first have to give the same numbers; if they do not, the case is refused, and the command
ends with status 1. A name may also be that of a single case. Records are kept in the file of `--json` by name; `--page`
writes docs/performance.md and the measured section of docs/scaling.md from it. `--accelerator` measures our side alone,
everything for one GPU or TPU in under ten minutes, and says so where there is none.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from benchmarks import accelerator, case, machine, page, turns

RECORDS = Path(__file__).parent / "performance.json"


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    options = arguments(argv)
    if options.list:
        for part in case.part_names():
            for each in case.cases(part, quick=options.quick):
                print(f"{each.name:32s}{each.title}")
            if measure := case.measure_of(part):
                print(f"{part:32s}{sys.modules[measure.__module__].__doc__.splitlines()[0]}")
        return 0
    if options.page:
        page.write(records(options.json or RECORDS))
        return 0
    machine.use_threads(options.threads)
    if options.accelerator:
        for record in accelerator.measure(options.quick):
            keep(options.json, record | about(options))
        return 0
    failed = [name for name in options.parts if not run_part(name, options)]
    for name in failed:
        print(f"{name}: refused or failed, see above", file=sys.stderr)
    return 1 if failed else 0


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    known = case.part_names()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("parts", nargs="*", default=known, metavar="PART", help=f"of {', '.join(known)}")
    add("--list", action="store_true", help="say what there is, and run nothing")
    add("--json", type=Path, metavar="FILE", help="file of the records, which are added to it")
    add("--page", action="store_true", help="write docs/performance.md from the records, and run nothing")
    add("--accelerator", action="store_true", help="measure everything on one GPU or TPU, and nothing else")
    add("--quick", action="store_true", help="small sizes and one turn, to see that everything runs")
    add("--turns", type=int, default=5, help="calls of each side, default 5")
    add("--seconds", type=float, default=30, help="for the turns of a case beyond the third, default 30")
    add("--threads", type=int, default=machine.cores(), help="of each side, default all cores")
    options = parser.parse_args(argv)
    for name in options.parts:
        if name.partition("/")[0] not in known:
            parser.error(f"unknown part {name!r}. Known: {', '.join(known)}.")
    options.turns = 1 if options.quick else options.turns
    return options


def run_part(name: str, options: argparse.Namespace) -> bool:
    """Measures the cases of a part, or the one of that name, printing a line each; whether all went well."""
    part = name.partition("/")[0]
    well = True
    if measure := case.measure_of(part):
        for record in measure(options.quick):
            print(" ".join(f"{name}={value}" for name, value in record.items()), flush=True)
            keep(options.json, {"part": part, **record, **about(options)})
    for each in case.cases(part, quick=options.quick):
        if name not in (part, each.name):
            continue
        try:
            record = turns.measure(part, each, quick=options.quick, turns=options.turns, seconds=options.seconds)
        except (turns.Different, RuntimeError) as error:
            print(error, file=sys.stderr)
            well = False
            continue
        print(line(record), flush=True)
        keep(options.json, record | about(options))
    return well


def about(options: argparse.Namespace) -> dict:
    """What a record says of its circumstances."""
    where = machine.where(options.threads)
    return {"quick": options.quick, "where": where, "date": time.strftime("%Y-%m-%d")}


def line(record: dict) -> str:
    """A record in a line: both times, their ratio, both memories."""
    one, two = record["ours"], record["other"]
    return (
        f"{record['name']:32s}{one['median']:9.4f} s  {record['label']} {two['median']:9.4f} s  ratio "
        f"{record['ratio']:5.2f}   {one['peak_mib']:7.0f} MiB  {two['peak_mib']:7.0f} MiB   differs by "
        f"{max(record['differences'].values()):.0e}"
    )


def records(path: Path) -> list[dict]:
    """The records of a file; none if there is no such file."""
    return json.loads(path.read_text()) if path.exists() else []


def keep(path: Path | None, record: dict) -> None:
    """Adds a record to a file, if there is to be one, in place of one of the same name."""
    if path is None:
        return
    kept = {each["name"]: each for each in records(path)} | {record["name"]: record}  # which keeps its place
    path.write_text(json.dumps(list(kept.values()), indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
