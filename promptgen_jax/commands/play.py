"""Serves a page to play with a saved prompt: dials, the same noise before and after, a face of your own, downloads.

Two prompts of one generator can be blended. Only this machine sees the page unless --host says otherwise.
"""

from promptgen_jax.commands import _arguments

USAGE = "--prompt=FOLDER [--prompt=FOLDER] [flags]"
EXAMPLES = (
    "--prompt=runs/quickstart/smile/prompt",
    "--prompt=runs/quickstart/smile/prompt --space=runs/space",
)


def add_arguments(parser: _arguments.Parser) -> None:
    """Its flags."""
    add = parser.add_argument
    add(
        "--prompt",
        action="append",
        default=[],
        metavar="FOLDER",
        help="folder of a saved prompt, or its name on the Hub",
    )
    add(
        "--options",
        type=_arguments.words,
        default=[],
        metavar="A=X,B=Y",
        help="of the generator, e.g. truncation_psi=0.5,noise=const",
    )
    add("--host", default="127.0.0.1", metavar="ADDRESS", help="to listen on, default 127.0.0.1, this machine alone")
    add("--port", type=int, default=7860, metavar="N", help="default 7860; 0 takes the next free one")
    add("--space", metavar="FOLDER", help="write what a Hugging Face Space takes, and serve nothing")
    add("--repository", default="", metavar="URL", help="of this library, for the requirements of a Space")
    _arguments.add_trust(parser)


def run(arguments) -> _arguments.Outcome:
    """Serves until it is interrupted, or writes the folder of a Space."""
    from promptgen_jax import devices
    from promptgen_jax.commands.sample import option
    from promptgen_jax.play import page, space
    from promptgen_jax.play.studio import Studio

    if not arguments.prompt:
        raise ValueError("--prompt is missing: name the folder of a saved prompt, e.g. --prompt=runs/x/smile/prompt.")
    with devices.compilations_kept():
        print("compiling ...", flush=True)
        studio = Studio.load(arguments.prompt, trust=arguments.trust, **dict(map(option, arguments.options)))
        if arguments.space is not None:
            folder = space.write(studio, arguments.space, repository=arguments.repository)
            return _arguments.Outcome(f"space: {folder}")
        page.serve(studio, host=arguments.host, port=arguments.port or None)
    return _arguments.Outcome("")
