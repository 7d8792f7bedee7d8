"""Converters of the face networks: both formats of PyTorch, and files that must be refused."""

import functools
from pathlib import Path

import jax
import numpy as np
import official_faces
import pytest
from official_faces import CASES, every_network, hollow_state, torch, write_official

from convert import celeba_to_flax, fairface_to_flax, layers
from promptgen_jax import commands
from promptgen_jax.models import network
from promptgen_jax.store import catalogue, weights


def without(state, *names):
    return {name: value for name, value in state.items() if name not in names}


@pytest.mark.parametrize("legacy", [True, False], ids=["legacy", "zip"])
def test_fairface_resnet34_formats(tmp_path, legacy):
    """Both formats of PyTorch, with and without counters of batches."""
    state = hollow_state("fairface_resnet34")
    counters = layers.unused(state)
    assert len(counters) == 36
    source = write_official(
        tmp_path, "fairface_resnet34", state if legacy else without(state, *counters), legacy=legacy
    )
    tree, config = fairface_to_flax.convert(source)
    scale = 0.01 / np.sqrt(0.01 + 1e-5)
    np.testing.assert_allclose(tree["trunk"]["stem"]["kernel"], 0.01 * scale, rtol=1e-6)
    np.testing.assert_allclose(tree["trunk"]["stem"]["bias"], 0.01 - 0.01 * scale, rtol=1e-6)
    assert config["attributes"]["gender"] == ["male", "female"]


def test_a_download_is_recognised_and_converted(tmp_path, monkeypatch, capsys):
    """`promptgen convert --from`: by its name, once, with the terms of the catalogue."""
    source = write_official(tmp_path, "fairface_resnet34", hollow_state("fairface_resnet34"))
    assert source.name == catalogue.CHECKPOINTS["fairface"].file
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PROMPTGEN_WEIGHTS", raising=False)
    for said in ("fairface, converted to ported_weights/fairface", "fairface, which is in ported_weights already"):
        assert commands.main(["convert", f"--from={source.parent}"]) == 0
        assert said in capsys.readouterr().out
    assert weights.read_config("ported_weights/fairface")["license"] == catalogue.FAIRFACE


@functools.cache
def seeded_fairface():
    return official_faces.seeded_state("fairface_resnet34")


def test_the_file_for_four_races_has_their_labels(tmp_path):
    """By its official name; its logits are the first four of what the same tensors give as the file for seven."""
    seven = write_official(tmp_path, "fairface_resnet34", seeded_fairface())
    four = tmp_path / catalogue.CHECKPOINTS["fairface_four"].file
    four.write_bytes(seven.read_bytes())
    for source, name in ((seven, "fairface"), (four, "fairface_four")):
        assert fairface_to_flax.main([str(source), str(tmp_path / name)]) == 0
    whole, few = (network.load_network(tmp_path / name) for name in ("fairface", "fairface_four"))
    assert few.attributes == (("race", ("White", "Black", "Asian", "Indian")),)
    images = official_faces.photos("fairface_resnet34", "", 64)[:1]
    expected, got = (jax.jit(lambda net, images: net(images))(net, images) for net in (whole, few))
    assert got.keys() == {"race"}
    np.testing.assert_allclose(got["race"], expected["race"][:, :4], atol=1e-5)
    about = (tmp_path / "fairface_four" / "SOURCE.md").read_text()
    assert "the first 4 of the 18 in the file" in about
    assert catalogue.CHECKPOINTS["fairface_four"].url in about


