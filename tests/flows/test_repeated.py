"""Layers as the body of a loop do what they do one after the other, and make no larger program."""

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import promptgen_jax as pg
from benchmarks import counting
from promptgen_jax.flows import bijectors
from promptgen_jax.types import Prior


def moved(params):
    return jax.tree.map(lambda leaf: leaf + 0.2 * jnp.sin(jnp.arange(leaf.size)).reshape(leaf.shape), params)


@pytest.mark.parametrize(("dim", "num_layers"), [(6, 5), (7, 4), (7, 1)], ids=["alone", "odd", "one"])
def test_couplings_in_a_loop_are_those_one_after_the_other(dim, num_layers):
    """Written out: a permutation, then the affine map of the last half by what a perceptron makes of the first."""
    options = dict(architecture="coupling", num_layers=num_layers, hidden_dim=8)
    flow, params = pg.init_flow(jax.random.key(0), Prior.standard(dim), **options)
    params, eps = moved(params), flow.prior.sample(jax.random.key(1), 3)
    z, log_det = flow.forward_and_log_det(params, eps)

    permutations = np.asarray(flow.buffers["flows_0"]["permutations"])
    x, total = np.asarray(eps, np.float64), 0.0
    for index, permutation in enumerate(permutations[:-1]):
        x, split = x[:, permutation], dim - dim // 2 if index % 2 == 0 else dim // 2
        layer = params["flows_0"][f"layers_{index}"]["conditioner"]
        raw = x[:, :split]
        for dense in range(3):
            raw = raw @ np.asarray(layer[f"Dense_{dense}"]["kernel"]) + np.asarray(layer[f"Dense_{dense}"]["bias"])
            raw = np.where(raw < 0, 0.1 * raw, raw) if dense < 2 else raw
        log_scale, shift = 2 * np.tanh(raw[:, : dim - split] / 2), raw[:, dim - split :]
        x, total = (
            np.concatenate([x[:, :split], x[:, split:] * np.exp(log_scale) + shift], axis=1),
            (total + log_scale.sum(axis=1)),
        )
    np.testing.assert_allclose(z, x[:, permutations[-1]], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(log_det, total, rtol=1e-5, atol=1e-5)


def test_a_program_of_couplings_does_not_grow_with_their_number():
    def equations(num_layers):
        options = dict(architecture="coupling", num_layers=num_layers, hidden_dim=8)
        flow, params = pg.init_flow(jax.random.key(0), Prior.standard(6), **options)
        gradient = jax.grad(lambda params, flow, z: jnp.sum(flow.log_prob(params, z)))
        return counting.equations(jax.jit(gradient).trace(params, flow, jnp.zeros((2, 6))))

    assert equations(32) < 1.05 * equations(4)


def test_repeated():
    """Three shifts and scales in a row, each its own, and back."""
    arrays, shared = (jnp.array([1.0, 2.0, 4.0]), jnp.array([0.5, -1.0, 3.0])), jnp.array([2.0])
    acting = bijectors.Repeated(
        lambda own, all: [distrax.Block(distrax.ScalarAffine(own[1] * jnp.ones(2), scale=own[0] * all), 1)],
        arrays,
        shared,
    )
    x = jnp.array([[1.0, -1.0]])
    y, log_det = acting.forward_and_log_det(x)
    np.testing.assert_allclose(y, ((x * 2 + 0.5) * 4 - 1) * 8 + 3)
    np.testing.assert_allclose(log_det, [2 * np.log(64)], rtol=1e-6)
    back, inverse = acting.inverse_and_log_det(y)
    np.testing.assert_allclose(back, x, atol=1e-6)
    np.testing.assert_allclose(inverse, -log_det, rtol=1e-6)
