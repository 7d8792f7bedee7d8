"""The arguments of a mode: one parser for all of them, and the flags that several share."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from promptgen_jax import checks
from promptgen_jax.commands import _process

CONFIG = "--config."  # begins an override
MODE = "promptgen_jax.commands.{}"


class Outcome(NamedTuple):
    """What a mode has to say at the end.

    Attributes:
      text: for people.
      value: the same for --json, where a mode has it.
      code: exit code.
    """

    text: str
    value: Any = None
    code: int = 0


class Parser(argparse.ArgumentParser):
    """Reads the arguments of one mode; a mistake is a ValueError that says what to do."""

    def __init__(self, mode: str, program: str):
        """The parser of a mode, with its flags.

        Args:
          mode: its name.
          program: "promptgen" or "main.py".
        """
        module = importlib.import_module(MODE.format(mode))
        summary, _, more = (module.__doc__ or "").partition("\n")
        examples = "\n".join(f"  {called(program, mode, example)}" for example in module.EXAMPLES)
        super().__init__(
            prog=called(program, mode),
            usage=f"{called(program, mode)} {getattr(module, 'USAGE', '[flags]')}",
            description=summary + "\n" + more.rstrip(),
            epilog=f"examples:\n{examples}",
            formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=24, width=112),
            allow_abbrev=False,
            add_help=False,
        )
        self.mode, self.program = mode, program
        self._positionals.title, self._optionals.title = "arguments", "flags"
        module.add_arguments(self)
        self.add_argument("--quiet", action="store_true", help="print the result and errors only")
        self.add_argument("--debug", action="store_true", help="show the traceback of errors")
        self.add_argument("--flagfile", metavar="FILE", help="a file with more flags, one a line")
        self.add_argument("-h", "--help", action="help", help="show this page")

    def read(self, argv: list[str], modes: Iterable[str]) -> argparse.Namespace:
        """The arguments by name; `overrides` holds those that begin with --config.

        Raises:
          ValueError: unknown flags and values, with the nearest flag of this mode.
        """
        argv = expand_flagfiles(argv)
        overrides, rest = take_overrides(argv)
        arguments, unknown = self.parse_known_args(rest)
        self._refuse([*unknown[:1], *(key for key, _ in overrides if not self._has("--config"))], modes)
        arguments.overrides = overrides
        return arguments

    def _refuse(self, unknown: list[str], modes: Iterable[str]) -> None:
        if not unknown:
            return
        flag = unknown[0].partition("=")[0]
        if not flag.startswith("-"):
            example = called(self.program, self.mode, importlib.import_module(MODE.format(self.mode)).EXAMPLES[0])
            raise ValueError(f"unexpected argument {flag!r}; it is called like this: {example}. See --help.")
        known = "--config" if flag.startswith(CONFIG) else flag
        owners = [mode for mode in modes if mode != self.mode and Parser(mode, self.program)._has(known)]
        here = f"--mode={self.mode}" if self.program == "main.py" else f"{self.program} {self.mode}"
        others = " and ".join(filter(None, (", ".join(owners[:-1]), *owners[-1:])))
        said = f"not used by {here}, but by {others}" if owners else "unknown flag"
        keys = " Keys of the config are set by --config.<key>=<value>." if self._has("--config") else ""
        raise ValueError(f"{flag}: {said}. {checks.nearest(flag, self._flags())}{keys}")

    def _flags(self) -> list[str]:
        return [option for option in self._option_string_actions if option.startswith("--")]

    def _has(self, flag: str) -> bool:
        return flag in self._option_string_actions

    def error(self, message: str):
        """Raises ValueError with what argparse found, in our words."""
        if bad := re.fullmatch(r"argument (\S+): invalid int value: '(.*)'", message):
            raise ValueError(f"{bad[1]}={bad[2]}: expected an integer.")
        raise ValueError(f"{re.sub('^argument ', '', message)}. See {self.prog} --help.")


def add_run(parser: Parser, what: str) -> None:
    """The work directory of a finished run, with or without its flag."""
    parser.add_argument("run", nargs="?", metavar="WORKDIR", help=f"{what}; the same as --workdir")
    parser.add_argument("--workdir", metavar="FOLDER", help=argparse.SUPPRESS)


def add_hosts(parser: Parser) -> None:
    """The flags of a run on several hosts."""
    parser.add_argument("--num_processes", type=int, default=0, metavar="N", help="of several hosts; -1 detects them")
    parser.add_argument("--coordinator", default="", metavar="HOST:PORT", help="of process 0 of several hosts")
    parser.add_argument("--process_id", type=int, default=-1, metavar="I", help="rank of this process")


def add_json(parser: Parser) -> None:
    """--json."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON, and progress to stderr")


