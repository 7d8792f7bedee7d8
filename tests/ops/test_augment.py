"""Draws of augmentations: their distributions, how they are spread over views, and what a policy leaves out."""

import jax
import numpy as np
import pytest

from promptgen_jax.ops import augment

COLOUR = ("brightness", "saturation", "contrast")


@pytest.mark.parametrize("side", [2, 5, 61, 64, 224, 256, 512, 1000, 1024])
def test_side_is_the_float64_rule_bit_for_bit(side):
    rng = np.random.default_rng(0)
    uniform = rng.uniform(size=100_000).astype(np.float32)
    steps = np.float32((np.arange(int(0.8 * side), int(1.2 * side) + 1) / side - 0.8) / 0.4)
    around_steps = (steps.view(np.int32)[:, None] + np.arange(-4, 5, dtype=np.int32)).view(np.float32)
    uniform = np.concatenate([uniform, around_steps.ravel(), np.float32([0, 1 - 2**-24])])
    uniform = uniform[(uniform >= 0) & (uniform < 1)]
    expected = np.array([int((float(u) * (1.2 - 0.8) + 0.8) * side) for u in uniform])
    got = jax.jit(augment.side_of_draw, static_argnums=1)(uniform, side)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("side", [61, 64])
def test_draws_reach_their_whole_ranges(side):
    draws = augment.draw(jax.random.key(0), num_images=1000, num_views=10, image_size=side)
    draws = jax.tree.map(np.asarray, draws)
    assert {field.shape for field in draws} == {(1000, 10)}
    for name in COLOUR:
        values = getattr(draws, name)
        assert 0 <= values.min() < 0.001
        assert 0.999 < values.max() < 1
    last = {61: 60, 64: 64}[side]  # S - k % 2, k = 31 and 32
    for axis in ("rows", "cols"):
        assert set(getattr(draws, f"shift_{axis}").flat) == set(range(-8, 9))
        assert set(getattr(draws, f"cutout_{axis}").flat) == set(range(last + 1))
    assert set(draws.side.flat) == set(range(int(0.8 * side), int(1.2 * side) + 1))
    np.testing.assert_array_equal(draws.side, draws.side[:, :1].repeat(10, axis=1))
    # independent of each other
    fields = np.stack([np.float64(field).ravel() for field in draws])
    assert np.max(np.abs(np.corrcoef(fields) - np.eye(8))) < 0.1


@pytest.mark.parametrize("spread", ["stratified", "antithetic"])
@pytest.mark.parametrize("num_views", [1, 5, 6])
def test_spread_views_are_each_distributed_as_independent_ones(spread, num_views):
    """Chi-square of every number of every view, for shares that are known; 38 is the 1 in 10,000 of the wider one."""
    draws = augment.draw(jax.random.key(7), num_images=4000, num_views=num_views, image_size=61, spread=spread)
    library = augment.draw(jax.random.key(8), num_images=4000, num_views=num_views, image_size=61)
    np.testing.assert_array_equal([field.dtype for field in draws], [field.dtype for field in library])
    draws = {name: np.asarray(field) for name, field in draws._asdict().items()}
    sides = np.bincount(np.asarray(library.side)[:, 0], minlength=73)
    assert np.all(np.abs(np.bincount(draws["side"][:, 0], minlength=73) - sides) < 6 * np.sqrt(2 * 4000 / 24))
    for name, field in draws.items():
        assert field.shape == (4000, num_views)
        if name == "side":
            np.testing.assert_array_equal(field, np.broadcast_to(field[:, :1], field.shape))
            continue
        first, last, bins = (0, 1, 7) if name in COLOUR else (-8, 9, 17) if "shift" in name else (0, 61, 61)
        assert first <= field.min()
        assert field.max() < last
        for view in field.T:
            found, _ = np.histogram(view, bins=bins, range=(first, last))
            chi = np.sum((found - 4000 / bins) ** 2) / (4000 / bins)
            assert chi < bins - 1 + 4.5 * np.sqrt(2 * (bins - 1)), (name, found)
    several = np.stack([np.float64(field)[:, -1] for field in draws.values()])
    assert np.max(np.abs(np.corrcoef(several) - np.eye(8))) < 0.08  # of one view, independent of each other


def test_views_are_spread_within_each_image():
    """A stratum each, in another order for another number; pairs whose numbers add up to one."""
    shape = {"num_images": 50, "num_views": 8, "image_size": 64}
    strata = augment.draw(jax.random.key(0), **shape, spread="stratified")
    for field in (strata.brightness, strata.saturation, strata.contrast):
        np.testing.assert_array_equal(np.sort(np.floor(8 * np.asarray(field)), axis=1), np.tile(np.arange(8), (50, 1)))
    assert np.any(np.argsort(strata.brightness, axis=1) != np.argsort(strata.contrast, axis=1))
    pairs = augment.draw(jax.random.key(0), **shape, spread="antithetic")
    np.testing.assert_allclose(pairs.contrast[:, :4] + pairs.contrast[:, 4:], 1, atol=1e-6)
    np.testing.assert_array_equal(pairs.shift_rows[:, :4], -pairs.shift_rows[:, 4:])


@pytest.mark.parametrize("left_out", augment.OPERATIONS)
def test_policy_leaves_out(left_out):
    policy = ",".join(name for name in augment.OPERATIONS if name != left_out)
    draws = augment.draw(jax.random.key(1), num_images=2, num_views=7, image_size=40, policy=policy)
    neutral = augment.draw(jax.random.key(0), num_images=2, num_views=7, image_size=40, policy="")
    of_operation = {"color": COLOUR, "resize": ("side",), "translation": ("shift_rows", "shift_cols")}
    of_operation["cutout"] = ("cutout_rows", "cutout_cols")
    for operation, fields in of_operation.items():
        for field in fields:
            same = np.array_equal(getattr(draws, field), getattr(neutral, field))
            assert same == (operation == left_out)


def test_an_unknown_spread_is_refused():
    with pytest.raises(ValueError, match="unknown name 'even'.*Known: antithetic, independent, stratified"):
        augment.draw(jax.random.key(0), num_images=1, num_views=2, image_size=8, spread="even")
