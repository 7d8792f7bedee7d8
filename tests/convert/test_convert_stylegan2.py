"""StyleGAN2's converter: the folder it writes, official files in all their forms, and files that are refused."""

import argparse
import pickle
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from official_stylegan2 import converted, official_state, torch, write, write_nvidia, write_rosinality

from convert import nvidia_pickle, reading, stylegan2_to_flax
from promptgen_jax.generators import stylegan2
from promptgen_jax.store import weights

ROOT = Path(__file__).parents[2]


# --- weight folders --------------------------------------------------------------------------------------------------


def test_converted_folder_loads_without_torch(tmp_path):
    folder = tmp_path / "mine"
    source = write_rosinality(tmp_path / "official", official_state("stylegan2_256", small=True))
    assert stylegan2_to_flax.main([str(source), str(folder)]) == 0
    about = (folder / "SOURCE.md").read_text()
    assert weights.file_sha256(source) in about
    assert "python convert/stylegan2_to_flax.py official ported_weights/mine" in about
    script = (
        "import sys; sys.modules['torch'] = None; import numpy as np, jax, promptgen_jax as pg;"
        "g = pg.load_generator('mine', truncation_psi=0.7, noise='const'); key = jax.random.key(5);"
        "np.save('images.npy', jax.jit(lambda g, z: g(key, z))(g, jax.random.normal(key, (3, g.prior.dim))))"
    )
    path = {"PYTHONPATH": str(ROOT), "PROMPTGEN_WEIGHTS": str(tmp_path), "JAX_PLATFORMS": "cpu", "PATH": ""}
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path, env=path)
    images = np.load(tmp_path / "images.npy")
    generator = stylegan2.build(weights=str(folder), truncation_psi=0.7, noise="const")
    z = jax.random.normal(jax.random.key(5), (3, generator.prior.dim))
    np.testing.assert_allclose(images, jax.jit(lambda g, z: g(jax.random.key(0), z))(generator, z), atol=1e-5)
    assert generator.name == "mine"
    assert generator.image_size == 16


def test_folder_named_for_another_checkpoint_is_refused(tmp_path, capsys):
    source = write(tmp_path / "official", "stylegan2_256", official_state("stylegan2_256", small=True))
    assert stylegan2_to_flax.main([str(source), str(tmp_path / "stylegan2_ffhq")]) == 1
    assert "a network of 16 pixels, but stylegan2_ffhq has 1024" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["official"]


# --- official files in all their forms, and files that are refused ---------------------------------------------------


def assert_trees_equal(one, other):
    one, other = (jax.tree.leaves_with_path(tree) for tree in (one, other))
    assert [path for path, _ in one] == [path for path, _ in other]
    for (path, got), (_, want) in zip(one, other, strict=True):
        np.testing.assert_array_equal(got, want, err_msg=str(path))


def test_rosinality_files_of_every_age_are_read(tmp_path):
    state = official_state("stylegan2_256", small=True)
    expected = converted("stylegan2_256", small=True)[0]
    settings = {"args": argparse.Namespace(size=16, lr=0.002), "d": {"a": torch.zeros(2)}, "ada_aug_p": 0.3}
    for options in ({"legacy": True}, settings, {"legacy": True, **settings}):
        assert_trees_equal(
            stylegan2_to_flax.convert(write_rosinality(tmp_path / "any.name", state, **options))[0], expected
        )


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_nvidia_files_are_read_without_their_code(tmp_path, protocol):
    state = official_state("stylegan2_ada_256", small=True)
    hostile = f"import pathlib; pathlib.Path({str(tmp_path / 'executed')!r}).touch()"
    source = write_nvidia(tmp_path / "network", state, source=hostile, protocol=protocol)
    tensors = reading.read_checkpoint(source)["G_ema"].tensors()
    assert tensors.keys() == state.keys()
    for name, value in state.items():
        np.testing.assert_array_equal(tensors[name], value, err_msg=name)
    stylegan2_to_flax.convert(source)
    assert [path.name for path in tmp_path.iterdir()] == ["network"]


