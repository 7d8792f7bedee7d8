"""The configuration of a run is checked as a whole; a finished run is measured again with other options."""

import copy
import json
import re

import pytest

import main
from promptgen_jax.runs import run
from promptgen_jax.runs.config import RunConfig
from promptgen_jax.runs.finished import load_prompts
from promptgen_jax.store import weights

CONFIG = {
    "generator": {"name": "synthetic", "problem": "mixture2d"},
    "stages": {
        "first": {
            "controls": {"pull": {"kind": "synthetic", "energy": "quadratic", "target": (0.5, 0.5), "scale": 0.7}},
            "flow": {"architecture": "coupling", "num_layers": 2, "hidden_dim": 8},
            "training": {"num_steps": 2, "batch_size": 4},
        }
    },
    "evaluation": {"num_samples": 32, "num_shown": 4, "columns": 2},
}


def changed(path, value):
    config = copy.deepcopy(CONFIG)
    *parents, last = path.split(".")
    at = config
    for name in parents:
        at = at.setdefault(name, {})
    at[last] = value
    return config


BAD = {
    "missing": ({}, "config: 2 problems.*generator is missing.*stages is missing"),
    "key": (changed("evaluation.num_sample", 3), "config.evaluation: unknown name 'num_sample'|key: unknown name"),
    "type": (changed("title", 3), "config.title is 3; expected text"),
    "stage": (changed("stages", {"../victim": CONFIG["stages"]["first"]}), "cannot be the name of a stage"),
    "absolute": (changed("stages", {"/tmp": CONFIG["stages"]["first"]}), "cannot be the name of a stage"),
    "order": (changed("order", ("frist",)), "Did you mean 'first'"),
    "on": (changed("stages.first.on", "nope"), "config.stages.first.on"),
    "training": (changed("stages.first.training.batch_size", 0), "training.batch_size: got 0"),
    "objective": (changed("stages.first.training.objective", "reverse"), "Did you mean 'reverse_kl'"),
    "kind": (changed("stages.first.controls.pull.kind", "synthetik"), "Did you mean 'synthetic'"),
    "no kind": (changed("stages.first.controls.pull", {"energy": "wells"}), "controls.pull: kind is missing"),
    "flow": (changed("stages.first.flow.hidden_dims", 3), "Did you mean 'hidden_dim'"),
    "judge": (changed("evaluation.judges", {"emotoin": ("emotion",)}), "Did you mean 'emotion'"),
    "label": (changed("evaluation.judges", {"emotion": ("emotoin",)}), "Did you mean 'emotion'"),
    "metric": (changed("evaluation.metrics", ("mine.nope",)), "mine.nope"),
    "real pictures": (changed("evaluation.real", {"faceres": "real.npz"}), "32 samples of 1024 features of faceres"),
    "no real pictures": (
        changed("evaluation", {"num_samples": 2000, "real": {"faceres": "nowhere.npz"}}),
        "nowhere.npz: no such file",
    ),
    "condition": (changed("stages.first.condition", {"turn": (20, -20)}), "condition turn"),
    "sentences": (changed("stages.first.condition", {"text": {"sentence": ["a man"]}}), "expected sentences alone, as"),
    "no sentence": (
        changed("stages.first.condition", {"text": {"sentences": [""]}}),
        "expected a sentence, or several",
    ),
    "nobody listens": (
        changed("stages.first.condition", {"text": {"sentences": ["a man"]}}),
        "embedded by tinyclip_faces, while controls see with no network",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_config_is_refused_before_anything_is_written(name, tmp_path):
    config, message = BAD[name]
    with pytest.raises((ValueError, OSError)) as found:
        run.train_and_evaluate(config, tmp_path / "run")

    assert re.search(message, str(found.value), re.DOTALL), found.value
    assert not (tmp_path / "run").exists()


def test_all_problems_are_told_together():
    config = changed("stages.first.controls.pull.kind", "nope")
    config["evaluation"]["judges"] = {"nobody": ()}
    config["generator"]["name"] = "nothing"
    with pytest.raises(ValueError, match=r"(?s)config: 3 problems.*'nothing'.*'nope'.*'nobody'"):
        RunConfig.from_dict(config).load_parts()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of a config without title, judges, order and seed."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    run.train_and_evaluate(CONFIG, workdir)
    return workdir


def measured(workdir):
    return weights.read_json(workdir / "first" / "evaluation.json", advice="")["measured"]["num_samples"]


def test_what_has_a_default_may_be_left_out(finished):
    assert (finished / "report.html").is_file()
    assert measured(finished) == 32


def test_a_finished_run_is_measured_again(finished, capsys):
    trained = (finished / "first" / "prompt" / "flow_0" / "weights.safetensors").stat().st_mtime_ns
    workdir = f"--workdir={finished}"
    assert main.main(["--mode=evaluate", workdir, "--json", "--config.evaluation.num_samples=48"]) == 0
    said = capsys.readouterr()
    about = json.loads(said.out)
    assert about["report"] == str(finished / "report.html")
    assert about["stages"][0]["measured"]["num_samples"] == 48
    assert "evaluating on 48 samples" in said.err
    assert measured(finished) == 48
    assert "48" in (finished / "report.html").read_text()
    assert (finished / "first" / "prompt" / "flow_0" / "weights.safetensors").stat().st_mtime_ns >= trained
    assert json.loads((finished / "config.json").read_text())["evaluation"]["num_samples"] == 32
    assert main.main(["--mode=evaluate", workdir, "--config.evaluation.real.faceres=faces"]) == 2
    assert "32 samples of 1024 features of faceres" in capsys.readouterr().err
    assert main.main(["--mode=evaluate", workdir, "--config.stages.first.training.num_steps=3"]) == 2
    assert "holds a run of another config (differs in stages.first.training.num_steps)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--mode=evaluate", "--num_samples=3"),
            "--num_samples: not used by --mode=evaluate, but by compare, sample and sweep",
        ),
        (("--num_samples=3",), "--num_samples: not used by --mode=train, but by compare, sample and sweep"),
        (("--mode=sample", "--config=configs/quickstart.py"), "--config: not used by --mode=sample"),
        (("--mode=list", "--workdir=x"), "--workdir: not used by --mode=list"),
        (("--mode=doctor", "--seed=3"), "--seed: not used by --mode=doctor"),
    ],
)
def test_flags_that_a_mode_does_not_use_are_refused(arguments, message, capsys, finished):
    extra = [] if any("workdir" in each or "doctor" in each for each in arguments) else [f"--workdir={finished}"]
    assert main.main([*arguments, *extra]) == 2
    assert message in capsys.readouterr().err


