import jax.numpy as jnp
import numpy as np
import optax
import pytest

from promptgen_jax.training.optimizer import clip_by_global_norm, linear_decay, make_optimizer, official_adamw


def test_adamw_adds_eps_to_the_uncorrected_root():
    gradients, learning_rate, eps = [0.3, -0.1, 0.2], 0.1, 0.05
    optimizer = official_adamw(learning_rate, eps=eps)
    p, m, v = 1.0, 0.0, 0.0
    params = jnp.asarray(p)
    state = optimizer.init(params)
    for t, g in enumerate(gradients, start=1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        p -= learning_rate * np.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / (np.sqrt(v) + eps)
        updates, state = optimizer.update(jnp.asarray(g), state)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params, p, rtol=1e-5)


def test_adamw_is_adam_where_eps_does_not_matter():
    params, grads = jnp.array([1.0, -2.0]), jnp.array([0.5, 3.0])
    ours, theirs = official_adamw(1e-2, eps=1e-12), optax.adam(1e-2, eps=1e-12)
    np.testing.assert_allclose(
        ours.update(grads, ours.init(params))[0], theirs.update(grads, theirs.init(params))[0], rtol=1e-5
    )


@pytest.mark.parametrize(("norm", "expected"), [(0.5, 0.5), (4.0, 1.0), (0.0, 0.0)], ids=["small", "large", "zero"])
def test_clip(norm, expected):
    clipped, _ = clip_by_global_norm(1.0).update({"a": jnp.array([0.6 * norm]), "b": jnp.array([0.8 * norm])}, None)
    np.testing.assert_allclose(optax.tree.norm(clipped), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("warmup_steps", "expected"),
    [(0, [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]), (2, [0.0, 0.5, 1.0, 0.5, 0.0, 0.0])],
    ids=["official", "warmup"],
)
def test_linear_decay(warmup_steps, expected):
    schedule = linear_decay(1.0, 4, warmup_steps)
    np.testing.assert_allclose([schedule(step) for step in range(6)], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (dict(learning_rate=0.0), "learning_rate is 0.0; expected a positive number"),
        (dict(clip_norm=-1.0), "clip_norm is -1.0; expected a positive number"),
        (dict(num_steps=0), "num_steps: got 0; expected an integer of at least 1"),
        (dict(warmup_steps=10), "warmup_steps is 10; expected less than num_steps, 10"),
    ],
    ids=["learning-rate", "clip-norm", "steps", "warmup"],
)
def test_errors(options, match):
    with pytest.raises(ValueError, match=match):
        make_optimizer(**{"learning_rate": 1e-3, "num_steps": 10, **options})