def test_races_are_told_where_the_name_does_not(tmp_path, capsys):
    source = write_official(tmp_path, "fairface_resnet34", hollow_state("fairface_resnet34"))
    assert fairface_to_flax.main([str(source), str(tmp_path / "fairface_four")]) == 1
    assert "labels race White, Black, Latino_Hispanic, East Asian" in capsys.readouterr().err
    source = source.rename(tmp_path / "mine.pt")
    assert fairface_to_flax.main([str(source), str(tmp_path / "mine")]) == 1
    assert "Pass --races 7 or --races 4" in capsys.readouterr().err
    assert fairface_to_flax.main([str(source), str(tmp_path / "mine"), "--races", "4"]) == 0
    assert weights.read_config(tmp_path / "mine")["attributes"] == {"race": ["White", "Black", "Asian", "Indian"]}
    assert "fairface_to_flax.py mine.pt ported_weights/mine --races 4`" in (tmp_path / "mine/SOURCE.md").read_text()


@pytest.mark.parametrize("wrap", ["module", "checkpoint", "both"])
def test_state_dicts_of_training_scripts(tmp_path, wrap):
    """With the prefix of DataParallel, beside counters, or both: the same network."""
    state = hollow_state("fairface_resnet34")
    expected, _ = fairface_to_flax.convert(write_official(tmp_path, "fairface_resnet34", state))
    state = state if wrap == "checkpoint" else {f"module.{name}": value for name, value in state.items()}
    content = state if wrap == "module" else {"epoch": 3, "state_dict": state, "optimizer": {"lr": 0.1}}
    got, _ = fairface_to_flax.convert(write_official(tmp_path, "fairface_resnet34", content))
    jax.tree.map(np.testing.assert_array_equal, got, expected)


