"""What is installed: requirements that agree, also with what is imported; a wheel that holds all that it says."""

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import promptgen_jax as pg

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DISTRIBUTIONS = {"PIL": "pillow", "absl": "absl-py", "orbax": "orbax-checkpoint"}  # of modules named otherwise
OWN = {"promptgen_jax", "configs", "convert"}


def names(requirements):
    return {re.match(r"[\w-]+", each)[0].lower() for each in requirements}


def imported(*folders):
    found = set()
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(node.module.partition(".")[0])
    return {DISTRIBUTIONS.get(name, name).lower() for name in found - OWN - set(sys.stdlib_module_names)}


def test_what_is_imported_is_declared():
    project = PROJECT["project"]
    extras = {name: names(each) for name, each in project["optional-dependencies"].items()}
    declared = names(project["dependencies"])
    optional = extras["tensorboard"] | extras["play"] | extras["onnx"]
    assert imported("promptgen_jax", "configs") <= declared | optional
    assert imported("convert") <= declared | extras["convert"]
    assert declared - {"transformers"} <= imported("promptgen_jax", "configs", "convert")  # it reads tokenizers' files


def test_requirements_are_written_once():
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert lines == ["-c constraints.txt", "-e ."]
    developers = (ROOT / "requirements-dev.txt").read_text().splitlines()
    own = [line for line in developers if line and not line.startswith(("#", "-r"))]
    assert "-r requirements.txt" in developers
    assert not names(own) & names(PROJECT["project"]["dependencies"])
    extras = {each for group in PROJECT["project"]["optional-dependencies"].values() for each in group}
    assert names(extras) <= names(own)
    torch = next(line for line in own if line.startswith("torch=="))
    assert torch in (ROOT / ".ci" / "run").read_text()


def test_licences_of_the_shipped_weights_are_stated():
    project = PROJECT["project"]
    shipped = {path.parent.name for path in (ROOT / "ported_weights").glob("*/SOURCE.md")}
    included = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert {Path(name).name for name in included if name.startswith("ported_weights/")} == shipped
    assert project["license"] == "MIT AND Apache-2.0 AND LicenseRef-DigiFace-1M-R-UDA-1.0"
    files = {path for pattern in project["license-files"] for path in ROOT.glob(pattern)}
    texts = {path for name in shipped for path in (ROOT / "ported_weights" / name).glob("*LICENSE*")}
    assert texts <= files
    notice = (ROOT / "NOTICE").read_text()
    assert all(f"ported_weights/{name}" in notice for name in shipped)


@pytest.mark.full
def test_wheel(tmp_path):
    """Built from the clone, it holds command, configs, converters and weights; `promptgen` finds them elsewhere."""
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", str(ROOT), "-w", str(tmp_path)]
    subprocess.run(build, check=True, capture_output=True, timeout=600)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.startswith(f"promptgen_jax-{pg.__version__}-")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    home = tmp_path / "site" / "promptgen_jax" / "home"
    for folder, pattern in (("configs", "*.py"), ("convert", "*.py"), ("ported_weights", "*/*")):
        assert {path.name for path in (home / folder).glob(pattern)} >= {
            path.name for path in (ROOT / folder).glob(pattern) if folder != "ported_weights"
        }
    (tmp_path / "empty").mkdir()
    program = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); from promptgen_jax.commands import main; sys.exit(main())"
    )
    for arguments, said in (
        (["list"], "promptgen convert stylegan2 ffhq.pt ported_weights/stylegan2_ffhq"),
        (["convert", "stylegan2", "--help"], "promptgen convert stylegan2"),
        (["train", "quickstart:smok", "--workdir=w"], "Did you mean 'smoke'?"),
        (["train", "quickstart:smoke", "--workdir=w"], "report: "),
    ):
        command = [sys.executable, "-c", program, str(tmp_path / "site"), *arguments]
        done = subprocess.run(command, cwd=tmp_path / "empty", capture_output=True, text=True, timeout=600)
        assert said in done.stdout + done.stderr
