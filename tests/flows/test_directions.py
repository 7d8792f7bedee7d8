"""Flows along a few directions: exact, the same elsewhere, and along those that the energy asks for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import OPTIONS

import promptgen_jax as pg
from promptgen_jax.flows.base import init_flow
from promptgen_jax.training.directions import active_directions

KEY = jax.random.key(0)
FLOW = {"architecture": "coupling", "num_layers": 4, "hidden_dim": 16}
AXES = np.zeros((6, 2), np.float32)
AXES[:2, 0] = np.array([1, 2]) / np.sqrt(5)  # what the energy below reads of the latent: two normals of six
AXES[4, 1] = 1


def plane():
    """A normal target whose energy depends on two directions, on the first more than on the second."""
    generator = pg.FunctionGenerator(
        pg.Prior.standard(6), lambda z: jnp.broadcast_to((z @ AXES)[:, None, :, None], (len(z), 1, 2, 3))
    )
    energy = lambda x: 3 * (x[:, 0, 0, 0] - 1) ** 2 + (x[:, 0, 1, 0] + 0.5) ** 2  # noqa: E731
    return pg.LatentEBM(generator, (pg.FunctionControl(energy),))


@pytest.mark.parametrize("architecture", ["coupling", "allinone"])
def test_the_map_is_exact_and_moves_nothing_across(architecture):
    flow, params = init_flow(KEY, pg.Prior.standard(7), architecture=architecture, hidden_dim=8, directions=3)
    params = jax.tree.map(lambda leaf: leaf + 0.2 * jnp.sin(jnp.arange(leaf.size).reshape(leaf.shape)), params)
    eps = jax.random.normal(KEY, (5, 7))
    z, log_det = flow.forward_and_log_det(params, eps)
    back, minus = flow.inverse_and_log_det(params, z)
    np.testing.assert_allclose(back, eps, atol=1e-5)
    np.testing.assert_allclose(minus, -log_det, atol=1e-5)
    jacobian = jax.vmap(jax.jacfwd(lambda eps: flow.forward_and_log_det(params, eps[None])[0][0]))(eps)
    np.testing.assert_allclose(log_det, np.linalg.slogdet(jacobian)[1], atol=1e-5)
    directions = flow.buffers["directions"]
    np.testing.assert_allclose(directions.T @ directions, np.eye(3), atol=1e-6)
    across = np.eye(7) - directions @ directions.T
    np.testing.assert_allclose(z @ across, eps @ across, atol=1e-5)
    assert np.max(np.abs((z - eps) @ directions)) > 0.1


def test_directions_are_those_of_the_energy_the_steepest_first():
    found = active_directions(plane(), KEY)
    assert found.shape == (6, 6)
    np.testing.assert_allclose(np.abs(found[:, :2].T @ AXES), np.eye(2), atol=0.2)
    np.testing.assert_allclose(found[:, :2] @ found[:, :2].T, AXES @ AXES.T, atol=1e-5)


@pytest.fixture(scope="module")
def trained():
    options = OPTIONS | {"num_steps": 300, "batch_size": 128, "learning_rate": 1e-2, "objective": "path_gradient"}
    return pg.fit(plane(), flow=FLOW | {"directions": 2}, **options)[0]


def test_a_training_reaches_a_target_of_as_many_directions(trained, tmp_path):
    found = pg.certify(trained, plane(), KEY, num_samples=2048, reference_samples=2048)
    assert found.verdict == "good"
    assert max(found.reverse_kl, found.forward_kl) < 0.03
    trained.save(tmp_path / "prompt")
    again = pg.Prompt.load(tmp_path / "prompt", generator=plane().generator)
    np.testing.assert_array_equal(again.flow.buffers["directions"], trained.flow.buffers["directions"])
    np.testing.assert_array_equal(again.sample(KEY, 4), trained.sample(KEY, 4))


def test_a_resumed_training_goes_on_along_the_same_directions(tmp_path, capsys):
    options = OPTIONS | {"num_steps": 4, "flow": FLOW | {"directions": 3}}

    def stop(step, metrics, prompt):
        if step == 3:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        pg.fit(plane(), callback=stop, workdir=tmp_path, **options)
    resumed, _ = pg.fit(plane(), workdir=tmp_path, **options | {"quiet": False})
    assert capsys.readouterr().out.startswith("looking for directions, by 512 gradients of the energy ...\n")
    whole, _ = pg.fit(plane(), **options)
    for one, other in zip(jax.tree.leaves(resumed.params), jax.tree.leaves(whole.params), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(resumed.flow.buffers["directions"], whole.flow.buffers["directions"])


def test_parts_of_a_mixture_and_dials_move_along_them_too():
    options = OPTIONS | {"num_steps": 1, "batch_size": 8}
    mixture = {"kind": "mixture", "num_parts": 2, "part": FLOW | {"directions": 2}}
    prompt, _ = pg.fit(plane(), flow=mixture, **options)
    for found in prompt.flow.buffers["directions"]:
        np.testing.assert_allclose(found @ found.T, AXES @ AXES.T, atol=1e-5)
    ebm = plane()
    name = ebm.controls[0].name
    ebm = ebm.replace(cond_prior=pg.Conditions.of_strengths({name: (0, 1)}))
    dial, _ = pg.fit(ebm, flow=FLOW | {"directions": 3}, **options)
    eps, off = jax.random.normal(KEY, (4, 6)), jnp.zeros((4, 1))
    np.testing.assert_array_equal(dial.flow.forward_and_log_det(dial.params, eps, off)[0], eps)


@pytest.mark.parametrize(
    ("directions", "message"),
    [(1, "flow: directions: got 1"), (7, "7 of a latent of 6 numbers"), (-2, "directions: got -2")],
)
def test_other_counts_are_refused(directions, message):
    with pytest.raises(ValueError, match=message):
        pg.fit(plane(), flow=FLOW | {"directions": directions}, **OPTIONS)


@pytest.mark.parametrize(
    ("energy", "message"),
    [
        (lambda x: jnp.round(x[:, 0, 0, 0]), "no gradient at any of 512 samples"),
        (lambda x: jnp.sqrt(jnp.maximum(x[:, 0, 0, 0], 0)), "NaN or infinite at [1-9]"),
    ],
)
def test_an_energy_has_to_say_where_to(energy, message):
    ebm = pg.LatentEBM(plane().generator, (pg.FunctionControl(energy),))
    with pytest.raises(ValueError, match=message):
        pg.fit(ebm, flow=FLOW | {"directions": 2}, **OPTIONS)


def test_targets_and_priors_without_directions_are_refused():
    with pytest.raises(ValueError, match="the prior has 2 blocks"):
        init_flow(KEY, pg.Prior.standard(3, 3), directions=2)
    with pytest.raises(ValueError, match="deviations of the prior differ"):
        init_flow(KEY, pg.Prior.standard(3).replace(scale=jnp.array([1.0, 2.0, 1.0])), directions=2)
    init_flow(KEY, pg.Prior.standard(3).replace(scale=jnp.full(3, 2.0)), directions=2)
    moving = pg.FunctionControl(lambda x: jnp.mean(x**2, axis=(1, 2, 3)), needs_reference=True)
    for flow in (FLOW | {"directions": 2}, {"kind": "mixture", "part": FLOW | {"directions": 2}}):
        with pytest.raises(ValueError, match="directions need a fixed target"):
            pg.fit(pg.LatentEBM(plane().generator, (moving,)), flow=flow, **OPTIONS)
    pg.fit(pg.LatentEBM(plane().generator, (moving,)), flow=FLOW | {"directions": 0}, **OPTIONS)  # asks for none
