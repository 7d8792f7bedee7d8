"""Converters of the six shipped networks: round trips through the layouts of their packages, and what they refuse."""

import functools
import json
import pickle
from pathlib import Path

import flax.traverse_util
import numpy as np
import pytest

from convert import dcgan_to_flax, faceapi_to_flax, human_models_to_flax, tfjs
from promptgen_jax.generators import dcgan
from promptgen_jax.models import network
from promptgen_jax.store import weights


def write_tfjs(folder, tensors, *, graph, quantised=None, shard_bytes=1 << 20):
    """Writes tensors as a TensorFlow.js manifest (or graph model) with shards; returns the path of the JSON.

    `quantised` is "uint8" or "uint16" for tensors of two or more dimensions; float16 arrays are stored as such.
    """
    content, specs = b"", []
    for name, tensor in tensors.items():
        spec = {"name": name, "shape": list(tensor.shape), "dtype": "float32"}
        if tensor.dtype == np.float16:
            spec["quantization"] = {"dtype": "float16", "original_dtype": "float32"}
        elif tensor.dtype == np.int32:
            spec["dtype"] = "int32"
        elif quantised and tensor.ndim > 1:
            minimum = float(tensor.min())
            scale = (float(tensor.max()) - minimum) / (2 ** (8 * np.dtype(quantised).itemsize) - 1) or 1.0
            spec["quantization"] = {"dtype": quantised, "scale": scale, "min": minimum}
            tensor = np.round((tensor.astype(np.float64) - minimum) / scale).astype(quantised)
        content += tensor.tobytes()
        specs.append(spec)
    parts = [content[start : start + shard_bytes] for start in range(0, len(content), shard_bytes)]
    paths = [f"model.bin{index}" for index in range(len(parts))]
    for path, part in zip(paths, parts, strict=True):
        (folder / path).write_bytes(part)
    groups = [{"paths": paths, "weights": specs}]
    manifest = folder / "model.json"
    manifest.write_text(json.dumps({"modelTopology": {}, "weightsManifest": groups} if graph else groups))
    return manifest


def package_tensors(name):
    """The shipped weights of a network under the names and in the layouts of its package."""
    recipes = {
        "faceapi_expression": faceapi_to_flax.expression_recipe,
        "faceapi_age_gender": faceapi_to_flax.age_gender_recipe,
        "facemesh": human_models_to_flax.facemesh_recipe,
        "faceres": human_models_to_flax.faceres_recipe,
        "emotion": human_models_to_flax.emotion_recipe,
    }
    flat = flax.traverse_util.flatten_dict(weights.load_weights(name)[0], sep="/")
    tensors = {}
    for target, part in recipes[name]().items():
        (source,) = part.sources
        array = flat[target]
        if array.shape[:3] == (3, 3, 1) and "depthwise" in target:
            array = array.transpose(0, 1, 3, 2)
        tensors[source] = array[None, None] if target.endswith("slope") else array
    return tensors


@functools.cache
def package_state():
    """The shipped generator as a state dict of its package, with batch normalisation taken out of the kernels."""
    torch = pytest.importorskip("torch", reason="torch, which writes and runs the official networks, is not installed")
    tree, _ = weights.load_weights("dcgan_digiface")
    rng = np.random.default_rng(0)
    state = {}
    for index in range(5):
        kernel, bias = tree[f"layer{index + 1}"]["kernel"], tree[f"layer{index + 1}"]["bias"]
        if index < 4:
            gamma, mean, variance = rng.uniform(0.5, 2, (3, len(bias))).astype(np.float32)
            scale = gamma / np.sqrt(variance + 1e-5)
            kernel = kernel / scale
            norm = f"main.{3 * index + 1}"
            state |= {f"{norm}.weight": gamma, f"{norm}.running_mean": mean, f"{norm}.running_var": variance}
            state |= {f"{norm}.bias": bias + mean * scale, f"{norm}.num_batches_tracked": np.asarray(7)}
        kernel = kernel.transpose(2, 3, 0, 1)
        state[f"main.{3 * index}.weight"] = kernel if index == 0 else kernel[:, :, ::-1, ::-1]
    return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in state.items()}


def write_torch(folder, content):
    import torch

    torch.save(content, folder / "weights.tar")
    return folder / "weights.tar"


