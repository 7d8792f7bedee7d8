"""Lists generators, controls and configs, and which weights are present, missing or damaged."""

from promptgen_jax.commands import _arguments

EXAMPLES = ("", "--json > list.json")


def add_arguments(parser: _arguments.Parser) -> None:
    """Its flags."""
    _arguments.add_json(parser)


def run(arguments) -> _arguments.Outcome:
    """Lists."""
    from promptgen_jax.runs import inventory

    found = inventory.take()
    return _arguments.Outcome(inventory.describe(found), found)