def add_trust(parser: Parser) -> None:
    """--trust."""
    parser.add_argument(
        "--trust", type=words, default=[], metavar="PACKAGE,...", help="own packages whose code a saved file may name"
    )


def workdir_of(arguments: argparse.Namespace) -> str:
    """The work directory that was named.

    Raises:
      ValueError: none, an empty one, or two.
    """
    flag, positional = arguments.workdir, getattr(arguments, "run", None)
    if flag is not None and positional is not None:
        raise ValueError(f"unexpected argument {positional!r}: --workdir={flag} is given already. Leave one out.")
    if not (flag or positional):
        raise ValueError("--workdir is missing: name a folder for the run, e.g. --workdir=runs/quickstart.")
    return flag if positional is None else positional


def start_devices(arguments: argparse.Namespace, config: Mapping[str, Any]) -> None:
    """Joins the processes of a run on several hosts, if there are any; alone, it shares out the cores."""
    start_hosts(arguments)
    if arguments.own and not arguments.num_processes:
        _process.split_over_cores(config)


def start_hosts(arguments: argparse.Namespace) -> None:
    """Joins the processes of a run on several hosts, if there are any."""
    if arguments.num_processes:
        from promptgen_jax import devices

        devices.start_hosts(arguments.coordinator, arguments.num_processes, arguments.process_id)


def words(text: str) -> list[str]:
    """The words of a list with commas."""
    return [word.strip() for word in text.split(",") if word.strip()]


def expand_flagfiles(argv: list[str]) -> list[str]:
    """The arguments with those of every --flagfile in its place.

    Raises:
      ValueError: a file that cannot be read.
    """
    from absl import flags

    try:
        return flags.FlagValues().read_flags_from_files(argv, force_gnu=True)
    except flags.Error as error:
        raise ValueError(f"--flagfile: {error}. Name a file with one flag a line.") from None


def take(argv: list[str], flag: str) -> tuple[str | None, list[str]]:
    """What follows a flag for the last time, with an equals sign or a blank, or None; and the other arguments."""
    value, rest, left = None, [], iter(argv)
    for word in left:
        name, equals, text = word.partition("=")
        if name == flag:
            value = text if equals else next(left, "")
        else:
            rest.append(word)
    return value, rest


def take_overrides(argv: list[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """(flag, text) of each --config.<key>, in order, and the other arguments. Alone, a flag means True."""
    overrides, rest, left = [], [], list(argv)
    while left:
        word = left.pop(0)
        if not word.startswith(CONFIG):
            rest.append(word)
            continue
        flag, equals, text = word.partition("=")
        if not equals:
            text = left.pop(0) if left and not left[0].startswith("--") else "True"
        overrides.append((flag, text))
    return overrides, rest


def called(program: str, mode: str, rest: str = "") -> str:
    """How a mode is called: `promptgen sample ...`, or `python main.py --mode=sample ...`."""
    name = f"{program} {mode}" if program != "main.py" else f"python main.py --mode={mode}"
    return f"{name} {rest}".rstrip()


def as_written(program: str, argv: list[str]) -> str:
    """The command line, for reports."""
    return " ".join([program if program != "main.py" else "python main.py", *map(shlex.quote, argv)])
