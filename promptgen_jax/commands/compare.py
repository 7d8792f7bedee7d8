"""Compares a trained control with other methods on its target: how close each is, how fast, what the flow saves.

A method is a sampler and its options, such as mala or langevin,num_steps=50. Prior, flow and both reweighted are
always there, and a reference by sequential Monte Carlo. With --config what is not trained yet is trained first. The
same call goes on where one was stopped.
"""

from promptgen_jax.commands import _arguments

USAGE = "WORKDIR [--method=SAMPLER,OPTION=VALUE ...] [flags]"
EXAMPLES = (
    "runs/quickstart --stage=smile",
    "--config=face_smile --workdir=runs/smile --method=langevin,num_steps=50 --method=mala",
)


def add_arguments(parser: _arguments.Parser) -> None:
    """Its flags."""
    _arguments.add_run(parser, "folder of a run")
    add = parser.add_argument
    add("--config", metavar="CONFIG", help="train by this config what the folder does not hold yet")
    add("--stage", default="", metavar="NAME", help="stage of the run, default the last one")
    add("--method", action="append", default=[], metavar="TEXT", help="a sampler and its options; may be repeated")
    add("--num_samples", type=int, default=512, metavar="N", help="of every method, default 512")
    add("--reference_samples", type=int, default=0, metavar="N", help="of the reference, default as many")
    add("--refine", type=int, default=0, metavar="N", help="also the flow's samples after N steps of MALA")
    add("--coverage", action="store_true", help="also how often the generator makes what is asked at all")
    add("--seed", type=int, default=0, metavar="N", help="of the draws, default 0")
    _arguments.add_json(parser)
    _arguments.add_trust(parser)


def run(arguments) -> _arguments.Outcome:
    """Compares, and writes the page."""
    from promptgen_jax.commands import _config
    from promptgen_jax.runs import compare
    from promptgen_jax.runs.finished import read_config
    from promptgen_jax.store import weights

    methods = compare.read_methods(arguments.method)
    workdir = _arguments.workdir_of(arguments)
    if arguments.config is not None:
        config = _config.override(_config.load(arguments.config), arguments.overrides).to_dict()
    else:
        if arguments.overrides:
            raise ValueError(f"{arguments.overrides[0][0]}: there is no --config to change. Name one.")
        config = read_config(workdir, trust=arguments.trust)
    page = compare.compare_stage(
        config,
        workdir,
        stage=arguments.stage,
        methods=methods,
        num_samples=arguments.num_samples,
        reference_samples=arguments.reference_samples,
        seed=arguments.seed,
        refine_steps=arguments.refine,
        rarity=arguments.coverage,
        command=arguments.command,
    )
    about = weights.read_json(page.with_name(compare.FOUND), advice="Compare again.")
    return _arguments.Outcome(f"comparison: {page}", {"comparison": str(page), **about})
