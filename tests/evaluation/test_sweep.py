"""One key at several values: the curve, its knee, and the command that trains what is not trained."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

import promptgen_jax as pg
from promptgen_jax import commands
from promptgen_jax.draws import importance
from promptgen_jax.evaluation import sweep
from promptgen_jax.metrics import About, Estimate, Figure
from promptgen_jax.runs.finished import load_prompt

GENERATOR = {"name": "synthetic", "problem": "linear", "dim": 2}
STAGE = {
    "controls": {"point": {"kind": "synthetic", "energy": "quadratic", "target": (0.6, -0.4), "weight": 1.0}},
    "flow": {"num_layers": 2, "hidden_dim": 8},
    "training": {"num_steps": 20, "batch_size": 64, "learning_rate": 1e-2},
}
CONFIG = f"def get_config(arg=''):\n    return {{'generator': {GENERATOR!r}, 'stages': {{'s': {STAGE!r}}}}}\n"
KEY = "--key=config.stages.s.controls.point.weight"


def rows(energy, distance, apart=(0.1, 0.1, 0.1), shares=(0.9, 0.9, 0.9)):
    names = [f"weight {number + 1}" for number in range(len(energy))]
    columns = {sweep.ENERGY: energy, sweep.TO_GENERATOR: distance, sweep.TO_TARGET: apart, sweep.SHARE: shares}
    return [Figure(name, dict(zip(names, map(Estimate, found), strict=True))) for name, found in columns.items()]


def test_the_knee_is_where_a_nat_begins_to_buy_less():
    distance = [0.0, 1.0, 2.0, 4.0, 8.0]
    assert sweep.knee(distance, [10.0, 5.0, 1.0, 0.6, 0.2]) == 2
    assert sweep.knee(distance[::-1], [10.0, 5.0, 1.0, 0.6, 0.2][::-1]) == 2
    assert sweep.knee(distance, [8.0, 7.0, 6.0, 4.0, 0.0]) is None  # a line
    assert sweep.knee([0.0, 1.0], [1.0, 0.0]) is None
    best, sentence = sweep.advice(rows([10.0, 1.0, 0.5], [0.0, 2.0, 6.0]), same_target=False)
    assert best == "weight 2"
    assert sentence.startswith("Use weight 2 unless you need less energy: ")
    assert "lowers the energy by 4.5, beyond by 0.125" in sentence
    best, sentence = sweep.advice(rows([2.0, 1.0, 0.0], [0.0, 1.0, 2.0]), same_target=False)
    assert best is None
    assert "no knee" in sentence


def test_the_generators_samples_are_weighed_by_their_strengths():
    generator = pg.load_generator(**GENERATOR)
    control = pg.load_control("synthetic", energy="quadratic", target=(0.6, -0.4), weight=2.0)
    ebm = pg.LatentEBM(generator, (control,), pg.Conditions.of_strengths({"quadratic": (0, 1)}))
    pool = sweep.Pool(jax.random.key(0), 8)
    expected = importance(pool.drawn(ebm), ebm).log_weight
    np.testing.assert_allclose(pool.of(About.of(ebm, {})).log_weight, expected, rtol=1e-5)


def test_values_of_one_target_are_told_by_how_close_they_come():
    best, sentence = sweep.advice(rows([3.0, 3.0, 3.0], [1.0, 1.0, 1.0], (0.5, 0.02, 0.3)), same_target=True)
    assert (best, sentence[:11]) == ("weight 2", "Use weight ")
    assert "0.02 nats" in sentence


def test_flows_that_have_not_arrived_are_told():
    found = list(sweep.notes(rows([3, 2, 1], [0, 1, 2], shares=(0.9, 0.5, 0.03)), num_seeds=1))
    assert "weight 3: the flow is not close" in found[0]
    assert "one seed" in found[1]
    assert list(sweep.notes(rows([3, 2, 1], [0, 1, 2]), num_seeds=2)) == []


def test_a_curve_that_may_be_chance_is_told():
    def said(half):
        energy = {f"weight {mean}": Estimate(mean, None, mean - half, mean + half) for mean in (1.0, 2.0, 3.0)}
        rest = [row for row in rows([1, 2, 3], [2, 1, 0]) if row.name != sweep.ENERGY]
        return list(sweep.notes([Figure(sweep.ENERGY, energy), *rest], num_seeds=2))

    assert said(0.9) == []
    (only,) = said(1.1)
    assert "may be chance" in only


def test_intervals_over_seeds():
    found = [(Figure("energy", {"flow": Estimate(mean)}, "nats"),) for mean in (1.0, 2.0, 3.0)]
    (row,) = sweep.over_seeds(found)
    value = row.values["flow"]
    assert value.mean == 2
    np.testing.assert_allclose(value.high - 2, 4.303 / np.sqrt(3), rtol=1e-3)
    assert sweep.over_seeds(found[:1]) == found[0]


def call(tmp_path, *more):
    (tmp_path / "mine.py").write_text(CONFIG)
    return commands.main(["sweep", str(tmp_path / "mine.py"), f"--workdir={tmp_path / 'run'}", *more])


def values(about, name):
    row = next(row for row in about["figures"] if row["name"] == name)
    return [row[value]["mean"] if isinstance(row[value], dict) else row[value] for value in about["values"]]


def test_the_command_sweeps_and_trains_nothing_twice(tmp_path, capsys, monkeypatch):
    line = [KEY, "--num_samples=256", "--json"]
    assert call(tmp_path, *line, "--values=0.5,2") == 0
    first = json.loads(capsys.readouterr().out)
    assert first["values"] == ["weight 0.5", "weight 2"]
    assert first["measured"]["start"] == "previous"
    energy, distance = (values(first, name) for name in (sweep.ENERGY, sweep.TO_GENERATOR))
    assert energy[1] < energy[0]  # by one ruler, though it weighs four times as much in its own target
    assert distance[1] > distance[0]
    trained = []
    monkeypatch.setattr(
        "promptgen_jax.runs.sweep._train_together", lambda members, *_: trained.extend(each.value for each in members)
    )
    assert call(tmp_path, *line, "--values=0.5,2") == 0
    again = json.loads(capsys.readouterr().out)
    assert (again["figures"], trained) == (first["figures"], [])
    assert call(tmp_path, *line, "--values=0.5,2,4") == 2  # nobody trains it
    assert trained == ["weight 4"]
    with pytest.raises(
        FileNotFoundError, match=r"holds trainings of a sweep, each a prompt of its own, as --prompt="
    ) as told:
        load_prompt(tmp_path / "run", stage="s")
    assert Path(str(told.value).partition("--prompt=")[2].rstrip(".")).is_dir()
    page = (tmp_path / "run" / "s" / "sweep" / "sweep.html").read_text()
    for words in ("What it buys", "KL to the generator", "weight 0.5", "one seed", "<svg"):
        assert words in page


def test_how_a_flow_is_trained_can_be_swept_too_and_starts_afresh(tmp_path, capsys):
    key = "--key=stages.s.training.learning_rate"
    assert call(tmp_path, key, "--values=1e-9,1e-2", "--seeds=2", "--num_samples=256", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["measured"]["start"] == "fresh"
    assert found["knee"] == "learning_rate 1e-2"
    assert found["advice"].startswith("Use learning_rate 1e-2 unless another is cheaper")
    assert len(list((tmp_path / "run" / "s" / "sweep").glob("*/prompt"))) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--values=1,2"], "--key is missing"),
        ([KEY, "--values=1"], "expected two or more that differ"),
        ([KEY, "--values=1,1"], "expected two or more that differ"),
        ([KEY, "--values=1,much"], "expected a number"),
        ([f"{KEY}s", "--values=1,2"], "Did you mean 'weight'?"),
        (["--key=stages.s.trainin.num_steps", "--values=1,2"], "no key 'trainin'"),
        (["--key=seed", "--values=1,2"], "changes seed"),
        ([KEY, "--values=1,2", "--start=warm"], "--start: unknown name 'warm'"),
        ([KEY, "--values=1,2", "--stage=x"], "--stage: unknown name 'x'"),
        ([KEY, "--values=1,2", "--seeds=0"], "seeds"),
        (["--key=stages.s.training.num_steps", "--values=1,2", "--start=previous"], "--start=previous needs values"),
    ],
)
def test_mistakes_cost_no_work(arguments, message, tmp_path, capsys):
    assert call(tmp_path, *arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
