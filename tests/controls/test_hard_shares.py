"""Constraints on what is counted: the share of first choices, by the dual, the score function and the path gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

import promptgen_jax as pg
from promptgen_jax.controls.moment import constrain
from promptgen_jax.types import constraints_of

KEY = jax.random.key(0)
NUM_SAMPLES = 1024
LABELS = ("right", "left")
FLOW = {"hidden_dim": 32, "num_layers": 4}


@struct.dataclass
class Unsure:
    """A classifier of points that is never sure: P(right | x) = sigmoid(x1), so mean probability and count differ."""

    name: str = struct.field(pytree_node=False, default="unsure")

    def __call__(self, images):
        first = images[:, 0, 0, 0]
        return {"side": jnp.stack([first, jnp.zeros_like(first)], axis=1)}

    def labels(self, attribute):
        return LABELS

    def log_probs(self, images, attribute):
        return jax.nn.log_softmax(self(images)[attribute])


def target(count, **options):
    """70 % on the right of a normal cloud, as the unsure classifier sees it."""
    mu, options = {"right": 0.7}, {"temperature": 1.0} | options
    control = constrain(Unsure(), "side", mu, 1.0, count, name="side", **options)
    return pg.LatentEBM(pg.load_generator("synthetic", problem="wells"), (control,))


def mixture():
    control = pg.load_control("synthetic", energy="moment", mu={"a_1": 0.7}, count="hard")
    return pg.LatentEBM(pg.load_generator("synthetic", problem="mixture2d"), (control,))


def measure(prompt, ebm):
    return pg.evaluation.measure(prompt, ebm, jax.random.key(5), num_samples=NUM_SAMPLES, batch_size=NUM_SAMPLES)


def is_met(share, wanted=0.7):
    return share.low <= wanted <= share.high


def test_dual_reaches_what_is_counted():
    """Of a normal cloud half are on the right: an exact tilt of the count multiplies the odds by 7 / 3."""
    options = {"num_samples": 8192, "batch_size": 8192}
    _, hard = pg.fit_moments(target("hard"), KEY, **options)
    np.testing.assert_allclose(hard.reached["side"], [0.7, 0.3], atol=1e-4)
    np.testing.assert_allclose(hard.beta["side"] @ [1, -1], np.log(7 / 3), atol=0.1)
    _, soft = pg.fit_moments(target("soft"), KEY, **options)
    assert soft.kl > 2 * hard.kl  # a mean probability of 0.7 is another wish


def test_energy_of_first_choices_is_a_step_and_its_gradient_is_that_of_the_stand_in():
    beta = jnp.array([1.0, -1.0])
    x = jnp.array([-2.0, 0.5, 3.0])

    @jax.jit
    def energies(control, x):
        images = jnp.zeros((3, 1, 1, 3)).at[:, 0, 0, 0].set(x)
        return control(KEY, pg.Sample(images=images, z=None))

    slope = jax.jit(jax.grad(lambda x, control: jnp.sum(energies(control, x))))
    for temperature in (1.0, 4.0):
        (control,) = target("hard", temperature=temperature).controls
        control = control.replace(beta=beta)
        np.testing.assert_array_equal(energies(control, x), [1, -1, -1])
        stand_in = jax.grad(lambda x, t=temperature: -jnp.sum(2 * jax.nn.sigmoid(x / t)))(x)
        np.testing.assert_allclose(slope(x, control), stand_in, rtol=1e-5)


def test_score_function_reaches_the_count_on_the_mixture():
    ebm, _ = pg.fit_moments(mixture(), KEY, batch_size=4096)
    prompt, _ = pg.fit(
        ebm,
        objective="score_function",
        flow=FLOW,
        batch_size=512,
        num_steps=300,
        learning_rate=1e-2,
        closed_loop=0.02,
        quiet=True,
    )
    found = measure(prompt, ebm)
    assert is_met(found.shares[0].shares["after"]["a_1"].hard), found.shares[0].shares["after"]
    assert is_met(found.shares[0].shares["weighted"]["a_1"].hard)


def test_path_gradient_reaches_the_count_where_the_mean_probability_is_another():
    ebm, _ = pg.fit_moments(target("hard"), KEY, batch_size=4096)
    flow, params = pg.init_flow(KEY, ebm.generator.prior, **FLOW)
    notes = measure(pg.Prompt(ebm.generator, flow, params), ebm).certificate["notes"]
    assert any(note.startswith("side: right was asked") and "by the control's first choices" in note for note in notes)
    prompt, _ = pg.fit(
        ebm,
        flow=FLOW,
        batch_size=256,
        num_steps=200,
        learning_rate=1e-2,
        closed_loop=0.1,
        quiet=True,
    )
    found = measure(prompt, ebm)
    share = found.shares[0].shares["after"]["right"]
    assert is_met(share.hard), share
    assert not is_met(share.soft)
    line = found.headline[0].text()
    assert line.startswith("share of first choices of right (unsure, control): target 70 %, soft")
    assert not [note for note in (*found.notes, *found.certificate["notes"]) if "was asked to be" in note]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": "hrad"}, "count: unknown name 'hrad'. Did you mean 'hard'"),
        ({"count": "hard", "temperature": 0.0}, "temperature is 0.0; expected a number above 0"),
        ({"count": "hard", "temperature": "warm"}, "temperature is 'warm'"),
    ],
)
def test_bad_values(options, message):
    with pytest.raises(ValueError, match=message):
        pg.load_control("synthetic", energy="moment", **options)


def test_a_count_is_another_constraint():
    soft, hard = (pg.load_control("synthetic", energy="moment", count=count) for count in ("soft", "hard"))
    assert pg.parts.fingerprint(soft) != pg.parts.fingerprint(hard)
    assert hard.spec.to_json()["options"]["count"] == "hard"


@struct.dataclass
class MeanOfX:
    """A constraint of one's own, which is no share: the mean of x1."""

    beta: jax.Array
    mu: jax.Array
    weight: float = 1.0
    name: str = struct.field(pytree_node=False, default="x")
    needs_reference: bool = struct.field(pytree_node=False, default=False)

    def gamma(self, images):
        return images[:, 0, 0, :1]

    def __call__(self, key, sample):
        return -self.gamma(sample.images) @ self.beta


def test_a_constraint_of_ones_own_is_fitted_and_followed():
    """A normal cloud whose mean shall be 0.5 along x1: beta is 0.5 and the target the shifted cloud."""
    ebm = pg.LatentEBM(pg.load_generator("synthetic", problem="wells"), (MeanOfX(jnp.zeros(1), jnp.array([0.5])),))
    assert constraints_of(ebm.controls) == ebm.controls
    ebm, fit = pg.fit_moments(ebm, KEY, num_samples=8192, batch_size=8192)
    np.testing.assert_allclose(fit.beta["x"], [0.5], atol=0.05)
    options = {"batch_size": 256, "num_steps": 150, "learning_rate": 1e-2, "closed_loop": 0.02}
    prompt, _ = pg.fit(ebm, flow=FLOW, quiet=True, **options)
    assert prompt.sample(KEY, 2048, batch_size=2048)[:, 0, 0, 0].mean() == pytest.approx(0.5, abs=0.15)
