"""Moment constraints: official numbers, exact values, the two fits against each other, and what cannot be reached."""

import jax
import jax.numpy as jnp
import numpy as np
import official
import optax
import pytest

import promptgen_jax as pg
from promptgen_jax.controls._shares import asked_shares, fill_shares
from promptgen_jax.training.moments import check_mu, closed_loop_update, fit_beta, fit_beta_sgd, moment_loss
from promptgen_jax.training.optimizer import make_optimizer

ATTRIBUTES = {"race": slice(0, 7), "gender": slice(7, 9), "age": slice(9, 18)}
UNIFORM = dict.fromkeys(ATTRIBUTES, "uniform")


@pytest.fixture(scope="module")
def golden():
    return official.load_golden("energies")


@pytest.fixture(scope="module")
def official_gamma(golden):
    return {name: jax.nn.softmax(golden["in_beta_logits18"][:, columns]) for name, columns in ATTRIBUTES.items()}


@pytest.fixture(scope="module")
def gamma():
    """Two correlated classifiers and an angle on the same samples."""
    z = np.random.default_rng(0).normal(size=(1000, 3))
    softmax = lambda logits: np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)  # noqa: E731
    return {
        "gender": softmax(np.stack([z[:, 0] + 0.5, 0 * z[:, 0]], axis=1)),
        "age": softmax(z @ [[0.5, 0.0, -0.5], [2.0, -1.0, 0.0], [0.0, 1.0, -1.0]]),
        "yaw": 20 * z[:, 2:] + 3,
    }


def two_modes(share=0.3, count=1000):
    """Saturated gamma of the 2-D mixture, with exactly its proportions."""
    first = np.arange(count) < share * count
    return {"mode": np.stack([first, ~first], axis=1).astype(np.float32)}


@pytest.mark.parametrize("case", ["", "2"])
def test_energies_beta_loss(golden, official_gamma, case):
    beta = {name: jnp.asarray(golden[f"in{case}_beta_beta_{name}"]) for name in ATTRIBUTES}
    loss_fn = lambda beta: moment_loss(beta, official_gamma, UNIFORM, joint=False)  # noqa: E731
    (loss, parts), grads = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(beta)
    official.assert_close("loss", loss, golden[f"out{case}_beta_loss"])
    for name in ATTRIBUTES:
        official.assert_close(f"loss {name}", parts[name], golden[f"out{case}_beta_loss_{name}"])
        official.assert_close(f"grad {name}", grads[name], golden[f"out{case}_beta_grad_{name}"])


def test_energies_beta_fit_losses(golden, official_gamma):
    """200 steps of Eq. 7 on fixed samples with the official optimiser; nothing is divided out of the drift of beta."""
    optimizer = make_optimizer(learning_rate=5e-2, num_steps=200)
    loss_fn = lambda betas: moment_loss(betas, official_gamma, UNIFORM, joint=False)[0]  # noqa: E731

    def step(carry, _):
        betas, state = carry
        loss, grads = jax.value_and_grad(loss_fn)(betas)
        updates, state = optimizer.update(grads, state)
        return (optax.apply_updates(betas, updates), state), loss

    betas = {name: jnp.zeros(value.shape[1]) for name, value in official_gamma.items()}
    (betas, _), losses = jax.jit(lambda carry: jax.lax.scan(step, carry, length=200))((betas, optimizer.init(betas)))
    official.assert_close("losses", np.append(losses, loss_fn(betas)), golden["out3_beta_fit_loss"])
    for name, beta in betas.items():
        official.assert_close(name, beta, golden[f"out3_beta_fit_beta_{name}"])


def test_energies_beta_fit(golden, official_gamma):
    """The same fit by `fit_beta_sgd`, whose gauge is fixed at the end."""
    fit = fit_beta_sgd(lambda key: official_gamma, UNIFORM, jax.random.key(0), num_steps=200, joint=False)
    for name, beta in fit.beta.items():
        want = golden[f"out3_beta_fit_beta_{name}"]
        official.assert_close(name, beta, want - want.mean())


def test_exact_two_modes():
    fit = fit_beta(two_modes(), {"mode": "uniform"})
    beta = fit.beta["mode"]
    np.testing.assert_allclose(beta[0] - beta[1], np.log(7 / 3), atol=1e-6)
    np.testing.assert_allclose(fit.log_z - beta[1], 0.33648, atol=1e-5)
    np.testing.assert_allclose(fit.kl, 0.08718, atol=1e-5)
    np.testing.assert_allclose(fit.ess, 1 / (0.25 / 0.3 + 0.25 / 0.7), atol=1e-6)
    np.testing.assert_allclose(fit.reached["mode"], 0.5, atol=1e-6)


