"""The command `promptgen`: help pages, flags, overrides, and the modes that need no training."""

import json
import os
import re
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from promptgen_jax import commands
from promptgen_jax.commands import _arguments, _config, clean, convert
from promptgen_jax.flows.base import build_module
from promptgen_jax.runs import inventory, leftovers
from promptgen_jax.runs.config import RunConfig
from promptgen_jax.store import catalogue, home, weights
from promptgen_jax.types import Prior

MODES = ("clean", "compare", "convert", "doctor", "evaluate", "list", "report", "sample", "sweep", "train")


def test_every_mode_is_there():
    assert set(MODES) <= set(commands.modes())


@pytest.mark.parametrize("program", ["promptgen", "main.py"])
@pytest.mark.parametrize("mode", commands.modes())
def test_help_fits_a_screen_and_its_examples_are_understood(mode, program):
    page = commands.parser(mode, program).format_help()
    assert page.count("\n") < 40
    assert max(map(len, page.splitlines())) <= 120
    call = re.escape(_arguments.called(program, mode))
    examples = re.findall(rf"^  {call}(.*)$", page.partition("examples:")[2], re.MULTILINE)
    assert len(examples) >= 2
    for example in examples:
        words = shlex.split(example.partition(" > ")[0])
        arguments = commands.parser(mode, program).read(words, commands.modes())
        if mode == "train":
            _config.override(_config.load(arguments.config or arguments.named), arguments.overrides)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-h"], "evaluate"),
        (["--help"], "promptgen MODE --help shows the flags of a mode"),
        (["--version"], "promptgen_jax "),
        (["train", "-h"], "promptgen train CONFIG"),
        (["convert", "stylegan2", "--help"], "usage: promptgen convert stylegan2"),
    ],
)
def test_help_and_version(arguments, said, capsys):
    assert commands.main(arguments) == 0
    assert said in capsys.readouterr().out


def test_the_script_explains_itself(capsys):
    assert commands.main_by_mode(["--help"]) == 0
    page = capsys.readouterr().out
    assert "python main.py --mode=train quickstart" in page
    assert page.count("\n") < 40
    assert commands.main_by_mode(["--mode=sample", "--help"]) == 0
    assert "--num_samples" in capsys.readouterr().out


MISTAKES = [
    ("trian", "promptgen: unknown name 'trian'. Did you mean 'train'?"),
    ("--workdir=x train", "the mode comes first, before --workdir=x"),
    ("sample --num_sample=3", "--num_sample: unknown flag. Did you mean '--num_samples'?"),
    ("evaluate --num_samples=3", "--num_samples: not used by promptgen evaluate, but by compare, sample and sweep."),
    (
        "sample --config.seed=3",
        "--config.seed: not used by promptgen sample, but by compare, evaluate, sweep and train.",
    ),
    ("sample --num_samples=x", "--num_samples=x: expected an integer."),
    ("sample --num_samples", "--num_samples: expected one argument. See promptgen sample --help."),
    ("train quikstart --workdir=x", "--config=quikstart: no such file. Did you mean 'quickstart'?"),
    ("train quickstart", "--workdir is missing"),
    ("train --workdir=x", "--config is missing"),
    ("train quickstart --config=quickstart --workdir=x", "unexpected argument 'quickstart'"),
    ("report a --workdir=b", "unexpected argument 'a': --workdir=b is given already"),
    ("train --flagfile=nowhere", "--flagfile: "),
    ("convert", "give one of MODEL FILE FOLDER, --plan=CONFIG and --from=FOLDER"),
    ("convert stylgan2 a b", "convert: unknown name 'stylgan2'. Did you mean 'stylegan2'?"),
    ("convert --from=nowhere", "--from=nowhere: no such folder"),
    ("clean nowhere", "no such folder"),
]


