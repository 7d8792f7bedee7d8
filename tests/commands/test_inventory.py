"""What `--mode=list` and `--mode=doctor` say, of good and of damaged weights; the card of a prompt."""

import re
import shutil
from pathlib import Path

import huggingface_hub
import jax
import numpy as np
import pages
import pytest
from helpers import some_prompt

import main
import promptgen_jax as pg
from promptgen_jax.runs import doctor
from promptgen_jax.store import catalogue, weights

ROOT = Path(__file__).parents[2]


def test_list(capsys, monkeypatch, tmp_path):
    """Every adapter, config and weight folder once; a damaged folder is named as such."""
    shutil.copytree(ROOT / "ported_weights" / "emotion", tmp_path / "my_emotion")
    with open(tmp_path / "my_emotion" / "weights.safetensors", "r+b") as file:
        file.write(b"damage")
    monkeypatch.setenv("PROMPTGEN_WEIGHTS", str(tmp_path))
    monkeypatch.chdir(ROOT)
    assert main.main(["--mode=list"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.startswith("  ")}
    files = [
        path for folder in ("generators", "controls") for path in (ROOT / "promptgen_jax" / folder).glob("[!_]*.py")
    ]
    assert {path.stem for path in files} <= lines.keys()
    assert {path.name for path in (ROOT / "configs").glob("*.py") if path.stem != "pieces"} <= lines.keys()
    assert "present: generator" in lines["dcgan_digiface"]
    assert "non-commercial" in lines["dcgan_digiface"]
    assert "damaged" in lines["my_emotion"]
    assert "sha256" in lines["my_emotion"]
    assert (
        "missing: python convert/stylegan2_to_flax.py ffhq.pt ported_weights/stylegan2_ffhq" in lines["stylegan2_ffhq"]
    )


def test_list_shows_the_labels_of_every_classifier(capsys, monkeypatch, tmp_path):
    """A row an attribute, of published classifiers too; long ones go on below; README shows lines of it."""
    shutil.copytree(ROOT / "ported_weights" / "emotion", tmp_path / "many")
    config = weights.read_json(tmp_path / "many" / "config.json", advice="")
    groups = {"group": [f"somebody of the group {number}-{number + 9}" for number in range(0, 100, 10)]}
    weights.write_json(tmp_path / "many" / "config.json", config | {"attributes": groups})
    monkeypatch.setenv("PROMPTGEN_WEIGHTS", str(tmp_path))
    monkeypatch.chdir(ROOT)
    assert main.main(["--mode=list"]) == 0
    output = capsys.readouterr().out.splitlines()
    labels = [line for line in output[output.index("Labels") + 1 : output.index("Weights")] if line]
    assert max(map(len, labels)) <= 120
    rows = [(words[0], " ".join(words[1:])) for words in map(str.split, labels)]
    for row in (
        ("faceapi_age_gender", "gender: male, female"),
        ("faceres", "gender: female, male"),
        ("faceres", "age_bins: 1 to 100"),
        ("celeba_male", "Male: no, yes"),
        ("fairface", "gender: male, female"),
    ):
        assert row in rows
    many = [line.strip() for line in labels if "somebody" in line]
    assert " ".join(many) == "many                     group: " + ", ".join(groups["group"])
    missing = set(pages.printed(ROOT / "README.md", "list")) - set(output)
    assert not missing


def test_doctor(capsys):
    """All shipped networks give on this machine what was recorded."""
    assert main.main(["--mode=doctor"]) == 0
    output = capsys.readouterr().out
    shipped = [path.parent.name for path in (ROOT / "ported_weights").glob("*/SOURCE.md")]
    assert len(shipped) == 7
    assert all(f"  {name} " in output for name in shipped)
    assert output.count("  ok") == len(shipped)
    assert f"jax {jax.__version__}" in output

    def without_values(line):
        return re.sub(r"\d[\w.+-]*", "#", line)

    shown = map(without_values, pages.printed(ROOT / "README.md", "doctor"))
    machine = ("python", "devices", "accelerator")  # differs between machines
    missing = set(shown) - set(map(without_values, output.splitlines()))
    assert all(line.startswith(machine) for line in missing), missing


def test_doctor_finds_what_is_wrong(tmp_path, monkeypatch, capsys):
    """Other outputs, other weights than those of the check, and a damaged file."""
    for name in ("wrong", "other", "damaged"):
        shutil.copytree(ROOT / "ported_weights" / "faceapi_expression", tmp_path / name)
    recorded = dict(np.load(tmp_path / "wrong" / "check.npz"))
    weights.write_npz(tmp_path / "wrong" / "check.npz", **recorded | {"expression": recorded["expression"] * 1.01})
    weights.write_npz(tmp_path / "other" / "check.npz", **recorded | {"sha256": np.array("0")})
    with open(tmp_path / "damaged" / "weights.safetensors", "ab") as file:
        file.write(b"x")
    monkeypatch.setattr(weights, "weight_roots", lambda: [tmp_path])
    assert not doctor.examine()["well"]
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.startswith("  ")}
    assert "WRONG" in lines["wrong"]
    assert "recorded with other weights" in lines["other"]
    assert "truncated or altered" in lines["damaged"]


