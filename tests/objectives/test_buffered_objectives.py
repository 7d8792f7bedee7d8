"""Objectives with a memory or a tempered target: their samples are of the right distribution, by closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import promptgen_jax as pg
from promptgen_jax import parts
from promptgen_jax.controls import synthetic as toy
from promptgen_jax.generators import synthetic
from promptgen_jax.objectives import FAB, CGMRelax, Mixed
from promptgen_jax.objectives._buffer import Buffer
from promptgen_jax.objectives.forward_kl import coldest

FLOW = {"num_layers": 2, "hidden_dim": 8, "architecture": "coupling"}  # starts as the identity: q is the prior
MEAN, VARIANCE = 8 / 9, 1 / 9  # of N(0, 1) exp(-4 (z - 1)²)


def make_ebm():
    """Normal in the first of two coordinates, the prior in the second."""
    generator = pg.FunctionGenerator(pg.Prior.standard(2), lambda z: jnp.tile(z[:, None, None, :1], (1, 1, 1, 3)))
    return pg.LatentEBM(generator, (pg.FunctionControl(lambda x: 4 * (x[:, 0, 0, 0] - 1) ** 2),))


def thirds():
    """A moment constraint on a smooth step of the latent itself."""
    return pg.LatentEBM(synthetic.build(problem="wells"), (toy.build(energy="moment", mu={"a_1": 0.7}),))


def run(objective, ebm, steps, rate=0.0):
    """State and metrics after calls with a flow that does not move."""
    flow, params = pg.init_flow(jax.random.key(0), ebm.generator.prior, **FLOW)
    state, metrics = objective.init(ebm, flow, params), None
    loss = jax.jit(lambda params, state, key: objective.loss(params, state, key, ebm, flow))
    for step in range(steps):
        _, (state, metrics) = loss(params, state, jax.random.key(step))
    return state, metrics


def weighted(buffer):
    weight = np.asarray(jax.nn.softmax(buffer.log_weight))
    mean = weight @ np.asarray(buffer.z)
    return mean, weight @ (np.asarray(buffer.z) - mean) ** 2


def test_the_buffer_of_mixed_holds_the_target():
    state, metrics = run(Mixed(batch_size=512, forward_batch=8192, buffer_size=8192), make_ebm(), 8)
    mean, variance = weighted(state)
    np.testing.assert_allclose(mean, [MEAN, 0], atol=0.06)
    np.testing.assert_allclose(variance, [VARIANCE, 1], atol=0.1)
    exact = np.log(2 * np.pi) + 0.5 * (MEAN**2 + VARIANCE) + 0.5  # E_target[-log p_z], and q is the prior
    assert float(metrics["forward"]) == pytest.approx(exact, abs=0.06)


def test_samples_that_mixed_leads_are_of_the_target_too():
    """Their weights have the mean Z, exp(-4/9)/3, and are more even; where the buffer is good, none is led."""
    options = {"batch_size": 512, "buffer_size": 8192, "tempered": 512, "distributions": 8, "leapfrog": 10}
    state, metrics = run(Mixed(forward_batch=8192, **options), make_ebm(), 8)
    mean, variance = weighted(state)
    np.testing.assert_allclose(mean, [MEAN, 0], atol=0.06)
    np.testing.assert_allclose(variance, [VARIANCE, 1], atol=0.1)
    assert float(jax.nn.logsumexp(state.log_weight) - np.log(8192)) == pytest.approx(-4 / 9 - np.log(3), abs=0.05)
    assert metrics["accepted"] > 0.4
    plain, _ = run(Mixed(forward_batch=8192, batch_size=512, buffer_size=8192), make_ebm(), 8)
    assert float(metrics["ess"]) > 1.1 * float(plain.ess())
    _, unmoved = run(Mixed(forward_batch=16, **options), make_ebm(), 3)
    assert unmoved["accepted"] == 0


def test_fab_leads_to_where_the_flow_is_too_thin():
    """To p²/q: N(m, v)² / N(0, 1) is normal of precision 2 / v - 1, whose mean is 2 m / v over that."""
    state, metrics = run(FAB(batch_size=512, every=1, buffer_size=4096, step_size=0.3), make_ebm(), 8)
    mean, variance = weighted(state.buffer)
    precision = 2 / VARIANCE - 1
    np.testing.assert_allclose(mean, [2 * MEAN / VARIANCE / precision, 0], atol=0.08)
    np.testing.assert_allclose(variance, [1 / precision, 1], rtol=0.2)
    assert metrics["accepted"] > 0.4


def test_a_ring_replaces_its_oldest():
    buffer = Buffer.empty(make_ebm(), 4)
    for start in (0, 3):
        z = jnp.arange(start, start + 3.0)[:, None] * jnp.ones((1, 2))
        buffer = buffer.add(z, None, jnp.array([0.0, jnp.nan, 0.0]), jnp.zeros(3))
    assert sorted(np.asarray(buffer.z[:, 0])) == [2, 3, 4, 5]
    chosen = np.asarray(buffer.rows(buffer.choose(jax.random.key(0), 99))[0][:, 0])
    assert [int(np.sum(chosen == value)) for value in (2, 3, 4, 5)] == [33, 33, 0, 33], "4 has no weight"


def test_a_target_as_cold_as_the_samples_can_bear():
    energy = 10 * jax.random.normal(jax.random.key(0), (256,))
    t = coldest(jnp.zeros(256), energy, 64.0)
    weight = jax.nn.softmax(-t * energy)
    assert 0 < t < 1
    assert float(1 / jnp.sum(weight**2)) == pytest.approx(64, rel=1e-2)
    assert coldest(jnp.zeros(256), 1e-3 * energy, 64.0) == 1


def test_the_gradient_of_cgm_relax():
    """That of |E[gamma] - mu|² + λ KL, by central differences in the mean of a normal."""
    ebm = thirds()
    flow, params = pg.init_flow(jax.random.key(0), ebm.generator.prior, **FLOW)
    bias = lambda tree: tree["flows_0"]["layers_1"]["conditioner"]["Dense_2"]["bias"]  # noqa: E731
    objective = CGMRelax(batch_size=4096, relaxation=0.3)
    found = bias(jax.grad(lambda params: objective(params, jax.random.key(1), ebm, flow)[0])(params))[1:]

    def exact(shift):
        eps = ebm.generator.prior.sample(jax.random.key(2), 100_000)
        share = jnp.mean(jax.nn.sigmoid(6 * (eps.sum(axis=1) + shift)))
        return 2 * (share - 0.7) ** 2 + 0.3 * shift**2 / 2

    wanted = (exact(1e-2) - exact(-1e-2)) / 2e-2
    np.testing.assert_allclose(found, wanted, rtol=0.2)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mixed", {"forward_share": 1.5}, "forward_share"),
        ("mixed", {"tempered": 99}, "tempered is 99, of a batch of"),
        ("mixed", {"tempered": 4, "leapfrog": 0}, "leapfrog"),
        ("fab", {"distributions": 0}, "distributions"),
        ("forward_kl", {"prior_share": -0.1}, "prior_share"),
        ("annealed", {"least_es": 0.1}, "least_ess"),
        ("cgm_relax", {"relaxation": 0.0}, "relaxation"),
        ("cgm_relax", {}, "no moment constraint"),
    ],
)
def test_options_are_checked(name, options, message):
    with pytest.raises(ValueError, match=message):
        pg.fit(make_ebm(), flow=FLOW, objective=name, objective_options=options, num_steps=1, quiet=True)


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("mixed", {"forward_share": 0.3, "buffer_size": 64}),
        ("mixed", {"tempered": 4, "distributions": 2, "leapfrog": 1}),
        ("fab", {"distributions": 3}),
        ("annealed", {"least_ess": 0.1}),
        ("cgm_relax", {"relaxation": 2.0}),
    ],
)
def test_every_objective_trains_and_keeps_what_is_best(name, changed, tmp_path):
    options = {"num_steps": 3, "batch_size": 8, "eval_every": 3, "eval_size": 8, "log_every": 1, "quiet": True}
    ebm = thirds() if name == "cgm_relax" else make_ebm()
    options |= {"objective": name, "objective_options": changed, "workdir": tmp_path}
    prompt, history = pg.fit(ebm, flow=FLOW, **options)
    told = prompt.recipe["objective"]["options"]
    assert {option: told[option] for option in changed} == changed
    assert len(history) == 3
    assert all(np.isfinite(value) for line in history for value in line.values())
    assert name in parts.available("objectives")
