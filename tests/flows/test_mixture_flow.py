"""A mixture of flows: an exact density, that finds every mode, and is saved like any other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import promptgen_jax as pg
from promptgen_jax.evaluation.closed_forms import wells_log_z
from promptgen_jax.flows.base import init_flow
from promptgen_jax.types import Density, Invertible

PART = {"architecture": "coupling", "num_layers": 2, "hidden_dim": 8}
KEY = jax.random.key(0)


def test_density_is_that_of_the_samples():
    """It integrates to one, is what sampling tells, and parts have their shares of the noise."""
    prior = pg.Prior(loc=jnp.array([0.5, -0.5]), scale=jnp.array([1.0, 0.7]), blocks=(2,))
    shares = (0.5, 0.3, 0.2)
    flow, params = init_flow(KEY, prior, kind="mixture", num_parts=3, shares=shares, part=PART)
    params = jax.tree.map(lambda leaf: leaf + 0.2 * jnp.sin(jnp.arange(leaf.size).reshape(leaf.shape)), params)
    axis = np.linspace(-9, 9, 181, dtype=np.float32)
    grid = jnp.asarray(np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2))

    @jax.jit
    def run(flow, params, grid):
        z, log_q = flow.sample_and_log_prob(params, KEY, 8192)
        return jnp.sum(jnp.exp(flow.log_prob(params, grid))), z, log_q, flow.log_prob(params, z)

    total, z, log_q, again = run(flow, params, grid)
    np.testing.assert_allclose(total * (axis[1] - axis[0]) ** 2, 1, atol=2e-3)
    np.testing.assert_allclose(log_q, again, atol=1e-4)
    part = np.asarray(flow.part_of(prior.sample(KEY, 8192)))
    np.testing.assert_allclose(np.bincount(part) / 8192, shares, atol=0.02)
    narrow = -0.5 * jnp.sum((z - jnp.mean(z, axis=0)) ** 2 / 0.25, axis=1) - jnp.log(2 * jnp.pi * 0.25)
    np.testing.assert_allclose(jnp.mean(jnp.exp(narrow - log_q)), 1, atol=0.06)  # samples are of that density
    assert isinstance(flow, Density)
    assert not isinstance(flow, Invertible)


def test_every_well_is_found_and_kept(tmp_path):
    """Four wells, of which a single flow finds one or bridges them: trained, certified, saved, loaded."""
    control = pg.load_control("synthetic", energy="wells")
    ebm = pg.LatentEBM(pg.load_generator("synthetic", problem="wells"), (control,))
    flow = {"kind": "mixture", "num_parts": 4, "width": 0.4, "part": PART}
    prompt, _ = pg.fit(ebm, flow=flow, num_steps=200, batch_size=64, learning_rate=2e-2, quiet=True)
    certificate = pg.certify(prompt, ebm, KEY)
    print(certificate)
    points = np.asarray(prompt.latents(prompt.prior.sample(KEY, 512)))
    wells = np.bincount((points[:, 0] < 0) * 2 + (points[:, 1] < 0), minlength=4) / 512
    assert np.all(np.abs(wells - 0.25) < 0.08)
    assert abs(certificate.log_z - wells_log_z(control.centres, float(control.scale))) < 0.05
    assert certificate.reverse_kl < 0.1
    prompt.save(tmp_path / "prompt")
    again = pg.Prompt.load(tmp_path / "prompt", generator=ebm.generator)
    assert again.flow.spec == prompt.flow.spec
    np.testing.assert_array_equal(again.sample(KEY, 4), prompt.sample(KEY, 4))
    np.testing.assert_allclose(again.log_prob(jnp.asarray(points[:4])), prompt.log_prob(jnp.asarray(points[:4])))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_parts": 1}, "num_parts: got 1"),
        ({"num_parts": 2, "shares": (0.5, 0.6)}, "expected 2 positive numbers that add up to 1"),
        ({"part": {"num_layer": 2}}, "Did you mean 'num_layers'"),
        ({"part": {"kind": "mixture"}}, "mixtures themselves"),
        ({"hidden_dim": 8}, "flow mixture: option: unknown name 'hidden_dim'"),
    ],
    ids=["one", "shares", "part", "nested", "option of a part"],
)
def test_refused(options, message):
    with pytest.raises(ValueError, match=message):
        init_flow(KEY, pg.Prior.standard(2), kind="mixture", **options)


def test_prompt_on_a_mixture_says_that_there_is_no_way_back():
    generator = pg.load_generator("synthetic", problem="wells")
    flow, params = init_flow(KEY, generator.prior, kind="mixture", part=PART)
    inner = pg.Prompt(generator, flow, params)
    outer = pg.Prompt(inner, *init_flow(KEY, generator.prior, **PART))
    assert outer.prior is generator.prior
    with pytest.raises(ValueError, match="is a mixture of flows, a density without a way back"):
        outer.log_prob(jnp.zeros((2, 2)))