@pytest.mark.parametrize(("line", "said"), MISTAKES, ids=range(len(MISTAKES)))
def test_mistakes(line, said, capsys):
    assert commands.main(shlex.split(line)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
    assert error.count("\n") == 1


def test_flags_from_a_file(tmp_path, capsys):
    (tmp_path / "flags").write_text("# how I always train\n--config=quickstart:smoke\n--config.sede=3\n")
    assert commands.main(["train", f"--flagfile={tmp_path / 'flags'}"]) == 2
    assert "no key 'sede'. Did you mean 'seed'?" in capsys.readouterr().err
    assert commands.main_by_mode([f"--flagfile={tmp_path / 'flags'}", "--mode=sample"]) == 2
    assert "--config: not used by --mode=sample" in capsys.readouterr().err


def test_an_own_file_is_a_config(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from configs import pieces\n\n\ndef get_config(arg=''):\n    return pieces.base('Mine', arg)\n"
    )
    assert _config.load(f"{tmp_path / 'mine.py'}:words").description == "words"
    (tmp_path / "mine.py").write_text("def get_config(:\n")
    with pytest.raises(ValueError, match="no Python, at line 1"):
        _config.load(str(tmp_path / "mine.py"))


def overridden(*arguments):
    return _config.override(_config.load("quickstart"), _arguments.take_overrides(list(arguments))[0])


STAGES = "--config.stages"
VALUES = [
    (["--config.seed=7"], "seed", 7),
    (["--config.seed", "7"], "seed", 7),
    ([f"{STAGES}.smile.training=None"], "stages.smile.training", None),
    ([f"{STAGES}.smile.training.kl_batch_size=None"], "stages.smile.training.kl_batch_size", None),
    ([f"{STAGES}.smile.training.learning_rate=1"], "stages.smile.training.learning_rate", 1.0),
    ([f"{STAGES}.smile.training.tensorboard"], "stages.smile.training.tensorboard", True),
    ([f"{STAGES}.smile.training.tensorboard=false"], "stages.smile.training.tensorboard", False),
    ([f"{STAGES}.smile.controls.smile.target=None"], "stages.smile.controls.smile.target", None),
    ([f"{STAGES}.smile.controls.smile.target=3"], "stages.smile.controls.smile.target", "3"),
    ([f"{STAGES}.turn.controls.turn.yaw=-3"], "stages.turn.controls.turn.yaw", -3.0),
    (["--config.generator.precision=bfloat16"], "generator.precision", "bfloat16"),
    ([f"{STAGES}.turn.controls.turn.precision=bfloat16"], "stages.turn.controls.turn.precision", "bfloat16"),
    ([f"{STAGES}.turn.controls.turn.roll=2"], "stages.turn.controls.turn.roll", 2),
    ([f"{STAGES}.turn.flow.directions=20"], "stages.turn.flow.directions", 20),
    ([f"{STAGES}.turn.flow.transformer.kind=spline"], "stages.turn.flow.transformer.kind", "spline"),
    (
        [f"{STAGES}.turn.training.objective_options.forward_share=0.4"],
        "stages.turn.training.objective_options.forward_share",
        0.4,
    ),
    (["--config.order=('smile',)"], "order", ("smile",)),
    (["--config.evaluation.metrics=('mine.sharpness',)"], "evaluation.metrics", ("mine.sharpness",)),
    (["--config.evaluation.judges.faceres=('gender',)"], "evaluation.judges.faceres", ("gender",)),
    (["--config.title=(c) me"], "title", "(c) me"),
]


@pytest.mark.parametrize(("arguments", "key", "value"), VALUES, ids=range(len(VALUES)))
def test_what_can_be_written(arguments, key, value):
    found = overridden(*arguments)
    for name in key.split("."):
        found = found[name]
    assert (found, type(found)) == (value, type(value))


def test_a_preset_replaces_the_sizes_of_the_file_alone():
    flow = f"{STAGES}.smile.flow"
    config = overridden(f"{flow}.hidden_dim=32", f"{flow}.preset=large").stages.smile.flow.to_dict()
    module = build_module(Prior.standard(100), **config)
    assert (module.num_layers, module.hidden_dim) == (16, 32)


def test_a_second_control_is_added():
    young = f"{STAGES}.smile.controls.young"
    config = overridden(
        f"{young}.weight=2.5", f"{young}.kind=classifier", f"{young}.network=faceapi_age_gender",
        f"{young}.attribute=gender", f"{young}.target=female",
    )  # fmt: skip
    _, controls, _ = RunConfig.from_dict(config.to_dict()).load_parts()
    assert [control.name for control in controls["smile"]] == ["smile", "young"]
    assert controls["smile"][1].weight == 2.5


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("--config.seed=x", "--config.seed=x: expected an integer."),
        ("--config.order=x", "expected a list"),
        ("--config.seed.x=3", "config.seed is 42, which has no keys"),
        (f"{STAGES}.smile.training=3", "expected None, or keys and values"),
        (f"{STAGES}.smile.training.tensorboard=maybe", "expected True or False"),
        (f"{STAGES}.smile.controls.smle.weight=3", "no key 'smle'. Did you mean 'smile'?"),
        (f"{STAGES}.smle.training.num_steps=3", "no key 'smle'. Did you mean 'smile'?"),
    ],
)
def test_what_cannot(argument, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        overridden(argument)


def test_list_as_json(capsys):
    assert commands.main(["list", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == inventory.take()
    assert {"dcgan", "stylegan2"} <= {row["name"] for row in found["generators"]}
    assert {row["state"] for row in found["weights"]} >= {"present", "missing"}


def test_progress_goes_elsewhere(monkeypatch, capsys):
    def run(arguments):
        print("step 1")
        return _arguments.Outcome("all done", {"done": True})

    monkeypatch.setattr(commands.module("list"), "run", run)
    for flags, out, err in (([], "step 1\nall done\n", ""), (["--quiet"], "all done\n", "")):
        assert commands.main(["list", *flags]) == 0
        assert capsys.readouterr() == (out, err)
    assert commands.main(["list", "--json"]) == 0
    said = capsys.readouterr()
    assert (json.loads(said.out), said.err) == ({"done": True}, "step 1\n")


@pytest.mark.parametrize(
    ("stopped", "said"),
    [
        (KeyboardInterrupt(), "interrupted: nothing more was saved; the same command"),
        (
            KeyboardInterrupt("stopped after step 3 of 9, which is saved"),
            "interrupted: stopped after step 3 of 9, which",
        ),
    ],
)
def test_what_an_interruption_left_is_said(stopped, said, monkeypatch, capsys):
    def run(arguments):
        raise stopped

    monkeypatch.setattr(commands.module("list"), "run", run)
    assert commands.main(["list"]) == 130
    assert capsys.readouterr().err.startswith(said)


@pytest.mark.skipif(os.name == "nt", reason="there is no head")
def test_a_reader_that_has_had_enough_is_no_error():
    line = f"{shlex.quote(sys.executable)} -m promptgen_jax list | head -1"
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[2])
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


def test_orbax_keeps_its_warnings_to_itself(monkeypatch, capsys):
    def run(arguments):
        import logging

        logging.getLogger("absl").warning("metadata not found")
        warnings.warn_explicit("sharding", UserWarning, "checkpoint.py", 1, module="orbax.checkpoint")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("ours", stacklevel=1)
        return _arguments.Outcome("all done")

    monkeypatch.setattr(commands.module("list"), "run", run)
    before = warnings.formatwarning
    with monkeypatch.context() as patch:
        shown = []
        patch.setattr(warnings, "showwarning", lambda message, *_, **__: shown.append(str(message)))
        assert commands.main(["list"]) == 0
    assert shown == ["ours"]
    assert capsys.readouterr().err == ""
    assert warnings.formatwarning is before


@pytest.mark.parametrize("name", ["quickstart", "stylegan2_pose", "stylegan2_debias:race_1_ffhq", "diffae_text"])
def test_the_plan_is_what_a_run_would_miss(name, monkeypatch):
    config = _config.load(name).to_dict()
    missing, refused = set(inventory.needed(config)[1]), ""
    try:
        RunConfig.from_dict(config).load_parts()
    except (ValueError, FileNotFoundError) as error:
        refused = str(error)
    assert missing == {each for each in catalogue.CHECKPOINTS if re.search(rf"ported_weights/{each}\b", refused)}
    page = convert.plan(name)
    for each in missing:
        checkpoint = catalogue.CHECKPOINTS[each]
        facts = (
            each,
            f"{checkpoint.megabytes or 'not published'}",
            checkpoint.sha256,
            checkpoint.file,
            checkpoint.url,
            checkpoint.license,
            checkpoint.command(each),
        )
        assert all(fact in page for fact in facts)
    assert missing or "nothing is missing" in page


def test_downloads_are_recognised(tmp_path, monkeypatch, capsys):
    import torch

    downloads = tmp_path / "Downloads"
    (downloads / "celeba" / "Male").mkdir(parents=True)
    torch.save({"g_ema": {"style.1.weight": torch.zeros(2, 2)}}, downloads / "mine.pt")
    torch.save({"a": torch.zeros(2)}, downloads / "other.pt")
    for file in ("ffhq.pt", "ViT-B-32.pt", "celeba.zip", "celeba/Male/best.pth", "holiday.zip", "letter.txt"):
        (downloads / file).write_bytes(b"no checkpoint")
    monkeypatch.chdir(tmp_path)
    assert commands.main(["convert", "--from=Downloads"]) == 1
    lines = {line.partition(": ")[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "a StyleGAN2 file by its content; which one cannot be told" in lines["Downloads/mine.pt"]
    assert "looks like stylegan2_ffhq, but is refused" in lines["Downloads/ffhq.pt"]
    assert "looks like celeba_male, but is refused" in lines["Downloads/celeba/Male/best.pth"]
    assert "holds celeba_male" in lines["Downloads/celeba.zip"]
    assert "unpack it" in lines["Downloads/celeba.zip"]
    assert "clip_vit_b32, but its sha256 is not the published one" in lines["Downloads/ViT-B-32.pt"]
    assert lines["Downloads/other.pt"].endswith("not recognised")
    assert lines["Downloads/holiday.zip"].endswith("not recognised")
    assert "Downloads/letter.txt" not in lines
    assert not (tmp_path / "ported_weights").exists()


def test_converting_needs_torch(tmp_path, monkeypatch, capsys):
    (tmp_path / "ffhq.pt").write_bytes(b"PK")
    monkeypatch.setitem(sys.modules, "torch", None)
    assert commands.main(["convert", "stylegan2", str(tmp_path / "ffhq.pt"), str(tmp_path / "x")]) == 1
    assert "reading it needs PyTorch. Run pip install torch, then convert again." in capsys.readouterr().err


@pytest.mark.parametrize("script", ["/usr/bin/promptgen", str(home.PACKAGE / "__main__.py")])
def test_the_command_in_use_is_named(monkeypatch, script):
    monkeypatch.setattr(sys, "argv", ["main.py"])
    assert home.command("train") == "main.py --mode=train"
    monkeypatch.setattr(sys, "argv", [script])
    assert home.command("train") == "promptgen train"


def test_installed_commands_are_named(monkeypatch):
    """Without a clone, messages name what is there."""
    checkpoint = catalogue.CHECKPOINTS["stylegan2_ffhq"]
    assert checkpoint.command("x") == "python convert/stylegan2_to_flax.py ffhq.pt ported_weights/x"
    assert home.command("train") == "main.py --mode=train"
    monkeypatch.setattr(home, "in_clone", lambda: False)
    assert checkpoint.command("x") == "promptgen convert stylegan2 ffhq.pt ported_weights/x"
    assert home.command("train") == "promptgen train"


@pytest.fixture
def run_folder(tmp_path):
    """What a finished run of two stages looks like on disk."""
    config = overridden().to_dict()
    files = [f"{stage}/{file}" for stage in ("smile", "turn") for file in ("prompt/prompt.json", "metrics.jsonl")]
    files += ["smile/checkpoints/4/state", "turn/checkpoints/4/state", "smile/tensorboard/events.out", "report.html"]
    files += ["compilation_cache/a", "samples/compilation_cache/a", "samples/000000.png"]
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(b"x" * 1000)
    weights.write_json(tmp_path / "config.json", config)
    return tmp_path


def test_clean_frees_what_is_not_worth_keeping(run_folder, capsys):
    before = {path for path in run_folder.rglob("*") if path.is_file()}
    assert commands.main(["clean", str(run_folder)]) == 1  # nobody to ask
    assert "Say yes, or give --yes." in capsys.readouterr().out
    assert {path for path in run_folder.rglob("*") if path.is_file()} == before
    assert sum(leftovers.spare(run_folder).values()) == 5000
    assert commands.main(["clean", f"--workdir={run_folder}", "--yes"]) == 0
    gone = {str(path.relative_to(run_folder)) for path in before if not path.exists()}
    assert gone == {
        *("smile/checkpoints/4/state", "turn/checkpoints/4/state", "smile/tensorboard/events.out"),
        *("compilation_cache/a", "samples/compilation_cache/a"),
    }
    capsys.readouterr()
    assert commands.main(["clean", str(run_folder)]) == 0
    assert "nothing to free" in capsys.readouterr().out


def test_an_unfinished_run_is_not_cleaned(run_folder, capsys):
    (run_folder / "turn" / "prompt" / "prompt.json").unlink()
    assert commands.main(["clean", str(run_folder), "--yes"]) == 2
    assert "not trained to the end" in capsys.readouterr().err
    assert (run_folder / "turn" / "checkpoints" / "4" / "state").is_file()


def test_clean_asks(run_folder, monkeypatch):
    class Terminal:
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stdin", Terminal())
    for answer, agreed in (("y", True), ("", False), ("no", False)):
        monkeypatch.setattr("builtins.input", lambda question, answer=answer: answer)
        assert clean._agreed("?") is agreed


def test_nearest_flag_is_one_of_the_mode():
    with pytest.raises(ValueError, match="Did you mean '--yes'") as error:
        commands.parser("clean").read(["runs/x", "--yess"], commands.modes())
    assert "--num_samples" not in str(error.value)