def test_no_constraint_is_the_prior():
    fit = fit_beta(two_modes(), {"mode": [0.3, 0.7]})
    np.testing.assert_allclose(fit.beta["mode"], 0, atol=1e-6)
    np.testing.assert_allclose([fit.ess, fit.kl, fit.log_z], [1, 0, 0], atol=1e-6)


@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
def test_far_targets_converge(share):
    """From 0 the first undamped Newton step overshoots."""
    fit = fit_beta(two_modes(0.1, 10_000), {"mode": [share, 1 - share]})
    want = np.log(share / (1 - share) * 0.9 / 0.1)
    np.testing.assert_allclose(fit.beta["mode"] @ [1, -1], want, atol=1e-4)


def test_several_attributes_jointly(gamma):
    mu = {"gender": "uniform", "age": [0.4, 0.3, 0.3], "yaw": [0.0]}
    fit = fit_beta(gamma, mu)
    np.testing.assert_allclose(fit.reached["gender"], 0.5, atol=1e-5)
    np.testing.assert_allclose(fit.reached["age"], mu["age"], atol=1e-5)
    np.testing.assert_allclose(fit.reached["yaw"], mu["yaw"], atol=1e-4)
    assert abs(fit.beta["gender"].sum()) < 1e-12
    assert abs(fit.beta["age"].sum()) < 1e-12
    assert 0 < fit.ess < 1
    logits = sum(gamma[name] @ fit.beta[name] for name in gamma)
    weights = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(fit.kl, np.sum(weights * np.log(weights * len(weights))), rtol=1e-6)
    np.testing.assert_allclose(fit.log_z, np.log(np.mean(np.exp(logits))), rtol=1e-6)
    apart = {name: fit_beta({name: gamma[name]}, {name: mu[name]}) for name in gamma}
    assert fit.kl > max(part.kl for part in apart.values())


def test_dual_agrees_with_sgd(gamma):
    gamma = {name: gamma[name].astype(np.float32) for name in ("gender", "age")}
    mu = {"gender": [0.5, 0.5], "age": [0.3, 0.4, 0.3]}
    dual = fit_beta(gamma, mu)
    sgd = fit_beta_sgd(lambda key: gamma, mu, jax.random.key(0), num_steps=1000)
    for name in mu:
        np.testing.assert_allclose(sgd.beta[name], dual.beta[name], atol=2e-3)
    np.testing.assert_allclose([sgd.kl, sgd.ess], [dual.kl, dual.ess], atol=2e-3)


def test_sgd_on_fresh_batches():
    @jax.jit
    def sample(key):
        first = jax.random.bernoulli(key, 0.3, (4096,))
        return {"mode": jnp.stack([first, ~first], axis=1).astype(jnp.float32)}

    fit = fit_beta_sgd(sample, {"mode": "uniform"}, jax.random.key(0), num_steps=300)
    np.testing.assert_allclose(fit.beta["mode"] @ [1, -1], np.log(7 / 3), atol=0.03)
    np.testing.assert_allclose(fit.reached["mode"], 0.5, atol=0.04)


def test_loss_does_not_overflow():
    loss, parts = moment_loss({"mode": jnp.array([1e4, -1e4])}, two_modes(), {"mode": "uniform"})
    np.testing.assert_allclose([loss, parts["mode"]], 0.5, rtol=1e-5)


def test_invariance(gamma):
    """The order of samples and of classes, copies of samples, and constants in the weights change nothing."""
    mu = {"age": [0.2, 0.5, 0.3]}
    rows = gamma["age"]
    want = fit_beta({"age": rows}, mu)
    order = np.random.default_rng(1).permutation(len(rows))
    same = {
        "samples": fit_beta({"age": rows[order]}, mu),
        "copies": fit_beta({"age": np.concatenate([rows, rows])}, mu),
        "weights": fit_beta({"age": rows}, mu, log_weights=np.full(len(rows), 7.0)),
    }
    for name, fit in same.items():
        np.testing.assert_allclose(fit.beta["age"], want.beta["age"], atol=1e-6, err_msg=name)
        np.testing.assert_allclose(fit[2:], want[2:], atol=1e-6, err_msg=name)
    turned = fit_beta({"age": rows[:, [2, 0, 1]]}, {"age": [0.3, 0.2, 0.5]})
    np.testing.assert_allclose(turned.beta["age"], want.beta["age"][[2, 0, 1]], atol=1e-6)


