"""What the pages of the documentation say, and whether it holds: commands, Python, quoted messages, links, names.

One rule for README.md and all of docs/. A fenced block is `sh`, `console`, `python` or `text`.

- sh: a program that is not ours must be in OUTSIDE and has only its files checked. Ours is asked itself: `main.py`
  without its work directory must miss nothing else, a converter nothing but the file to convert.
- console: a command after `$`, as in sh, and what it prints, which the tests of that command compare.
- python: what it imports and uses of the library exists.
- text: a message that our code prints, word for word, with … where it prints a value.
- `[`name`](file.py)`: the file defines the name. Other links lead somewhere, paths in `code` exist, and tables of flags
  list those of `main.py`.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib
import importlib.util
import io
import itertools
import os
import pkgutil
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

import main
from promptgen_jax.commands import helps, modes, parser
from promptgen_jax.store import catalogue

ROOT = Path(__file__).parents[2]
STAND_INS = ("index.md", "changelog.md")  # for README.md and CHANGELOG.md on the site
PAGES = [ROOT / "README.md", *(page for page in sorted((ROOT / "docs").glob("*.md")) if page.name not in STAND_INS)]
BLOCK = re.compile(r"^ *```(\S*)(?: title=\"(.*?)\")?\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
OUTSIDE = {"cd", "export", "gcloud", "git", "module", "pip", "sbatch"}
LAUNCHERS = {"srun"}  # run the command behind their own options
MODULES = {"venv", "pip", "pytest", "sphinx"}  # not ours
OPERATORS = {"&&", "||", "|", ";", "&"}
OURS = r"main\.py|constraints\.txt|(?:\.ci|benchmarks|configs|convert|docs|notebooks|promptgen_jax|tests)/[\w./-]*"


class Block(NamedTuple):
    """A fenced block: language, title or "", content."""

    language: str
    title: str
    content: str


def blocks(page: Path) -> list[Block]:
    return [Block(*found) for found in BLOCK.findall(page.read_text())]


def commands_of(block: Block) -> list[list[str]]:
    """The commands of a block of the shell, none of another."""
    if block.language == "console":
        return commands("\n".join(re.findall(r"^\$ (.*)$", block.content, re.MULTILINE)))
    return commands(block.content) if block.language == "sh" else []


def commands(content: str) -> list[list[str]]:
    """The words of every command of a shell script, also of those that are sent to other machines by --command."""
    found = []
    for line in content.replace("\\\n", " ").splitlines():
        words = shlex.shlex(line, posix=True, punctuation_chars="&|;")
        words.whitespace_split = True
        for operator, group in itertools.groupby(words, OPERATORS.__contains__):
            if not operator:
                found.append(list(group))
    sent = [word.removeprefix("--command=") for words in found for word in words if word.startswith("--command=")]
    return found + [words for content in sent for words in commands(content)]


def write_module(block: Block, folder: Path) -> None:
    """Writes the file of the user's own that a block shows, where Python can import it from the folder."""
    (folder / block.title).parent.mkdir(exist_ok=True)
    (folder / block.title).write_text(block.content)


def environment(words: list[str]) -> dict[str, str]:
    """The assignments in front of a command."""
    return dict(word.split("=", 1) for word in itertools.takewhile(re.compile(r"[A-Z_]+=").match, words))


def program(words: list[str]) -> list[str]:
    """A command without assignments and launcher, its program without folders."""
    words = words[len(environment(words)) :]
    if words[0] in LAUNCHERS:
        words = list(itertools.dropwhile(lambda word: not re.search(r"(^|/)python3?$", word), words))
        assert words, "launches no Python"
    return [Path(words[0]).name, *words[1:]]


def check_block(block: Block) -> None:
    """Raises AssertionError, naming what is wrong, unless everything in a block exists."""
    if block.language in ("sh", "console"):
        assert commands_of(block), f"no command in {block.content!r}"
        for words in commands_of(block):
            check_command(program(words))
    elif block.language == "python":
        check_python(block.content)
    elif block.language == "text":
        check_message(" ".join(block.content.split()))
    else:
        raise AssertionError(f"language {block.language!r}: expected sh, console, python or text")


