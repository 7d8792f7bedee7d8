"""A dial on the shipped faces: a whole run by its config, its report, and sampling by name."""

import json
import re

import jax
import numpy as np
import pytest
from helpers import some_prompt
from PIL import Image

import main
import promptgen_jax as pg
from configs import face_dial, face_two_dials, pieces
from promptgen_jax.evaluation.stage import Measured
from promptgen_jax.runs import run
from promptgen_jax.runs.config import RunConfig
from promptgen_jax.store import images


def config(module=face_dial):
    found = module.get_config("smoke").to_dict()
    found["evaluation"] |= {"num_samples": 16, "num_shown": 2, "judges": {}}
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("face_dial")
    run.train_and_evaluate(config(), workdir)
    return workdir


@pytest.mark.full
def test_report_has_the_dial(finished):
    (stage,) = json.loads((finished / "report.json").read_text())["stages"]
    found = Measured.from_json(stage).dial
    assert [round(each.condition["smile"], 2) for each in found.settings] == [0, 0.04, 0.16, 0.36, 0.64, 1]
    first = found.settings[0]
    np.testing.assert_allclose([first.certificate.log_z, first.kl_generator.mean], 0, atol=1e-9)
    assert first.means["energy of smile"].mean > 0
    assert set(first.shares) == {"happy"}
    assert found.to_json() == stage["dial"]
    page = (finished / "report.html").read_text()
    part = page[page.index("Along the dial</h3>") :]
    for text in ("Energy of smile", "Share of happy", "log Z and its integral: ", "smile</text>"):
        assert text in part
    assert len(re.findall("<polyline", part)) >= 8


@pytest.mark.full
def test_two_dials_are_turned_together_in_the_report_and_apart_by_name(tmp_path):
    run.train_and_evaluate(config(face_two_dials), tmp_path / "run")
    (stage,) = json.loads((tmp_path / "run" / "report.json").read_text())["stages"]
    settings = Measured.from_json(stage).dial.settings
    assert settings[0].condition == {"smile": 0, "turn": 0}
    assert settings[-1].condition == {"smile": 1, "turn": 1}
    np.testing.assert_allclose(settings[0].certificate.log_z, 0, atol=1e-9)
    assert "smile and turn, together" in (tmp_path / "run" / "report.html").read_text()
    common = ["--mode=sample", f"--workdir={tmp_path / 'run'}", "--num_samples=1"]
    pictures = []
    for asked in ("smile=0,turn=0", "smile=1,turn=0", "smile=0,turn=1"):
        assert main.main([*common, f"--output={tmp_path / asked}", f"--condition={asked}"]) == 0
        pictures.append((tmp_path / asked / "000000.png").read_bytes())
    assert len(set(pictures)) == 3


@pytest.mark.full
def test_at_zero_the_sheet_shows_the_generator(finished, tmp_path):
    """The command takes strengths by name; 0 is the generator, to the last bit of the picture."""
    common = ["--mode=sample", f"--workdir={finished}", "--num_samples=2", "--seed=3"]
    for name, strength in (("off", 0), ("on", 1)):
        assert main.main([*common, f"--output={tmp_path / name}", f"--condition=smile={strength}"]) == 0
    off, on = (np.asarray(Image.open(tmp_path / name / "000001.png")) for name in ("off", "on"))
    prompt = pg.Prompt.load(finished / "smile" / "prompt")
    same = prompt.sample(jax.random.key(3), 2, strength={"smile": 0.0})
    np.testing.assert_array_equal(off, images.to_uint8(np.asarray(same))[1])
    assert not np.array_equal(on, off)


@pytest.mark.full
def test_a_run_with_shares(tmp_path):
    """From a config: two attributes, whose shares the condition asks for, and the report of them."""
    shares = config()
    shares["stages"] = {"shares": shares["stages"].pop("smile")}
    shares["order"] = ("shares",)
    shares["evaluation"]["num_samples"] = 256
    shares["stages"]["shares"] |= {
        "condition": {"female": (0.4, 0.6, "share"), "happy": (0.2, 0.4, "share")},
        "controls": {
            "gender": pieces.moment("faceapi_age_gender", "gender"),
            "smile": pieces.moment("faceapi_expression", "expression"),
        },
    }
    run.train_and_evaluate(shares, tmp_path / "run")
    (stage,) = json.loads((tmp_path / "run" / "report.json").read_text())["stages"]
    found = Measured.from_json(stage).dial
    assert [round(each.condition["female"], 2) for each in found.settings] == [0.4, 0.44, 0.48, 0.52, 0.56, 0.6]
    assert abs(found.settings[0].target_means["probability of female"].mean - 0.4) < 0.1
    prompt = pg.Prompt.load(tmp_path / "run" / "shares" / "prompt")
    assert prompt.sample(jax.random.key(0), 2, shares={"female": 0.5, "happy": 0.3}).shape == (2, 64, 64, 3)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("smyle=1", "error: --condition: unknown name 'smyle'. Did you mean 'smile'"),
        ("smile=2", "error: --condition: strength smile is 2.0; expected from 0 to 1, as it was trained."),
        ("smile=", "error: --condition=smile=: expected name=number for each, e.g. smile=0.5."),
    ],
)
def test_wrong_strengths(text, match, tmp_path, capsys):
    prompt = some_prompt(pg.load_generator("dcgan_digiface"), cond_dim=1)
    prompt.replace(conditions=pg.Conditions.of_strengths({"smile": (0, 1)})).save(tmp_path / "prompt")
    arguments = ["--mode=sample", f"--prompt={tmp_path / 'prompt'}", f"--output={tmp_path / 'x'}"]
    arguments.append(f"--condition={text}")
    assert main.main(arguments) == 2
    assert match in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"condition": {"smyle": (0, 1, "strength")}}, "strength of a control: unknown name 'smyle'"),
        ({"flow": {"architecture": "allinone"}}, "flow architecture: strengths need 'coupling'"),
        ({"corners": 1.5}, "conditions: corners is 1.5"),
    ],
    ids=["name", "flow", "corners"],
)
def test_wrong_configs(changes, match):
    wrong = config()
    wrong["stages"]["smile"] |= changes
    with pytest.raises(ValueError, match=match):
        RunConfig.from_dict(wrong).load_parts()
