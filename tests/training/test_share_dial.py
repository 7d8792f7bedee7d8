"""Shares as conditions: beta of every wanted share, and one flow for a range of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from helpers import DIM, FLOW, OPTIONS, as_picture
from scipy.optimize import brentq
from scipy.special import expit

import promptgen_jax as pg
from promptgen_jax.controls.moment import constrain
from promptgen_jax.training.moments import fit_beta

KEY = jax.random.key(0)
LABELS = {"side": ("right", "left"), "height": ("up", "down")}
SLOPES = {"side": (1.5, 0.5, 0.0, 0.0), "height": (0.0, 1.0, 1.0, 0.0)}
BOX = pg.Conditions.of_shares({"right": (0.3, 0.8), "up": (0.4, 0.7)})


@struct.dataclass
class Sides:
    """P(right | x) = sigmoid(1.5 x_0 + 0.5 x_1 - 0.5), P(up | x) = sigmoid(x_1 + x_2): correlated attributes."""

    name: str = struct.field(pytree_node=False, default="sides")

    def __call__(self, images):
        points = images[:, 0, :, 0]
        logits = {name: points @ jnp.array(slope) - 0.5 * (name == "side") for name, slope in SLOPES.items()}
        return {name: jnp.stack([logit, jnp.zeros_like(logit)], axis=1) for name, logit in logits.items()}

    def labels(self, attribute):
        return LABELS[attribute]

    def label_index(self, attribute, label):
        return LABELS[attribute].index(label)

    def log_probs(self, images, attribute):
        return jax.nn.log_softmax(self(images)[attribute], axis=1)


def make(conditions=BOX, attributes=("side", "height")):
    generator = pg.FunctionGenerator(prior=pg.Prior.standard(DIM), function=as_picture)
    controls = tuple(constrain(Sides(), name, "uniform", 1.0, "soft", 1.0, name) for name in attributes)
    return pg.LatentEBM(generator, controls, conditions)


@pytest.fixture(scope="module")
def fitted():
    return pg.fit_moments(make(), KEY, num_samples=4096, batch_size=4096)


@pytest.fixture(scope="module")
def trained(fitted):
    options = OPTIONS | {"num_steps": 400, "batch_size": 256, "learning_rate": 5e-3, "log_every": 100}
    return pg.fit(fitted[0], flow=FLOW | {"hidden_dim": 32}, **options)[0]


def gammas(ebm, num=4096):
    """What `fit_moments` has seen, by label."""
    dual = ebm.controls[0].dual
    return {label: np.asarray(dual.gamma, np.float64)[:num, i : i + 1] for i, label in enumerate(("right", "up"))}


def test_beta_is_that_of_the_convex_dual_between_the_knots(fitted):
    """Against the exact solution in float64 on the same samples, and its derivative against a difference of two."""
    ebm, fit = fitted
    gamma, dual = gammas(ebm), ebm.controls[0].dual
    assert 0.1 < fit.ess < 1  # of the shares that fewest samples support

    def exact(mu):
        beta = fit_beta(gamma, {"right": mu[:1], "up": mu[1:]}).beta
        return np.concatenate([beta["right"], beta["up"]])

    asked = np.random.default_rng(0).uniform(BOX.low, BOX.high, (20, 2))
    found = jax.jit(lambda dual, mu: dual(mu))(dual, jnp.asarray(asked, jnp.float32))
    np.testing.assert_allclose(found, [exact(mu) for mu in asked], atol=2e-4)
    slope = jax.jacfwd(lambda mu: dual(mu[None])[0])(jnp.array([0.63, 0.52]))
    step, middle = 1e-3, np.array([0.63, 0.52])
    wanted = [(exact(middle + step * axis) - exact(middle - step * axis)) / (2 * step) for axis in np.eye(2)]
    np.testing.assert_allclose(slope, np.transpose(wanted), rtol=2e-3)


def test_energy_follows_the_condition(fitted):
    """log Z - beta(mu) · gamma of the labels that are named, each sample with its own mu; others are left alone."""
    ebm, _ = fitted
    z, cond = ebm.generator.prior.sample(KEY, 3), jnp.array([[0.3, 0.5], [0.8, 0.5], [0.5, 0.7]])
    side, height = ebm.controls
    beta = side.dual(cond)
    right = Sides().log_probs(as_picture(z), "side")[:, 0]
    wanted = side.dual.log_z(beta) / 2 - beta[:, 0] * np.exp(right)
    np.testing.assert_allclose(ebm.energies(KEY, z, cond)["side"], wanted, rtol=1e-5)
    np.testing.assert_allclose(height.slopes(cond)[:, 0], beta[:, 1])
    assert beta[0, 0] < 0 < beta[1, 0]


def test_every_share_is_as_likely_as_it_was(fitted):
    """The mean of exp(-E) over the samples that beta was solved on is 1, whatever is asked for."""
    ebm, _ = fitted
    z = ebm.generator.prior.sample(jax.random.split(KEY)[0], 4096)
    for asked in ([0.3, 0.5], [0.8, 0.7]):
        cond = jnp.tile(jnp.array(asked), (4096, 1))
        np.testing.assert_allclose(np.mean(np.exp(-ebm.energy(KEY, z, cond))), 1, rtol=1e-4)


def test_closed_loop_follows_the_gap_along_the_shares(fitted):
    """The gradient by the lift is the gap to mu, by each polynomial of it."""
    ebm, _ = fitted
    side, z = ebm.controls[0], ebm.generator.prior.sample(KEY, 512)
    cond = ebm.draw_cond(KEY, 512)
    sample = pg.Sample(images=as_picture(z), z=z, cond=cond)
    gamma = side.gamma(sample.images)
    slope = jax.grad(lambda lift: jnp.mean(side.replace(lift=lift)(KEY, sample)))(side.lift)
    at = (cond - jnp.array([0.55, 0.55])) / jnp.array([0.25, 0.15])
    polynomials = [jnp.ones((512, 1)), 3**0.5 * at, 5**0.5 * (3 * at**2 - 1) / 2]
    wanted = jnp.mean((cond[:, :1] - gamma) * jnp.concatenate(polynomials, axis=1), axis=0)
    np.testing.assert_allclose(slope[0], wanted, atol=1e-5)
    lifted = side.replace(lift=side.lift.at[0, 1].set(2.0))
    np.testing.assert_allclose(lifted.slopes(cond) - side.slopes(cond), 2 * 3**0.5 * at[:, :1], atol=1e-4)


@pytest.mark.full
def test_closed_loop_takes_a_short_training_further(fitted):
    """It falls short at both ends of a range, by 0.06 and 0.05 without, by 0.03 with the loop."""
    errors = {}
    for rate in (0.0, 0.1):
        options = OPTIONS | {"num_steps": 150, "batch_size": 128, "learning_rate": 2e-3, "closed_loop": rate}
        prompt, history = pg.fit(fitted[0], flow=FLOW, **options)
        assert "moment_gap/side" in history[-1]
        errors[rate] = []
        for wanted in (0.3, 0.8):
            images = prompt.sample(KEY, 2048, shares={"right": wanted, "up": 0.55}, batch_size=2048)
            errors[rate].append(abs(float(np.exp(Sides().log_probs(images, "side"))[:, 0].mean()) - wanted))
    assert max(errors[0.1]) < max(errors[0.0]) - 0.02, errors


@pytest.mark.parametrize(("flow", "scale"), [({}, 10.0), ({"cond_scale": 3.0}, 3.0)])
def test_a_flow_hears_shares_as_0_to_10(fitted, flow, scale):
    prompt, _ = pg.fit(fitted[0], flow=FLOW | flow, **OPTIONS | {"num_steps": 1, "batch_size": 2})
    assert prompt.flow.module.cond_scale == scale


def test_beta_of_one_share_is_that_of_the_prior():
    """Of more and more samples: E[sigmoid(t)] under a tilted normal, by quadrature."""
    ebm, _ = pg.fit_moments(
        make(pg.Conditions.of_shares({"up": (0.3, 0.9)}), ("height",)), KEY, num_samples=50_000, batch_size=50_000
    )
    t = np.linspace(-12, 12, 4001)
    density = np.exp(-(t**2) / 4)  # x_1 + x_2 has variance 2

    def share(beta):
        weight = density * np.exp(beta * expit(t))
        return weight @ expit(t) / weight.sum()

    for mu in (0.35, 0.6, 0.85):
        exact = brentq(lambda beta, mu=mu: share(beta) - mu, -20, 20)
        np.testing.assert_allclose(ebm.controls[0].slopes(jnp.array([[mu]]))[0, 0], exact, atol=0.05 + 0.02 * exact)


@pytest.mark.full
def test_one_training_reaches_every_share(trained):
    """Both attributes at once, at the ends of their ranges and between; shares are conditions by name."""
    for asked in ({"right": 0.3, "up": 0.7}, {"right": 0.55, "up": 0.5}, {"right": 0.8, "up": 0.4}):
        images = trained.sample(jax.random.key(3), 8192, shares=asked, batch_size=8192)
        reached = {LABELS[name][0]: float(np.exp(Sides().log_probs(images, name))[:, 0].mean()) for name in LABELS}
        assert all(abs(reached[label] - wanted) < 0.04 for label, wanted in asked.items()), reached


def test_certificate_along_shares(trained, fitted):
    """The target has the shares that are asked for; its log Z agrees with the integral over the shares."""
    settings = {"right": [0.3, 0.45, 0.6, 0.75], "up": 0.55}
    sizes = {"num_samples": 1024, "reference_samples": 4096, "batch_size": 4096}
    found = pg.certify_dial(trained, fitted[0], KEY, settings=settings, **sizes)
    assert found.agrees
    for each in found.settings:
        for label in ("right", "up"):
            assert abs(each.target_means[f"probability of {label}"].mean - each.condition[label]) < 0.02
            assert abs(each.means[f"probability of {label}"].mean - each.condition[label]) < 0.05
        assert each.certificate.reverse_kl < 0.05
    assert [each.shares["right"].mean for each in found.settings] == sorted(
        e.shares["right"].mean for e in found.settings
    )


def test_saved_prompts_keep_their_shares(trained, tmp_path):
    trained.save(tmp_path / "prompt")
    again = pg.Prompt.load(tmp_path / "prompt", generator=trained.generator)
    asked = {"right": 0.4, "up": np.array([0.4, 0.5, 0.6])}
    assert np.array_equal(trained.sample(KEY, 3, shares=asked), again.sample(KEY, 3, shares=asked))
    card = (tmp_path / "prompt" / "README.md").read_text()
    assert '16, shares={"right": 0.8, "up": 0.7})' in card
    assert "A share is the wanted mean probability" in card


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (
            lambda trained: trained.sample(KEY, 2, shares={"right": 0.5}),
            "share up is missing; give one from 0.4",
        ),
        (
            lambda trained: trained.sample(KEY, 2, shares={"right": 0.9, "up": 0.5}),
            "right is 0.9; expected from 0.3",
        ),
        (lambda trained: trained.sample(KEY, 2, shares={"rihgt": 0.9, "up": 0.5}), "'rihgt'. Did you mean 'right'"),
        (lambda trained: trained.sample(KEY, 2, strength={"side": 0.9}), "trained without any strength"),
        (lambda _: pg.fit(make(), **OPTIONS), "no control follows the share of right, up. Call pg.fit_moments first"),
        (
            lambda _: fit({"rigth": (0.2, 0.8), "up": (0.2, 0.8)}),
            "a label: unknown name 'rigth'. Did you mean",
        ),
        (
            lambda _: fit({"right": (0.2, 0.8)}),
            "height has no share among them; .* a label of up, down",
        ),
        (lambda _: fit({"right": (0.2, 0.8), "left": (0.2, 0.8), "up": (0.4, 0.5)}), "side has a share for each label"),
        (lambda _: fit({"right": (0.2, 0.9999), "up": (0.4, 0.5)}), "fit_beta: right cannot have mean"),
        (lambda _: fit({"right": (0.2, 0.8)}, ()), "no moment control has the label right"),
    ],
    ids=range(10),
)
def test_bad_input(trained, call, match):
    with pytest.raises(ValueError, match=match):
        call(trained)


def fit(ranges, attributes=("side", "height")):
    return pg.fit_moments(make(pg.Conditions.of_shares(ranges), attributes), KEY, num_samples=512, batch_size=512)
