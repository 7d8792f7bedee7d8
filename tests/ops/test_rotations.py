"""Rotations against SciPy on 10,000 random pairs, against the official code's, and their gradients at 0 and π."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from official import load_golden
from scipy.spatial.transform import Rotation

from promptgen_jax.ops import rotations

NUM = 10_000
AXES = np.concatenate([np.eye(3), np.random.default_rng(3).normal(size=(5, 3))])
AXES /= np.linalg.norm(AXES, axis=1, keepdims=True)


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    with jax.enable_x64(request.param == "float64"):
        yield request.param


def pairs():
    """Random rotations, and partners at angles that crowd near 0 and π."""
    rng = np.random.default_rng(0)
    one = Rotation.random(NUM, random_state=rng)
    axis = rng.normal(size=(NUM, 3))
    near = 10 ** rng.uniform(-7, 0.4, NUM)
    angle = np.where(rng.random(NUM) < 0.5, near, np.pi - near)
    between = Rotation.from_rotvec(angle[:, None] * axis / np.linalg.norm(axis, axis=1, keepdims=True))
    return one, between * one


def test_euler_angles(dtype):
    angles = np.random.default_rng(1).uniform(-np.pi, np.pi, (NUM, 3)).astype(dtype)
    expected = Rotation.from_euler("XYZ", angles)
    got = jax.jit(rotations.from_euler_xyz)(angles)
    assert got.dtype == dtype
    np.testing.assert_allclose(got, expected.as_matrix(), atol=1e-6)
    clear = np.abs(np.cos(angles[:, 1])) > 0.1  # elsewhere rounding of the matrix decides
    back = jax.jit(rotations.to_euler_xyz)(got)[clear]
    np.testing.assert_allclose(Rotation.from_euler("XYZ", back).as_matrix(), got[clear], atol=2e-6)
    np.testing.assert_allclose(np.exp(1j * back), np.exp(1j * expected.as_euler("XYZ")[clear]), atol=1e-5)


def test_euler_angles_of_a_locked_gimbal(dtype):
    locked = jax.jit(lambda m: (rotations.to_euler_xyz(m), jax.jacobian(rotations.to_euler_xyz)(m)))
    for angles in ((0.3, np.pi / 2, 0.0), (0.3, -np.pi / 2, 0.0), (-1.0, np.pi / 2, 0.4)):
        matrix = Rotation.from_euler("XYZ", angles).as_matrix().astype(dtype)
        back, jacobian = locked(jnp.asarray(matrix))
        assert back[2] == 0
        np.testing.assert_allclose(rotations.from_euler_xyz(back), matrix, atol=2e-6)
        assert np.all(np.isfinite(jacobian))


def test_axis_angle(dtype):
    rng = np.random.default_rng(2)
    vectors = rng.normal(size=(NUM, 3)) * 10 ** rng.uniform(-8, 0.5, (NUM, 1))
    vectors = vectors.astype(dtype)
    got = jax.jit(rotations.from_axis_angle)(vectors)
    assert got.dtype == dtype
    np.testing.assert_allclose(got, Rotation.from_rotvec(vectors).as_matrix(), atol=1e-6)


def test_geodesic_angle(dtype):
    """In float32 what is left is the rounding of the matrices, which SciPy is given as well."""
    one, other = (rotation.as_matrix().astype(dtype) for rotation in pairs())
    got = np.asarray(jax.jit(rotations.geodesic_angle)(one, other))
    expected = (pairs()[0] * pairs()[1].inv()).magnitude()
    assert got.dtype == dtype
    error = np.abs(got - expected).max()
    print(dtype, error)
    assert error < 1e-6


def test_gradients(dtype):
    """By a turn δ of one rotation: the angle grows by 1 per radian about its axis, at 0 and π too."""
    angles = np.array([0.0, 1e-9, 1e-4, 1.0, np.pi - 1e-4, np.pi - 1e-9, np.pi])
    clear = np.ones(7, bool) if dtype == "float64" else np.array([1, 0, 1, 1, 1, 0, 1], bool)  # above rounding
    vectors = angles[:, None, None] * AXES
    turned = Rotation.from_rotvec(vectors.reshape(-1, 3)).as_matrix().reshape(7, -1, 3, 3).astype(dtype)
    still = jnp.eye(3, dtype=dtype)

    def distance(delta, power):
        moved = jnp.matmul(rotations.from_axis_angle(delta), turned, precision="highest")
        return rotations.geodesic_angle(moved, still) ** power

    zero = jnp.zeros(vectors.shape, dtype)
    for power, slopes in ((1, np.ones(7)), (2, 2 * angles)):
        found = np.asarray(jax.jit(jax.grad(lambda delta, p=power: jnp.sum(distance(delta, p))))(zero))
        assert np.all(np.isfinite(found))
        lengths = np.broadcast_to(slopes[:, None], found.shape[:-1])
        np.testing.assert_allclose(np.linalg.norm(found, axis=-1), lengths, atol=2e-3)
        along = np.sum(found * AXES, axis=-1)
        along = np.where(angles[:, None] > 3.1415, np.abs(along), along)  # at π both ways lead back
        np.testing.assert_allclose(along[1:][clear[1:]], lengths[1:][clear[1:]], atol=5e-3)


def test_no_rotation_gives_no_gradient_of_the_square():
    gradient = jax.jit(
        jax.grad(lambda v: jnp.sum(rotations.geodesic_angle(rotations.from_axis_angle(v), jnp.eye(3)) ** 2))
    )
    for length in (0.0, 1e-20, 1e-8):
        value = np.asarray(gradient(jnp.full((4, 3), length)))
        assert np.all(np.isfinite(value))
        assert np.abs(value).max() < 1e-6


def test_axis_angle_gradients_against_differences():
    with jax.enable_x64(True):
        differentiate = jax.jit(jax.vmap(jax.jacobian(rotations.from_axis_angle)))
        for length in (0.0, 1e-9, 9.9e-3, 1.01e-2, 1.0, np.pi, 6.0):
            vectors = jnp.asarray(length * AXES)
            jacobian = differentiate(vectors)
            for k, step in enumerate(1e-6 * np.eye(3)):
                ends = [Rotation.from_rotvec(np.array(vectors + sign * step)).as_matrix() for sign in (1, -1)]
                np.testing.assert_allclose(jacobian[..., k], (ends[0] - ends[1]) / 2e-6, atol=1e-8)


def test_deca_encoder_rotations():
    """The functions alone, at zero, tiny, near π and beyond, with the official angle's straight ends and gradients."""
    arrays = load_golden("deca_encoder")
    matrices = jax.jit(rotations.from_euler_xyz)(arrays["in_rot_euler"])
    np.testing.assert_allclose(matrices, arrays["out_rot_euler_mat"], atol=1e-6)
    vectors = arrays["in_rot_aa"]
    matrices, pullback = jax.vjp(jax.jit(rotations.from_axis_angle), vectors)
    np.testing.assert_allclose(matrices, arrays["out_rot_aa_mat"], atol=1e-6)
    weighting = np.cos(0.01 * np.arange(matrices.size)).reshape(matrices.shape).astype(np.float32)
    np.testing.assert_allclose(pullback(jnp.asarray(weighting))[0], arrays["grad_rot_aa"], atol=2e-5)
    one, other, expected = arrays["in_rel_R1"], arrays["in_rel_R2"], arrays["out_rel_angle"]
    np.testing.assert_allclose(jax.jit(rotations.official_angle)(one, other), expected, atol=2e-5)

    def weighted(one):
        return jnp.sum(rotations.official_angle(one, other) ** 2 * np.cos(0.01 * np.arange(len(one))))

    np.testing.assert_allclose(jax.jit(jax.grad(weighted))(one), arrays["grad_rel_R1"], atol=3e-3)
    inside = (expected > 0.015) & (expected < 3.12)
    np.testing.assert_allclose(jax.jit(rotations.geodesic_angle)(one, other)[inside], expected[inside], atol=2e-6)
