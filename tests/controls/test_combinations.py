"""Shares of combinations, several judges of one wish, refined samples, and how often a wish is met at all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

import promptgen_jax as pg
from promptgen_jax import parts
from promptgen_jax.controls import cells, judges
from promptgen_jax.controls.classifier import ClassifierControl
from promptgen_jax.controls.moment import constrain
from promptgen_jax.evaluation import exact
from promptgen_jax.metrics.coverage import coverage
from promptgen_jax.types import Sample

KEY = jax.random.key(0)


@struct.dataclass
class Side:
    """Which side of a line a point is on, by one coordinate."""

    axis: int = struct.field(pytree_node=False)
    name: str = struct.field(pytree_node=False)

    def __call__(self, images):
        value = 4 * images[:, 0, 0, self.axis]
        return {"side": jnp.stack([value, jnp.zeros_like(value), jnp.full_like(value, -1.0)], axis=1)}

    def labels(self, attribute):
        return (f"{self.name} up", f"{self.name} down", f"{self.name} odd")

    def label_index(self, attribute, label):
        return self.labels(attribute).index(label)

    def log_probs(self, images, attribute):
        return jax.nn.log_softmax(self(images)[attribute])


def joint():
    return cells.Cells((Side(0, "x"), Side(1, "y")), (("side", "x up"), ("side", "")))


def test_cells_are_products_of_probabilities():
    found, images = joint(), jax.random.normal(KEY, (5, 1, 1, 3))
    assert found.name == "x and y"
    attribute = found.attribute
    assert attribute == "x up & side"
    labels = found.labels(attribute)
    assert labels[:4] == ("x up & y up", "x up & y down", "x up & y odd", "not x up & y up")
    probabilities = np.exp(found.log_probs(images, attribute))
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    x, y = (jax.nn.softmax(side(images)["side"]) for side in found.networks)
    np.testing.assert_allclose(probabilities[:, 1], x[:, 0] * y[:, 1], rtol=1e-5)
    np.testing.assert_allclose(
        probabilities[:, found.label_index(attribute, "not x up & y odd")], (1 - x[:, 0]) * y[:, 2], rtol=1e-4
    )


def test_cells_of_one_label_twice_are_told_apart():
    """Two judges of smiles: that one sees it and the other does not is not the same the other way round."""
    attributes = (("emotion", "emotion", "happy"), ("faceapi_expression", "expression", "happy"))
    control = cells.build(attributes=attributes, mu={"happy & not happy": 0.1, "not happy & happy": 0.3})
    labels = control.network.labels(control.attribute)
    found = dict(zip(labels, np.asarray(control.mu).tolist(), strict=True))
    assert found["happy & not happy"] == pytest.approx(0.1)
    assert found["not happy & happy"] == pytest.approx(0.3)
    attributes = (("faceapi_age_gender", "gender", "female"), ("emotion", "emotion", "happy"))
    with pytest.raises(ValueError, match="mu has 'female & happy' twice, once as 'happy & female'"):
        cells.build(attributes=attributes, mu={"female & happy": 0.1, "happy & female": 0.3})


def test_shares_of_cells_are_met_and_measured():
    generator = pg.load_generator("synthetic", problem="wells")
    mu = {"x up & y up": 0.4, "not x up & y up": 0.1}
    control = constrain(joint(), joint().attribute, mu, 1.0, "soft", 1.0, "cells")
    ebm, fit = pg.fit_moments(pg.LatentEBM(generator, (control,)), KEY, num_samples=8192, batch_size=8192)
    reached = dict(zip(joint().labels(joint().attribute), fit.reached["cells"], strict=True))
    np.testing.assert_allclose([reached[cell] for cell in mu], list(mu.values()), atol=1e-3)
    assert ebm.controls[0].networks == joint().networks
    flow, params = pg.init_flow(KEY, generator.prior, architecture="coupling", num_layers=2)
    found = pg.evaluation.measure(pg.Prompt(generator, flow, params), ebm, KEY, num_samples=4096, batch_size=4096)
    (row,) = found.shares
    assert row.judge == "x and y"
    np.testing.assert_allclose(row.shares["weighted"]["x up & y up"].soft.mean, 0.4, atol=0.04)


def test_cells_of_shipped_networks_by_name_in_any_order():
    gender, smile = ("faceapi_age_gender", "gender"), ("faceapi_expression", "expression", "happy")
    mu = {"happy & female": 0.3, "male & happy": 0.2}
    control = pg.load_control("cells", attributes=(gender, smile), mu=mu)
    shares = dict(control.aims[0].target)
    assert control.name == "gender & happy"
    np.testing.assert_allclose([shares["female & happy"], shares["male & happy"]], [0.3, 0.2])
    assert np.isnan(shares["female & not happy"])  # shared out once the generator's own shares are known
    assert control.spec.options["attributes"] == (gender, smile)
    for options, message in (
        ({"attributes": (gender,)}, "expected at least two"),
        ({"attributes": (gender, ("faceapi_expression", "expression", "hapy"))}, "'happy'"),
        ({"attributes": (gender, smile), "mu": {"female & hapy": 1}}, "'female & happy'"),
    ):
        with pytest.raises(ValueError, match=message):
            pg.load_control("cells", **options)


def test_judges_are_combined():
    images = jax.random.normal(KEY, (5, 1, 1, 3))
    sample = Sample(images=images, z=jnp.zeros((5, 1)))
    alone = tuple(
        ClassifierControl(Side(axis, name), 1.0, name, "side", target)
        for axis, name, target in ((0, "x", "x up"), (1, "y", "not y up"))
    )
    energies = [control(KEY, sample) for control in alone]
    for combine, expected in (("mean", np.mean), ("worst", np.max), ("product", np.sum)):
        control = judges.JudgesControl(alone, 1.0, "both", combine)
        np.testing.assert_allclose(control(KEY, sample), expected(energies, axis=0), rtol=1e-5)
    assert [(aim.network.name, aim.labels) for aim in control.aims] == [("x", ("x up",)), ("y", ("y up",))]


def test_judges_are_loaded_by_name():
    asked = (("emotion", "emotion", "happy"), ("faceapi_expression", "expression", "not happy"))
    control = pg.load_control("judges", judges=asked)
    assert (control.name, [network.name for network in control.networks]) == ("happy", [asked[0][0], asked[1][0]])
    for options, message in (
        ({"judges": asked[:1]}, "at least two"),
        ({"combine": "best"}, "combine"),
        ({"judges": (asked[0], ("faceapi_expression", "expression", "hapy"))}, "'happy'"),
    ):
        with pytest.raises(ValueError, match=message):
            judges.build(**{"judges": asked, **options})


@pytest.fixture(scope="module")
def linear():
    generator = parts.load_generator("synthetic", problem="linear", dim=2)
    control = pg.load_control("synthetic", energy="quadratic", target=(0.6, -0.4), weight=1.0)
    return pg.LatentEBM(generator, (control,)), exact.linear_target(generator, (0.6, -0.4), 0.5)


def test_refined_samples_are_those_of_the_target(linear):
    ebm, truth = linear
    flow, params = pg.init_flow(KEY, ebm.generator.prior, architecture="coupling", num_layers=2)
    prompt = pg.Prompt(ebm.generator, flow, params)  # the identity
    few, many = (pg.refine(prompt, ebm, KEY, 512, num_warmup=steps, num_steps=steps) for steps in (1, 30))
    deviation = np.sqrt(np.diag(truth.covariance))

    def error(draws):
        return np.abs((np.asarray(draws.z).mean(axis=0) - truth.mean) / deviation).max()

    assert error(many) < 0.2
    assert many.cost.gradient_calls == 61 * 512
    assert jnp.array_equal(few.key, prompt.draws(KEY, 512).key)  # the same people


def test_coverage_is_the_mean_probability_of_what_is_asked():
    control = pg.load_control("synthetic", energy="classifier", weight=7.0)  # the weight does not matter
    ebm = pg.LatentEBM(pg.load_generator("synthetic", problem="mixture2d"), (control,))
    found = coverage(ebm, KEY, num_samples=1024)
    assert abs(found.share.mean - 0.3) < 0.05
    assert found.share.low < found.share.mean < found.share.high
    assert not found.notes


def test_coverage_of_what_never_happens_by_chance(linear):
    far = (4.0, -6.0)
    ebm = linear[0].replace(controls=(pg.load_control("synthetic", energy="quadratic", target=far),))
    log_z = exact.linear_target(ebm.generator, far, 0.5).log_z
    assert log_z < np.log(1e-6)
    found = coverage(ebm, KEY, num_samples=512)
    assert abs(np.log(found.share.mean) - log_z) < 1
    assert "less than once in a million" in found.notes[0]
    shares = ebm.replace(controls=(pg.load_control("synthetic", energy="moment"),))
    with pytest.raises(ValueError, match="constraints on shares alone"):
        coverage(shares, KEY)
