"""Makes report.html of a finished run again, from what was measured.

To measure again, see evaluate.
"""

from promptgen_jax.commands import _arguments

USAGE = "WORKDIR [flags]"
EXAMPLES = ("runs/quickstart", "--workdir=runs/quickstart --quiet")


def add_arguments(parser: _arguments.Parser) -> None:
    """Its flags."""
    _arguments.add_run(parser, "folder of a finished run")


def run(arguments) -> _arguments.Outcome:
    """Makes the page."""
    from promptgen_jax.runs import report

    return _arguments.Outcome(f"report: {report.write_report(_arguments.workdir_of(arguments))}")
