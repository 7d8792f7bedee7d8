"""The CLIP converter: archives read as data, and files that must be refused."""

import functools
import json
import pickle
import re
import zipfile
from pathlib import Path

import jax
import numpy as np
import official
import official_transformers
import pytest
from official_clip import (
    ALLOWED,
    SCALARS,
    SMALL,
    convert,
    small_hugging_face_state,
    small_state,
    torch,
    write_archive,
    write_config,
    write_hugging_face,
    write_open_clip,
    write_shards,
    write_state,
)

from convert import clip_to_flax, torchscript
from promptgen_jax.models import clip, network
from promptgen_jax.store import hub, weights

pytestmark = ALLOWED


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    return convert(write_archive(folder / "small.pt", small_state()), folder / "clip_small")


def test_torchscript_reads_the_state_dict(tmp_path):
    """Of strided views and shared storages too, and without the programs of the archive."""
    base = torch.arange(12.0).reshape(3, 4)
    module = torch.nn.Module()
    module.register_buffer("transposed", base.T)
    module.register_buffer("column", base[:, 1])
    module.register_buffer("float16", base.half())
    module.register_buffer("empty", torch.zeros(0, 3))
    module.register_buffer("number", torch.tensor(7))
    module.register_buffer("flags", torch.tensor([True, False]))
    module.child = torch.nn.Linear(2, 3)
    torch.jit.save(torch.jit.script(module), tmp_path / "full.pt")
    rewrite_zip(tmp_path / "full.pt", tmp_path / "bare.pt", lambda name, content: None if "/code/" in name else content)
    expected = torch.jit.load(tmp_path / "full.pt").state_dict()
    for name in ("full.pt", "bare.pt"):
        assert torchscript.is_torchscript(tmp_path / name)
        got = torchscript.read_torchscript(tmp_path / name)
        assert got.keys() == expected.keys()
        for key, value in expected.items():
            assert got[key].dtype == value.numpy().dtype
            np.testing.assert_array_equal(got[key], value.numpy())


def test_converter_writes_its_source(small):
    text = (small / "SOURCE.md").read_text()
    config = weights.read_config(small)
    for part in ("# clip_small", config["source_sha256"], "small.pt", config["license"]):
        assert part in text
    assert weights.load_weights(small)[0]["vision"]["block0"]["mlp_in"]["kernel"].dtype == np.float16


def assert_same(folder, expected, **options):
    """The same numbers in single precision, and other options only as given."""
    (tree, config), (want, wanted) = weights.load_weights(folder), weights.load_weights(expected)
    jax.tree.map(lambda one, other: np.testing.assert_array_equal(np.float32(one), np.float32(other)), tree, want)
    assert config["options"] == wanted["options"] | options


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_shards_are_one_model(tmp_path, small, kind, capsys):
    """By their folder or their index; without one of them, or with an index that names none, a sentence says so."""
    folder = tmp_path / "official"
    folder.mkdir()
    index = write_shards(folder, small_hugging_face_state(), kind)
    for source in (folder, index, hub.shards(index)[0]):
        converted = convert(source, tmp_path / "whole")
        np.testing.assert_array_equal(seen(converted), seen(small))
        assert hub.checksum(hub.shards(index)) in (converted / "SOURCE.md").read_text()
    shard = hub.shards(index)[1]
    shard.unlink()
    refuses(folder, tmp_path, f"{shard.name} missing. Download the whole folder", capsys)
    index.write_text("{}")
    refuses(folder, tmp_path, f"{index.name}: names no shards in weight_map", capsys)


def seen(folder):
    """What the image tower makes of noise."""
    module, tree, _ = network.load_params(folder, kind="clip", example=clip.CLIP.example)
    images = np.random.default_rng(0).random((2, 16, 16, 3), np.float32)
    return jax.jit(module.vision_tower().apply)({"params": tree["vision"]}, images)["embedding"]


