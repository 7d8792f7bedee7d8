"""The six shipped networks: golden parity, gradients, the operations they stand on, and their converters.

Golden arrays come from TensorFlow.js 4.22, the face-api library itself, and PyTorch; see SOURCE.md of each folder.
"""

import functools
import itertools
import json
import pickle
from pathlib import Path

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from convert import dcgan_to_flax, faceapi_to_flax, human_models_to_flax, reading
from promptgen_jax import network, weights
from promptgen_jax.generators import dcgan
from promptgen_jax.models import facemesh, faceres
from promptgen_jax.ops import depthwise, resample

GOLDEN = Path(__file__).parent / "golden"
NETWORKS = ("faceapi_expression", "faceapi_age_gender", "emotion", "facemesh", "faceres")


@pytest.fixture(autouse=True)
def highest_precision():
    with jax.default_matmul_precision("highest"):
        yield


def golden(name):
    return dict(np.load(GOLDEN / name / "golden.npz"))


load_network = functools.cache(network.load_network)


@functools.cache
def run_network(name):
    """Outputs for the golden images, and the gradient of the sum of their squares, from one compilation."""
    net = load_network(name)

    @jax.jit
    def run(net, images):
        def total(images):
            outputs = net(images)
            return sum(jnp.sum(output**2) for output in outputs.values()), outputs

        return jax.grad(total, has_aux=True)(images)

    gradient, outputs = run(net, golden(name)["in_image"])
    return jax.tree.map(np.asarray, (outputs, gradient))


@functools.cache
def run_generator():
    """DCGAN images (B, 3, H, W) in [-1, 1] and the golden gradient, from one compilation."""
    generator, arrays = dcgan.build(), golden("dcgan_digiface")
    shape = arrays["out_image_nchw"].shape
    # the golden run took the cosine of float32 angles, which near 1000 are 3e-5 off
    weighting = np.cos(np.arange(np.prod(shape), dtype=np.float32) * np.float32(0.01)).reshape(shape)

    @jax.jit
    def run(generator, z):
        def total(z):
            images = 2 * generator(jax.random.key(0), z).transpose(0, 3, 1, 2) - 1
            return jnp.sum(images * weighting), images

        return jax.grad(total, has_aux=True)(z)

    gradient, images = run(generator, arrays["in_z"])
    return np.asarray(images), np.asarray(gradient)


@functools.cache
def run_faceres_rgb():
    tree = load_network("faceres").weights
    module = faceres.FaceRes(convention="rgb")
    return jax.tree.map(np.asarray, jax.jit(module.apply)({"params": tree}, golden("faceres")["in_image"]))


def softmax(logits):
    return np.asarray(jax.nn.softmax(logits))


# golden array -> (our value of it, absolute tolerance): 1e-4, or 1e-3 of a pixel for landmarks
PARITY = {
    ("dcgan_digiface", "out_image_nchw"): (lambda: run_generator()[0], 1e-4),
    ("dcgan_digiface", "grad_z"): (lambda: run_generator()[1], 1e-4),
    ("faceapi_expression", "out_probs"): (
        lambda: softmax(run_network("faceapi_expression")[0]["expression"]),
        1e-4,
    ),
    ("faceapi_age_gender", "out_gender"): (
        lambda: softmax(run_network("faceapi_age_gender")[0]["gender"]),
        1e-4,
    ),
    ("faceapi_age_gender", "out_age"): (lambda: run_network("faceapi_age_gender")[0]["age"][:, None], 1e-4),
    ("emotion", "out_logits"): (lambda: run_network("emotion")[0]["emotion"], 1e-4),
    ("emotion", "out_probs"): (lambda: softmax(run_network("emotion")[0]["emotion"]), 1e-4),
    ("facemesh", "out_mesh"): (lambda: run_network("facemesh")[0]["landmarks"], 1e-3),
    ("facemesh", "out_contours"): (lambda: run_network("facemesh")[0]["contours"], 1e-3),
    ("facemesh", "out_faceflag"): (lambda: softmax(run_network("facemesh")[0]["face"])[:, 1:], 1e-4),
}
for convention, outputs in {"bgr": lambda: run_network("faceres")[0], "rgb": run_faceres_rgb}.items():
    for array, value in {
        "embedding": lambda outputs: outputs["embedding"],
        "gender": lambda outputs: softmax(outputs["gender"])[:, 1:],
        "gender_logit": lambda outputs: outputs["gender"][:, 1:],
        "age": lambda outputs: softmax(outputs["age_bins"]),
        "age_logits": lambda outputs: outputs["age_bins"],
    }.items():
        PARITY["faceres", f"{convention}_out_{array}"] = (
            lambda outputs=outputs, value=value: value(outputs()),
            1e-4,
        )


