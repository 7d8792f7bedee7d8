"""Properties that every configuration of the flow must have."""

import dataclasses
from typing import Any, NamedTuple

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from promptgen_jax.flows.base import init_flow, load_flow, save_flow
from promptgen_jax.store import weights
from promptgen_jax.types import Prior

BATCH = 5
BIGGAN_LIKE = Prior(loc=jnp.array([0.0] * 6 + [0.5] * 7), scale=jnp.array([1.0] * 6 + [0.3] * 7), blocks=(6, 7))
SMALL = dict(num_layers=3, hidden_dim=16)
SPLINE = {"kind": "spline", "num_bins": 4}

CONFIGURATIONS = {
    "allinone": (Prior.standard(6), {}),
    "tanh_half": (Prior.standard(6), dict(clamp="tanh_half")),
    "identity_start": (Prior.standard(6), dict(identity_start=True)),
    "conditional": (Prior.standard(6), dict(cond_dim=3)),
    "odd": (Prior.standard(7), {}),
    "two_blocks": (BIGGAN_LIKE, {}),
    "two_blocks_conditional": (BIGGAN_LIKE, dict(cond_dim=3, identity_start=True)),
    "coupling": (Prior.standard(6), dict(architecture="coupling")),
    "coupling_odd": (Prior.standard(7), dict(architecture="coupling", clamp="tanh")),
    "coupling_conditional": (BIGGAN_LIKE, dict(architecture="coupling", cond_dim=3)),
    "equivariant": (BIGGAN_LIKE, dict(conditioning="equivariant", cond_dim=3, cond_scale=2.0)),
    "spline_identity": (Prior.standard(5), dict(transformer=SPLINE, cond_dim=2, identity_start=True)),
}
IDENTITIES = [
    name for name in CONFIGURATIONS if "coupling" in name or "identity" in name or name.endswith("conditional")
]
IDENTITIES.remove("conditional")


@pytest.fixture(scope="module")
def made():
    """Flows by name, made once."""
    cache = {}

    def make(name):
        if name not in cache:
            prior, options = CONFIGURATIONS[name]
            cache[name] = init_flow(jax.random.key(0), prior, **{**SMALL, **options})
        return cache[name]

    return make


class Case(NamedTuple):
    """A flow with params moved well away from their start, noise and conditions, and what it makes of them."""

    flow: Any
    params: Any
    eps: Any
    cond: Any
    out: Any


