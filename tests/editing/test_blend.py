import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import promptgen_jax as pg

KEY = jax.random.key(0)


def prompt_of(seed, *, generator=None, cond_dim=0):
    generator = generator or pg.FunctionGenerator(prior=pg.Prior.standard(4), function=helpers.as_picture)
    flow, params = pg.init_flow(KEY, generator.prior, cond_dim=cond_dim, num_layers=2, hidden_dim=8)
    noise = iter(jax.random.split(jax.random.key(seed), 99))
    params = jax.tree.map(lambda leaf: leaf + 0.3 * jax.random.normal(next(noise), leaf.shape), params)
    return pg.Prompt(generator, flow, params)


def test_ends_are_the_prompts_and_the_way_keeps_its_length():
    first, second = prompt_of(1), prompt_of(2)
    eps = first.prior.sample(KEY, 5)
    ends = [np.asarray(pg.blend(first, second, eps, weight)) for weight in (0, 1)]
    np.testing.assert_array_equal(ends[0], first.latents(eps))
    np.testing.assert_array_equal(ends[1], second.latents(eps))
    assert not np.allclose(ends[0], ends[1], atol=0.1)
    half = pg.blend(first, second, eps, 0.5)
    norms = [np.linalg.norm(z, axis=1) for z in (*ends, half)]
    np.testing.assert_allclose(norms[2], (norms[0] + norms[1]) / 2, rtol=1e-5)
    each = pg.blend(first, second, eps, jnp.array([0, 0.5, 1, 0.5, 0]))
    np.testing.assert_allclose(each[1], half[1], rtol=1e-6)
    np.testing.assert_array_equal(each[2], ends[1][2])


def test_stacks_and_conditions():
    inner = prompt_of(1)
    outer, conditional = prompt_of(2, generator=inner), prompt_of(3, cond_dim=1)
    eps, cond = inner.prior.sample(KEY, 3), jnp.ones((3, 1))
    np.testing.assert_array_equal(
        pg.blend(outer, conditional, eps, 0.0, cond_second=cond), inner.latents(outer.latents(eps))
    )
    np.testing.assert_array_equal(
        pg.blend(outer, conditional, eps, 1.0, cond_second=cond), conditional.latents(eps, cond)
    )


def test_two_generators_are_refused():
    other = pg.FunctionGenerator(prior=pg.Prior.standard(6), function=helpers.as_picture)
    with pytest.raises(ValueError, match="Blend prompts of one generator"):
        pg.blend(prompt_of(1), prompt_of(2, generator=other), jnp.zeros((1, 4)), 0.5)


@pytest.mark.parametrize("weight", [1.5, -3.0, np.nan, np.array([0.5, 2.0])])
def test_a_weight_is_from_0_to_1(weight):
    with pytest.raises(ValueError, match="blend: weight is .*; expected numbers from 0 to 1"):
        pg.blend(prompt_of(1), prompt_of(2), jnp.zeros((2, 4)), weight)