def assert_trees_close(got, expected, atol):
    got, expected = (flax.traverse_util.flatten_dict(tree, sep="/") for tree in (got, expected))
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert got[name].dtype == value.dtype
        np.testing.assert_allclose(got[name], value, rtol=0, atol=atol, err_msg=name)


@pytest.mark.parametrize(
    ("name", "quantised", "atol"),
    [
        ("faceapi_expression", None, 0),
        ("faceapi_expression", "uint8", 2e-6),  # its values are 256 levels already
        ("faceapi_age_gender", "uint16", 2e-4),  # half a step of the widest range
        ("emotion", None, 0),
        ("facemesh", None, 0),
        ("faceres", None, 0),
    ],
)
def test_tfjs_round_trip(tmp_path, name, quantised, atol):
    faceapi = name.startswith("faceapi")
    converter = faceapi_to_flax if faceapi else human_models_to_flax
    tensors = package_tensors(name)
    if not faceapi:
        tensors["global_pooling/Mean/reduction_indices"] = np.asarray([1, 2], np.int32)
    source = write_tfjs(tmp_path, tensors, graph=not faceapi, quantised=quantised)
    assert converter.main([str(source), str(tmp_path / name)]) == 0
    tree, config = weights.load_weights(tmp_path / name)
    shipped, shipped_config = weights.load_weights(name)
    assert_trees_close(tree, shipped, atol)
    own = {"sha256", "source_sha256"}
    assert {key: config[key] for key in config.keys() - own} == {
        key: shipped_config[key] for key in shipped_config.keys() - own
    }
    assert network.load_network(tmp_path / name).name == name


def test_dcgan_round_trip(tmp_path):
    """As DataParallel names the layers, too."""
    source = write_torch(tmp_path, {"netG_state_dict": {f"module.{k}": v for k, v in package_state().items()}})
    wrapped, _ = dcgan_to_flax.convert(source)
    source = write_torch(tmp_path, {"netG_state_dict": package_state()})
    assert dcgan_to_flax.main([str(source), str(tmp_path / "copy")]) == 0
    assert_trees_close(wrapped, weights.load_weights(tmp_path / "copy")[0], atol=0)
    shipped = weights.load_weights("dcgan_digiface")[0]
    assert_trees_close(weights.load_weights(tmp_path / "copy")[0], shipped, atol=2e-6)
    assert dcgan.build(weights=str(tmp_path / "copy")).name == "dcgan_digiface"


def without(tensors, *names):
    return {name: value for name, value in tensors.items() if name not in names}


def with_nan(array):
    array = np.array(array)
    array.flat[3] = np.nan
    return array


BAD_TFJS = {
    "missing": (lambda t: without(t, "unknown_9", "unknown_15"), "2 problems: missing unknown_15; missing unknown_9"),
    "extra": (lambda t: t | {"stranger": t["unknown_44"]}, "unexpected stranger"),
    "both": (lambda t: without(t, "unknown_9") | {"a": t["unknown_44"]}, "missing unknown_9; unexpected a"),
    "nan": (lambda t: t | {"unknown_44": with_nan(t["unknown_44"])}, "unknown_44 holds NaN"),
    "shape": (lambda t: t | {"unknown_44": t["unknown_44"][:5]}, r"head/bias is \(5,\), expected \(7,\)"),
    "flat": (lambda t: t | {"unknown_9": t["unknown_9"].ravel()}, r"cannot be made from unknown_9 \(576,\)"),
    "other model": (lambda t: {"a": t["unknown_44"]}, "are none of facemesh, faceres, emotion"),
}


@pytest.mark.parametrize("case", BAD_TFJS)
def test_tfjs_refuses_tensors(tmp_path, case, capsys):
    change, message = BAD_TFJS[case]
    source = write_tfjs(tmp_path, change(package_tensors("emotion")), graph=True)
    with pytest.raises(ValueError, match=message):
        human_models_to_flax.convert(source)
    assert human_models_to_flax.main([str(source), str(tmp_path / "out")]) == 1
    assert str(source) in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def edit_spec(**changes):
    def edit(folder):
        content = json.loads((folder / "model.json").read_text())
        content["weightsManifest"][0]["weights"][0] |= changes
        (folder / "model.json").write_text(json.dumps(content))

    return edit