@pytest.fixture(scope="module", params=CONFIGURATIONS)
def case(request, made):
    flow, params = made(request.param)
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [leaf + 0.3 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    params = jax.tree.unflatten(structure, moved)
    eps = flow.prior.sample(jax.random.key(2), BATCH)
    cond = jax.random.normal(jax.random.key(3), (BATCH, flow.cond_dim)) if flow.cond_dim else None
    return Case(flow, params, eps, cond, evaluate(flow, params, eps, cond))


@jax.jit
def evaluate(flow, params, eps, cond):
    """Everything the tests compare, compiled once per configuration."""
    z, log_det = flow.forward_and_log_det(params, eps, cond)
    back, inverse_log_det = flow.inverse_and_log_det(params, z, cond)

    def one_row(eps, z, cond):
        bijector = flow.bijector(params, cond)
        base = distrax.MultivariateNormalDiag(flow.prior.loc, flow.prior.scale)
        return jax.jacobian(bijector.forward)(eps), distrax.Transformed(base, bijector).log_prob(z)

    def loss(params):
        z, log_det = flow.forward_and_log_det(params, eps, cond)
        return jnp.mean(0.5 * jnp.sum((z - 1) ** 2, axis=1) - log_det)

    jacobian, distrax_log_prob = jax.vmap(one_row)(eps, z, cond)
    return dict(
        z=z,
        log_det=log_det,
        back=back,
        inverse_log_det=inverse_log_det,
        log_prob=flow.log_prob(params, z, cond),
        distrax_log_prob=distrax_log_prob,
        jacobian=jacobian,
        grads=jax.grad(loss)(params),
    )


def test_round_trip(case):
    assert float(jnp.max(jnp.abs(case.out["z"] - case.eps))) > 0.1
    # Each layer may amplify rounding, 1e-7, by exp(2).
    np.testing.assert_allclose(case.out["back"], case.eps, atol=2e-4)
    np.testing.assert_allclose(case.out["inverse_log_det"], -case.out["log_det"], atol=2e-4)


def test_log_det_is_that_of_the_jacobian(case):
    _, expected = np.linalg.slogdet(np.asarray(case.out["jacobian"], np.float64))
    np.testing.assert_allclose(case.out["log_det"], expected, atol=2e-4)


def test_jit_equals_eager_and_rows_do_not_mix(case):
    """One row, eagerly, against the same row of the compiled batch."""
    z, log_det = case.flow.forward_and_log_det(
        case.params, case.eps[1:2], None if case.cond is None else case.cond[1:2]
    )
    np.testing.assert_allclose(z, case.out["z"][1:2], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(log_det, case.out["log_det"][1:2], rtol=1e-4, atol=1e-5)


def test_density(case):
    """Eq. 8, and distrax.Transformed around the bijector of a single row."""
    log_prob = case.out["log_prob"]
    by_hand = case.flow.prior.log_prob(case.eps) - case.out["log_det"]
    np.testing.assert_allclose(log_prob, by_hand, rtol=1e-4, atol=2e-4)
    np.testing.assert_allclose(log_prob, case.out["distrax_log_prob"], rtol=1e-4, atol=2e-4)


def test_sample_and_log_prob(case):
    z, log_q = case.flow.sample_and_log_prob(case.params, jax.random.key(2), BATCH, case.cond)
    np.testing.assert_allclose(z, case.out["z"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(log_q, case.out["log_prob"], rtol=1e-4, atol=2e-4)


def test_every_parameter_is_trained_and_no_buffer_is(case):
    for path, leaf in jax.tree_util.tree_leaves_with_path(case.out["grads"]):
        assert bool(jnp.all(jnp.isfinite(leaf))), path
        assert bool(jnp.any(leaf != 0)), path
    fixed = {"rotations", "undo", "permutations"}
    assert {path[1].key for path, _ in jax.tree_util.tree_leaves_with_path(case.flow.buffers)} <= fixed
    assert not fixed & {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(case.params)}


def test_finite_for_extreme_noise_and_params(case):
    wild = jax.tree.map(lambda leaf: 30 * leaf, case.params)
    z, log_det = case.flow.forward_and_log_det(wild, 100 * case.eps, case.cond)
    assert bool(jnp.all(jnp.isfinite(z)))
    assert bool(jnp.all(jnp.isfinite(log_det)))


def test_saved_and_loaded_is_the_same(case, tmp_path):
    flow, params = case.flow, case.params
    save_flow(tmp_path / "flow", flow, params, extras={"note": jnp.ones(2)}, source="a test")
    again, again_params = load_flow(tmp_path / "flow")
    assert again.module == flow.module
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.all(a == b)), (flow, params), (again, again_params)))


@pytest.mark.parametrize("name", IDENTITIES)
def test_starts_as_the_identity(made, name):
    flow, params = made(name)
    eps = flow.prior.sample(jax.random.key(2), BATCH)
    cond = jnp.ones((BATCH, flow.cond_dim)) if flow.cond_dim else None
    z, log_det = flow.forward_and_log_det(params, eps, cond)
    # Permutations are exact; rotations there and back cost some rounding.
    np.testing.assert_allclose(z, eps, rtol=0, atol=0 if "coupling" in name else 3e-6)
    assert bool(jnp.all(jnp.abs(log_det) < 1e-6))


def test_official_start(made):
    """Global scales start at 1, and linear layers like PyTorch's: uniform within ±1/sqrt(fan_in)."""
    flow, params = init_flow(jax.random.key(0), Prior.standard(128))
    layer = params["flows_0"]["layers_3"]
    np.testing.assert_allclose(0.2 * jnp.log1p(jnp.exp(layer["global_scale"] / 2)), 1.0, rtol=1e-6)
    assert bool(jnp.all(layer["global_offset"] == 0))
    for dense, fan_in in {"Dense_0": 64, "Dense_1": 256}.items():
        kernel = layer["conditioner"][dense]["kernel"] * np.sqrt(fan_in)
        assert kernel.shape[0] == fan_in
        assert 0.99 < float(jnp.max(jnp.abs(kernel))) <= 1.0
        np.testing.assert_allclose(jnp.std(kernel), 1 / np.sqrt(3), rtol=0.02)
        assert 0.9 < float(jnp.max(jnp.abs(layer["conditioner"][dense]["bias"]))) * np.sqrt(fan_in) <= 1.0
    rotations = np.asarray(flow.buffers["flows_0"]["rotations"].whole(), np.float64)
    np.testing.assert_allclose(rotations @ rotations.swapaxes(1, 2), np.tile(np.eye(128), (8, 1, 1)), atol=1e-5)
    np.testing.assert_allclose(np.linalg.det(rotations), 1.0, atol=1e-4)


@pytest.mark.parametrize("options", [{}, dict(architecture="coupling")], ids=["allinone", "coupling"])
def test_density_integrates_to_one(options):
    flow, params = init_flow(jax.random.key(0), Prior.standard(2), num_layers=4, hidden_dim=8, **options)
    params = jax.tree.map(lambda leaf: leaf + 0.3 * jnp.sin(jnp.arange(leaf.size).reshape(leaf.shape)), params)
    axis = np.linspace(-10, 10, 251, dtype=np.float32)
    grid = jnp.asarray(np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2))
    density = jnp.exp(flow.log_prob(params, grid))
    np.testing.assert_allclose(jnp.sum(density) * (axis[1] - axis[0]) ** 2, 1.0, atol=2e-3)