def test_a_folder_brings_its_colours_and_its_tokenizer(tmp_path):
    """Which a control then takes, as transformers does."""
    folder = official_transformers.write(tmp_path / "official", official_transformers.clip())
    official_transformers.write_tokenizer(folder, end=1)
    converted = convert(folder, tmp_path / "converted")
    options = weights.read_config(converted)["options"]
    assert (options["mean"], options["std"]) == tuple(
        official_transformers.PROCESSOR[f"image_{part}"] for part in ("mean", "std")
    )
    assert (converted / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()


RUN = "2026_01_02-03_04_05-model_ViT-B-32{}-lr_0.001-b_64-j_4-p_amp"


@pytest.mark.parametrize("prefix", ["module.", "", "module.text."])
def test_training_checkpoints_of_open_clip(tmp_path, small, prefix, capsys):
    """The same network, under other names, whose activation is that of the run's name or what was told.

    Both are in SOURCE.md, with the reason.
    """
    text = ("transformer.", "token_embedding.", "positional_embedding", "ln_final.", "text_projection")
    state = small_state()
    if prefix == "module.text.":
        state = {f"text.{name}" if name.startswith(text) else name: value for name, value in state.items()}
        prefix = "module."
    quick = write_open_clip(tmp_path / "epoch_1.pt", state, RUN.format("-quickgelu"), prefix)
    assert_same(convert(quick, tmp_path / "quick"), small, activation="quick_gelu")
    plain = write_open_clip(tmp_path / "epoch_2.pt", state, RUN.format(""), prefix)
    assert clip_to_flax.main([str(plain), str(tmp_path / "plain")]) == 1
    assert "whose activation is not in it. Pass --activation quick_gelu if" in capsys.readouterr().err
    assert clip_to_flax.main([str(plain), str(tmp_path / "plain"), "--activation", "gelu"]) == 0
    assert_same(tmp_path / "plain", small, activation="gelu")
    text = (tmp_path / "plain" / "SOURCE.md").read_text()
    assert "ported_weights/plain --activation gelu`" in text
    assert "activation gelu, as --activation said" in text
    assert "activation quick_gelu, as the name of its run says" in (tmp_path / "quick" / "SOURCE.md").read_text()


def write_own_state(path, state):
    """The state dict of OpenAI's archive, as PyTorch gives it."""
    return write_state(path, state | {name: np.array(value) for name, value in SCALARS.items()})


def test_a_state_dict_of_openais_names_may_be_of_either_activation(tmp_path, small, capsys):
    """It is asked for, unless the numbers are there that only OpenAI's own archives hold."""
    bare = write_state(tmp_path / "clip.pt", small_state())
    refuses(bare, tmp_path, "whose activation is not in it. Pass --activation quick_gelu if it is OpenAI's", capsys)
    for activation in ("quick_gelu", "gelu"):
        assert clip_to_flax.main([str(bare), str(tmp_path / activation), f"--activation={activation}"]) == 0
        assert_same(tmp_path / activation, small, activation=activation)
    own = write_own_state(tmp_path / "ViT.pt", small_state())
    assert_same(convert(own, tmp_path / "own"), small)
    assert "quick_gelu, as in all of OpenAI's archives" in (tmp_path / "own" / "SOURCE.md").read_text()
    assert clip_to_flax.main([str(own), str(tmp_path / "other"), "--activation=gelu"]) == 1
    assert "OpenAI's network, whose activation is quick_gelu. Leave out" in capsys.readouterr().err


def test_files_of_open_clip_on_the_hub(tmp_path, small):
    """Their activation, heads and colours are in the configuration beside them."""
    source, config = (
        write_state(tmp_path / "open_clip_pytorch_model.bin", small_state()),
        tmp_path / "open_clip_config.json",
    )
    for quick in (True, False):
        config.write_text(json.dumps({"model_cfg": {"quick_gelu": quick}}))
        folder = convert(source, tmp_path / f"converted_{quick}")
        assert_same(folder, small, activation="quick_gelu" if quick else "gelu")
    towers = {"vision_cfg": {"width": 128, "head_width": 32}, "text_cfg": {"heads": 4}}
    colours = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.25, 0.5]}
    config.write_text(json.dumps({"model_cfg": towers, "preprocess_cfg": colours}))
    folder = convert(source, tmp_path / "converted")
    assert_same(folder, small, activation="gelu", vision_heads=4, text_heads=4, **colours)
    assert "activation gelu, as open_clip_config.json beside it says" in (folder / "SOURCE.md").read_text()
    config.write_text(json.dumps({"model_cfg": {"vision_cfg": {"pool_type": "avg"}}}))
    with pytest.raises(ValueError, match="open_clip_config.json: pool_type avg and argmax; expected tok and argmax"):
        clip_to_flax.convert(source)


