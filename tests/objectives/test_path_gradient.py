"""Sticking the landing: the gradient of reverse KL in expectation, without noise where the flow is exact."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import promptgen_jax as pg
from promptgen_jax.objectives import PathGradient, ReverseKL

FLOW = {"num_layers": 2, "hidden_dim": 8}
DIM = 4


def make_ebm(weight):
    generator = pg.FunctionGenerator(pg.Prior.standard(DIM), lambda z: jnp.tile(z[:, None, :, None], (1, 1, 1, 3)))
    control = pg.FunctionControl(lambda x: jnp.sum((x[:, 0, :, 0] - 1) ** 2, axis=1), weight=weight)
    return pg.LatentEBM(generator, (control,))


def gradient(objective, params, key, ebm, flow):
    found = jax.jit(jax.grad(lambda params, key: objective(params, key, ebm, flow)[0]))(params, key)
    return np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(found)])


def test_it_is_the_gradient_of_reverse_kl_in_expectation():
    ebm = make_ebm(0.5)
    flow, params = pg.init_flow(jax.random.key(0), ebm.generator.prior, **FLOW)
    key = jax.random.key(1)
    path, whole = (gradient(kind(batch_size=4096), params, key, ebm, flow) for kind in (PathGradient, ReverseKL))
    assert np.linalg.norm(path - whole) < 0.2 * np.linalg.norm(whole)
    path, whole = (kind(batch_size=64)(params, key, ebm, flow)[1] for kind in (PathGradient, ReverseKL))
    for name in whole:
        assert float(path[name]) == pytest.approx(float(whole[name]), rel=1e-4, abs=1e-4)


def test_every_sample_has_no_gradient_where_the_flow_is_the_target():
    """The target is the prior and the flow the identity: reverse KL still has the noise of its score."""
    ebm = make_ebm(0.0)
    flow, params = pg.init_flow(jax.random.key(0), ebm.generator.prior, **FLOW, architecture="coupling")
    path, whole = (
        gradient(kind(batch_size=1), params, jax.random.key(2), ebm, flow) for kind in (PathGradient, ReverseKL)
    )
    assert np.max(np.abs(path)) < 1e-5
    assert np.max(np.abs(whole)) > 0.1
