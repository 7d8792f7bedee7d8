"""Trains the controls of a config, measures them and writes a report; the same call goes on where one was stopped.

CONFIG is the name of one that comes with the library (promptgen list) or a file; what follows a colon is its argument:
quickstart:smoke is the small variant. Any key can be changed, by --config.<key>=<value>, and a control added:
--config.stages.smile.controls.young.kind=classifier, then .network=..., .attribute=..., .target=...
"""

from promptgen_jax.commands import _arguments

USAGE = "CONFIG --workdir=FOLDER [--config.<key>=<value> ...] [flags]"
EXAMPLES = (
    "quickstart --workdir=runs/quickstart",
    "quickstart:smoke --workdir=runs/small --config.stages.smile.training.num_steps=50",
)


def add_arguments(parser: _arguments.Parser) -> None:
    """Its flags."""
    parser.add_argument("named", nargs="?", metavar="CONFIG", help="name or file of a config; the same as --config")
    parser.add_argument("--config", metavar="CONFIG", help="name or file of a config, and :argument")
    parser.add_argument("--workdir", metavar="FOLDER", help="folder of the run, made if missing")
    _arguments.add_hosts(parser)


def run(arguments) -> _arguments.Outcome:
    """Trains, evaluates, reports."""
    from promptgen_jax.commands import _config
    from promptgen_jax.runs.run import train_and_evaluate

    if arguments.config is not None and arguments.named is not None:
        raise ValueError(f"unexpected argument {arguments.named!r}: --config is given already. See --help.")
    name = arguments.named if arguments.config is None else arguments.config
    config = None if name is None else _config.override(_config.load(name), arguments.overrides)
    workdir = _arguments.workdir_of(arguments)
    if config is None:
        raise ValueError("--config is missing: name a config file, e.g. --config=configs/quickstart.py.")
    _arguments.start_devices(arguments, config)
    report = train_and_evaluate(config.to_dict(), workdir, command=arguments.command)
    return _arguments.Outcome(f"report: {report}")