def cut(name, *, by):
    def edit(folder):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-by] if by > 0 else content + b"0" * -by)

    return edit


BAD_TFJS_FILES = {
    "truncated shard": (cut("model.bin0", by=2), ValueError, "a shard is truncated"),
    "longer shard": (cut("model.bin0", by=-4), ValueError, "belong to different models"),
    "truncated json": (cut("model.json", by=5), ValueError, "not a TensorFlow.js model"),
    "no shard": (lambda folder: (folder / "model.bin0").unlink(), FileNotFoundError, "no such file"),
    "no json": (lambda folder: (folder / "model.json").unlink(), FileNotFoundError, "no such file"),
    "other json": (lambda folder: (folder / "model.json").write_text('{"a": 1}'), ValueError, "not a TensorFlow.js"),
    "string tensor": (edit_spec(dtype="string"), ValueError, "unreadable tensor entry"),
    "no scale": (edit_spec(quantization={"dtype": "uint8"}), ValueError, "unreadable tensor entry"),
    "negative size": (edit_spec(shape=[-1, 3]), ValueError, "unreadable tensor entry"),
    "twice": (edit_spec(name="b"), ValueError, "names b twice"),
}


@pytest.mark.parametrize("case", BAD_TFJS_FILES)
def test_tfjs_refuses_files(tmp_path, case):
    damage, error, message = BAD_TFJS_FILES[case]
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    source = write_tfjs(tmp_path, {"a": values, "b": values}, graph=True)
    np.testing.assert_array_equal(tfjs.read_tfjs(source)["b"], values)
    damage(tmp_path)
    with pytest.raises(error, match=message):
        tfjs.read_tfjs(source)
    assert human_models_to_flax.main([str(source), str(tmp_path / "out")]) == 1
    assert not (tmp_path / "out").exists()


class RunsCode:
    """An object whose pickle calls a function when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def torch_cases(folder):
    """Contents of a checkpoint and what the converter answers."""
    state = package_state()
    nan = state["main.0.weight"].clone()
    nan[0, 0, 0, 0] = float("nan")
    return {
        "missing": ({"netG_state_dict": without(state, "main.4.bias")}, "missing main.4.bias"),
        "extra": ({"netG_state_dict": state | {"main.15.weight": nan}}, "unexpected main.15.weight"),
        "nan": ({"netG_state_dict": state | {"main.0.weight": nan}}, "main.0.weight holds NaN"),
        "shape": (
            {"netG_state_dict": state | {"main.0.weight": state["main.3.weight"][0]}},
            "layer1 cannot be made from main.0.weight",
        ),
        "not a tensor": ({"netG_state_dict": state | {"main.0.weight": "text"}}, "main.0.weight are not tensors"),
        "other model": ({"model": state}, "has no netG_state_dict"),
        "list": ([1, 2], "has no netG_state_dict"),
        "code": ({"netG_state_dict": RunsCode(folder / "executed")}, "not a complete PyTorch archive"),
    }


@pytest.mark.parametrize("case", ["missing", "extra", "nan", "shape", "not a tensor", "other model", "list", "code"])
def test_dcgan_refuses_contents(tmp_path, case):
    pytest.importorskip("torch", reason="torch, which writes and runs the official networks, is not installed")
    content, message = torch_cases(tmp_path)[case]
    source = write_torch(tmp_path, content)
    with pytest.raises(ValueError, match=message):
        dcgan_to_flax.convert(source)
    assert dcgan_to_flax.main([str(source), str(tmp_path / "out")]) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["weights.tar"]


@pytest.mark.parametrize("case", ["truncated", "empty", "text", "plain pickle"])
def test_dcgan_refuses_files(tmp_path, case):
    pytest.importorskip("torch", reason="torch, which writes and runs the official networks, is not installed")
    source = write_torch(tmp_path, {"netG_state_dict": {}})
    content = {
        "truncated": source.read_bytes()[:200],
        "empty": b"",
        "text": b"not an archive\n",
        "plain pickle": pickle.dumps(RunsCode(tmp_path / "executed"), protocol=2),
    }[case]
    source.write_bytes(content)
    with pytest.raises(ValueError, match="not a complete PyTorch archive"):
        dcgan_to_flax.convert(source)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["weights.tar"]
