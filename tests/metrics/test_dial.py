"""The certificate along a dial: right where the answer is known, and a check of log Z that can fail."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import DIM, FLOW, OPTIONS, as_picture, some_prompt

import promptgen_jax as pg
from promptgen_jax.metrics._path import agreement, integrate, knee_of
from promptgen_jax.metrics.dial import DIALS, _path

KEY = jax.random.key(0)
FAR = jnp.array([1.5, -1.0, 0.0, 0.5])
SIZES = {"num_samples": 1024, "reference_samples": 2048, "batch_size": 2048}


def near(images):
    return 0.5 * jnp.sum((images[:, 0, :, 0] - FAR) ** 2, axis=-1) / 0.25


def make(conditions):
    generator = pg.FunctionGenerator(prior=pg.Prior.standard(DIM), function=as_picture)
    return pg.LatentEBM(generator, (pg.FunctionControl(near, name="near", weight=1.0),), conditions)


EBM = make(pg.Conditions.of_strengths({"near": (0, 1)}))


def exact(s):
    """log Z, and KL to the generator, of exp(-4 s |z - far|² / 2) under a standard normal."""
    precision = 1 + 4 * s
    square = float(jnp.sum(FAR**2))
    log_z = -DIM / 2 * np.log(precision) - 0.5 * 4 * s / precision * square
    mean = 4 * s / precision
    return log_z, 0.5 * (DIM * (1 / precision - 1 + np.log(precision)) + mean**2 * square)


@pytest.fixture(scope="module")
def trained():
    """Trained for a while only, so that the flow is away from its target."""
    options = OPTIONS | {"num_steps": 25, "batch_size": 128, "learning_rate": 5e-3, "log_every": 20}
    return pg.fit(EBM, flow=FLOW, **options)[0]


@pytest.fixture(scope="module")
def found(trained):
    return pg.certify_dial(trained, EBM, KEY, **SIZES)


def test_known_figures_along_the_dial(found):
    """log Z, its integral and the distance to the generator, whatever the flow; at 0 nothing is left to tell."""
    strengths = [each.condition["near"] for each in found.settings]
    np.testing.assert_allclose(strengths, np.linspace(0, 1, 11) ** 2, atol=1e-6)
    for each, strength in zip(found.settings, strengths, strict=True):
        log_z, kl = exact(strength)
        assert abs(each.certificate.log_z - log_z) < 0.12
        assert abs(each.log_z_integrated.mean - log_z) < 0.15
        assert abs(each.kl_generator.mean - kl) < 0.12
        assert each.log_z_integrated.low <= each.log_z_integrated.mean <= each.log_z_integrated.high
    assert found.agrees
    nothing = found.settings[0].certificate
    np.testing.assert_allclose([nothing.log_z, nothing.reverse_kl, nothing.forward_kl], 0, atol=1e-6)
    target = [each.target_means["energy of near"].mean for each in found.settings]
    assert np.all(np.diff(target) < 0)
    assert abs(found.knee - 5) <= 1  # 5 for an exact flow, whose 4 and 6 are nearly as far below the line
    assert "(knee)" in str(found)
    assert "The knee is at near 0." in found.notes[0]


def test_the_flows_own_energies_disagree(found):
    """Integrated over the flow's samples instead of the target's, log Z is wrong, and the check sees it."""
    coefficients = np.array([[each.condition["near"]] for each in found.settings])
    own = np.array([[each.means["energy of near"].mean] for each in found.settings])
    target = np.array([[each.target_means["energy of near"].mean] for each in found.settings])
    spread = np.array([[each.means["energy of near"].std ** 2] for each in found.settings])[..., None]
    log_z = np.array([each.certificate.log_z for each in found.settings])
    halves = np.array([np.diff(each.certificate.log_z_interval)[0] / 4 for each in found.settings])

    def agrees(means):
        integrated, corrections = integrate(coefficients, means[:, None], spread[:, None])
        noise = halves[:, None] * np.random.default_rng(0).normal(size=(len(halves), 200))
        rows = np.concatenate([log_z[:, None], log_z[:, None] + noise], axis=1)
        return agreement(rows, np.repeat(integrated, 201, axis=1), corrections)

    assert agrees(target).all()
    assert not agrees(own)[-1]
    apart = [
        abs(integrate(coefficients, each[:, None], spread[:, None])[0][-1, 0] - log_z[-1]) for each in (own, target)
    ]
    assert apart[0] > 0.1 > 2 * apart[1]


def test_a_wrong_density_is_seen(trained):
    """A flow that says its samples are denser than they are: log Z from weights is no longer the integral."""
    flow = Liar(buffers=trained.flow.buffers, prior=trained.flow.prior, module=trained.flow.module)
    found = pg.certify_dial(trained.replace(flow=flow), EBM, KEY, **SIZES)
    assert not found.agrees
    assert "log Z and its integral are" in found.notes[-1]


class Liar(pg.Flow):
    """Its samples are said to be denser than they are, the more so the stronger."""

    def forward_and_log_det(self, params, eps, cond=None):
        z, log_det = super().forward_and_log_det(params, eps, cond)
        return z, log_det - 3.0 * cond[:, 0]


def test_settings_by_name_and_as_rows(trained):
    options = {"num_samples": 64, "reference_samples": 64, "batch_size": 64}
    one = pg.certify_dial(trained, EBM, KEY, settings={"near": [0.0, 0.5, 1.0]}, **options)
    two = pg.certify_dial(trained, EBM, KEY, settings=np.array([[0.0], [0.5], [1.0]]), **options)
    assert [each.condition for each in one.settings] == [{"near": 0.0}, {"near": 0.5}, {"near": 1.0}]
    assert json.loads(json.dumps(one.to_json())) == two.to_json()
    assert pg.DialCertificate.from_json(json.loads(json.dumps(one.to_json()))) == one


def test_the_path_of_several_dials():
    """Strengths start at nothing, and close together; shares go evenly through their range."""
    both = pg.Conditions.of({"near": (0, 2, "strength"), "female": (0.3, 0.7, "share")})
    np.testing.assert_allclose(_path(both, None, 3), [[0, 0.3], [0.5, 0.5], [2, 0.7]], rtol=1e-6)
    assert {kind for _, kind in both.components} == set(DIALS)


def test_integral_of_a_cubic_is_exact_and_two_dials_may_turn_at_once():
    """d log Z = -E[F] · dw with E[F] = -∇ log Z of log Z = a³ + a b: Simpson's order, whatever the steps."""
    w = np.array([[0.0, 0.0], [0.3, 0.1], [0.4, 0.9], [1.0, 1.0]])
    mean = -np.stack([3 * w[:, 0] ** 2 + w[:, 1], w[:, 0]], axis=1)
    covariance = np.stack([np.array([[6 * a, 1], [1, 0]]) for a, _ in w])  # the second derivative of log Z
    found, _ = integrate(w, mean[:, None], covariance[:, None])
    np.testing.assert_allclose(found[:, 0], w[:, 0] ** 3 + w[:, 0] * w[:, 1], atol=1e-12)