def test_blocks_are_independent(made):
    flow, params = made("two_blocks")
    eps = flow.prior.sample(jax.random.key(0), BATCH)
    z, _ = flow.forward_and_log_det(params, eps)
    changed, _ = flow.forward_and_log_det(params, eps.at[:, :6].add(1.0))
    assert bool(jnp.all(changed[:, 6:] == z[:, 6:]))
    assert bool(jnp.all(changed[:, :6] != z[:, :6]))


def test_condition_matters(made):
    flow, params = made("conditional")
    eps = flow.prior.sample(jax.random.key(0), BATCH)
    z, _ = flow.forward_and_log_det(params, eps, jnp.zeros((BATCH, 3)))
    other, _ = flow.forward_and_log_det(params, eps, jnp.ones((BATCH, 3)))
    assert bool(jnp.all(jnp.any(z != other, axis=1)))


@pytest.mark.parametrize("architecture", ["allinone", "coupling"])
def test_equivariant_flow_is_a_homomorphism(architecture):
    """Appendix B.5: f(f(eps, a) acted on by b) is f(eps, a + b), acting with 0 changes nothing, with -b undoes b."""
    options = dict(conditioning="equivariant", cond_scale=3.0, architecture=architecture, hidden_dim=64)
    flow, params = init_flow(jax.random.key(0), Prior.standard(100), cond_dim=2, **options)
    params = jax.tree.map(lambda leaf: leaf + 0.1 * jnp.sin(jnp.arange(leaf.size).reshape(leaf.shape)), params)
    eps = flow.prior.sample(jax.random.key(1), 256)
    a, b = jax.random.uniform(jax.random.key(2), (2, 256, 2), minval=-1, maxval=1)

    @jax.jit
    def run(flow, params, eps, a, b):
        at_a, at_both = flow.forward_and_log_det(params, eps, a)[0], flow.forward_and_log_det(params, eps, a + b)[0]
        acted = flow.act(params, at_a, b)
        return at_a, at_both, acted, flow.act(params, acted, -b), flow.act(params, at_a, 0 * b)

    at_a, at_both, acted, back, still = run(flow, params, eps, a, b)
    error = np.abs(acted - at_both).max()
    print(f"{architecture}: {error:.1e} of {np.abs(at_both).max():.1f}")
    assert np.abs(at_both - at_a).max() > 1
    assert error < 1e-5
    np.testing.assert_allclose(back, at_a, atol=1e-5)
    np.testing.assert_allclose(still, at_a, atol=1e-5)


