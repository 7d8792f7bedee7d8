"""Measures a finished run again and writes its report: with other samples, judges or pictures, if asked.

--config.evaluation.<key>=<value> changes how it is measured; how it was trained cannot be changed.
"""

from promptgen_jax.commands import _arguments

USAGE = "WORKDIR [--config.evaluation.<key>=<value> ...] [flags]"
EXAMPLES = (
    "--workdir=runs/quickstart --config.evaluation.num_samples=4096",
    "--workdir=runs/quickstart --config.evaluation.judges.faceres=\"('gender',)\" --json",
)


def add_arguments(parser: _arguments.Parser) -> None:
    """Its flags."""
    _arguments.add_run(parser, "folder of a finished run")
    parser.add_argument("--config", metavar="CONFIG", help="measure by this config, and not by that of the run")
    _arguments.add_json(parser)
    _arguments.add_trust(parser)
    _arguments.add_hosts(parser)


def run(arguments) -> _arguments.Outcome:
    """Evaluates and reports."""
    from ml_collections import ConfigDict

    from promptgen_jax import parts
    from promptgen_jax.commands import _config
    from promptgen_jax.runs.finished import read_config
    from promptgen_jax.runs.run import train_and_evaluate
    from promptgen_jax.store import weights

    if arguments.config is not None:
        config = _config.override(_config.load(arguments.config), arguments.overrides)
    workdir = _arguments.workdir_of(arguments)
    own = [] if arguments.config is None else parts.packages(parts.kinds_in(config.to_dict()))  # of a file of one's own
    stored = read_config(workdir, trust={*arguments.trust, *own})
    if arguments.config is None:
        config = _config.override(ConfigDict(stored), arguments.overrides)
    _arguments.start_devices(arguments, config)
    report = train_and_evaluate(config.to_dict(), workdir, command=arguments.command)
    about = weights.read_json(report.with_name("report.json"), advice="Evaluate again.")
    return _arguments.Outcome(f"report: {report}", {"report": str(report), **about})