def test_knee():
    way = np.linspace(0, 1, 11)
    assert knee_of(way, np.exp(-8 * way)) in (2, 3)
    assert knee_of(way, 1 - way) is None  # straight
    assert knee_of(way, 1 - np.exp(-8 * way)) is None  # it rises
    assert knee_of(way[:2], np.array([1.0, 0.0])) is None


def plain():
    generator = EBM.generator
    return some_prompt(generator), EBM.replace(cond_prior=None)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda trained: pg.certify_dial(*plain(), KEY), "conditions are none; expected strengths or shares"),
        (
            lambda trained: pg.certify_dial(
                some_prompt(EBM.generator, cond_dim=1), make(pg.Conditions.of({"turn": (-1, 1)})), KEY
            ),
            r"conditions are turn \(angle\); expected strengths or shares. Use pg.certify",
        ),
        (lambda trained: pg.certify_dial(trained, EBM, KEY, settings={"near": [0, 2]}), r"near is \[0, 2\]; expected"),
        (lambda trained: pg.certify_dial(trained, EBM, KEY, settings={"nar": [0, 1]}), "'nar'. Did you mean 'near'"),
        (lambda trained: pg.certify_dial(trained, EBM, KEY, settings={"near": 1.0}), r"settings are \(1,\); expected"),
        (lambda trained: pg.certify_dial(trained, EBM, KEY, num_samples=0), "num_samples"),
        (lambda trained: pg.certify_dial(trained, EBM.replace(cond_prior=None), KEY), "conditions of length 1"),
    ],
    ids=range(7),
)
def test_bad_input(trained, call, match):
    with pytest.raises(ValueError, match=match):
        call(trained)
