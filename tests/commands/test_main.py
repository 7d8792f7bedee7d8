"""The command line, as a user calls it: a whole run on the shipped models, and every mistake answered in a sentence."""

import functools
import importlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import helpers
import numpy as np
import pytest
from PIL import Image

import main
from configs import (
    biggan_text,
    diffae_text,
    nvae_text,
    stylegan2_class,
    stylegan2_debias,
    stylegan2_makeup,
    stylegan2_pose,
    stylegan2_text,
    stylenerf_text,
)
from promptgen_jax.runs import run
from promptgen_jax.store import catalogue

ROOT = Path(__file__).parents[2]
CONTROLS = ("faceapi_age_gender", "faceapi_expression", "facemesh", "faceres", "emotion")
ARGUMENTS = (
    "--config=configs/quickstart.py:smoke",
    "--config.evaluation.num_samples=32",
    "--config.stages.smile.training.tensorboard=True",
)


def call(*arguments):
    command = [sys.executable, "main.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished smoke run of the quick start."""
    workdir = tmp_path_factory.mktemp("quickstart")
    done = call(*ARGUMENTS, f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    return workdir, done.stdout


def test_quickstart_runs_and_reports(finished):
    workdir, output = finished
    assert "compiling" in output
    assert re.search(r"a step takes \S+ MiB a device: \S+ MiB of weights and state, \S+ MiB of activations", output)
    assert output.strip().endswith("report.html")
    stages = json.loads((workdir / "report.json").read_text())["stages"]
    assert [stage["name"] for stage in stages] == ["smile", "turn"]
    assert {"ess", "log_z", "kl", "loss_optimum"} <= stages[0]["exactness"].keys()
    card = (workdir / "turn" / "prompt" / "README.md").read_text()
    assert card.count("### Measured effect") == card.count("### Training") == 2
    assert "| share of happy, by emotion (independent judge, 32 samples) |" in card
    assert "- mean yaw, target 25:" in card
    assert "| mean energy of turn | " in card
    assert len(re.findall(r"Certificate: [a-z ]+\. .* of 32 samples", card)) == 2
    assert stages[1]["statistics"][0]["target"] == 25
    page = (workdir / "report.html").read_text()
    assert page.count("data:image/png;base64") >= 2
    for license in ("DigiFace", "MIT"):
        assert license in page
    assert list((workdir / "smile").rglob("events.out.tfevents*"))
    assert not list((workdir / "turn").rglob("events.out.tfevents*"))
    for stage in ("smile", "turn"):
        assert np.ptp(np.asarray(Image.open(workdir / stage / "samples.png"))) > 100
        assert (workdir / stage / "metrics.jsonl").read_text().count("\n") >= 2


def test_samples_without_any_control_weights(finished, tmp_path):
    workdir, _ = finished
    program = (
        "import sys, pathlib; from promptgen_jax import weights\n"
        "weights.weight_roots = lambda: [pathlib.Path(sys.argv[2])]\n"
        "import main; sys.exit(main.main(['--mode=sample', f'--workdir={sys.argv[1]}', '--num_samples=3']))"
    )
    shutil.copytree(ROOT / "ported_weights" / "dcgan_digiface", tmp_path / "only" / "dcgan_digiface")
    pictures = []
    for roots in (tmp_path / "only", ROOT / "ported_weights"):
        shutil.rmtree(workdir / "samples", ignore_errors=True)
        command = [sys.executable, "-c", program, str(workdir), str(roots)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        pictures.append([path.read_bytes() for path in sorted((workdir / "samples").glob("0*.png"))])
    assert len(pictures[0]) == 3
    assert pictures[0] == pictures[1]


# on checkpoints that are not shipped
TABLES = {"biggan_text": biggan_text, "nvae_text": nvae_text, "stylegan2_text": stylegan2_text}
TABLES |= {"diffae_text": diffae_text, "stylenerf_text": stylenerf_text}
TABLES |= {"stylegan2_class": stylegan2_class, "stylegan2_debias": stylegan2_debias}
SINGLE = {"stylegan2_pose": stylegan2_pose, "stylegan2_makeup": stylegan2_makeup}
OWN_FILE = ("flame_wide_mouth",)
SHIPPED = sorted(
    p.stem for p in (ROOT / "configs").glob("*.py") if p.stem not in ("pieces", *TABLES, *SINGLE, *OWN_FILE)
)


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("arg", ["", "smoke"])
def test_configs_build(name, arg):
    config = importlib.import_module(f"configs.{name}").get_config(arg).to_dict()
    assert sorted(config["order"]) == sorted(config["stages"])
    for stage in config["order"]:
        controls = helpers.build_controls(config["stages"][stage])
        assert [control.name for control in controls] == list(config["stages"][stage]["controls"])


PAPER = {
    f"{file}:{name}": functools.partial(module.get_config, name)
    for file, module in TABLES.items()
    for name in module.EXPERIMENTS
}
PAPER |= {file: module.get_config for file, module in SINGLE.items()}


@pytest.mark.parametrize("name", PAPER)
def test_missing_checkpoints_say_where_to_get_them(name, tmp_path, monkeypatch):
    """The paper's experiments are complete but for the weights; generator first, then each control."""
    monkeypatch.setenv("PROMPTGEN_WEIGHTS", str(tmp_path / "none"))
    config = PAPER[name]().to_dict()
    loads = [(config["generator"]["name"], lambda: run.train_and_evaluate(config, tmp_path / "run"))]
    for stage in config["stages"].values():
        for control, options in stage["controls"].items():
            alone = stage | {"controls": {control: options}}
            loads.append((options["network"], functools.partial(helpers.build_controls, alone)))
    for missing, load in loads:
        checkpoint = catalogue.CHECKPOINTS[missing]
        with pytest.raises(FileNotFoundError) as error:
            load()
        for part in (checkpoint.file, checkpoint.url, f"python convert/{checkpoint.converter} {checkpoint.file}"):
            assert part in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("file", "name"), [(file, name) for file in TABLES for name in TABLES[file].EXPERIMENTS])
def test_smoke_variant_takes_two_small_steps(file, name):
    full, smoke = (TABLES[file].get_config(name + end).to_dict() for end in ("", "_smoke"))
    assert full["stages"].keys() == smoke["stages"].keys()
    for stage in smoke["stages"].values():
        assert (stage["training"]["num_steps"], stage["training"]["batch_size"]) == (2, 1)
    assert smoke["evaluation"]["num_samples"] < full["evaluation"]["num_samples"]


@pytest.mark.parametrize("file", [*TABLES])
def test_mistyped_experiment_is_one_sentence(file, tmp_path, capsys):
    assert main.main([f"--config=configs/{file}.py:nonsense", f"--workdir={tmp_path / 'run'}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: configs/{file}.py: unknown name 'nonsense'. ")
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A finished smoke run on points."""
    workdir = tmp_path_factory.mktemp("toy")
    done = call("--config=configs/synthetic_classifier.py:smoke", f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    return workdir


def test_finished_run_is_not_trained_again(toy, capsys):
    before = (toy / "a1" / "prompt" / "flow_0" / "weights.safetensors").read_bytes()
    assert main.main(["--mode=evaluate", f"--workdir={toy}"]) == 0
    assert "training" not in capsys.readouterr().out
    assert (toy / "a1" / "prompt" / "flow_0" / "weights.safetensors").read_bytes() == before


def test_toy_run_draws_its_density(toy, capsys):
    picture = np.asarray(Image.open(toy / "a1" / "samples.png").convert("RGB"))
    assert np.ptp(picture) > 100
    stage = json.loads((toy / "report.json").read_text())["stages"][0]
    assert stage["licenses"] == []
    assert stage["shares"][0]["role"] == "control"
    assert {"before", "after", "weighted"} <= stage["shares"][0].keys()
    assert main.main(["--mode=sample", f"--workdir={toy}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "points" in error


@pytest.mark.full
def test_stages_stand_on_what_they_name(tmp_path):
    """Each objective of the de-bias bench starts from the bare generator, and its prompt holds one flow only."""
    done = call("--config=configs/synthetic_debias.py:smoke", f"--workdir={tmp_path}")
    assert done.returncode == 0, done.stderr
    stages = json.loads((tmp_path / "report.json").read_text())["stages"]
    assert [stage["name"] for stage in stages] == ["score_function", "forward_kl", "reverse_kl"]
    assert len({stage["shares"][0]["before"]["a_1"]["soft"] for stage in stages}) == 1
    assert len(json.loads((tmp_path / "reverse_kl" / "prompt" / "prompt.json").read_text())["flows"]) == 1


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((), "--workdir is missing"),
        (("--workdir={tmp}/x",), "--config is missing"),
        (("--config=configs/quikstart.py", "--workdir={tmp}/x"), "configs/quickstart.py"),
        (("--config=configs/quickstart.py", "--workdir={tmp}/x", "--mode=trian"), "train"),
        (
            ("--config=configs/quickstart.py", "--workdir={tmp}/x", "--config.sede=3"),
            "--config.sede: the config has no key 'sede'. Did you mean 'seed'?",
        ),
        (
            ("--config=configs/quickstart.py", "--workdir={tmp}/x", "--config.stages.smle.training.num_steps=3"),
            "no key 'smle'. Did you mean 'smile'?",
        ),
        (
            ("--config=configs/quickstart.py", "--workdir={tmp}/x", "--config.stages.smile.flow.zzzz=3"),
            "flow option: unknown name 'zzzz'. Known: architecture",
        ),
        (("--config=configs/quickstart.py", "--workdir={tmp}/x", "--wrkdir=y"), "wrkdir"),
        (("--config=configs/quickstart.py", "--workdir={tmp}/x", "extra"), "extra"),
        (("--mode=list", "extra"), "it is called like this: python main.py --mode=list"),
        (("--config=configs/quickstart.py", "--workdir="), "--workdir is missing"),
        (("--config=configs/quickstart.py", "--workdir={tmp}/x", "--seed=3"), "set by --config.<key>=<value>"),
        (
            ("--config=configs/quickstart.py", "--workdir={tmp}/x", "--config.stages.turn.training.num_steps=0"),
            "config.stages.turn.training.num_steps: got 0",
        ),
        (
            ("--config=configs/quickstart.py", "--workdir={tmp}/x", "--config.stages.turn.controls.turn.yaw=400"),
            "control turn: yaw is 400.0; expected a number from -180 to 180",
        ),
        (("--config=configs/quickstart.py", "--workdir=/proc/nowhere"), "workdir"),
        (("--mode=sample", "--workdir={tmp}/x"), "no such folder"),
        (("--mode=sample", "--workdir={tmp}"), "no config.json"),
        (
            ("--config=configs/quickstart.py", "--workdir={tmp}/x", "--config.generator.name=dcgan_digi"),
            "dcgan_digiface",
        ),
        (
            ("--config=configs/quickstart.py", "--workdir={tmp}/x", "--config.stages.smile.controls.smile.target=hapy"),
            "happy",
        ),
        (("--config=configs/quickstart.py", "--workdir={tmp}/x", "--config.stages.turn.on=smil"), "smile"),
        (
            ("--config=configs/quickstart.py", "--workdir={tmp}/x", "--config.stages.smile.training.batch_size=0"),
            "batch_size",
        ),
        (("--config=configs/quickstart.py", "--workdir={tmp}/x", "--config.seed=-1"), "config.seed: got -1; expected"),
        (("--config=configs/quickstart.py:smok", "--workdir={tmp}/x"), "unknown name 'smok'. Did you mean 'smoke'?"),
        (("--config=configs/stylegan2_pose.py:smok", "--workdir={tmp}/x"), "unknown name 'smok'. Did you mean 'smoke'"),
        (("--config", "configs/quikstart.py", "--workdir", "{tmp}/x"), "Did you mean 'configs/quickstart.py'"),
        (
            ("--config=configs/quickstart.py", "--workdir={tmp}/x", "--config.evaluation.num_samples=0"),
            "config.evaluation.num_samples: got 0; expected an integer of at least 2",
        ),
        (
            ("--config=configs/quickstart.py", "--workdir={tmp}/x", "--config.order=('turn','smil')"),
            "config.order: unknown name 'smil'. Did you mean 'smile'?",
        ),
    ],
    ids=range(27),
)
def test_mistakes(arguments, match, tmp_path, capsys):
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    code = main.main(arguments)
    error = capsys.readouterr().err.strip()
    assert code == 2
    assert match in error
    assert "\n" not in error
    assert not list(tmp_path.iterdir())


def test_a_file_without_a_config(tmp_path, capsys):
    assert main.main(["--config=configs/pieces.py", f"--workdir={tmp_path / 'x'}"]) == 2
    assert "this file is no config" in capsys.readouterr().err


@pytest.mark.parametrize("path", ["README.md", "configs"])
def test_what_is_there_but_no_config(path, tmp_path, capsys):
    assert main.main([f"--config={ROOT / path}", f"--workdir={tmp_path / 'x'}"]) == 2
    assert "a config is a file of Python, its name ends in .py" in capsys.readouterr().err


def test_workdir_of_another_config_is_refused(tmp_path):
    run.open_workdir(tmp_path, {"seed": 1, "a": {"b": 2}})
    with pytest.raises(ValueError, match=r"another config \(differs in a\.b\)"):
        run.open_workdir(tmp_path, {"seed": 1, "a": {"b": 3}})


def test_workdir_begun_before_recipes_goes_on(tmp_path):
    """Then configs spelled out the paper's 50 views of CLIP, which now go without saying."""

    def config(**options):
        controls = {"text": {"kind": "clip", "text": "a smile", **options}}
        return {"stages": {"a": {"controls": controls, "on": ("x",)}}}

    run.open_workdir(tmp_path, config(num_augmentations=50))
    run.open_workdir(tmp_path, config())
    with pytest.raises(ValueError, match=r"another config \(differs in .*text.recipe"):
        run.open_workdir(tmp_path, config(recipe="fast"))


def test_altered_weights_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PROMPTGEN_WEIGHTS", str(tmp_path))
    folder = tmp_path / "dcgan_digiface"
    shutil.copytree(ROOT / "ported_weights" / "dcgan_digiface", folder)
    content = (folder / "weights.safetensors").read_bytes()
    for damaged in (content[:-100], content[:-1] + b"x"):
        (folder / "weights.safetensors").write_bytes(damaged)
        assert main.main(["--config=configs/quickstart.py", f"--workdir={tmp_path}/x"]) == 2
        error = capsys.readouterr().err
        assert "sha256" in error
        assert error.count("\n") == 1