def test_both_layouts_describe_one_network(tmp_path):
    """The NVIDIA tensors under rosinality's names convert to the same tree but for the mean latent."""
    state = official_state("stylegan2_ada_256", small=True)
    renamed = {}
    theirs, ours = stylegan2_to_flax.NVIDIA, stylegan2_to_flax.ROSINALITY
    for one, other in zip(
        *(stylegan2_to_flax.recipe(each, [4, 8, 16], 2).values() for each in (theirs, ours)), strict=True
    ):
        for source, target in zip(one.sources, other.sources, strict=True):
            renamed[target] = state[source] * (4 if "resample_filter" in source else 1)
    got, config = stylegan2_to_flax.convert(write_rosinality(tmp_path / "file", renamed))
    want, _ = stylegan2_to_flax.convert(write_nvidia(tmp_path / "other", state))
    assert config["options"]["conv_clamp"] is None
    del got["buffers"]["mean_latent"], want["buffers"]["mean_latent"]
    assert_trees_equal(got, want)


@pytest.fixture
def generate():
    return jax.jit(lambda generator, key, z: generator(key, z))


def load(source, folder, **options):
    assert stylegan2_to_flax.main([str(source), str(folder)]) == 0
    return stylegan2.build(weights=str(folder), **options)


def test_files_without_noise_maps(tmp_path, generate):
    """They are the same network but for noise "const", which is refused by its name."""
    state = official_state("stylegan2_256", small=True)
    bare = {name: value for name, value in state.items() if not name.startswith("noises.")}
    whole = load(write_rosinality(tmp_path / "whole", state), tmp_path / "a")
    less = load(write_rosinality(tmp_path / "less", bare), tmp_path / "b")
    key, z = jax.random.key(0), whole.prior.sample(jax.random.key(1), 2)
    for noise in ("random", "none"):
        pictures = [generate(each.replace(noise=noise), key, z) for each in (whole, less)]
        np.testing.assert_array_equal(*pictures)
    for refused in (
        lambda: stylegan2.build(weights=str(tmp_path / "b"), noise="const"),
        lambda: less.module.apply(less.weights, z, noise="const"),
    ):
        with pytest.raises(ValueError, match="noise 'const' asks for stored noise maps, and the file .* has none"):
            refused()
    assert "no noise maps, which the file does not hold" in (tmp_path / "b" / "SOURCE.md").read_text()


def test_files_without_noise(tmp_path, generate):
    """As use_noise=False makes them: no noise at all, whichever is asked for."""
    state = official_state("stylegan2_ada_256", small=True)
    bare = {name: value for name, value in state.items() if not re.search(r"noise_(const|strength)", name)}
    without_noise = load(write_nvidia(tmp_path / "less.pkl", bare), tmp_path / "less")
    silent = load(write_nvidia(tmp_path / "whole.pkl", state), tmp_path / "whole", noise="none")
    key, z = jax.random.key(0), silent.prior.sample(jax.random.key(1), 2)
    for noise in stylegan2.NOISES:
        pictures = generate(without_noise.replace(noise=noise), key, z)
        np.testing.assert_allclose(pictures, generate(silent, key, z), atol=1e-6)


def test_state_dicts_of_other_scripts(tmp_path):
    """On its own, and as DataParallel names it: the same tree."""
    state, expected = official_state("stylegan2_256", small=True), converted("stylegan2_256", small=True)[0]
    tensors = {name: torch.from_numpy(np.asarray(value)) for name, value in state.items()}
    for content in (tensors, {"g_ema": {f"module.{name}": value for name, value in tensors.items()}}):
        torch.save(content, tmp_path / "file.pt")
        assert_trees_equal(stylegan2_to_flax.convert(tmp_path / "file.pt")[0], expected)


