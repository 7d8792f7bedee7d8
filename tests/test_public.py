"""What is public is named, typed and has a page."""

import os
import re
import subprocess
import sys
from importlib import resources
from pathlib import Path

import promptgen_jax as pg

ROOT = Path(__file__).parent.parent


def listed(module):
    """Names in the reference under a module."""
    sections = (ROOT / "docs" / "api.rst").read_text().split(".. currentmodule:: ")
    (section,) = (section for section in sections if section.startswith(f"{module}\n"))
    return sorted(re.findall(r"^   (\w+)$", section, flags=re.MULTILINE))


def test_every_public_name_has_a_page():
    assert listed("promptgen_jax") == sorted(set(pg.__all__) - {"evaluation"})
    assert listed("promptgen_jax.evaluation") == sorted(pg.evaluation.__all__)


def test_type_checkers_are_told_that_there_are_types():
    assert resources.files(pg).joinpath("py.typed").is_file()


def test_no_test_imports_another():
    imported = re.compile(r"^\s*(?:from|import) (test_\w+)", flags=re.MULTILINE)
    found = {path.name: imported.findall(path.read_text()) for path in sorted((ROOT / "tests").rglob("*.py"))}
    assert not {name: others for name, others in found.items() if others}


def test_importing_touches_no_device():
    """Several hosts have to find each other first."""
    code = "import promptgen_jax, promptgen_jax.commands, promptgen_jax.runs.run"
    environment = os.environ | {"JAX_PLATFORMS": "none such", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=300)
