"""Augmented views and CLIP's resize against the official code, and against themselves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import official
import pytest
from formulas import assert_stored, formula_image, formula_images

from benchmarks.parts.augment import direct_views
from promptgen_jax.models import clip
from promptgen_jax.ops import augment, resample
from promptgen_jax.ops.views import augmented_views, map_views, mean_views

DIFFAUGMENT, CLIP = official.load_golden("diffaugment"), official.load_golden("clip_preprocess")
CLIP_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
CLIP_STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


def with_gradient(function, images):
    """function(images) and the gradient of sum(outputs * w), w the golden weighting over (..., 3, H, W)."""
    outputs, pullback = jax.vjp(function, images)
    shape = (*outputs.shape[:-3], 3, *outputs.shape[-3:-1])
    weighting = np.cos(np.arange(np.prod(shape)) * 0.01).reshape(shape).astype(np.float32)
    return outputs, pullback(jnp.moveaxis(weighting, -3, -1))[0]


# --- the resize of CLIP's preprocessing ------------------------------------------------------------------------------

# case: which formula image, side
CLIP_CASES = {
    **{"out_64": (0, 64), "out_256": (0, 256), "out_1024": (0, 1024)},
    **{"out2_64": (3, 64), "out2_128": (2, 128), "out2_512": (1, 512)},
}
# PyTorch's float32 positions: one unit in the last place grows with the side (and is divided by CLIP_STD)
PLAIN_TOLERANCE = {64: 3e-5, 128: 3e-5, 256: 6e-5, 512: 1e-4, 1024: 2e-4}


@pytest.mark.parametrize("side", [64, 256, 1024])
def test_formula_image_clip_preprocess(side):
    corner = np.moveaxis(formula_image(0, side)[:8, :8], -1, 0)
    np.testing.assert_allclose(corner, CLIP[f"in_{side}_corner"], atol=1e-7)


@pytest.mark.parametrize("antialias", [False, True], ids=["plain", "antialias"])
@pytest.mark.parametrize("case", CLIP_CASES)
def test_parity_clip_preprocess(case, antialias):
    index, side = CLIP_CASES[case]

    def preprocess(images):
        return (resample.resize_bicubic(images, 224, antialias=antialias) - CLIP_MEAN) / CLIP_STD

    outputs, gradient = jax.jit(functools.partial(with_gradient, preprocess))(formula_images(index, side=side))
    name = f"{case}_{'antialias' if antialias else 'plain'}"
    assert_stored(CLIP, name, outputs[0], 3e-5 if antialias else PLAIN_TOLERANCE[side])
    if any(key.startswith(f"{name}_grad") for key in CLIP):
        assert_stored(CLIP, f"{name}_grad", gradient[0], 0.0, relative=3e-4)
    else:
        assert case == "out2_64"


def test_every_output_of_clip_preprocess_is_compared():
    names = {key.partition("_plain")[0].partition("_antialias")[0] for key in CLIP if key.startswith("out")}
    assert names == set(CLIP_CASES)


# --- DiffAugment -----------------------------------------------------------------------------------------------------

COLOUR = ("brightness", "saturation", "contrast")
ALL = (*COLOUR, "translation", "resize", "cutout")
# where the golden draws lie (prefix, draw of the resize), side
DRAWS = {
    "64": ("in_", "in_policy_r", 64),
    "256a": ("in_256a_", "in_256a_r_resize", 256),
    "256b": ("in_256b_", "in_256b_r_resize", 256),
    "50": ("in2_", "in2_r_resize", 64),
}
FIELDS = {
    **{f"u_{name}": (name, name) for name in COLOUR},
    **{f"t_{axis}": ("translation", f"shift_{axis}") for axis in ("rows", "cols")},
    **{f"c_{axis}": ("cutout", f"cutout_{axis}") for axis in ("rows", "cols")},
}


def neutral_draws(num_images, num_views, image_size):
    return augment.draw(jax.random.key(0), num_images=num_images, num_views=num_views, image_size=image_size, policy="")


def golden_draws(case, operations):
    """The golden draws of some operations, the others neutral, one view of each of N images, (N, 1)."""
    prefix, resize, side = DRAWS[case]
    draws = neutral_draws(len(DIFFAUGMENT[f"{prefix}u_contrast"]), 1, side)
    for stored, (operation, field) in FIELDS.items():
        if operation in operations:
            draws = draws._replace(**{field: jnp.asarray(DIFFAUGMENT[prefix + stored])[:, None]})
    if "resize" in operations:
        draws = resized(draws, DIFFAUGMENT[resize], side)
    return draws


def resized(draws, uniform, side):
    return draws._replace(side=jnp.full_like(draws.side, augment.resized_side(uniform, side)))


@jax.jit
def views_and_gradient(draws, images):
    return with_gradient(lambda images: augmented_views(draws, images, size=None), images)


# tolerances: what an independent version agrees to, in outputs and in gradients of scale 1
TOLERANCE, GRADIENT_TOLERANCE = 4e-6, 4e-5


def check_diffaugment(name, draws, images):
    views, gradient = views_and_gradient(draws, images)
    assert_stored(DIFFAUGMENT, name, views[:, 0], TOLERANCE)
    if any(key.startswith(f"{name}_grad") for key in DIFFAUGMENT):
        assert_stored(DIFFAUGMENT, f"{name}_grad", gradient, GRADIENT_TOLERANCE)


@pytest.mark.parametrize("operation", [*COLOUR, "translation", "cutout", "policy"])
def test_parity_diffaugment_64(operation):
    draws = golden_draws("64", ALL if operation == "policy" else (operation,))
    check_diffaugment(f"out_{operation}", draws, formula_images(0, 1, side=64))


@pytest.mark.parametrize("case", range(5))
def test_parity_diffaugment_64_resize(case):
    uniform = DIFFAUGMENT["in_resize_r"][case]
    assert augment.resized_side(uniform, 64) == DIFFAUGMENT["in_resize_size"][case]
    check_diffaugment(f"out_resize{case}", resized(neutral_draws(2, 1, 64), uniform, 64), formula_images(0, 1, side=64))


@pytest.mark.parametrize("operation", [*ALL, "policy"])
def test_parity_diffaugment_256a(operation):
    draws = golden_draws("256a", ALL if operation == "policy" else (operation,))
    check_diffaugment(f"out_256a_{operation}", draws, formula_images(2, 3, side=256))


def test_parity_diffaugment_256b():
    check_diffaugment("out_256b_policy", golden_draws("256b", ALL), formula_images(2, 3, side=256))


def test_parity_diffaugment_50_views():
    draws = jax.tree.map(jnp.transpose, golden_draws("50", ALL))
    views, gradient = views_and_gradient(draws, formula_images(4, side=64))
    assert_stored(DIFFAUGMENT, "out2_policy", views[0], TOLERANCE)
    assert_stored(DIFFAUGMENT, "out2_policy_last", views[0, -1], TOLERANCE)
    assert_stored(DIFFAUGMENT, "out2_policy_grad", gradient[0], 12 * GRADIENT_TOLERANCE)


# --- the operators against the operations one after another ----------------------------------------------------------


@pytest.mark.parametrize(("side", "size", "antialias"), [(61, 24, False), (61, 24, True), (30, 48, False)])
def test_operators_equal_operations(side, size, antialias):
    images = jax.random.uniform(jax.random.key(0), (2, side, side, 3), minval=-0.2, maxval=1.2)
    draws = augment.draw(jax.random.key(1), num_images=2, num_views=7, image_size=side)
    ours, direct = (
        jax.jit(functools.partial(form, size=size, antialias=antialias))(draws, images)
        for form in (augmented_views, direct_views)
    )
    # float32 positions in up to 61 pixels, of images with edges
    np.testing.assert_allclose(ours, direct, atol=2e-5)


@pytest.mark.parametrize("chunk", [3, 100])
def test_map_views_equals_all_at_once(chunk):
    """Also with a chunk that does not divide the number of views, and for what the function closes over."""
    images = jax.random.uniform(jax.random.key(0), (2, 24, 24, 3))
    draws = augment.draw(jax.random.key(1), num_images=2, num_views=7, image_size=24)
    weighting = jax.random.normal(jax.random.key(2), (2, 7))

    def outputs(kernel, images, in_chunks):
        def function(views):
            return {"energy": jnp.sum(jnp.sin(views @ kernel), axis=(1, 2, 3)), "corner": views[:, 0, 0]}

        if in_chunks:
            return map_views(function, draws, images, size=16, chunk=chunk)
        views = augmented_views(draws, images, size=16)
        return jax.tree.map(lambda leaf: leaf.reshape(2, 7, *leaf.shape[1:]), function(views.reshape(-1, 16, 16, 3)))

    @functools.partial(jax.jit, static_argnums=2)
    def run(kernel, images, in_chunks):
        def total(kernel, images):
            out = outputs(kernel, images, in_chunks)
            return jnp.sum(out["energy"] * weighting) + jnp.sum(out["corner"] ** 2), out

        return jax.grad(total, argnums=(0, 1), has_aux=True)(kernel, images)

    kernel = jax.random.normal(jax.random.key(3), (3, 4))
    mapped, plain = (run(kernel, images, in_chunks) for in_chunks in (True, False))
    assert jax.tree.structure(mapped) == jax.tree.structure(plain)
    for got, expected in zip(jax.tree.leaves(mapped), jax.tree.leaves(plain), strict=True):
        # sums of up to 256 terms of order 1, gradients of order 50
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-4)


def energy_of_views(kernel, views):
    return jnp.sum(jnp.sin(views @ kernel), axis=(1, 2, 3))


def mean_by_map_views(kernel, draws, images, chunk):
    views = functools.partial(energy_of_views, kernel)
    return jnp.mean(map_views(views, draws, images, size=16, chunk=chunk), axis=1)


def mean_by_mean_views(kernel, draws, images, chunk):
    return mean_views(energy_of_views, kernel, draws, images, size=16, chunk=chunk)


MEANS = [mean_by_mean_views, mean_by_map_views]


@pytest.fixture(scope="module")
def of_views():
    """A kernel, draws of seven views, two images, and what weights their energies."""
    images = jax.random.uniform(jax.random.key(0), (2, 24, 24, 3))
    draws = augment.draw(jax.random.key(1), num_images=2, num_views=7, image_size=24)
    return jax.random.normal(jax.random.key(2), (3, 4)), draws, images, jnp.array([2.0, -0.5])


@pytest.mark.parametrize("chunk", [1, 3, 100])
@pytest.mark.parametrize("asked", [(0,), (1,), (0, 1)], ids=["weights", "images", "both"])
def test_mean_views_has_the_gradient_of_map_views(of_views, chunk, asked):
    """Also with a chunk that does not divide the number of views."""
    kernel, draws, images, weighting = of_views

    def run(mean):
        def total(kernel, images):
            energies = mean(kernel, draws, images, chunk)
            return energies @ weighting, energies

        return jax.jit(jax.grad(total, argnums=asked, has_aux=True))(kernel, images)

    for got, expected in zip(*(jax.tree.leaves(run(mean)) for mean in MEANS), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-4)


def test_mean_views_of_every_image_under_its_own_draws(of_views):
    """Under `vmap`, and in a loop over shards, as data-parallel programs run it."""
    kernel, draws, images, weighting = of_views

    def total(images):
        one = jax.vmap(lambda draw, image: mean_by_mean_views(kernel, draw, image, 3))
        batched = jax.tree.map(lambda leaf: leaf[:, None], (draws, images))
        return one(*batched)[:, 0] @ weighting

    expected = jax.grad(lambda images: mean_by_map_views(kernel, draws, images, 3) @ weighting)(images)
    np.testing.assert_allclose(jax.jit(jax.grad(total))(images), expected, rtol=1e-5, atol=1e-4)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split, whole = jax.sharding.PartitionSpec("data"), jax.sharding.PartitionSpec()

    def shard(kernel, draws, images, weighting):
        return jax.grad(lambda images: mean_by_mean_views(kernel, draws, images, 3) @ weighting)(images)

    run = jax.jit(jax.shard_map(shard, mesh=mesh, in_specs=(whole, split, split, split), out_specs=split))
    np.testing.assert_allclose(run(kernel, draws, images, weighting), expected, rtol=1e-5, atol=1e-4)


def test_mean_views_runs_forward_once(of_views):
    """With the gradient: operations of a matrix product are those of one way forward and one back."""
    kernel, draws, images, weighting = of_views
    runs = []

    def energy(kernel, views):
        jax.debug.callback(lambda: runs.append(1))
        return energy_of_views(kernel, views)

    def total(images):
        return mean_views(energy, kernel, draws, images, size=16, chunk=3) @ weighting

    jax.block_until_ready(jax.jit(total)(images))
    jax.effects_barrier()
    assert len(runs) == 3
    jax.block_until_ready(jax.jit(jax.value_and_grad(total))(images))
    jax.effects_barrier()
    assert len(runs) == 3 + 3


def test_memory_of_a_clip_energy_at_1024_pixels():
    """50 views through a tower of the size of ViT-B/32, with the gradient to the image: below 1.5 GB."""
    tower = clip.VisionTower(
        image_size=224, patch_size=32, width=768, layers=12, heads=12, embed_dim=512, activation="quick_gelu"
    )
    views = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    params = jax.eval_shape(tower.init, jax.random.key(0), views)
    images = jax.ShapeDtypeStruct((1, 1024, 1024, 3), jnp.float32)

    def energy(params, key, images, text):
        draws = augment.draw(key, num_images=1, num_views=50, image_size=1024)
        weights = params, text
        return jnp.mean(mean_views(one_minus_cosine, weights, draws, images))

    def one_minus_cosine(weights, views):
        return 1 - tower.apply(weights[0], views)["embedding"] @ weights[1]

    step = jax.jit(jax.value_and_grad(energy, argnums=2))
    text = jax.ShapeDtypeStruct((512,), jnp.float32)
    memory = step.lower(params, jax.random.key(0), images, text).compile().memory_analysis()
    weights = sum(leaf.size * 4 for leaf in jax.tree.leaves(params))
    assert weights < memory.argument_size_in_bytes
    used = memory.temp_size_in_bytes + memory.output_size_in_bytes + memory.argument_size_in_bytes - weights
    print(f"{used / 1e9:.2f} GB")
    assert used < 1.5e9


# --- what depends on nothing but key and policy ----------------------------------------------------------------------


def test_same_key_same_views():
    images = jax.random.uniform(jax.random.key(0), (2, 20, 20, 3))
    run = jax.jit(functools.partial(augmented_views, num_views=3, size=16))
    views = [run(jax.random.key(seed), images) for seed in (1, 1, 2)]
    assert views[0].shape == (2, 3, 16, 16, 3)
    np.testing.assert_array_equal(views[0], views[1])
    assert np.max(np.abs(views[0] - views[2])) > 0.1


def test_nothing_changes_without_a_policy():
    images = jax.random.uniform(jax.random.key(0), (2, 21, 21, 3))
    run = jax.jit(functools.partial(augmented_views, num_views=3, policy="", size=None))
    views = run(jax.random.key(1), images)
    np.testing.assert_allclose(views, np.repeat(images[:, None], 3, axis=1), atol=1e-6)


# --- bad input -------------------------------------------------------------------------------------------------------

IMAGES = np.zeros((1, 8, 8, 3), np.float32)


@pytest.mark.parametrize(
    ("options", "images", "message"),
    [
        ({"policy": "color,cutuot"}, IMAGES, "unknown operation 'cutuot'. Did you mean 'cutout'"),
        ({"policy": "cutout,color"}, IMAGES, "in order. Use 'color,cutout'"),
        ({"policy": "color,color"}, IMAGES, "once and in order. Use 'color'"),
        ({}, IMAGES[:, :7], r"\(1, 7, 8, 3\); expected \(batch, side, side, 3\)"),
        ({}, IMAGES.transpose(0, 3, 1, 2), r"\(1, 3, 8, 8\); expected \(batch, side, side, 3\)"),
        ({}, IMAGES[0], r"\(8, 8, 3\); expected \(batch, side, side, 3\)"),
        ({}, IMAGES[:, :1, :1], "1 pixels a side; expected at least 2"),
    ],
    ids=["typo", "order", "twice", "not_square", "nchw", "one_image", "one_pixel"],
)
def test_refuses(options, images, message):
    with pytest.raises(ValueError, match=message):
        augmented_views(jax.random.key(0), images, num_views=2, size=8, **options)


def test_map_views_refuses_empty_chunks():
    with pytest.raises(ValueError, match="got chunk=0; expected at least 1"):
        map_views(lambda views: views, neutral_draws(1, 2, 8), jnp.asarray(IMAGES), chunk=0)