class RunsCode:
    """An object whose pickle calls a function when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


# the first and the last tensor of the recipe in the official file
ENDS = {
    "fairface_resnet34": ("conv1.weight", "fc.bias"),
    "celeba_resnet50": ("resnet.conv1.weight", "fc.bias"),
    "irse50": ("input_layer.0.weight", "output_layer.3.bias"),
    "deca_encoder": ("encoder.conv1.weight", "layers.2.bias"),
}


def negative_variance(name):
    key = next(key for key in hollow_state(name) if key.endswith("running_var"))
    return {key: -hollow_state(name)[key]}


BAD_TENSORS = {
    "missing": (
        lambda name: without(hollow_state(name), *ENDS[name]),
        lambda first, last: f"2 problems: missing.*{last}",
    ),
    "extra": (lambda name: hollow_state(name) | {"stranger": torch.ones(2)}, lambda first, last: "unexpected stranger"),
    "nan": (
        lambda name: hollow_state(name) | {ENDS[name][0]: torch.full((64, 3, 7, 7), torch.nan)},
        lambda first, last: f"{first} holds NaN",
    ),
    "flat": (
        lambda name: hollow_state(name) | {ENDS[name][0]: torch.ones(64)},
        lambda first, last: rf"stem cannot be made from {first} \(64,\)",
    ),
    "long": (
        lambda name: hollow_state(name) | {ENDS[name][1]: torch.ones(5)},
        lambda first, last: r"is \(5,\), expected|cannot be made",
    ),
    "variance": (
        lambda name: hollow_state(name) | negative_variance(name),
        lambda first, last: "stem cannot be made from",
    ),
    "not a tensor": (
        lambda name: hollow_state(name) | {ENDS[name][0]: "text"},
        lambda first, last: f"{first} are not tensors",
    ),
}


@every_network
@pytest.mark.parametrize("case", BAD_TENSORS)
def test_refuses_tensors(tmp_path, capsys, name, case):
    change, message = BAD_TENSORS[case]
    source = write_official(tmp_path, name, change(name))
    with pytest.raises(ValueError, match=message(*ENDS[name])):
        CASES[name].converter.convert(source)
    assert CASES[name].converter.main([str(source), str(tmp_path / "out")]) == 1
    assert str(source) in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_refuses_each_others_files(tmp_path):
    for name in CASES:
        source = write_official(tmp_path, name, hollow_state(name))
        for other, case in CASES.items():
            if other != name:
                with pytest.raises(ValueError, match="Check that|Pass "):
                    case.converter.convert(source)


@every_network
@pytest.mark.parametrize("case", ["list", "code", "truncated", "empty", "text", "absent"])
def test_refuses_files(tmp_path, name, case):
    source = write_official(tmp_path, name, {})
    if case in ("list", "code"):
        torch.save([1, 2] if case == "list" else {CASES[name].entry or "a": RunsCode(tmp_path / "executed")}, source)
    elif case == "absent":
        source.unlink()
    else:
        source.write_bytes({"truncated": source.read_bytes()[:60], "empty": b"", "text": b"no archive\n"}[case])
    error = FileNotFoundError if case == "absent" else ValueError
    special = {
        "absent": "no such file",
        "list": "holds no .* but a list. Pass",
        "code": r"\(it asks for [\w.]*getattr\)",
    }
    with pytest.raises(error, match=special.get(case, "not a complete PyTorch archive")):
        CASES[name].converter.convert(source)
    assert CASES[name].converter.main([str(source), str(tmp_path / "out")]) == 1
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(("entry", "found"), [("state_dict", "state_dict"), (None, "conv1.weight")])
@pytest.mark.parametrize("name", ["celeba_resnet50", "deca_encoder"])
def test_refuses_another_nesting(tmp_path, name, entry, found):
    source = write_official(tmp_path, name, {})
    state = {"conv1.weight": torch.ones(1)}
    torch.save({entry: state} if entry else state, source)
    with pytest.raises(ValueError, match=f"holds no {CASES[name].entry} with a state dict in it but {found}. Pass"):
        CASES[name].converter.convert(source)


def test_celeba_resnet50_attribute_is_that_of_the_folder(tmp_path):
    source = write_official(tmp_path, "celeba_resnet50", hollow_state("celeba_resnet50"))
    tree, config = celeba_to_flax.convert(source)
    assert config["attributes"] == {"Male": ["no", "yes"]}
    assert config["options"] == {"attribute": "Male"}
    source = source.rename(source.parent.parent / "best.pth")
    with pytest.raises(
        ValueError, match="'celeba'.*folder of the attribute's official name, e.g. celeba/Male/best.pth"
    ):
        celeba_to_flax.convert(source)
    (tmp_path / "Eyeglases").mkdir()
    with pytest.raises(ValueError, match="Did you mean 'Eyeglasses'"):
        celeba_to_flax.convert(source.rename(tmp_path / "Eyeglases" / "best.pth"))


def test_folder_named_for_another_network_is_refused(tmp_path, capsys):
    source = write_official(tmp_path, "fairface_resnet34", hollow_state("fairface_resnet34"))
    assert fairface_to_flax.main([str(source), str(tmp_path / "deca")]) == 1
    assert "deca is the folder of deca_model.tar, which deca_to_flax.py reads" in capsys.readouterr().err
    assert not (tmp_path / "deca").exists()


@pytest.mark.parametrize("folder", [name for name, each in catalogue.CHECKPOINTS.items() if each.kind == "network"])
def test_missing_network_says_where_to_get_it(folder):
    checkpoint = catalogue.CHECKPOINTS[folder]
    if folder in weights.available_weights():
        pytest.skip("its weights are converted on this machine, so nothing is missing")
    with pytest.raises(FileNotFoundError, match="not converted yet") as refusal:
        network.load_network(folder)
    for fact in (checkpoint.file, checkpoint.url, checkpoint.command(folder), checkpoint.license):
        assert fact in str(refusal.value)
    assert (Path(__file__).parents[2] / "convert" / checkpoint.converter).is_file()


def test_every_published_celeba_classifier_is_an_attribute():
    assert len(celeba_to_flax.ATTRIBUTES) == len(set(celeba_to_flax.ATTRIBUTES)) == 40
    published = [each.file for each in catalogue.CHECKPOINTS.values() if each.converter == "celeba_to_flax.py"]
    assert {Path(file).parent.name for file in published} <= set(celeba_to_flax.ATTRIBUTES)
    assert len(published) == 4