@pytest.mark.parametrize(("name", "array"), PARITY, ids=lambda part: part)
def test_parity(name, array):
    value, tolerance = PARITY[name, array]
    expected = golden(name)[array]
    got = value()
    assert got.shape == expected.shape
    # rtol: years and gradients are of order 30, where float32 resolves 2e-6 and sums of many terms ten times that
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=tolerance)


def test_every_golden_output_is_compared():
    outputs = {
        (name, array)
        for name in ("dcgan_digiface", *NETWORKS)
        for array in golden(name)
        if "out_" in array or array.startswith("grad_")
    }
    assert outputs == set(PARITY)


@pytest.mark.parametrize("name", NETWORKS)
def test_image_gradients_are_finite(name):
    gradient = run_network(name)[1]
    assert np.all(np.isfinite(gradient))
    assert np.all(np.any(gradient != 0, axis=(1, 2, 3)))


@pytest.mark.parametrize("name", NETWORKS)
def test_labels_and_shapes(name):
    net, outputs = load_network(name), run_network(name)[0]
    assert net.attributes
    for attribute, labels in net.attributes:
        assert outputs[attribute].shape == (8, len(labels))
    assert net.license
    other_size = jax.eval_shape(net, jax.ShapeDtypeStruct((2, 50, 37, 3), jnp.float32))
    assert {key: value.shape[1:] for key, value in other_size.items()} == {
        key: value.shape[1:] for key, value in outputs.items()
    }


def test_faceres_refuses_unknown_convention():
    with pytest.raises(ValueError, match="'grb'; expected 'bgr' or 'rgb'"):
        faceres.FaceRes(convention="grb").init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))


# --- head pose -------------------------------------------------------------------------------------------------------


def rotated_landmarks(yaw=0.0, pitch=0.0, roll=0.0):
    """A face with the four landmarks of the pose, turned by angles in degrees; x right, y down, z away."""
    points = np.zeros((facemesh.NUM_LANDMARKS, 3), np.float32)
    points[facemesh.FOREHEAD], points[facemesh.CHIN] = (0, -50, 0), (0, 50, 0)
    points[facemesh.RIGHT_CHEEK], points[facemesh.LEFT_CHEEK] = (-40, 0, 0), (40, 0, 0)
    a, b, c = np.radians([yaw, pitch, roll])
    about_y = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    about_z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return jnp.asarray((points @ (about_y @ about_x @ about_z).T + 96)[None], jnp.float32)


@pytest.mark.parametrize("angle", [-60.0, -20.0, 0.0, 35.0])
@pytest.mark.parametrize("axis", ["yaw", "pitch", "roll"])
def test_head_pose_of_rotated_face(axis, angle):
    pose = np.asarray(facemesh.head_pose(rotated_landmarks(**{axis: angle})))[0]
    expected = {"yaw": 0.0, "pitch": 0.0, "roll": 0.0, axis: angle}
    np.testing.assert_allclose(pose, list(expected.values()), atol=1e-3)


POSE_JACOBIAN = jax.jit(jax.jacobian(facemesh.head_pose))


@pytest.mark.parametrize(
    "landmarks",
    [jnp.zeros((1, 468, 3)), rotated_landmarks(), rotated_landmarks(roll=90.0), rotated_landmarks(yaw=90.0)],
    ids=["coinciding", "frontal", "lying", "profile"],
)
def test_head_pose_gradient_is_finite(landmarks):
    assert np.all(np.isfinite(POSE_JACOBIAN(landmarks)))


# --- operations ------------------------------------------------------------------------------------------------------


def brute_force_resize(images, size):
    """The rule pixel by pixel: source = destination · in / out, floor and floor + 1 clamped at the border."""
    batch, height, width, channels = images.shape
    out = np.zeros((batch, size, size, channels))
    for i, j in itertools.product(range(size), repeat=2):
        y, x = i * height / size, j * width / size
        top, left = int(np.floor(y)), int(np.floor(x))
        bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
        upper = images[:, top, left] * (1 - (x - left)) + images[:, top, right] * (x - left)
        lower = images[:, bottom, left] * (1 - (x - left)) + images[:, bottom, right] * (x - left)
        out[:, i, j] = upper * (1 - (y - top)) + lower * (y - top)
    return out