def printed(page: Path, mode: str) -> list[str]:
    """The lines that a page shows as the output of `main.py --mode=<mode>`, without those of … alone."""
    shown = [
        block.content for block in blocks(page) if block.language == "console" and f"--mode={mode}" in block.content
    ]
    return [line for content in shown for line in content.splitlines()[1:] if line.strip() != "…"]


def check_command(words: list[str]) -> None:
    name, *rest = words
    if name in OUTSIDE:
        for option, file in itertools.pairwise(rest):
            assert option not in ("-r", "-c") or (ROOT / file).is_file(), f"{file}: no such file"
        return None
    if name == "promptgen":
        return check_promptgen(rest)
    assert name in ("python", "python3"), f"{name}: unknown program"
    if rest[0] == "-m":
        assert rest[1] in MODULES or importlib.util.find_spec(rest[1]), f"{rest[1]}: no such module"
        if rest[1] not in MODULES:
            check_flags(tuple(rest[:2]), rest[2:])
        return None
    assert (ROOT / rest[0]).is_file(), f"{rest[0]}: no such file"
    if rest[0] == "main.py":
        check_main(rest[1:])
    elif rest[0].startswith("convert/"):
        check_converter(Path(rest[0]).stem, rest[1:])
    else:
        check_flags(tuple(rest[:1]), rest[1:])
    return None


def check_promptgen(arguments: list[str]) -> None:
    """There is such a mode, and it takes these arguments."""
    mode, *rest = arguments
    assert mode in modes(), f"{mode}: no mode"
    try:
        parser(mode).read(rest, modes())
    except ValueError as error:
        raise AssertionError(str(error)) from None


def check_main(arguments: list[str]) -> None:
    """Without its --workdir the program has nothing else to say against the arguments; --mode=list and the like run."""
    without = [word for word in arguments if not word.startswith("--workdir=")]
    if without == arguments:
        return check_flags(("main.py",), [word for word in arguments if not word.startswith("--config.")])
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(said):
        patch.chdir(ROOT)
        main.main(without)
    assert "--workdir is missing" in said.getvalue(), said.getvalue()
    return None