def test_compiles_once_for_new_params(made):
    flow, params = made("allinone")
    traces = []

    @jax.jit
    def forward(flow, params, eps):
        traces.append(1)
        return flow.forward_and_log_det(params, eps)

    for step in range(3):
        forward(flow, jax.tree.map(lambda leaf, s=step: leaf + s, params), jnp.full((2, 6), float(step)))
    assert len(traces) == 1


KEY, EPS = jax.random.key(0), jnp.zeros((2, 6))
BAD_CALLS = {
    "option": (lambda f, p: init_flow(KEY, f.prior, num_layer=2), ValueError, "Did you mean 'num_layers'"),
    "architecture": (lambda f, p: init_flow(KEY, f.prior, architecture="alinone"), ValueError, "'allinone'"),
    "clamp": (lambda f, p: init_flow(KEY, f.prior, clamp="tanhhalf"), ValueError, "'tanh_half'"),
    "layers": (lambda f, p: init_flow(KEY, f.prior, num_layers=0), ValueError, "num_layers: got 0"),
    "cond-dim": (lambda f, p: init_flow(KEY, f.prior, cond_dim=-1), ValueError, "cond_dim: got -1"),
    "one-dim": (lambda f, p: init_flow(KEY, Prior.standard(1)), ValueError, "block size: got 1.*at least 2"),
    "raw-key": (lambda f, p: init_flow(jax.random.PRNGKey(0), f.prior), TypeError, "typed key"),
    "noise-width": (lambda f, p: f.forward_and_log_det(p, EPS[:, :5]), ValueError, r"\(2, 5\); expected \(batch, 6\)"),
    "noise-row": (lambda f, p: f.log_prob(p, EPS[0]), ValueError, r"\(6,\); expected \(batch, 6\)"),
    "integers": (lambda f, p: f.inverse_and_log_det(p, EPS.astype(int)), TypeError, "expected float32"),
    "nan": (
        lambda f, p: f.forward_and_log_det(p, EPS.at[0, 0].set(jnp.nan)),
        ValueError,
        "1 of 12 latents values are NaN",
    ),
    "unwanted-cond": (lambda f, p: f.log_prob(p, EPS, jnp.ones((2, 3))), ValueError, "this flow takes none"),
    "no-samples": (lambda f, p: f.sample_and_log_prob(p, KEY, 0), ValueError, "num_samples: got 0"),
    "conditioning": (
        lambda f, p: init_flow(KEY, f.prior, cond_dim=1, conditioning="equivarient"),
        ValueError,
        "'equivariant'",
    ),
    "no-cond": (lambda f, p: init_flow(KEY, f.prior, conditioning="equivariant"), ValueError, "needs a condition"),
    "act": (lambda f, p: f.act(p, EPS, jnp.ones((2, 1))), ValueError, "equivariant flows only"),
    "sample-key": (lambda f, p: f.sample_and_log_prob(p, 0, 2), TypeError, "expected a typed key"),
}


@pytest.mark.parametrize(("call", "error", "match"), BAD_CALLS.values(), ids=BAD_CALLS)
def test_errors(made, call, error, match):
    flow, params = made("allinone")
    with pytest.raises(error, match=match):
        call(flow, params)


@pytest.mark.parametrize(
    ("cond", "match"),
    [(None, r"cond is none; expected \(2, 3\)"), (jnp.ones((2, 4)), r"cond is \(2, 4\)"), (jnp.ones(3), r"\(3,\)")],
    ids=["missing", "width", "unbatched"],
)
def test_condition_errors(made, cond, match):
    flow, params = made("conditional")
    with pytest.raises(ValueError, match=match):
        flow.forward_and_log_det(params, EPS, cond)


def test_loading_errors(made, tmp_path):
    flow, params = made("allinone")
    with pytest.raises(FileNotFoundError, match="no folder of that name"):
        load_flow(tmp_path / "nothing")
    weights.save_weights(tmp_path / "other", {"a": np.ones(1)}, {"kind": "network", "name": "x", "module": "x.X"})
    with pytest.raises(ValueError, match="holds a network, expected a flow"):
        load_flow(tmp_path / "other")
    save_flow(tmp_path / "wrong", dataclasses.replace(flow, buffers={}), params)
    with pytest.raises(ValueError, match="1 wrong entries: missing buffers/flows_0/rotations"):
        load_flow(tmp_path / "wrong")