class RunsCode:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def with_nan(array):
    array = np.array(array)
    array.flat[-1] = np.nan
    return array


def without(state, *names):
    return {name: value for name, value in state.items() if name not in names}


ROSINALITY_CONTENTS = {
    "missing": (
        lambda s: without(s, "convs.1.conv.weight", "style.1.bias"),
        "2 problems: missing convs.1.conv.weight; ",
    ),
    "no blur": (lambda s: without(s, "convs.2.conv.blur.kernel"), "missing convs.2.conv.blur.kernel"),
    "extra": (lambda s: s | {"convs.9.conv.weight": s["style.1.bias"]}, "unexpected convs.9.conv.weight"),
    "missing and extra": (
        lambda s: without(s, "conv1.noise.weight") | {"a": s["style.1.bias"]},
        "missing .*unexpected a",
    ),
    "nan": (lambda s: s | {"input.input": with_nan(s["input.input"])}, "input.input holds NaN"),
    "shape": (
        lambda s: s | {"conv1.activate.bias": s["conv1.activate.bias"][:5]},
        r"block_4/conv1/kernel is \(3, 3, 8, 8\), expected",
    ),
    "flat": (lambda s: s | {"conv1.conv.weight": s["conv1.conv.weight"].ravel()}, "kernel cannot be made from"),
    "other filter": (
        lambda s: s | {"to_rgbs.0.upsample.kernel": np.ones((4, 4), np.float32)},
        "block_8/to_rgb/kernel cannot be made from",
    ),
    "not square": (
        lambda s: s | {"input.input": np.zeros((1, 8, 4, 6), np.float32)},
        "its pictures are 16 x 24 pixels, grown from 4 x 6. Only square ones",
    ),
    "one map missing": (lambda s: without(s, "noises.noise_2"), "1 problems: missing noises.noise_2"),
    "other network": (lambda s: {"main.0.weight": s["style.1.bias"]}, "no StyleGAN2 generator"),
}


@pytest.mark.parametrize("case", ROSINALITY_CONTENTS)
def test_rosinality_contents_are_refused(tmp_path, case, capsys):
    change, message = ROSINALITY_CONTENTS[case]
    source = write_rosinality(tmp_path / "g.pt", change(official_state("stylegan2_256", small=True)))
    with pytest.raises(ValueError, match=message):
        stylegan2_to_flax.convert(source)
    assert stylegan2_to_flax.main([str(source), str(tmp_path / "out")]) == 1
    assert str(source) in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["g.pt"]


NVIDIA_CONTENTS = {
    "missing": (lambda s: without(s, "synthesis.b8.conv0.noise_const"), {}, "missing synthesis.b8.conv0.noise_const"),
    "no mean": (lambda s: without(s, "mapping.w_avg"), {}, "missing mapping.w_avg"),
    "extra": (lambda s: s | {"mapping.embed.bias": s["mapping.w_avg"]}, {}, "unexpected mapping.embed.bias"),
    "nan": (lambda s: s | {"mapping.w_avg": with_nan(s["mapping.w_avg"])}, {}, "mapping.w_avg holds NaN"),
    "residual": (lambda s: s | {"synthesis.b8.skip.weight": s["mapping.w_avg"]}, {}, "unexpected synthesis.b8.skip"),
    "other network": (lambda s: {"b4.fc.weight": s["mapping.w_avg"]}, {}, "has no module mapping"),
    "class labels": (lambda s: s, {"c_dim": 10}, "class labels 10 instead of 0"),
}


@pytest.mark.parametrize("case", NVIDIA_CONTENTS)
def test_nvidia_contents_are_refused(tmp_path, case):
    change, attributes, message = NVIDIA_CONTENTS[case]
    source = write_nvidia(tmp_path / "g.pkl", change(official_state("stylegan2_ada_256", small=True)), **attributes)
    with pytest.raises(ValueError, match=message):
        stylegan2_to_flax.convert(source)
    assert stylegan2_to_flax.main([str(source), str(tmp_path / "out")]) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["g.pkl"]


