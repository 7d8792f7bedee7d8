"""Conditional prompts: training over a distribution of conditions, sampling, saving, references, certificates."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from helpers import DIM, FLOW, OPTIONS, as_picture

import promptgen_jax as pg
from promptgen_jax import objectives
from promptgen_jax.flows.conditions import Conditions

KEY = jax.random.key(0)
BOX = Conditions(low=jnp.array([-1.0, -0.5]), high=jnp.array([1.0, 1.5]), names=("a", "b"))


@struct.dataclass
class Follow:
    """E = ½ |z - 2 m(rho)|² with m = (rho_0, rho_1, 0, 0), so that p(z | rho) = N(m, I/2)."""

    weight: float = 1.0
    name: str = struct.field(pytree_node=False, default="follow")
    needs_reference: bool = struct.field(pytree_node=False, default=False)

    def __call__(self, key, sample):
        target = 2 * jnp.pad(sample.cond, ((0, 0), (0, DIM - 2)))
        return 0.5 * jnp.sum((sample.images[:, 0, :, 0] - target) ** 2, axis=-1)


@struct.dataclass
class Stay:
    """Squared distance to the reference."""

    weight: float = 1.0
    name: str = struct.field(pytree_node=False, default="stay")
    needs_reference: bool = struct.field(pytree_node=False, default=True)

    def __call__(self, key, sample):
        return jnp.sum((sample.images - sample.reference) ** 2, axis=(1, 2, 3))


def make_ebm(*controls, cond_prior=BOX):
    generator = pg.FunctionGenerator(prior=pg.Prior.standard(DIM), function=as_picture)
    return pg.LatentEBM(generator=generator, controls=controls or (Follow(),), cond_prior=cond_prior)


@pytest.fixture(scope="module")
def trained():
    options = OPTIONS | {"num_steps": 400, "batch_size": 256, "learning_rate": 5e-3, "log_every": 200}
    return pg.fit(make_ebm(), flow=FLOW | {"hidden_dim": 32}, **options)[0]


def test_one_flow_reaches_the_posterior_of_every_condition(trained):
    eps = trained.prior.sample(jax.random.key(5), 20000)
    for rho in ((0.0, 0.0), (-1.0, 1.5), (0.8, -0.4)):
        z = trained.latents(eps, jnp.broadcast_to(jnp.array(rho), (len(eps), 2)))
        np.testing.assert_allclose(z.mean(0), [*rho, 0, 0], atol=0.06)
        np.testing.assert_allclose(np.cov(z.T), 0.5 * np.eye(DIM), atol=0.08)


def test_certificate_of_a_conditional_prompt(trained):
    """The joint target p(rho) p_z(z) exp(-E), and that of one condition, whose log Z is known."""
    options = {"num_samples": 4096, "batch_size": 4096}
    certificate = pg.evaluation.exactness(trained, make_ebm(), KEY, reference_samples=20480, **options)
    single = Conditions(low=jnp.array([0.5, 0.5]), high=jnp.array([0.5, 0.5]))
    at_one = pg.evaluation.exactness(trained, make_ebm(cond_prior=single), KEY, **options)
    assert abs(at_one["log_z"] - (-DIM / 2 * np.log(2) - 0.5)) < 0.03  # log ∫ N(z; 0, I) exp(-|z - 2m|²/2) dz
    assert at_one["ess"] > 0.9 * 4096
    rho = np.asarray(BOX.sample(jax.random.key(1), 100_000), np.float64)
    log_z = -DIM / 2 * np.log(2) + np.log(np.mean(np.exp(-np.sum(rho**2, axis=1))))
    assert abs(certificate["log_z"] - log_z) < 0.05
    assert abs(certificate["log_z_reference"] - log_z) < 0.05
    assert certificate["kl"] < 0.6  # conditions themselves are drawn evenly, the joint target prefers likely ones


def test_saved_and_loaded_prompts_keep_the_condition(trained, tmp_path):
    trained.save(tmp_path / "prompt")
    again = pg.Prompt.load(tmp_path / "prompt", generator=make_ebm().generator)
    cond = BOX.sample(KEY, 5)
    assert again.flow.cond_dim == 2
    assert np.array_equal(trained.sample(KEY, 5, cond=cond), again.sample(KEY, 5, cond=cond))
    with pytest.warns(UserWarning, match=r"beyond what prompt was trained on: b "):
        one = again.sample(KEY, 5, cond=jnp.array([0.3, 3.0]))  # one for all, and outside the box
    with pytest.warns(UserWarning, match="beyond"):
        each = trained.sample(KEY, 5, cond=jnp.tile(jnp.array([[0.3, 3.0]]), (5, 1)))
    np.testing.assert_array_equal(one, each)
    assert np.abs(one - trained.sample(KEY, 5, cond=jnp.array([0.3, 0.0]))).max() > 0.1


def measure(ebm, flow, params, batch_size):
    objective = objectives.ReverseKL(batch_size=batch_size)
    return jax.jit(lambda ebm, flow, params: objective(params, KEY, ebm, flow)[1])(ebm, flow, params)


def test_conditions_are_drawn_anew_for_every_noise_vector():
    """The same energy by hand, of the same draws."""
    ebm = make_ebm()
    flow, params = pg.init_flow(KEY, ebm.generator.prior, cond_dim=2, **FLOW)
    metrics = measure(ebm, flow, params, batch_size=64)
    key_eps, _ = jax.random.split(KEY)
    cond = BOX.sample(jax.random.fold_in(key_eps, 1), 64)
    assert len(np.unique(cond[:, 0])) == 64
    assert np.all(cond >= BOX.low)
    assert np.all(cond <= BOX.high)
    eps = ebm.generator.prior.sample(key_eps, 64)  # the flow starts as the identity
    np.testing.assert_allclose(metrics["energy/follow"], ebm.energy(KEY, eps, cond).mean(), rtol=1e-5)


@pytest.mark.parametrize("cond_prior", [BOX, None], ids=["canonical", "before"])
def test_reference_is_the_same_noise_without_the_control(cond_prior):
    """At the canonical condition 0, or, of a flow that takes none, before the flow; gradients flow through both."""
    ebm = make_ebm(Stay(), cond_prior=cond_prior)
    flow, params = pg.init_flow(KEY, ebm.generator.prior, cond_dim=2 if cond_prior else 0, **FLOW)
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)
    metrics = measure(ebm, flow, params, batch_size=16)
    key_eps, _ = jax.random.split(KEY)
    eps = ebm.generator.prior.sample(key_eps, 16)
    cond = ebm.draw_cond(jax.random.fold_in(key_eps, 1), 16)
    z = flow.forward_and_log_det(params, eps, cond)[0]
    reference = flow.forward_and_log_det(params, eps, jnp.zeros((16, 2)))[0] if cond_prior else eps
    expected = jnp.mean(3 * jnp.sum((z - reference) ** 2, axis=1))
    assert expected > 1e-4
    np.testing.assert_allclose(metrics["energy/stay"], expected, rtol=1e-4)


def test_grid():
    fixed = Conditions.of_angles({"nod": (-20, 20), "turn": (-10, 10), "roll": (0, 0)})
    grid = np.degrees(fixed.grid(3))
    assert grid.shape == (9, 3)
    np.testing.assert_allclose(grid[[0, 1, 4, 8]], [[-20, -10, 0], [-20, 0, 0], [0, 0, 0], [20, 10, 0]], atol=1e-5)
    drawn = np.degrees(fixed.sample(KEY, 1000))
    assert np.all(drawn[:, 2] == 0)
    np.testing.assert_allclose(np.abs(drawn).max(0), [20, 10, 0], atol=0.1)


MIXED = Conditions.of({"turn": (-20, 20), "smile": (0, 2.5, "strength"), "old": [0.1, 0.7, "share"]})


def test_people_write_conditions_in_their_units():
    """Degrees are radians inside, strengths and shares as they are; what is written is read again."""
    np.testing.assert_allclose(MIXED.low, [np.radians(-20), 0, 0.1], rtol=1e-6)
    np.testing.assert_allclose(MIXED.high, [np.radians(20), 2.5, 0.7], rtol=1e-6)
    assert MIXED.ranges() == {"turn": (-20, 20, "angle"), "smile": (0, 2.5, "strength"), "old": (0.1, 0.7, "share")}
    again = Conditions.of(json.loads(json.dumps(MIXED.ranges())))
    assert jax.tree.all(jax.tree.map(np.array_equal, MIXED, again))
    assert MIXED.told() == {"turn": "-20 to 20 degrees", "smile": "0 to 2.5", "old": "0.1 to 0.7"}
    cond = MIXED.read(["90", "1", ".5"])
    np.testing.assert_allclose(cond, [np.pi / 2, 1, 0.5], rtol=1e-6)
    np.testing.assert_allclose(MIXED.write(np.stack([cond, 0 * cond])), [[90, 1, 0.5], [0, 0, 0]], rtol=1e-6)
    assert MIXED.grid(2).shape == (8, 3)
    strengths = Conditions.of_strengths({"smile": (0, 1)})
    assert strengths.components == (("smile", "strength"),)
    assert BOX.components == (("a", "angle"), ("b", "angle"))


def test_units_are_those_of_the_condition_everywhere(tmp_path):
    """In prompt.json, on the card, in the warning; no degrees for what has none."""
    generator = make_ebm().generator
    flow, params = pg.init_flow(KEY, generator.prior, cond_dim=3, **FLOW)
    pg.Prompt(generator, flow, params, conditions=MIXED).save(tmp_path / "prompt")
    again = pg.Prompt.load(tmp_path / "prompt", generator=generator)
    assert again.conditions.kinds == ("angle", "strength", "share")
    card = (tmp_path / "prompt" / "README.md").read_text()
    assert "| turn | radians | -20 to 20 degrees |\n| smile | none | 0 to 2.5 |\n| old | none | 0.1 to 0.7 |" in card
    with pytest.warns(UserWarning, match=r"trained on: turn -20 to 20 degrees, smile 0 to 2\.5\.$"):
        again.sample(KEY, 1, cond=jnp.array([1.0, 3.0, 0.2]))


def conditional():
    generator = make_ebm().generator
    flow, params = pg.init_flow(KEY, generator.prior, cond_dim=2, **FLOW)
    return pg.Prompt(generator=generator, flow=flow, params=params, name="inner")


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: pg.fit(make_ebm(), flow=FLOW | {"cond_dim": 2}, **OPTIONS), "cond_prior"),
        (lambda: pg.fit(make_ebm(Stay()), flow=FLOW, **OPTIONS, objective="forward_kl"), "stay .*reverse_kl"),
        (lambda: pg.fit(make_ebm(Stay()), flow=FLOW, **OPTIONS, objective="score_function"), "stay .*reverse_kl"),
        (lambda: pg.fit(make_ebm().replace(generator=conditional()), flow=FLOW, **OPTIONS), "'inner'.* last"),
        (lambda: pg.evaluation.exactness(conditional(), make_ebm(Follow(), Stay()), KEY), "stay .*no target density"),
        (lambda: pg.evaluation.exactness(conditional(), make_ebm(cond_prior=None), KEY), "length 2.*cond_prior"),
        (lambda: conditional().sample(KEY, 3), r"cond is none; expected \(3, 2\)"),
        (lambda: conditional().sample(KEY, 3, cond=jnp.zeros((3, 5))), r"expected \(3, 2\)"),
        (lambda: Conditions.of_angles({"turn": (20, -20)}), "turn.*low, high"),
        (lambda: Conditions.of_angles({}), "no ranges"),
        (lambda: Conditions.of({"turn": (1,)}), "turn.*low, high.*degrees"),
        (lambda: Conditions.of({"turn": (0, 1, "strenght")}), "turn: kind is 'strenght'; expected one of angle, str"),
        (lambda: Conditions.of({"old": (0, 70, "share")}), "old.*shares from 0 to 1"),
        (
            lambda: pg.fit(make_ebm(), flow=FLOW | {"conditioning": "equivariant"}, **OPTIONS),
            "equivariant rotates 1 pairs of 4 numbers, so the last of 2 components of the condition would do nothing",
        ),
        (lambda: Conditions.of_strengths({"smile": 1}), r"smile: range is 1; expected \(low, high\)"),
        (lambda: Conditions.of_strengths({"smile": "01"}), "smile: range is '01'; expected"),
        (lambda: Conditions.of_strengths({"smile": ("0", "1")}), "smile: range is .*; expected"),
        (lambda: Conditions.of_strengths({"smile": (0, np.inf)}), "smile: range is .*; expected"),
        (lambda: MIXED.read(["1", "2"]), "condition=1,2: expected 3.*turn in degrees, smile in no unit"),
        (lambda: MIXED.read(["1", "2", "inf"]), "expected 3"),
    ],
    ids=range(20),
)
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()


@pytest.mark.parametrize("objective", ["score_function", "forward_kl"])
def test_other_objectives_take_conditions(objective):
    options = OPTIONS | {"num_steps": 40, "batch_size": 128, "log_every": 13, "learning_rate": 5e-3}
    _, history = pg.fit(make_ebm(), flow=FLOW | {"num_layers": 2}, **options, objective=objective)
    assert history[-1]["loss"] < history[0]["loss"] - 0.1


def test_a_strength_is_no_angle():
    """A control of head poses reads the whole condition, so a strength of 1 would be a turn of 57 degrees."""
    generator = pg.load_generator("dcgan_digiface")
    controls = (pg.load_control("rotation"), pg.load_control("pose", yaw=5.0, name="smile"))
    mixed = pg.Conditions.of({"nod": (-10, 10, "angle"), "smile": (0, 1, "strength")})
    with pytest.raises(ValueError, match="pose reads all of them as angles, and smile is none"):
        pg.fit(pg.LatentEBM(generator, controls, mixed), num_steps=1, quiet=True)
