"""The benches of dials: each runs on a few samples, and its line says what the documentation quotes."""

import json

import numpy as np
import pytest

from benchmarks.dials import __main__ as command
from benchmarks.dials import exact

SMALL = ["--steps=12", "--seed=0", "--samples=8"]


@pytest.fixture
def lines(tmp_path, monkeypatch):
    """Runs the command, and returns its lines."""
    monkeypatch.setattr(command.measuring, "PRIOR_SAMPLES", 16)

    def run(*argv):
        path = tmp_path / "lines.jsonl"
        command.main([*argv, f"--results={path}"])
        return [json.loads(line) for line in path.read_text().splitlines()]

    return run


@pytest.mark.parametrize("problem", exact.PROBLEMS)
def test_a_flow_that_has_learned_little_is_the_identity_at_0_and_else_wrong(problem, lines, monkeypatch):
    monkeypatch.setattr(exact, "SAMPLES", 2**12)
    monkeypatch.setattr(exact, "BATCH", 2**12)
    (found,) = lines("exact", "--steps=1", "--seed=0", f"--problem={problem}")
    assert (found["bench"], found["problem"], found["steps"]) == ("exact", problem, 1)
    first, last = found["rows"][0], found["rows"][-1]
    assert [row["strength"] for row in found["rows"]] == list(exact.STRENGTHS)
    assert first["identity"]
    np.testing.assert_allclose([first["kl"], first["log_z_error"]], 0, atol=1e-6)
    assert first["mean"] < 0.1
    assert not last["identity"]
    assert last["kl"] > 0.02


@pytest.mark.full
def test_smile(lines):
    single, dial = lines("smile", *SMALL, "--corners", "0.5")
    assert single["corners"] is None
    assert dial["identity"]
    assert [row["strength"] for row in dial["rows"]] == [0.25, 0.5, 1]
    assert "minus_single" in dial["rows"][-1]


@pytest.mark.full
def test_shares(lines, monkeypatch):
    monkeypatch.setitem(command.shares.CONFIG["evaluation"], "num_samples", 2048)
    narrow = {"female": (0.3, 0.5, "share"), "happy": (0.2, 0.5, "share")}
    monkeypatch.setitem(command.shares.STAGE, "condition", narrow)
    monkeypatch.setattr(command.shares, "ASKED", ({"female": 0.3, "happy": 0.4},))
    (found,) = lines("shares", *SMALL, "--objective=score_function")
    before, row = found["rows"]
    assert before["asked"] is None
    assert row["asked"] == {"female": 0.3, "happy": 0.4}
    assert 0 < row["ess"] <= 1
    assert row["worst"] == max(abs(row["female"] - 0.3), abs(row["happy"] - 0.4))
    assert {"female_judge", "happy_judge", "female_reweighted", "female_se"} <= set(row)


@pytest.mark.full
def test_edit(lines, tmp_path):
    (found,) = lines("edit", *SMALL, f"--sheet={tmp_path / 'sheet.png'}")
    assert [(row["from"], row["to"]) for row in found["rows"]] == [(0, 0.5), (0, 1), (0.5, 1)]
    assert all(0 <= row["round_trip"] < 1e-3 for row in found["rows"])
    assert all(row["same"] < row["different"] for row in found["rows"])
    assert (tmp_path / "sheet.png").exists()


@pytest.mark.full
def test_play(lines, monkeypatch):
    monkeypatch.setattr(command.play, "TURNS", 2)
    (found,) = lines("play", "--seed=0")
    assert found["faces"] == 16
    assert all(0 < row["least"] <= row["median"] for row in found["rows"])
