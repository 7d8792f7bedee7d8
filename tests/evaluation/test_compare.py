"""Methods side by side on a target whose answer is known, and the command that compares them."""

import json

import jax
import numpy as np
import pytest

import promptgen_jax as pg
from promptgen_jax import commands, parts
from promptgen_jax.evaluation import compare, exact
from promptgen_jax.runs import compare as runs_compare

TARGET = (0.6, -0.4)
STAGE = {
    "controls": {"point": {"kind": "synthetic", "energy": "quadratic", "target": TARGET}},
    "flow": {"num_layers": 2, "hidden_dim": 8},
    "training": {"num_steps": 2, "batch_size": 8},
}
GENERATOR = {"name": "synthetic", "problem": "linear", "dim": 2}
CONFIG = f"def get_config(arg=''):\n    return {{'generator': {GENERATOR!r}, 'stages': {{'s': {STAGE!r}}}}}\n"


@pytest.fixture(scope="module")
def compared():
    generator = parts.load_generator("synthetic", problem="linear", dim=2)
    ebm = pg.LatentEBM(generator, (pg.load_control("synthetic", energy="quadratic", target=TARGET),))
    flow, params = pg.init_flow(jax.random.key(0), generator.prior, architecture="coupling", num_layers=2)
    prompt = pg.Prompt(generator, flow, params)  # the identity
    samplers = {
        "chains": pg.load_sampler("langevin", num_steps=3),
        "descent": pg.load_sampler("optimise", num_steps=100, distance_weight=0.0),
    }
    found = compare.compare(
        ebm, jax.random.key(1), prompt=prompt, samplers=samplers, num_samples=1024, training_seconds=60.0
    )
    return found, exact.linear_target(generator, TARGET, 0.5), generator


def values(found, name):
    return {method: value.mean for method, value in found.figure(name).values.items()}


def test_figures_agree_with_the_truth(compared):
    found, truth, generator = compared
    matrix, gap = np.asarray(generator.matrix, float), generator.matrix @ truth.mean + generator.bias - np.array(TARGET)
    energy = (gap @ gap + np.trace(matrix @ truth.covariance @ matrix.T)) / 2 / 0.5**2
    energies = values(found, "mean energy")
    for method in ("reference", "prior reweighted", "flow reweighted"):
        assert abs(energies[method] - energy) < 0.15
    gaps = found.figure("gap to the reference").values
    assert gaps["prior"].low > 0
    assert gaps["descent"].high < 0
    assert any("descent: its mean energy" in note for note in found.notes)
    assert not any("prior: its mean energy" in note for note in found.notes)
    distance = values(found, "distance to the prior, ½|z|² (the prior itself: 1)")
    assert abs(distance["prior"] - 1) < 0.15
    assert abs(distance["reference"] - (truth.mean @ truth.mean + np.trace(truth.covariance)) / 2) < 0.15
    assert abs(found.log_z["pooled"].mean - truth.log_z) < 0.1
    assert abs(found.log_z["reference"].mean - truth.log_z) < 0.1
    kl = values(found, "KL to the target")
    assert set(kl) == {"prior", "flow"}  # nobody knows the density of the others
    prior_energy = (
        np.trace(matrix.T @ matrix) / 2 / 0.25 + np.sum((np.asarray(generator.bias) - np.array(TARGET)) ** 2) / 2 / 0.25
    )
    np.testing.assert_allclose(kl["prior"], truth.log_z + prior_energy, atol=0.3)


def test_methods_start_from_one_noise_and_costs_are_counted(compared):
    found, *_ = compared
    np.testing.assert_allclose(found.draws["flow"].z, found.draws["prior"].z, atol=1e-5)  # the flow is the identity
    assert values(found, "gradients per sample")["chains"] == 3
    energies = values(found, "energies per sample")
    assert energies["flow"] == 0
    assert energies["flow reweighted"] > 1  # one each, and not all are effective
    paid, seconds = values(found, "images from which on the flow has paid"), values(found, "seconds per image")
    assert paid["reference"] == np.ceil(60 / (seconds["reference"] - seconds["flow"]))
    again = compare.Comparison.from_json(json.loads(json.dumps(found.to_json())))
    assert (again.figures, again.shares, again.log_z) == (found.figures, found.shares, found.log_z)


