"""The command that measures: it runs, refuses what does not compute the same, and its page says what was measured."""

import functools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import __main__ as command
from benchmarks import accelerator, case, machine, page, turns
from benchmarks.case import Case, Side

pytest.importorskip("torch", reason="torch, which writes and runs the official networks, is not installed")
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def threads_as_they_are(monkeypatch):
    """The command sets variables for its own process; this one has others to run."""
    monkeypatch.setattr(machine, "use_threads", lambda count: None)


def test_quick_run(tmp_path, capsys):
    """Two cheap parts: both sides agree, and records have times, memory and counts."""
    path = tmp_path / "records.json"
    assert command.main(["flow", "peak", "--quick", "--threads=1", f"--json={path}"]) == 0
    found = {record["name"]: record for record in json.loads(path.read_text())}
    assert set(found) == {"flow/8", "peak/float32"}
    flow = found["flow/8"]
    assert flow["ours"]["median"] > 0
    assert flow["other"]["median"] > 0
    assert flow["ours"]["gflop"] > 0
    assert 0 < max(flow["differences"].values()) < 1e-4
    assert "flow/8" in capsys.readouterr().out
    with pytest.raises(ValueError, match="measured with --quick"):
        page.write(list(found.values()))


@pytest.mark.parametrize("wrong", [{"x": np.ones(3) * 1.02}, {"y": np.ones(3)}, {"x": np.full(3, np.nan)}])
def test_a_wrong_twin_is_refused(wrong):
    """Another value, another name, and no number at all."""
    refused = Case("some/case", "", functools.partial(Side, dict), functools.partial(Side, dict))
    with pytest.raises(turns.Different, match="some/case.*different computations"):
        turns.compare(refused, {"x": np.ones(3)}, wrong)


def test_a_refused_case_ends_with_status_1(monkeypatch, capsys, tmp_path):
    def refuse(part, each, **options):
        raise turns.Different(f"{each.name}: the sides differ.")

    monkeypatch.setattr(turns, "measure", refuse)
    path = tmp_path / "records.json"
    assert command.main(["flow", "--quick", f"--json={path}"]) == 1
    assert "flow/8: the sides differ." in capsys.readouterr().err
    assert not path.exists()


def test_a_record_measured_again_keeps_its_place(tmp_path):
    path = tmp_path / "records.json"
    for record in ({"name": "a", "s": 1}, {"name": "b", "s": 1}, {"name": "a", "s": 2}):
        command.keep(path, record)
    assert json.loads(path.read_text()) == [{"name": "a", "s": 2}, {"name": "b", "s": 1}]


def test_every_case_is_listed(capsys):
    assert command.main(["--list"]) == 0
    listed = capsys.readouterr().out
    for part in case.part_names():
        assert all(each.name in listed for each in case.cases(part, quick=False))


def test_the_twin_of_the_command_line_imports_no_jax():
    """Else its start would be as slow as that of ours."""
    code = "import sys, benchmarks.twins.sample; sys.exit('jax' in sys.modules or 'promptgen_jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=300, check=False).returncode == 0


def test_a_part_that_is_unknown(capsys):
    with pytest.raises(SystemExit):
        command.main(["nope"])
    assert "unknown part 'nope'" in capsys.readouterr().err


def test_no_accelerator_is_said_in_a_sentence(tmp_path, capsys):
    path = tmp_path / "records.json"
    assert command.main(["--accelerator", "--threads=1", f"--json={path}"]) == 0
    assert "JAX sees none here" in capsys.readouterr().out
    assert not path.exists()


@pytest.mark.full
def test_programs_of_an_accelerator():
    """On a CPU they run too: everything but precisions that the parts do not have."""
    found = {record["name"]: record for record in accelerator.run(True, print)}
    assert {"accelerator/smile step-float32-4", "accelerator/sampling-tf32-4"} <= set(found)
    assert all(record["seconds"] > 0 for record in found.values() if record["kind"] == "accelerator")