@pytest.mark.parametrize(("height", "width", "size"), [(8, 8, 14), (9, 5, 7), (16, 16, 5), (6, 6, 6), (1, 3, 4)])
def test_resize_matches_brute_force(height, width, size):
    images = np.random.default_rng(0).uniform(size=(2, height, width, 3)).astype(np.float32)
    got = resample.resize_bilinear_legacy(jnp.asarray(images), size)
    np.testing.assert_allclose(got, brute_force_resize(images, size), atol=1e-6)


def assert_same_values_and_gradients(ours, reference, arguments, atol):
    """Compares the functions, and the gradients of a curved function of them with respect to all arguments."""

    @functools.partial(jax.jit, static_argnums=0)
    def both(function, *arguments):
        outputs, pullback = jax.vjp(function, *arguments)
        return outputs, pullback(jnp.cos(outputs))

    for got, expected in zip(
        jax.tree.leaves(both(ours, *arguments)), jax.tree.leaves(both(reference, *arguments)), strict=True
    ):
        np.testing.assert_allclose(got, expected, atol=atol)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (7, 10), (2, 1)])
def test_depthwise_matches_lax(height, width, stride):
    images = jax.random.normal(jax.random.key(0), (2, height, width, 4))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 1, 4))

    def reference(images, kernel):
        return lax.conv_general_dilated(
            images,
            kernel,
            (stride, stride),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=4,
        )

    ours = functools.partial(depthwise.depthwise_conv3x3, stride=stride, shifted=True)
    # sums of up to 160 products of order 1
    assert_same_values_and_gradients(ours, reference, (images, kernel), atol=2e-5)


def test_depthwise_second_derivative():
    images = jax.random.normal(jax.random.key(0), (1, 4, 4, 2))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 1, 2))

    def curvature(shifted):
        def total(images):
            return jnp.sum(depthwise.depthwise_conv3x3(images, kernel, stride=2, shifted=shifted) ** 3)

        return jax.jit(jax.grad(lambda images: jnp.sum(jax.grad(total)(images) ** 2)))(images)

    np.testing.assert_allclose(curvature(True), curvature(False), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("shape", "stride"), [((3, 3, 4, 1), 1), ((3, 3, 1, 5), 1), ((5, 5, 1, 4), 1), ((3, 3, 1, 4), 3)]
)
def test_depthwise_refuses(shape, stride):
    with pytest.raises(ValueError, match="expected"):
        depthwise.depthwise_conv3x3(jnp.zeros((1, 8, 8, 4)), jnp.zeros(shape), stride=stride)


@pytest.mark.parametrize("window", [2, 3])
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (7, 10), (5, 3)])
def test_max_pool_matches_lax(height, width, padding, window):
    images = jax.random.normal(jax.random.key(0), (2, height, width, 4))
    assert_same_values_and_gradients(
        functools.partial(depthwise.max_pool, window=window, padding=padding),
        lambda images: nn.max_pool(images, (window, window), (2, 2), padding),
        (images,),
        atol=1e-6,
    )


def test_max_pool_gives_ties_once():
    gradient = jax.grad(lambda images: jnp.sum(depthwise.max_pool(images, window=3)))(jnp.ones((1, 6, 6, 1)))
    assert float(jnp.sum(gradient)) == 9


# --- converters ------------------------------------------------------------------------------------------------------


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
    torch = pytest.importorskip("torch")
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
    source = write_torch(tmp_path, {"netG_state_dict": package_state()})
    assert dcgan_to_flax.main([str(source), str(tmp_path / "copy")]) == 0
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
    np.testing.assert_array_equal(reading.read_tfjs(source)["b"], values)
    damage(tmp_path)
    with pytest.raises(error, match=message):
        reading.read_tfjs(source)
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
    pytest.importorskip("torch")
    content, message = torch_cases(tmp_path)[case]
    source = write_torch(tmp_path, content)
    with pytest.raises(ValueError, match=message):
        dcgan_to_flax.convert(source)
    assert dcgan_to_flax.main([str(source), str(tmp_path / "out")]) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["weights.tar"]


@pytest.mark.parametrize("case", ["truncated", "empty", "text", "plain pickle"])
def test_dcgan_refuses_files(tmp_path, case):
    pytest.importorskip("torch")
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


# --- the generator ---------------------------------------------------------------------------------------------------


def test_generator_images_are_nominally_in_range():
    images = run_generator()[0]
    assert images.shape == (8, 3, 64, 64)
    assert np.abs(images).max() <= 1


def test_generator_refuses_latents():
    generator = dcgan.tiny()
    with pytest.raises(ValueError, match=r"expected \(batch, 6\)"):
        generator(jax.random.key(0), jnp.zeros((2, 5)))
