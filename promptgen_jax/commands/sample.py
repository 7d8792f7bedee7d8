"""Writes pictures of a finished run or a saved prompt into a folder; the same call goes on where one was stopped.

Image i is the same whatever the batch size, the devices and the hosts.
"""

from pathlib import Path

from promptgen_jax.commands import _arguments

USAGE = "WORKDIR | --prompt=FOLDER --output=FOLDER [flags]"
EXAMPLES = (
    "--workdir=runs/quickstart --num_samples=1000",
    "--prompt=runs/quickstart/turn/prompt --output=runs/pictures --npz --latents",
)


def add_arguments(parser: _arguments.Parser) -> None:
    """Its flags."""
    _arguments.add_run(parser, "folder of a finished run")
    add = parser.add_argument
    add("--prompt", metavar="FOLDER", help="folder of a saved prompt, or its name on the Hub")
    add("--output", metavar="FOLDER", help="folder of the pictures, default WORKDIR/samples")
    add("--num_samples", type=int, default=64, metavar="N", help="noises to draw, default 64")
    add("--batch_size", type=int, metavar="N", help="images per device at a time, default by their size")
    add("--seed", type=int, default=0, metavar="N", help="of the noise, default 0")
    add(
        "--condition",
        type=_arguments.words,
        default=[],
        metavar="A,B",
        help="in people's units, angles in degrees, e.g. 10,-15; else a grid",
    )
    add(
        "--options",
        type=_arguments.words,
        default=[],
        metavar="A=X,B=Y",
        help="of the generator, e.g. truncation_psi=0.5,noise=const",
    )
    add(
        "--truncation",
        type=float,
        default=1.0,
        metavar="T",
        help="noise nearer to its mean: 0.7, say, gives more typical samples; default 1, none",
    )
    add("--mixture", default="", metavar="NAME", help="group of stages that a run has")
    add("--stage", default="", metavar="NAME", help="stage of the run, default the last one")
    add("--latents", action="store_true", help="also write latents.npz")
    add("--npz", action="store_true", help="also write images.npz")
    _arguments.add_json(parser)
    _arguments.add_trust(parser)
    _arguments.add_hosts(parser)


def run(arguments) -> _arguments.Outcome:
    """Writes the pictures."""
    from promptgen_jax.runs import sampling

    if arguments.output == "" or (arguments.prompt is not None and arguments.output is None):
        raise ValueError("--output is missing: name a folder for the pictures, e.g. --output=samples.")
    workdir = None if arguments.prompt is not None else _arguments.workdir_of(arguments)
    _arguments.start_hosts(arguments)
    prompts = _prompts(arguments, workdir)
    output = Path(arguments.output or f"{workdir}/samples")
    for name, prompt in prompts.items():
        sampling.write_samples(
            prompt,
            output / name,
            num_samples=-(-arguments.num_samples // len(prompts)),
            seed=arguments.seed,
            batch_size=arguments.batch_size,
            cond=conditions(prompt, arguments.condition),
            truncation=arguments.truncation,
            latents=arguments.latents,
            npz=arguments.npz,
        )
    folders = [output / name for name in prompts]
    return _arguments.Outcome(f"pictures: {output}", {"output": str(output), "folders": list(map(str, folders))})


def _prompts(arguments, workdir: str | None) -> dict:
    """The prompts to sample, by the folder of their pictures; all that reads a saved prompt is called here."""
    from promptgen_jax import Prompt

    options = dict(map(option, arguments.options))
    if workdir is None:
        return {"": Prompt.from_pretrained(arguments.prompt, trust=arguments.trust, **options)}
    from promptgen_jax.runs.finished import load_prompts  # what reads a config knows trainings too

    return load_prompts(workdir, mixture=arguments.mixture, stage=arguments.stage, trust=arguments.trust, **options)


def option(text: str) -> tuple:
    """`name=value`, the value a number, True, False, or else text."""
    from promptgen_jax.commands import _config

    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--options={text}: expected name=value, e.g. truncation_psi=0.7.")
    return name, _config.literal(value)


def conditions(prompt, texts: list[str]):
    """The condition of the command line, a grid if it names none, or None for a prompt without."""
    from promptgen_jax import Conditions

    dim = prompt.flow.cond_dim
    if texts and not dim:
        raise ValueError(f"--condition={','.join(texts)}: this prompt takes no condition. Leave it out.")
    if not dim:
        return None
    if texts:
        ranges = prompt.conditions or Conditions.of_angles({f"angle {index}": (0, 0) for index in range(dim)})
        try:
            return ranges.read(texts)
        except ValueError as error:
            raise ValueError(f"--{error}") from None
    if prompt.conditions is None:
        raise ValueError(f"--condition is missing: this prompt takes {dim} angles in degrees.")
    return prompt.conditions.grid()