@pytest.mark.parametrize("name", sorted(path.parent.name for path in (ROOT / "ported_weights").glob("*/SOURCE.md")))
def test_what_the_doctor_compares_with_is_golden_input(name):
    """The recorded input is that of the golden files, on which the networks equal the originals."""
    recorded = np.load(ROOT / "ported_weights" / name / "check.npz")["input"]
    folder, array = ("dcgan_digiface", "in_z") if name == "dcgan_digiface" else ("emotion", "in_image")
    np.testing.assert_array_equal(recorded, np.load(ROOT / "tests" / "golden" / folder / "golden.npz")[array][:1])


def test_card(tmp_path):
    """What is known at saving is in README.md, and survives loading and saving again."""
    generator = pg.load_generator("dcgan_digiface")
    smile = pg.load_control("classifier", network="faceapi_expression", attribute="expression", target="happy")
    ebm = pg.LatentEBM(generator, (smile,))
    prompt, _ = pg.fit(ebm, flow={"hidden_dim": 8, "num_layers": 2}, num_steps=1, batch_size=2, quiet=True, name="grin")
    prompt.with_note("Measured effect", "A little.").save(tmp_path / "a")
    text = (tmp_path / "a" / "README.md").read_text()
    facts = ("# grin", "DigiFace-1M", "num_steps 1", "faceapi_expression, MIT", "A little.")
    facts += ("| network faceapi_expression, attribute expression, target happy, mirror False, floor 0.0 | 1 |",)
    assert text.startswith(
        '---\nlibrary_name: "promptgen_jax"\nlicense: "other"\nlicense_name: "dcgan-digiface-terms"\ntags: ['
    )
    for fact in (*facts, generator.checksum):
        assert fact in text
    pg.Prompt.from_pretrained(tmp_path / "a").save(tmp_path / "b")
    assert (tmp_path / "b" / "README.md").read_text() == text
    stacked = some_prompt(pg.Prompt.load(tmp_path / "a"), "outer")
    stacked.save(tmp_path / "c")
    assert "## Flow `grin`" in (tmp_path / "c" / "README.md").read_text()


def test_pushed_to_the_hub_and_back(tmp_path, monkeypatch):
    """What is uploaded is the saved folder, card included; the Hub itself is a folder here."""

    class Hub:
        def create_repo(self, repo_id, **options):
            (tmp_path / repo_id).mkdir(parents=True, **{"exist_ok": options["exist_ok"]})

        def upload_folder(self, *, repo_id, folder_path):
            return shutil.copytree(folder_path, tmp_path / repo_id, dirs_exist_ok=True)

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda repo_id: str(tmp_path / repo_id))
    prompt = some_prompt(pg.load_generator("dcgan_digiface"), "pushed")
    prompt.push_to_hub("somebody/pushed")
    again = pg.Prompt.from_pretrained("somebody/pushed")
    assert (tmp_path / "somebody" / "pushed" / "README.md").read_text().count("# pushed") == 1
    eps = jax.random.normal(jax.random.key(0), (2, 100))
    np.testing.assert_array_equal(again.latents(eps), prompt.latents(eps))


def test_hub_names(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match=r"no such folder\. Give one that Prompt\.save wrote"):
        pg.Prompt.from_pretrained(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="not to be had from the Hugging Face Hub"):
        pg.Prompt.from_pretrained("nobody/nothing")


@pytest.mark.parametrize("name", [name for name, each in catalogue.CHECKPOINTS.items() if each.kind == "generator"])
def test_missing_generator_says_where_to_get_it(name, tmp_path, monkeypatch):
    """By its name alone, and as the weights of its adapter."""
    if name in weights.available_weights():
        pytest.skip("its weights are converted on this machine, so nothing is missing")
    monkeypatch.setenv("PROMPTGEN_WEIGHTS", str(tmp_path))
    checkpoint = catalogue.CHECKPOINTS[name]
    for load in (lambda: pg.load_generator(name), lambda: pg.load_generator(name.split("_")[0], weights=name)):
        with pytest.raises(FileNotFoundError) as error:
            load()
        for part in (checkpoint.file, checkpoint.url, checkpoint.command(name)):
            assert part in str(error.value)
