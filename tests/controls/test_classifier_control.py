"""Energies of classifiers against the golden data of the official code, on a network that reads logits off pixels."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import official
import pytest

import promptgen_jax as pg
from promptgen_jax.controls.classifier import ClassifierControl
from promptgen_jax.controls.moment import MomentControl
from promptgen_jax.models.network import Network
from promptgen_jax.types import Sample

CUTS = {"race": (0, 7), "gender": (7, 9), "age": (9, 18)}
BINARY = ("no", "yes")


class Pixels(nn.Module):
    """Logits are the red of the first row, which spans -50 to 50; a binary attribute has the logit of "yes" alone."""

    @nn.compact
    def __call__(self, images):
        logits = 100 * (images[:, 0, :, 0] - 0.5)
        single = {str(i): jnp.stack([jnp.zeros(len(logits)), logits[:, i]], axis=-1) for i in range(logits.shape[1])}
        return single | {name: logits[:, slice(*cut)] for name, cut in CUTS.items()}


def network():
    attributes = [(str(i), BINARY) for i in range(18)]
    attributes += [(name, tuple(map(str, range(high - low)))) for name, (low, high) in CUTS.items()]
    return Network(weights={}, module=Pixels(), name="pixels", checksum="", attributes=tuple(attributes))


def sample_of(logits):
    logits = jnp.asarray(logits, jnp.float32)
    logits = jnp.pad(logits, ((0, 0), (0, 18 - logits.shape[1])))
    return Sample(images=jnp.broadcast_to((logits / 100 + 0.5)[:, None, :, None], (len(logits), 1, 18, 3)), z=logits)


def energies_and_gradient(controls, logits):
    """Sum of weighted energies, (B,), and its gradient by the logits."""

    gradient, energy = compiled(jnp.asarray(logits, jnp.float32), controls)
    return energy, gradient


@jax.jit
@functools.partial(jax.grad, has_aux=True)
def compiled(logits, controls):
    energy = sum(control.weight * control(jax.random.key(0), sample_of(logits)) for control in controls)
    return jnp.sum(energy), energy


def binary_controls(golden, case, floor):
    return [
        ClassifierControl(
            network=network(),
            weight=float(weight),
            name=str(i),
            attribute=str(i),
            target="yes" if binary else "not yes",
            floor=floor,
        )
        for i, (binary, weight) in enumerate(
            zip(golden[f"in{case}_class_binaries"], golden[f"in{case}_class_weights"], strict=True)
        )
    ]


@pytest.mark.parametrize("case", ["", "2", "3"])
def test_energies_class_with_the_official_floor(case):
    """All rows, also those where the floor decides."""
    golden = official.load_golden("energies")
    logits = golden[f"in{case}_class_logits"]
    energy, gradient = energies_and_gradient(binary_controls(golden, case, 1e-8), logits)
    # a logit of 12 or more passes through a pixel of the same network: 1 - P then has few digits, as officially
    sure = np.abs(logits).max(axis=1) < 10
    np.testing.assert_allclose(energy[sure], golden[f"out{case}_class"][sure], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(gradient[sure], golden[f"out{case}_class_grad"][sure], atol=1e-5)
    np.testing.assert_allclose(energy[~sure], golden[f"out{case}_class"][~sure], rtol=3e-2, atol=1e-4)
    np.testing.assert_allclose(gradient[~sure], golden[f"out{case}_class_grad"][~sure], atol=2e-2)


@pytest.mark.parametrize("compile", [jax.jit, lambda f: f], ids=["jit", "eager"])
def test_the_floor_holds_where_the_label_is_certain(compile):
    """Officially 18.4207 and a gradient of 0; XLA must not add the floor to the 1 of 1 - P."""
    control = binary_controls({"in_class_binaries": [False], "in_class_weights": [1.0]}, "", 1e-8)[0]

    def energy(logit):
        log_probs = jax.nn.log_softmax(jnp.stack([jnp.zeros(()), logit]))[None]
        return control.from_log_probs(log_probs)[0]

    value, slope = compile(jax.value_and_grad(energy))(jnp.float32(17.0))
    assert float(value) == pytest.approx(18.4207, abs=1e-3)
    assert float(slope) == 0


@pytest.mark.parametrize("case", ["", "2", "3"])
def test_energies_class_without_floor(case):
    """Equal to the official energy where that is exact, linear in the logit where it has reached its floor."""
    golden = official.load_golden("energies")
    logits = golden[f"in{case}_class_logits"]
    energy, gradient = energies_and_gradient(binary_controls(golden, case, 0.0), logits)
    sign = np.where(golden[f"in{case}_class_binaries"], -1.0, 1.0)
    scale = golden[f"in{case}_class_weights"]
    exact = np.sum(scale * np.logaddexp(0, sign * logits.astype(np.float64)), axis=1)
    np.testing.assert_allclose(energy, exact, rtol=1e-5, atol=1e-5)
    mild = np.abs(logits).max(axis=1) < 5
    np.testing.assert_allclose(energy[mild], golden[f"out{case}_class"][mild], rtol=1e-5)
    wrong = sign * logits > 20
    np.testing.assert_allclose(gradient[wrong], (scale * sign * np.ones_like(logits))[wrong], rtol=1e-5)


def test_energies_debias():
    golden = official.load_golden("energies")
    for case, names in (("", ("race", "gender", "age")), ("2", ("age",))):
        controls = [
            MomentControl(
                network=network(),
                weight=1.0,
                beta=jnp.asarray(golden[f"in{case}_debias_beta_{name}"], jnp.float32),
                mu=jnp.zeros(1),
                name=name,
                attribute=name,
            )
            for name in names
        ]
        energy, gradient = energies_and_gradient(controls, golden[f"in{case}_debias_logits18"])
        np.testing.assert_allclose(energy, golden[f"out{case}_debias"], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(gradient, golden[f"out{case}_debias_grad"], atol=1e-5)


def test_avoiding_a_label_is_aiming_at_all_others():
    logits = np.random.default_rng(0).normal(0, 3, (5, 18))
    aim = ClassifierControl(network=network(), weight=1.0, name="a", attribute="race", target="2")
    avoid = aim.replace(target="not 2")
    energies = [energies_and_gradient([control], logits)[0] for control in (aim, avoid)]
    np.testing.assert_allclose(np.exp(-energies[0]) + np.exp(-energies[1]), 1, rtol=1e-5)
    assert aim.label == avoid.label == "2"


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"target": "not hapy"}, "'hapy'.*'happy'"),
        ({"target": "happy", "floor": -1e-8}, "floor is -1e-08; expected a number from 0"),
        ({"target": "happy", "floor": True}, "floor is True"),
    ],
)
def test_bad_options(options, match):
    with pytest.raises(ValueError, match=match):
        pg.load_control("classifier", network="faceapi_expression", attribute="expression", **options)