def test_log_weights_stand_for_counts():
    """Ten samples weighted 3 to 7 are the exact mixture; a weight of zero removes a sample."""
    rows = np.repeat([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]], 100, axis=0)
    log_weights = np.repeat(np.append(np.log([3.0, 7.0]), -np.inf), 100)
    fit = fit_beta({"mode": rows}, {"mode": "uniform"}, log_weights=log_weights)
    np.testing.assert_allclose(fit.beta["mode"] @ [1, -1], np.log(7 / 3), atol=1e-6)
    np.testing.assert_allclose(fit.kl, 0.08718, atol=1e-5)


def test_constant_components_get_no_beta():
    rows = np.concatenate([two_modes()["mode"], np.zeros((1000, 1))], axis=1)
    fit = fit_beta({"mode": rows}, {"mode": [0.5, 0.5, 0.0]})
    np.testing.assert_allclose(fit.beta["mode"] @ [1, -1, 0], np.log(7 / 3), atol=1e-6)
    assert np.abs(fit.beta["mode"]).max() < 1


TRIANGLE = np.tile([[0.6, 0.2, 0.2], [0.2, 0.6, 0.2], [0.2, 0.2, 0.6]], (100, 1))
INFEASIBLE = {
    "outside": ({"age": TRIANGLE}, {"age": [0.7, 0.2, 0.1]}, r"age cannot.*\(0.7, 0.2, 0.1\).*component 0.*0.2 to 0.6"),
    "edge": (two_modes(), {"mode": [1.0, 0.0]}, "mode cannot.*component 0.*at the edge of 0 to 1"),
    "constant": (two_modes(0.0), {"mode": "uniform"}, "mode cannot.*component 0.*0 to 0"),
    "inside-the-box-only": (
        {"pose": np.random.default_rng(0).uniform(-1, 1, (500, 2)) @ [[1, 1], [0.1, -0.1]]},
        {"pose": [0.5, -0.5]},
        "pose cannot have mean .*range over .*move mu towards their mean .*or pass more samples",
    ),
    "contradiction": (
        {"a": two_modes()["mode"], "b": two_modes()["mode"]},
        {"a": [0.5, 0.5], "b": [0.3, 0.7]},
        "cannot have mean.*reach only",
    ),
    "few-samples": (two_modes(0.005), {"mode": "uniform"}, "only .* effective samples of 1000"),
}


@pytest.mark.parametrize(("gamma", "mu", "message"), INFEASIBLE.values(), ids=INFEASIBLE)
def test_infeasible(gamma, mu, message):
    with pytest.raises(ValueError, match=message) as error:
        fit_beta(gamma, mu)
    assert "\n" not in str(error.value)


BAD = {
    "sum": (two_modes(), {"mode": [0.5, 0.6]}, {}, "fit_beta: mode: mu sums to 1.1; expected 1"),
    "negative": (two_modes(), {"mode": [1.1, -0.1]}, {}, "mu of 1 is -0.1"),
    "length": (two_modes(), {"mode": [1.0]}, {}, r"mu has shape \(1,\); expected \(2,\)"),
    "word": (two_modes(), {"mode": "even"}, {}, "'even'; expected 2 shares or 'uniform'"),
    "names": (two_modes(), {"age": [1.0]}, {}, r"mu names \['age'\] and gamma \['mode'\]"),
    "empty": ({}, {}, {}, "at least one"),
    "rank": ({"a": np.ones(3)}, {"a": [1.0]}, {}, r"gamma of a is \(3,\)"),
    "nan": ({"a": np.full((3, 1), np.nan)}, {"a": [1.0]}, {}, "3 of 3 gamma values are NaN"),
    "counts": ({"a": np.ones((3, 1)), "b": np.ones((4, 1))}, {"a": [1.0], "b": [1.0]}, {}, "b has 4 samples"),
    "uniform-angle": ({"yaw": np.arange(30.0)[:, None]}, {"yaw": "uniform"}, {}, "does not sum to one"),
    "weights": (two_modes(), {"mode": "uniform"}, dict(log_weights=np.zeros(3)), r"log_weights are \(3,\)"),
    "nan-weights": (two_modes(), {"mode": "uniform"}, dict(log_weights=np.full(1000, np.nan)), "log_weights hold NaN"),
}


@pytest.mark.parametrize(("gamma", "mu", "options", "message"), BAD.values(), ids=BAD)
def test_bad_input(gamma, mu, options, message):
    with pytest.raises(ValueError, match=message):
        fit_beta(gamma, mu, **options)


def test_sgd_checks_mu():
    with pytest.raises(ValueError, match="fit_beta_sgd: mode: mu sums to 0.9"):
        fit_beta_sgd(lambda key: two_modes(), {"mode": [0.5, 0.4]}, jax.random.key(0))