def test_what_cannot_be_compared_is_refused_before_any_work(compared):
    ebm = pg.LatentEBM(compared[2], (pg.load_control("synthetic", energy="quadratic", target=TARGET),))
    moving = ebm.replace(controls=(ebm.controls[0].replace(needs_reference=True),))
    for arguments, message in (
        ((moving, {}, 8), "quadratic compares with an image that the flow itself makes"),
        ((ebm, {"flow": None}, 8), "a sampler is called flow"),
        ((ebm, {}, 1), "num_samples"),
    ):
        with pytest.raises(ValueError, match=message):
            compare.check(*arguments)


def test_the_command_trains_compares_and_goes_on(tmp_path, capsys, monkeypatch):
    (tmp_path / "mine.py").write_text(CONFIG)
    line = [
        "compare",
        f"--config={tmp_path / 'mine.py'}",
        f"--workdir={tmp_path / 'run'}",
        "--num_samples=32",
        "--json",
    ]
    line += ["--method=langevin,num_steps=2", "--method=importance", "--refine=2", "--coverage"]
    assert commands.main(line) == 0
    first = json.loads(capsys.readouterr().out)
    assert set(first["methods"]) == {"langevin, num_steps=2", "importance", "flow refined", "reference"}
    found = {row["name"]: row for row in first["figures"]}
    assert found["gradients per sample"]["flow refined"] >= 4
    share = found[compare.RARITY]["prior"]
    generator = parts.load_generator("synthetic", **{name: GENERATOR[name] for name in ("problem", "dim")})
    truth = np.exp(exact.linear_target(generator, TARGET, 0.5).log_z)
    assert share["low"] / 2 < truth < 2 * share["high"]
    assert first["methods"]["langevin, num_steps=2"]["options"]["num_steps"] == 2
    page = (tmp_path / "run" / "s" / "comparison" / "comparison.html").read_text()
    for words in ("langevin, num_steps=2", "gap to the reference", "log Z by", "has paid"):
        assert words in page

    def drawn_again(*_):
        raise AssertionError("the draws were kept")

    monkeypatch.setattr("promptgen_jax.samplers._chains.run", drawn_again)
    assert commands.main(["compare", str(tmp_path / "run"), *line[3:]]) == 0
    second = json.loads(capsys.readouterr().out)
    energy = [next(row for row in each["figures"] if row["name"] == "mean energy") for each in (first, second)]
    assert energy[0] == energy[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method=langevine"], "'langevin'"),
        (["--method=langevin,num_stps=3"], "num_steps"),
        (["--method=langevin,fast"], "option 'fast' has no value"),
        (["--method=mala", "--method=mala"], "it is there twice"),
        (["--stage=x"], "--stage: unknown name 'x'"),
        (["--config.seed=3"], "there is no --config to change"),
        (["--refine=-1"], "refine_steps"),
    ],
)
def test_mistakes_cost_no_work(arguments, message, tmp_path, capsys):
    (tmp_path / "mine.py").write_text(CONFIG)
    config = [] if arguments[0].startswith("--config.") else [f"--config={tmp_path / 'mine.py'}"]
    assert commands.main(["compare", *config, f"--workdir={tmp_path / 'run'}", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_read_methods():
    assert runs_compare.read_methods(["smc", "langevin, step_size=0.1,num_steps=3"]) == {
        "smc": {"kind": "smc"},
        "langevin, step_size=0.1, num_steps=3": {"kind": "langevin", "step_size": 0.1, "num_steps": 3},
    }
