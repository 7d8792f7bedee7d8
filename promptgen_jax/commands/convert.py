"""Converts official checkpoints to weight folders: one file, all that a config lacks, or all that you downloaded.

MODEL is one of {models}.
MODEL --help says more of each. Most need PyTorch: pip install torch.
Files are read as data, nothing in them is executed, and nothing is written unless every tensor was found and checked.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import os
import sys
import textwrap
from pathlib import Path

from promptgen_jax import checks
from promptgen_jax.commands import _arguments
from promptgen_jax.store import catalogue, home, weights

MODELS = textwrap.fill(", ".join(home.converters()), 100, subsequent_indent="  ")
__doc__ = __doc__.format(models=MODELS)  # noqa: A001
USAGE = "MODEL FILE FOLDER | --plan CONFIG | --from FOLDER"
EXAMPLES = ("--plan stylegan2_pose", "stylegan2 ffhq.pt ported_weights/stylegan2_ffhq", "--from ~/Downloads")
LATENTS = "latent.pkl"  # how the files end that belong to DiffAE's checkpoints
DEPTH = 3  # folders below the one of the downloads that are looked into
SUFFIXES = {Path(each.file).suffix for each in catalogue.CHECKPOINTS.values()} | {".safetensors", ".zip"}


def add_arguments(parser: _arguments.Parser) -> None:
    """Its flags."""
    parser.add_argument("model", nargs="?", metavar="MODEL", help="what to convert")
    parser.add_argument("rest", nargs=argparse.REMAINDER, metavar="FILE FOLDER", help="official file, folder to write")
    parser.add_argument("--plan", metavar="CONFIG", help="list the files that a config needs and does not find")
    parser.add_argument("--from", dest="downloads", metavar="FOLDER", help="convert what is recognised in a folder")


def run(arguments) -> _arguments.Outcome:
    """Converts, or says what is to be converted."""
    home.make_importable()
    asked = [name for name in ("model", "plan", "downloads") if getattr(arguments, name) is not None]
    if len(asked) != 1:
        raise ValueError("give one of MODEL FILE FOLDER, --plan=CONFIG and --from=FOLDER. See --help.")
    if arguments.plan is not None:
        return _arguments.Outcome(plan(arguments.plan))
    if arguments.downloads is not None:
        return convert_downloads(Path(arguments.downloads).expanduser())
    checks.check_known("convert", arguments.model, home.converters())
    return _arguments.Outcome("", code=_call(arguments.model, arguments.rest))


def _call(model: str, argv: list[str]) -> int:
    """The exit code of a converter, whose own parser reads its arguments."""
    converter, name = importlib.import_module(home.converters()[model]), sys.argv[0]
    sys.argv[0] = f"promptgen convert {model}"  # what its --help calls it
    try:
        return converter.main(argv)
    except SystemExit as done:
        return int(done.code or 0)
    finally:
        sys.argv[0] = name


def plan(name: str) -> str:
    """What a config needs of published checkpoints and does not find, with all that is known of each file."""
    from promptgen_jax.commands import _config
    from promptgen_jax.runs import inventory

    needed, missing = inventory.needed(_config.load(name).to_dict())
    if not missing:
        return f"{name}: nothing is missing; {', '.join(needed) or 'no weights'} found."
    found = [each for each in needed if each not in missing]
    lines = [
        f"{name}: {len(missing)} of {len(needed)} weight folders are missing"
        + (f"; {', '.join(found)} found." if found else ".")
    ]
    for each in missing:
        checkpoint = catalogue.CHECKPOINTS[each]
        lines += [
            "",
            each,
            f"  file     {checkpoint.file}",
            f"  from     {checkpoint.url}",
            f"  size     {f'{checkpoint.megabytes} MB' if checkpoint.megabytes else 'not published'}",
            f"  sha256   {checkpoint.sha256 or 'not published'}",
            f"  licence  {checkpoint.license}",
            f"  command  {checkpoint.command(each)}",
        ]
    return "\n".join([*lines, "", f"All at once, whatever of it lies in a folder: {_from_command()}"])


def _from_command() -> str:
    return f"{_arguments.called('main.py' if home.by_script() else 'promptgen', 'convert')} --from=FOLDER"


def convert_downloads(folder: Path) -> _arguments.Outcome:
    """Converts every file of a folder that is recognised, and says what was not."""
    if not folder.is_dir():
        raise FileNotFoundError(f"--from={folder}: no such folder. Name the one with the downloaded files.")
    files = [path for path in sorted(folder.rglob("*")) if len(path.relative_to(folder).parts) <= DEPTH + 1]
    files = [path for path in files if path.suffix in SUFFIXES and path.is_file()]
    lines, code = [], 0
    for path in files:
        line, well = _convert_download(path)
        print(line, flush=True)
        lines.append(line)
        code = code if well else 1
    count = len(files)
    return _arguments.Outcome(f"{folder}: {count} file(s) that may be checkpoints looked at.", lines, code)


def _convert_download(path: Path) -> tuple[str, bool]:
    """What became of a file, and whether that is no failure."""
    from convert import family

    names = [name for name, each in catalogue.CHECKPOINTS.items() if _ends_with(path, each.file)]
    if not names and path.suffix == ".zip":
        inside = [name for name, each in catalogue.CHECKPOINTS.items() if each.url.endswith(f"/{path.name}")]
        what = f"holds {', '.join(inside)}: unpack it, then run this again" if inside else "not recognised"
        return f"{path}: {what}", True
    if not names and path.name.endswith(LATENTS):
        return f"{path}: statistics of latents, which the checkpoint beside it is converted with", True
    if not names:
        found = family.recognise(path)
        if found is None:
            return f"{path}: not recognised", True
        script = family.FAMILIES[found].converter
        names = [name for name, each in catalogue.CHECKPOINTS.items() if each.converter == script]
        if len(names) > 1:
            command = f"{home.converter(script)} {path} ported_weights/NAME"
            return f"{path}: a {found} file by its content; which one cannot be told. Name it: {command}", True
    return _convert_as(path, names)


def _convert_as(path: Path, names: list[str]) -> tuple[str, bool]:
    """Converts a file as the first of these checkpoints that it proves to be."""
    root, said = Path(os.environ.get("PROMPTGEN_WEIGHTS") or "ported_weights"), ""
    for name in names:
        if (root / name / "config.json").is_file():
            return f"{path}: {name}, which is in {root} already", True
    for name in names:
        published = catalogue.CHECKPOINTS[name].sha256
        if published and weights.file_sha256(path) != published:
            return f"{path}: looks like {name}, but its sha256 is not the published one; download it again", False
        model = catalogue.CHECKPOINTS[name].converter.removesuffix("_to_flax.py")
        output = io.StringIO()
        with contextlib.redirect_stderr(output), contextlib.redirect_stdout(output):
            code = _call(model, [str(path), str(root / name)])
        if code == 0:
            return f"{path}: {name}, converted to {root / name}", True
        said = output.getvalue().strip().removeprefix("error: ")
    return f"{path}: looks like {' or '.join(names)}, but is refused: {said}", False


def _ends_with(path: Path, file: str) -> bool:
    parts = Path(file).parts
    return path.resolve().parts[-len(parts) :] == parts