def test_storages_are_read_and_damaged_ones_refused():
    (stream,) = torch.arange(4.0)._typed_storage().__reduce__()[1]
    np.testing.assert_array_equal(nvidia_pickle.read_storage(stream), np.arange(4))
    damaged = {
        "other count": stream[:-24] + np.int64(3).tobytes() + stream[-16:],
        "truncated": stream[:-1],
        "other class": stream.replace(b"FloatStorage", b"CUDAGraphABC"),
        "text": b"abc",
    }
    for case, content in damaged.items():
        with pytest.raises((pickle.UnpicklingError, ValueError, IndexError)):
            pytest.fail(f"{case}: read {nvidia_pickle.read_storage(content)}")


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [(0, (5,), (1,)), (2, (3,), (1,)), (0, (2, 2), (1, 3)), (-1, (2,), (1,)), (0, (2,), (-1,)), (0, (9, 9), (0, 0))],
)
def test_tensors_beyond_their_storage_are_refused(offset, size, stride):
    with pytest.raises(pickle.UnpicklingError):
        nvidia_pickle.strided(np.arange(4.0), offset, size, stride)
    np.testing.assert_array_equal(nvidia_pickle.strided(np.arange(4.0), 1, (1, 2), (3, 1)), [[1, 2]])


def bad_files(folder):
    rosinality = write_rosinality(folder / "a", official_state("stylegan2_256", small=True)).read_bytes()
    nvidia = write_nvidia(folder / "b", official_state("stylegan2_ada_256", small=True)).read_bytes()
    code = RunsCode(folder / "executed")
    torch.save({"g_ema": code}, folder / "c")
    torch.save({"g_ema": code}, folder / "d", _use_new_zipfile_serialization=False)
    system = b"cposix\nsystem\n(S'touch executed'\ntR."
    files = {
        "zip running code": ((folder / "c").read_bytes(), "not a complete PyTorch archive"),
        "old archive running code": ((folder / "d").read_bytes(), "not a complete PyTorch archive"),
        "pickle running code": (pickle.dumps({"G_ema": code}, protocol=3), "which is no part of a network"),
        "pickle running a command": (b"\x80\x03" + system, "posix.system, which is no part of a network"),
        "bare opcodes": (system, "neither a PyTorch archive"),
        "truncated zip": (rosinality[: len(rosinality) // 2], "not a complete PyTorch archive"),
        "truncated pickle": (nvidia[: len(nvidia) // 2], "not a complete network pickle"),
        "empty": (b"", "neither a PyTorch archive"),
        "text": (b"<!DOCTYPE html><html>quota exceeded</html>", "neither a PyTorch archive"),
        "TensorFlow network": (
            pickle.dumps(0)[:2] + b"cdnnlib.tflib.network\nNetwork\n.",
            "dnnlib.tflib.network.Network, which is no part.*legacy.py",
        ),
    }
    for path in list(folder.iterdir()):
        path.unlink()
    return files


@pytest.mark.parametrize(
    "case",
    [
        "zip running code",
        "old archive running code",
        "pickle running code",
        "pickle running a command",
        "bare opcodes",
        "truncated zip",
        "truncated pickle",
        "empty",
        "text",
        "TensorFlow network",
    ],
)
def test_files_are_refused(tmp_path, monkeypatch, case, capsys):
    monkeypatch.chdir(tmp_path)
    content, message = bad_files(tmp_path)[case]
    source = tmp_path / "network"
    source.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        stylegan2_to_flax.convert(source)
    assert stylegan2_to_flax.main([str(source), str(tmp_path / "out")]) == 1
    answer = capsys.readouterr().err
    assert answer.startswith(f"error: {source}: ")
    assert answer.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["network"]