def test_check_mu():
    np.testing.assert_allclose(check_mu("here", "uniform", ["a", "b", "c"]), 1 / 3)
    with pytest.warns(UserWarning, match=r"here: mu=\(0.3, 0.7\) is read as a 0.3, b 0.7. Name the labels."):
        asked_shares("here", (0.3, 0.7), ["a", "b"])
    np.testing.assert_allclose(check_mu("here", [0.30004, 0.7], ["a", "b"]).sum(), 1, rtol=1e-15)
    with pytest.raises(ValueError, match="here: mu of b is -0.5"):
        check_mu("here", [1.5, -0.5], ["a", "b"])
    with pytest.raises(ValueError, match="here: mu of a is nan"):
        check_mu("here", [np.nan, 1], ["a", "b"])


def test_closed_loop_update():
    """Where the samples tilt by half of what beta says, feedback still ends at mu, in the same gauge."""
    mu = {"mode": jnp.array([0.5, 0.5])}

    @jax.jit
    def step(beta):
        mean = jax.nn.softmax(jnp.log(jnp.array([0.3, 0.7])) + 0.5 * beta["mode"])
        return closed_loop_update(beta, {"mode": mean}, mu, rate=1.0)

    beta = {"mode": jnp.array([1.0, 1.0])}
    for _ in range(100):
        beta = step(beta)
    half = np.log(7 / 3)
    np.testing.assert_allclose(beta["mode"], [half, -half], atol=1e-4)


def test_closed_loop_gauge():
    beta, mean = {"pose": jnp.array([1.0, 2.0]), "yaw": jnp.array([1.0])}, {"pose": jnp.zeros(2), "yaw": jnp.zeros(1)}
    mu = {"pose": jnp.array([2.0, 4.0]), "yaw": jnp.array([10.0])}
    new = closed_loop_update(beta, mean, mu, rate=0.5, simplex=())
    np.testing.assert_allclose(new["pose"], [2, 4])
    np.testing.assert_allclose(new["yaw"], [6])
    np.testing.assert_allclose(closed_loop_update(beta, mean, mu, rate=0.5)["pose"], [-1, 1])


def test_shares_by_label():
    labels = ["male", "female"]
    np.testing.assert_allclose(check_mu("here", {"female": 0.7}, labels), [0.3, 0.7])
    np.testing.assert_allclose(check_mu("here", {"female": 0.7}, labels[::-1]), [0.7, 0.3])
    partial = check_mu("here", {"b": 0.4}, ["a", "b", "c"])
    np.testing.assert_allclose(partial, [np.nan, 0.4, np.nan])
    np.testing.assert_allclose(fill_shares(partial, np.array([0.1, 0.4, 0.5])), [0.1, 0.4, 0.5])
    np.testing.assert_allclose(fill_shares(np.array([0.3, 0.7]), np.array([0.5, 0.5])), [0.3, 0.7])


BAD_SHARES = {
    "label": ({"femal": 0.7}, "Did you mean 'female'"),
    "negative": ({"female": -0.1}, "from 0 to 1"),
    "too much": ({"female": 1.2}, "from 0 to 1"),
    "nothing left": ({"female": 1.0}, "leaves nothing for male"),
    "sum": ({"female": 0.7, "male": 0.7}, "mu sums to 1.4"),
    "text": ({"female": "most"}, "expected a number"),
}


@pytest.mark.parametrize("name", BAD_SHARES)
def test_bad_shares_by_label(name):
    mu, message = BAD_SHARES[name]
    with pytest.raises(ValueError, match=message):
        check_mu("here", mu, ["male", "female"])


def test_two_networks_with_labels_in_another_order_are_asked_for_the_same():
    for network in ("faceapi_age_gender", "faceres"):
        control = pg.load_control("moment", network=network, attribute="gender", mu={"female": 0.7})
        (aim,) = control.aims
        assert dict(aim.target) == pytest.approx({"female": 0.7, "male": 0.3})


def test_what_is_left_is_shared_out_as_the_generator_does():
    control = pg.load_control("moment", network="emotion", attribute="emotion", mu={"happy": 0.3})
    ebm = pg.LatentEBM(pg.load_generator("dcgan_digiface"), (control,))
    with pytest.raises(ValueError, match="Call pg.fit_moments first"):
        pg.fit(ebm, num_steps=1, batch_size=2, quiet=True)
    fitted, found = pg.fit_moments(ebm, jax.random.key(0), num_samples=256)
    mu = dict(fitted.controls[0].aims[0].target)
    assert mu["happy"] == pytest.approx(0.3)
    assert sum(mu.values()) == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(found.reached["emotion"], list(mu.values()), atol=1e-3)
