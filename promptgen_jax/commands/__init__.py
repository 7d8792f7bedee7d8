"""The command: `promptgen MODE`, `python -m promptgen_jax MODE`, and in a clone `python main.py --mode=MODE`.

The file name is the registry: a mode is a file here with a docstring, two `EXAMPLES`, `add_arguments(parser)` and
`run(arguments) -> Outcome`.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import logging
import os
import pkgutil
import sys
import traceback
import warnings
from collections.abc import Iterator

from promptgen_jax import checks
from promptgen_jax.commands import _arguments, _process

COMMAND, SCRIPT = "promptgen", "main.py"


def modes() -> list[str]:
    """Names of the modes."""
    return sorted(info.name for info in pkgutil.iter_modules(__path__) if not info.name.startswith("_"))


def main(argv: list[str] | None = None) -> int:
    """`promptgen`; returns the exit code. Without arguments it takes those of the process, which is then its own."""
    words = sys.argv[1:] if argv is None else argv
    return _answered(lambda: _main(words, own=argv is None), words)


def main_by_mode(argv: list[str] | None = None) -> int:
    """`main.py`, where a flag names the mode; returns the exit code."""
    words = sys.argv[1:] if argv is None else argv
    return _answered(lambda: _main_by_mode(words, own=argv is None), words)


def _main(argv: list[str], *, own: bool) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview(COMMAND))
        return 0
    if argv[0] == "--version":
        return _print_version()
    if argv[0].startswith("-"):
        raise ValueError(f"the mode comes first, before {argv[0]}: one of {', '.join(modes())}.")
    checks.check_known(COMMAND, argv[0], modes())
    return run(argv[0], argv[1:], COMMAND, own=own)


def _main_by_mode(argv: list[str], *, own: bool) -> int:
    argv = _arguments.expand_flagfiles(argv)
    mode, rest = _arguments.take(argv, "--mode")
    if mode is None and set(rest) & {"-h", "--help"}:
        print(_overview(SCRIPT))
        return 0
    if "--version" in rest:
        return _print_version()
    checks.check_known("--mode", mode or "train", modes())
    return run(mode or "train", rest, SCRIPT, said=argv, own=own)


def _print_version() -> int:
    from promptgen_jax import __version__

    print(f"promptgen_jax {__version__}")
    return 0


def run(mode: str, argv: list[str], program: str, *, said: list[str] | None = None, own: bool = False) -> int:
    """Parses the arguments of a mode and calls it.

    Args:
      mode: its name.
      argv: its arguments.
      program: "promptgen" or "main.py".
      said: all that was written behind the name of the program, if it is not the mode and then the arguments.
      own: the process does nothing else, see `_process`.

    Returns:
      The exit code.
    """
    arguments = parser(mode, program).read(argv, modes())
    arguments.own = own
    if own:
        _process.keep_memory()
    arguments.command = _arguments.as_written(program, [mode, *argv] if said is None else said)
    progress = _progress_to(sys.stderr if getattr(arguments, "json", False) else None, quiet=arguments.quiet)
    with progress, _our_words_only():
        outcome = module(mode).run(arguments)
    if getattr(arguments, "json", False):
        print(json.dumps(outcome.value, indent=2))
    elif outcome.text:
        print(outcome.text)
    return outcome.code


def parser(mode: str, program: str = COMMAND) -> _arguments.Parser:
    """The parser of a mode's arguments."""
    return _arguments.Parser(mode, program)


def module(mode: str):
    """The file of a mode."""
    return importlib.import_module(f"{__name__}.{mode}")


def _progress_to(stream, *, quiet: bool):
    """Sends what is printed meanwhile elsewhere: nowhere if quiet, as it is without a stream."""
    if quiet:
        return contextlib.redirect_stdout(io.StringIO())
    return contextlib.redirect_stdout(stream) if stream is not None else contextlib.nullcontext()


@contextlib.contextmanager
def _our_words_only() -> Iterator[None]:
    """Within it a warning is one line, and Orbax keeps its own to itself."""
    log, form = logging.getLogger("absl"), warnings.formatwarning
    level = log.level
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"orbax\.")
        warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
        log.setLevel(logging.ERROR)
        try:
            yield
        finally:
            log.setLevel(level)
            warnings.formatwarning = form


def _overview(program: str) -> str:
    """The help of the program: its modes and how to see more."""
    call = f"{program} MODE" if program == COMMAND else f"python {program} --mode=MODE"
    rows = [f"  {mode:10}{module(mode).__doc__.partition(chr(10))[0]}" for mode in modes()]
    return "\n".join(
        [
            f"usage: {call} [flags]",
            "",
            "Controls what distribution a frozen generator samples from (PromptGen, arXiv 2209.06970).",
            "",
            *rows,
            "",
            "examples:",
            *(f"  {_arguments.called(program, 'train', example)}" for example in module("train").EXAMPLES),
            "",
            f"{_arguments.called(program, 'MODE', '--help')} shows the flags of a mode; --version the version."
            + (" Without --mode it trains." if program == SCRIPT else ""),
        ]
    )


def _answered(call, argv: list[str]) -> int:
    """The exit code of a call. Mistakes of the user print one sentence and give 2."""
    try:
        return call()
    except SystemExit as done:  # of --help
        return int(done.code or 0)
    except BrokenPipeError:  # whoever reads the output has had enough, as head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except FloatingPointError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    except Exception as error:  # a config file and the accelerator's libraries raise what they like
        if "--debug" in argv:
            raise
        print(f"error: {_sentence(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        said = str(error) or "nothing more was saved"
        print(f"interrupted: {said}; the same command goes on from what was written before.", file=sys.stderr)
        return 130


def _sentence(error: Exception) -> str:
    """What to tell of an error; one that Python raised for lack of a name says nothing alone."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}: {error.msg}. Correct the file."
    if isinstance(error, AssertionError):
        *_, last = traceback.extract_tb(error.__traceback__)
        return f"{last.filename}, line {last.lineno}: {last.line} does not hold{f': {error}' if str(error) else ''}."
    if not isinstance(error, (ValueError, TypeError, ImportError, OSError, RuntimeError)) or not str(error):
        return f"{error!r}. Run it again with --debug to see where."
    return str(error) if isinstance(error, OSError) or not error.args else str(error.args[0])


def helps(program: str = SCRIPT) -> Iterator[tuple[str, str]]:
    """(mode, its help page) of every mode."""
    yield from ((mode, parser(mode, program).format_help()) for mode in modes())
