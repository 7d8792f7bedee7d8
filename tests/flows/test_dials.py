"""Strengths as conditions: one flow for every strength of a control, exactly the identity where all are 0."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import FLOW, OPTIONS, as_picture, some_prompt

import promptgen_jax as pg
from promptgen_jax.evaluation.closed_forms import linear_target

KEY = jax.random.key(0)
TARGET, SCALE = (1.0, -1.0, 0.5, 0.0, 0.3, -0.6, 0.2, 0.8), 0.5
ONE = pg.Conditions.of_strengths({"near": (0, 1)})
TWO = pg.Conditions.of_strengths({"near": (0, 1), "small": (0, 1)})


def small(images):
    return 0.5 * jnp.sum(images[:, 0, :, 0] ** 2, axis=-1)


def bench(cond_prior=ONE):
    """A linear generator of eight dimensions under quadratic energies, whose targets are normal at every strength."""
    near = pg.load_control("synthetic", energy="quadratic", target=TARGET, scale=SCALE, name="near")
    controls = (near, pg.FunctionControl(function=small, name="small"))
    wanted = tuple(control for control in controls if control.name in cond_prior.names)
    return pg.LatentEBM(pg.load_generator("synthetic", problem="linear"), wanted, cond_prior)


@pytest.fixture(scope="module")
def dial():
    options = OPTIONS | {"num_steps": 500, "batch_size": 256, "learning_rate": 5e-3, "log_every": 100}
    return pg.fit(bench(), flow=FLOW | {"num_layers": 6, "hidden_dim": 32}, **options)[0]


def rows(strengths, num):
    return jnp.broadcast_to(jnp.array(strengths, jnp.float32), (num, len(strengths)))


def test_the_target_is_tilted_by_the_strength():
    """log p(z|s) = log p_z - Σ s_i λ_i E_i, each sample with its own s; without s the target is not defined."""
    ebm = bench(TWO)
    ebm = ebm.replace(controls=(ebm.controls[0], ebm.controls[1].replace(weight=3.0)))
    z, cond = ebm.generator.prior.sample(KEY, 5), TWO.sample(KEY, 5)
    energies = ebm.energies(KEY, z)
    wanted = ebm.generator.prior.log_prob(z) - cond[:, 0] * energies["near"] - 3 * cond[:, 1] * energies["small"]
    np.testing.assert_allclose(ebm.log_prob(KEY, z, cond), wanted, rtol=1e-6)
    with pytest.raises(ValueError, match="pass cond, which has the strength of near, small"):
        ebm.log_prob(KEY, z)


@pytest.mark.full
def test_one_training_reaches_the_target_at_every_strength(dial):
    """Mean, covariance, and the free energy against the closed form; the order of the samples is that of the noise."""
    ebm, num = bench(), 20000
    eps = dial.prior.sample(jax.random.key(5), num)
    for strength in (0.1, 0.3, 0.6, 1.0):
        exact = linear_target(ebm.generator, TARGET, SCALE / np.sqrt(strength))
        cond = rows([strength], num)
        z, log_det = dial.flow.forward_and_log_det(dial.params, eps, cond)
        deviation = np.sqrt(np.diag(exact.covariance))
        assert np.max(np.abs(z.mean(0) - exact.mean) / deviation) < 0.1
        assert np.linalg.norm(np.cov(z.T) - exact.covariance) < 0.1 * np.linalg.norm(exact.covariance)
        kl = dial.prior.log_prob(eps) - log_det - ebm.log_prob(KEY, z, cond) + exact.log_z
        assert -0.01 < float(kl.mean()) < 0.06


def test_identity_at_zero_to_the_last_bit(dial):
    """After training, forward and back, with and without jit; a thousandth of strength already moves."""
    eps = dial.prior.sample(KEY, 64)
    off, little = rows([0.0], 64), rows([0.001], 64)
    for forward in (dial.flow.forward_and_log_det, jax.jit(dial.flow.forward_and_log_det)):
        z, log_det = forward(dial.params, eps, off)
        assert np.array_equal(z, eps)
        assert np.array_equal(log_det, np.zeros(64))
    assert np.array_equal(dial.noise(eps, off), eps)
    assert np.array_equal(dial.log_prob(eps, off), dial.prior.log_prob(eps))
    assert not np.array_equal(dial.latents(eps, little), eps)
    plain = dial.sample(KEY, 8, strength={"near": 0.0})
    assert np.array_equal(plain, some_prompt(dial.generator, scale=0.0).sample(KEY, 8))  # a flow that does nothing


def test_splines_have_dials_too():
    """At 0 their rounding stays away, forward and back, and close to it they do next to nothing."""
    options = FLOW | {"num_layers": 2, "transformer": {"kind": "spline", "num_bins": 4}, "dials": (0,)}
    flow, params = pg.init_flow(KEY, pg.Prior.standard(4), cond_dim=1, **options)
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)
    eps, distance = flow.prior.sample(KEY, 64), []
    for strength in (0.0, 1e-4, 1.0):
        z, log_det = flow.forward_and_log_det(params, eps, rows([strength], 64))
        back, minus = flow.inverse_and_log_det(params, z, rows([strength], 64))
        np.testing.assert_allclose(back, eps, atol=1e-4)
        np.testing.assert_allclose(minus, -log_det, atol=1e-3)
        distance.append(float(np.abs(z - eps).max()))
        if not strength:
            assert np.array_equal(z, eps)
            assert np.array_equal(back, eps)
            assert np.array_equal(log_det, np.zeros(64))
    assert 0 == distance[0] < distance[1] < 0.01 < distance[2]


def test_two_dials_are_off_together_only():
    ebm = bench(TWO)
    prompt, _ = pg.fit(ebm, **OPTIONS | {"num_steps": 2})  # of the options of a flow, the right ones are chosen
    assert prompt.flow.module.architecture == "coupling"
    assert (prompt.flow.module.dials, prompt.flow.module.dial_heads) == ((0, 1), True)
    params = jax.tree.map(lambda leaf: leaf + 0.1, prompt.params)
    eps = prompt.prior.sample(KEY, 16)
    moved = {s: prompt.flow.forward_and_log_det(params, eps, rows(s, 16))[0] for s in ((0, 0), (1, 0), (0, 1))}
    assert np.array_equal(moved[0, 0], eps)
    assert np.abs(moved[1, 0] - eps).max() > 0.1
    assert np.abs(moved[0, 1] - moved[1, 0]).max() > 0.01


def test_a_dial_at_zero_adds_nothing_to_another():
    """Whatever the numbers of its head, the last columns of what conditioners return, to the last bit."""
    flow, params = pg.init_flow(KEY, pg.Prior.standard(4), cond_dim=2, dials=(0, 1), dial_heads=True, **FLOW)
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)
    other = jax.tree.map(lambda leaf: leaf.at[..., 4:].add(1.0) if leaf.shape[-1] == 8 else leaf, params)
    eps = flow.prior.sample(KEY, 8)
    for strength, same in (((0.7, 0.0), True), ((0.7, 0.01), False), ((0.0, 0.01), False)):
        moved = [flow.forward_and_log_det(each, eps, rows(strength, 8))[0] for each in (params, other)]
        assert np.array_equal(*moved) == same


def test_two_dials_are_told_apart_by_a_short_training():
    """With strengths of 0 to 1, as they are, the networks still took the one dial for the other here."""
    ebm = bench(TWO)
    prompt, _ = pg.fit(ebm, flow=FLOW | {"hidden_dim": 32}, **OPTIONS | {"num_steps": 60, "batch_size": 64})
    eps, near = prompt.prior.sample(KEY, 256), {}
    for strength in ((1, 0), (0, 1)):
        z, _ = prompt.flow.forward_and_log_det(prompt.params, eps, rows(strength, 256))
        near[strength] = np.mean(ebm.energies(KEY, z)["near"])
    assert near[0, 1] > 2 * near[1, 0]


def test_a_control_without_a_dial_keeps_acting_at_zero():
    """Then the target at 0 is not the prior, so nothing holds the flow at the identity."""
    ebm = bench(TWO).replace(cond_prior=ONE)
    prompt, _ = pg.fit(ebm, flow=FLOW, **OPTIONS)
    assert prompt.flow.module.dials == ()
    z = prompt.prior.sample(KEY, 4)
    small_only = prompt.prior.log_prob(z) - ebm.energies(KEY, z)["small"]
    np.testing.assert_allclose(ebm.log_prob(KEY, z, rows([0.0], 4)), small_only, rtol=1e-6)


def test_half_of_the_draws_are_at_corners():
    """Of one dial at full strength; of two at the three corners that are not the lowest, evenly."""
    one = np.asarray(ONE.sample(KEY, 10_000))
    assert abs(np.mean(one == 1) - 0.5) < 0.02
    assert np.mean(one == 0) < 0.001
    two = np.asarray(TWO.sample(KEY, 10_000))
    for corner in ((0, 1), (1, 0), (1, 1)):
        assert abs(np.mean(np.all(two == corner, axis=1)) - 1 / 6) < 0.02
    inside = two[np.all((two > 0) & (two < 1), axis=1)]
    assert abs(len(inside) - 5000) < 150
    np.testing.assert_allclose(inside.mean(0), 0.5, atol=0.02)
    even = np.asarray(pg.Conditions.of_strengths({"near": (0, 1)}, corners=0.0).sample(KEY, 1000))
    assert np.all(even < 1)
    beside = pg.Conditions.of({"turn": (-20, 20), "near": (0, 2, "strength")})
    drawn = np.asarray(beside.sample(KEY, 1000))
    assert abs(np.mean(drawn[:, 1] == 2) - 0.5) < 0.05
    assert len(np.unique(drawn[:, 0])) > 990  # an angle has no atom


def test_samples_by_name(dial):
    """A number for all, or one each; the same noise moves smoothly from one strength to the next."""
    at = dial.sample(KEY, 4, strength={"near": 0.5})
    assert np.array_equal(at, dial.sample(KEY, 4, cond=jnp.array([0.5])))
    each = dial.sample(KEY, 4, strength={"near": np.array([0.5, 0.0, 1.0, 0.5])})
    np.testing.assert_allclose(each[[0, 3]], at[[0, 3]], rtol=1e-6)
    near = dial.sample(KEY, 4, strength={"near": 0.51})
    assert 0 < np.abs(near - at).max() < 0.1
    np.testing.assert_allclose(dial.conditions.read(["near=0.25"]), [0.25])


def test_saved_prompts_keep_their_dials(dial, tmp_path):
    dial.save(tmp_path / "prompt")
    again = pg.Prompt.load(tmp_path / "prompt")
    for strength in (0.0, 0.7):
        pair = [each.sample(KEY, 3, strength={"near": strength}) for each in (dial, again)]
        assert np.array_equal(*pair)
    assert again.flow.module.dials == (0,)
    card = (tmp_path / "prompt" / "README.md").read_text()
    assert '16, strength={"near": 0.5})' in card
    assert "A strength is a dial" in card
    assert "corners 0.5" in card
    about = json.loads((tmp_path / "prompt" / "prompt.json").read_text())
    assert about["conditions"] == [{"near": [0.0, 1.0, "strength"]}]


def without():
    return some_prompt(pg.FunctionGenerator(prior=pg.Prior.standard(4), function=as_picture))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (
            lambda dial: dial.sample(KEY, 2, strength={"nearr": 1}),
            "strength: unknown name 'nearr'. Did you mean 'near'",
        ),
        (lambda dial: dial.sample(KEY, 2, strength={"near": 1.5}), r"near is 1.5; expected from 0 to 1, as it was tr"),
        (lambda dial: dial.sample(KEY, 2, strength={"near": -0.1}), "near is -0.1; expected from 0 to 1"),
        (lambda dial: dial.sample(KEY, 2, strength={"near": float("nan")}), "near is nan; expected from 0 to 1"),
        (lambda dial: dial.sample(KEY, 2, strength={"near": "much"}), "near is much; expected from 0 to 1"),
        (lambda dial: dial.sample(KEY, 2, strength=0.5), "strength=0.5; expected numbers by name, as {'near': 1}"),
        (lambda dial: dial.sample(KEY, 2, strength={"near": np.ones(3)}), r"cond is \(3, 1\); expected \(2, 1\)"),
        (lambda dial: dial.sample(KEY, 2, strength={"near": 1}, cond=jnp.ones(1)), "cond beside strength"),
        (lambda dial: dial.sample(KEY, 2, shares={"female": 0.5}), "trained without any share"),
        (lambda dial: dial.sample(KEY, 2), "no strength; pass one, as strength={'near': 1.0}"),
        (
            lambda _: without().sample(KEY, 2, strength={"near": 1}),
            "'near': 1}, but it was trained without any strength",
        ),
        (lambda dial: dial.conditions.read(["near=x"]), "condition=near=x: expected name=number"),
        (lambda _: pg.Conditions.of_strengths({"near": (-1, 1)}), "near.*strengths of at least 0"),
        (
            lambda _: pg.Conditions.of_strengths({"near": (0, 1)}, corners=2),
            "corners is 2; expected a number from 0 to",
        ),
        (
            lambda _: pg.fit(bench().replace(cond_prior=pg.Conditions.of_strengths({"nera": (0, 1)})), **OPTIONS),
            "strength of a control: unknown name 'nera'. Did you mean 'near'",
        ),
        (
            lambda _: pg.fit(bench(), flow={"architecture": "allinone"}, **OPTIONS),
            "architecture: strengths need 'coupling', which alone becomes the identity",
        ),
        (lambda _: pg.fit(bench(), flow={"kind": "mixture"}, **OPTIONS), "kind mixture with strengths; only realnvp"),
        (lambda _: pg.fit(bench(), flow={"dials": (0,)}, **OPTIONS), "option dials follows from the conditions"),
    ],
    ids=range(18),
)
def test_bad_input(dial, call, match):
    with pytest.raises(ValueError, match=match) as raised:
        call(dial)
    assert "\n" not in str(raised.value)