def check_converter(module: str, arguments: list[str]) -> None:
    """A converter that understands the arguments says that there is no such file."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.suppress(SystemExit):
        importlib.import_module(f"convert.{module}").main([f"nowhere/{arguments[0]}", *arguments[1:]])
    assert "no such file" in said.getvalue(), said.getvalue()


def check_flags(command: tuple[str, ...], arguments: list[str]) -> None:
    for word in arguments:
        flag = word.split("=")[0]
        assert not flag.startswith("--") or re.search(rf"{flag}\b", help_of(command)), f"{flag}: unknown flag"


@functools.cache
def help_of(command: tuple[str, ...]) -> str:
    if command == ("main.py",):
        return "".join(page for _, page in helps())
    done = subprocess.run([sys.executable, *command, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout.replace("--[no]", "--")


def check_python(content: str) -> None:
    """What a program imports from the library and uses of `pg` exists."""
    for node in ast.walk(ast.parse(content)):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module.startswith("promptgen_jax"):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute) and re.fullmatch(r"pg(\.\w+)+", ast.unparse(node)):
            names = ["promptgen_jax" + ast.unparse(node).removeprefix("pg")]
        for name in names:
            check_name(name)


def check_name(name: str) -> None:
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError) as error:
        raise AssertionError(f"{name}: {error}") from None


def check_message(message: str) -> None:
    assert any(message.strip("… ") in known for known in messages()), f"no message of ours: {message!r}"


@functools.cache
def messages() -> list[str]:
    """All strings in our code, values in f-strings as …, blanks as one."""
    found = []
    for path in [ROOT / "main.py", *(ROOT / "promptgen_jax").rglob("*.py"), *(ROOT / "convert").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            texts = [part.value if isinstance(part, ast.Constant) else "…" for part in parts]
            if all(isinstance(text, str) for text in texts) and isinstance(node, (ast.JoinedStr, ast.Constant)):
                found.append(re.sub(r"…+|\{\}", "…", " ".join("".join(texts).split())))
    return found


def check_prose(page: Path) -> None:
    """Links lead somewhere, names that link to a file of Python are defined there, paths in code exist."""
    text = BLOCK.sub("", page.read_text())
    for label, target, anchor in re.findall(r"\[([^\]]*)\]\((?!http)([^)#\s]*)(?:#([^)\s]*))?\)", text):
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{page.name}: link to {target}, which does not exist"
        assert not anchor or anchor in anchors(path), f"{page.name}: {target} has no heading #{anchor}"
        if path.suffix == ".py" and re.fullmatch(r"`[\w.]+`", label):
            check_name(".".join([*path.relative_to(ROOT).with_suffix("").parts, label.strip("`")]))
    check_flags(("main.py",), re.findall(r"^\| `(--\w+)` \|", text, re.MULTILINE))
    for code in re.findall(r"`([^`\n]+)`", text):
        for word in code.split():
            word = word.split("=")[-1].split(":")[0]
            if re.fullmatch(OURS, word):
                assert (ROOT / word).exists(), f"{page.name}: `{word}` does not exist"
        if re.fullmatch(r"(promptgen_jax|pg)(\.\w+)+", code) and not code.endswith(".py"):
            check_name(re.sub("^pg", "promptgen_jax", code))


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def needs_weights(text: str) -> bool:
    """Whether a text names weights that are not shipped."""
    return any(name in catalogue.CHECKPOINTS for name in re.findall(r"\w+", text))


def runnable(page: Path) -> list[tuple[list[str], str]]:
    """What of a page runs on the shipped weights, in order: (words of a command, "") or ([], Python code).

    Left out are commands on several hosts, other weights, and Python that reads what a converter of the page writes.
    """
    found, made, converted = [], [], set()
    for block in blocks(page):
        if block.language == "python" and not block.title and not needs_weights(block.content):
            if not any(f'"{folder}"' in block.content for folder in converted):
                found.append(([], block.content))
        for words in commands_of(block):
            name, *rest = program(words)
            if name in OUTSIDE or rest[0] != "main.py":
                converted |= set(rest[2:3]) if rest and rest[0].startswith("convert/") else set()
                continue
            options = dict(re.findall(r"^--(\w+)=(.*)$", "\n".join(rest), re.MULTILINE))
            trains = "config" in options and not needs_weights(str(config_of(options["config"])))
            reads = [Path(options[name]) for name in ("workdir", "prompt") if name in options]
            known = all(any(path.is_relative_to(folder) for folder in made) for path in reads)
            if (trains or known) and not {"coordinator", "num_processes"} & options.keys():
                made += reads
                found.append((words, ""))
    return found


def config_of(value: str) -> dict:
    file, _, argument = value.partition(":")
    module = importlib.import_module(f"configs.{Path(file).stem}")
    return module.get_config(*([argument] if argument else [])).to_dict()


def write_modules(page: Path, folder: Path) -> None:
    """Writes the files of the reader's own package that a page shows into a folder."""
    for block in blocks(page):
        if block.title.startswith("mypackage/"):
            write_module(block, folder)


def run_small(words: list[str], code: str, folder: Path) -> None:
    """Runs one entry of `runnable` in a folder, with the config's smoke variant, two steps and four samples."""
    if code:
        code = re.sub(r"num_steps=\d+", "num_steps=2", code)
        code = re.sub(r"warmup_steps=\d+", "warmup_steps=0", code)
        command = [sys.executable, "-c", code]
    else:
        arguments = [re.sub(r"^(--num_samples|--batch_size)=\d+", r"\1=4", word) for word in program(words)[1:]]
        arguments = [re.sub(r"^(--config=[^:]*:.+)(?<!smoke)$", r"\1_smoke", word) for word in arguments]
        arguments = [re.sub(r"^(--config=[^:]*)$", r"\1:smoke", word) for word in arguments]
        command = [sys.executable, *arguments]
    variables = (
        os.environ
        | {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "PYTHONPATH": str(ROOT)}
        | environment(words)
    )
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{words or code}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
