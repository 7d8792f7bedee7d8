"""Trains a stage at several values of one key and shows what each buys: energy, shares, distance to the generator.

The page has a curve with its knee, and says which value to use. Values that are trained are not trained again, so more
of them can be added later, and the same call goes on where one was stopped.
"""

from promptgen_jax.commands import _arguments

USAGE = "CONFIG --workdir=FOLDER --key=KEY --values=V,V,... [flags]"
EXAMPLES = (
    "quickstart --workdir=runs/x --key=stages.smile.controls.smile.weight --values=1,2,3,5,8",
    "quickstart --workdir=runs/x --key=stages.smile.training.learning_rate --values=3e-4,1e-3",
)


def add_arguments(parser: _arguments.Parser) -> None:
    """Its flags."""
    add = parser.add_argument
    add("named", nargs="?", metavar="CONFIG", help="name or file of a config; the same as --config")
    add("--config", metavar="CONFIG", help="name or file of a config, and :argument")
    add("--workdir", metavar="FOLDER", help="folder of the run, made if missing")
    add("--key", metavar="KEY", help="what varies, such as stages.smile.controls.smile.weight")
    add("--values", default="", metavar="V,V,...", help="its values, from the gentlest on")
    add("--stage", default="", metavar="NAME", help="stage to train, default that of the key, else the last one")
    add("--seeds", type=int, default=1, metavar="N", help="trainings of every value, for intervals; default 1")
    add("--start", default="", metavar="previous|fresh", help="start each flow from the value before, or afresh")
    add("--num_samples", type=int, default=512, metavar="N", help="of every flow, default 512")
    _arguments.add_json(parser)


def run(arguments) -> _arguments.Outcome:
    """Trains, measures, and writes the page."""
    from promptgen_jax.commands import _config
    from promptgen_jax.runs import sweep
    from promptgen_jax.store import weights

    if arguments.config is not None and arguments.named is not None:
        raise ValueError(f"unexpected argument {arguments.named!r}: --config is given already. See --help.")
    name = arguments.named if arguments.config is None else arguments.config
    if name is None:
        raise ValueError("--config is missing: name a config, e.g. quickstart.")
    workdir = _arguments.workdir_of(arguments)
    if not arguments.key:
        raise ValueError("--key is missing: name what varies, e.g. --key=stages.smile.controls.smile.weight.")
    path = arguments.key.removeprefix("--").removeprefix("config.").split(".")
    flag, values = ".".join(["--config", *path]), _arguments.words(arguments.values)
    if len(set(values)) < max(2, len(values)):
        raise ValueError(f"--values={arguments.values}: expected two or more that differ, such as 1,2,3.")
    config = _config.override(_config.load(name), arguments.overrides).to_dict()
    configs = {
        f"{path[-1]} {value}": _config.override(_config.load(name), [*arguments.overrides, (flag, value)]).to_dict()
        for value in values
    }
    page = sweep.sweep_stage(
        config,
        workdir,
        key=".".join(path),
        configs=configs,
        stage=arguments.stage or (path[1] if path[0] == "stages" and len(path) > 1 else ""),
        seeds=arguments.seeds,
        start=arguments.start,
        num_samples=arguments.num_samples,
        command=arguments.command,
    )
    about = weights.read_json(page.with_name(sweep.FOUND), advice="Sweep again.")
    return _arguments.Outcome(f"{about['advice']}\nsweep: {page}", {"sweep": str(page), **about})
