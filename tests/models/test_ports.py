"""The six shipped networks: golden parity, gradients, head pose.

Golden arrays come from TensorFlow.js 4.22, the face-api library itself, and PyTorch; see SOURCE.md of each folder.
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import rotated_landmarks

from promptgen_jax.generators import dcgan
from promptgen_jax.models import facemesh, faceres, network

GOLDEN = Path(__file__).parents[1] / "golden"
NETWORKS = ("faceapi_expression", "faceapi_age_gender", "emotion", "facemesh", "faceres")


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


HEAD_POSE = jax.jit(facemesh.head_pose)


@pytest.mark.parametrize("angle", [-60.0, -20.0, 0.0, 35.0])
@pytest.mark.parametrize("axis", ["yaw", "pitch", "roll"])
def test_head_pose_of_rotated_face(axis, angle):
    pose = np.asarray(HEAD_POSE(rotated_landmarks(**{axis: angle})))[0]
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


# --- the generator ---------------------------------------------------------------------------------------------------


def test_generator_images_are_nominally_in_range():
    images = run_generator()[0]
    assert images.shape == (8, 3, 64, 64)
    assert np.abs(images).max() <= 1


def test_generator_refuses_latents():
    generator = dcgan.tiny()
    with pytest.raises(ValueError, match=r"expected \(batch, 6\)"):
        generator(jax.random.key(0), jnp.zeros((2, 5)))