def rewrite_zip(source, target, change):
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.infolist():
            content = change(entry.filename, old.read(entry))
            if content is not None:
                new.writestr(entry.filename, content)


class RunsCode:
    """An object whose pickle calls a function when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def changed(**changes):
    return {name: value for name, value in (small_state() | changes).items() if value is not None}


BAD_STATES = {
    "missing": (
        lambda s: changed(**{"ln_final.bias": None, "visual.transformer.resblocks.1.ln_2.weight": None}),
        r"2 problems: missing ln_final.bias; missing visual.transformer.resblocks.1.ln_2.weight",
    ),
    "extra": (lambda s: changed(stranger=s["visual.proj"]), "unexpected stranger"),
    "nan": (lambda s: changed(**{"visual.proj": s["visual.proj"] * np.nan}), "visual.proj holds NaN"),
    "shape": (
        lambda s: changed(**{"ln_final.bias": s["ln_final.bias"][:5]}),
        r"text/ln_final/bias is \(5,\), expected",
    ),
    "no blocks": (
        lambda s: {name: value for name, value in s.items() if not name.startswith("transformer")},
        "no transformer.resblocks.0",
    ),
    "resnet": (
        lambda s: {name.replace("visual.", "visual.layer1."): value for name, value in s.items()},
        r"not a CLIP with vision transformers \(missing visual.conv1.weight",
    ),
    "other model": (lambda s: {"weight": s["visual.proj"]}, "missing token_embedding.weight"),
    "not square": (
        lambda s: changed(**{"visual.positional_embedding": np.zeros((7, 128), np.float32)}),
        "reads pictures of 6 patches, which are not square",
    ),
    "flat": (
        lambda s: changed(**{"text_projection": s["text_projection"].ravel()}),
        r"text_projection is \(2048,\), expected 2 axes",
    ),
}


@pytest.mark.parametrize("write", [write_archive, write_own_state], ids=["archive", "state dict"])
@pytest.mark.parametrize("case", BAD_STATES)
def test_refuses_tensors(tmp_path, case, write, capsys):
    change, message = BAD_STATES[case]
    source = write(tmp_path / "bad.pt", change(small_state()))
    refuses(source, tmp_path, message, capsys)


def refuses(source, folder, message, capsys):
    """One sentence that names the file, nothing executed, nothing written."""
    before = sorted(folder.rglob("*"))
    assert clip_to_flax.main([str(source), str(folder / "out")]) == 1
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert error.startswith(f"error: {source}")
    assert error.count("\n") == 1
    assert sorted(folder.rglob("*")) == before


def replace_entry(ending, content):
    return lambda name, old: content if name.endswith(ending) else old


BAD_ARCHIVES = {
    "code": lambda folder: replace_entry("/data.pkl", pickle.dumps(RunsCode(folder / "executed"), protocol=2)),
    "code in a tensor": lambda folder: replace_entry(
        "/data.pkl", pickle.dumps({"a": [RunsCode(folder / "executed")]}, protocol=4)
    ),
    "eval": lambda folder: replace_entry("/data.pkl", b"c__builtin__\neval\n(S'1'\ntR."),
    "no module": lambda folder: replace_entry("/data.pkl", pickle.dumps({"a": 1})),
    "short storage": lambda folder: replace_entry("/data/0", b"\0" * 8),
    "no storage": lambda folder: lambda name, old: None if name.endswith("/data/3") else old,
    "no pickle": lambda folder: lambda name, old: None if name.endswith("/data.pkl") else old,
    "cut pickle": lambda folder: lambda name, old: old[:-40] if name.endswith("/data.pkl") else old,
}


@pytest.mark.parametrize("case", BAD_ARCHIVES)
def test_refuses_archives(tmp_path, case, capsys):
    write_archive(tmp_path / "good.pt", small_state())
    rewrite_zip(tmp_path / "good.pt", tmp_path / "bad.pt", BAD_ARCHIVES[case](tmp_path))
    refuses(tmp_path / "bad.pt", tmp_path, "not a complete TorchScript archive of plain tensors", capsys)


@pytest.mark.parametrize(
    "case", ["truncated", "flipped", "empty", "text", "plain pickle", "torch pickle", "list", "none"]
)
def test_refuses_files(tmp_path, case, capsys):
    source = write_archive(tmp_path / "bad.pt", small_state())
    content = source.read_bytes()
    if case == "torch pickle":
        torch.save({"visual.proj": RunsCode(tmp_path / "executed")}, source)
    elif case == "list":
        torch.save([1, 2], source)
    elif case == "none":
        source.unlink()
    else:
        middle = len(content) // 2
        source.write_bytes(
            {
                "truncated": content[:middle],
                "flipped": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
                "empty": b"",
                "text": b"not an archive\n",
                "plain pickle": pickle.dumps(RunsCode(tmp_path / "executed"), protocol=2),
            }[case]
        )
    refuses(source, tmp_path, "not a|neither a|no such file|no state dict|Bad CRC", capsys)


def config_file(content):
    return lambda folder: (folder / "config.json").write_text(content)


def towers(vision, text):
    return lambda folder: write_config(folder, vision=vision, text=text)


BAD_FOLDERS = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json: no such file, which says"),
    "no settings": (lambda folder: (folder / "preprocessor_config.json").unlink(), "no preprocessor_config.json"),
    "no tensors": (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors missing. Download"),
    "cut config": (config_file('{"vision_config":'), "not valid JSON"),
    "other config": (config_file('{"model_type": "bert"}'), "Bert.* is not computed here"),
    "activation": (towers({"hidden_act": "mish"}, {"hidden_act": "mish"}), "hidden_act is 'mish'"),
    "two activations": (towers({"hidden_act": "gelu"}, {}), "hidden_act is 'quick_gelu'.*expected 'gelu'"),
    "epsilon": (towers({"layer_norm_eps": 1e-6}, {}), "layer_norm_eps"),
    "heads": (towers({"num_attention_heads": 7}, {}), "not a configuration that transformers reads"),
    "cut tensors": (
        lambda folder: (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-9]),
        "not a complete safetensors file",
    ),
    "other names": (lambda folder: write_hugging_face(folder, small_state()), "446 problems: missing text_model"),
}


@functools.cache
def hugging_face_stand_in():
    """Tensors of the right names and axes; the folder is refused before or because of their shapes."""
    small = small_state()
    sources = {name: np.zeros(SMALL.get(name, (1,)), np.float32) for name in small}
    made = {}
    for name, entry in official.load_json("clip_vit_b32/hf_mapping.json").items():
        made[name] = sources.get(entry["from"], np.zeros(1, np.float32))
    made["vision_model.embeddings.patch_embedding.weight"] = np.zeros((768, 3, 8, 8), np.float32)
    return made


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_refuses_hugging_face_folders(tmp_path, case, capsys):
    damage, message = BAD_FOLDERS[case]
    folder = tmp_path / "official"
    folder.mkdir()
    write_hugging_face(folder, hugging_face_stand_in())
    damage(folder)
    refuses(folder, tmp_path, message, capsys)


def test_a_file_of_a_folder_of_which_another_one_is_read(tmp_path, capsys):
    folder = tmp_path / "official"
    folder.mkdir()
    write_hugging_face(folder, hugging_face_stand_in())
    write_hugging_face(folder, small_state(), kind="bin")
    refuses(folder / "pytorch_model.bin", tmp_path, "in a folder of which model.safetensors is read", capsys)


def test_a_folder_that_cannot_be_written_is_said_in_one_sentence(tmp_path, capsys):
    source = write_archive(tmp_path / "small.pt", small_state())
    (tmp_path / "taken").write_text("a file")
    assert clip_to_flax.main([str(source), str(tmp_path / "taken" / "clip")]) == 1
    assert capsys.readouterr().err.startswith("error: ")
