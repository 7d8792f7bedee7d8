"""Shows versions and devices, and whether the shipped networks compute the right thing on this hardware."""

from promptgen_jax.commands import _arguments

EXAMPLES = ("", "--json > machine.json")


def add_arguments(parser: _arguments.Parser) -> None:
    """Its flags."""
    _arguments.add_json(parser)


def run(arguments) -> _arguments.Outcome:
    """Examines; the exit code is 1 if a network is wrong or damaged."""
    from promptgen_jax.runs import doctor

    found = doctor.examine()
    return _arguments.Outcome(doctor.verdict(found), found, 0 if found["well"] else 1)