def test_a_foreign_config_cannot_write_elsewhere(finished, tmp_path, capsys):
    config = json.loads((finished / "config.json").read_text())
    config |= {"order": ["../victim", "first"], "stages": config["stages"] | {"../victim": config["stages"]["first"]}}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    assert main.main(["--mode=evaluate", f"--workdir={tmp_path / 'run'}"]) == 2
    assert "'../victim' cannot be the name of a stage" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_a_run_of_groups_is_sampled_as_all_its_cells(tmp_path):
    one = {"controls": CONFIG["stages"]["first"]["controls"], "training": {"num_steps": 1, "batch_size": 2}}
    one |= {"on": "generator", "flow": CONFIG["stages"]["first"]["flow"]}
    config = CONFIG | {"stages": {"a": one, "b": one, "c": one}}
    config |= {"mixtures": {"two": {"stages": ("a", "b"), "judges": ()}}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for name in "abc":
        (tmp_path / name / "prompt").mkdir(parents=True)
        (tmp_path / name / "prompt" / "prompt.json").write_text("{}")
    with pytest.raises(ValueError, match="Did you mean|Known: two"):
        load_prompts(tmp_path, mixture="tow")
    config["mixtures"]["three"] = {"stages": ("a", "b", "c"), "judges": ()}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="--mixture is missing: this run has several groups of stages, two, three"):
        load_prompts(tmp_path)
