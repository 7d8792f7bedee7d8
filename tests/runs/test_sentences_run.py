"""Sentences on the shipped faces: a whole run by its config, its report, and sampling by words."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

import main
import promptgen_jax as pg
from configs import face_sentences
from promptgen_jax.runs import run
from promptgen_jax.store import images

NEW = "a smiling man, looking left"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    config, workdir = face_sentences.get_config("smoke").to_dict(), tmp_path_factory.mktemp("face_sentences")
    config["evaluation"] |= {"num_samples": 16, "num_shown": 2, "judges": {}}
    run.train_and_evaluate(config, workdir)
    return workdir


@pytest.mark.full
def test_report_shows_faces_by_sentences(finished):
    (stage,) = json.loads((finished / "report.json").read_text())["stages"]
    (picture,) = stage["images"]
    trained = face_sentences.get_config().stages.text.condition.text.sentences
    assert len(picture["faces"]["labels"]) == 9
    assert set(picture["faces"]["labels"]) <= set(trained)
    assert picture["caption"].endswith("none picked.")
    assert stage["exactness"]["log_z"] < 0
    assert "conditions drawn from 228 sentences." in (finished / "report.html").read_text()
    assert NEW not in trained


@pytest.mark.full
def test_the_command_takes_a_new_sentence(finished, tmp_path):
    common = ["--mode=sample", f"--workdir={finished}", "--num_samples=2", "--seed=3", f"--output={tmp_path}"]
    assert main.main([*common, f"--condition=text={NEW}"]) == 0
    prompt = pg.Prompt.load(finished / "text" / "prompt")
    same = images.to_uint8(np.asarray(prompt.sample(jax.random.key(3), 2, text=NEW)))[1].astype(int)
    assert np.abs(np.asarray(Image.open(tmp_path / "000001.png")).astype(int) - same).max() <= 1
    assert prompt.flow.module.cond_scale == 11.31
