"""What every generator and every control promises, checked on each adapter of the library."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from folding import lost_constants

import promptgen_jax as pg
from promptgen_jax import parts, types
from promptgen_jax.models import clip
from promptgen_jax.store import weights

KEY = jax.random.key(3)
BATCH = 3
SIZES = {"width": 32, "layers": 2, "heads": 2}


def tiny(package, name):
    return importlib.import_module(f"promptgen_jax.{package}.{name}").tiny()


@functools.cache
def generator_of(name):
    return tiny("generators", name)


@functools.cache
def drawn(name):
    """Images of a batch of latents, the latents, and the one compiled program that drew them."""
    generator = generator_of(name)
    z = generator.prior.sample(KEY, BATCH)
    draw = jax.jit(lambda generator, key, z: generator(key, z))
    return draw(generator, KEY, z), z, draw


GENERATORS, CONTROLS = parts.available("generators"), parts.available("controls")
# of random small networks, where no last layer sees to [0, 1]
SLOW_WITHOUT_JIT = ("biggan", "diffae", "flame", "nvae", "stylegan2", "stylenerf")
RANGES = {"stylegan2": (-4, 5), "stylenerf": (-4, 5)}
RANGES |= {"flame": (-1, 1), "synthetic": (-9, 9), "function": (-6, 6)}  # metres, and coordinates of points


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory):
    """A folder of a small CLIP with random weights."""
    options = dict(embed_dim=16, image_size=32, patch_size=8, vocab_size=600, context_length=12)
    options |= {f"{tower}_{size}": n for tower in ("vision", "text") for size, n in SIZES.items()}
    shapes = clip.CLIP(**options).init(KEY, (jnp.zeros((1, 32, 32, 3)), jnp.zeros((1, 12), jnp.int32)))["params"]
    folder = tmp_path_factory.mktemp("clip") / "tiny_clip"
    config = {"kind": "clip", "name": "tiny_clip", "module": "clip.CLIP", "options": options, "license": "MIT"}
    weights.save_weights(folder, jax.tree.map(np.asarray, shapes), config)
    return folder


def tiny_control(kind, tiny_clip):
    if kind == "clip":  # the only one without a network that is shipped
        return parts.load_control("clip", text="a face", num_augmentations=4, chunk=2, network=tiny_clip)
    return tiny("controls", kind)


def faces():
    generator = parts.load_generator("dcgan_digiface")
    return generator(KEY, generator.prior.sample(KEY, BATCH))


def images_for(kind):
    if kind == "lengths":
        meshes = generator_of("flame")
        return meshes(KEY, meshes.prior.sample(KEY, BATCH))
    return jnp.linspace(0, 1, BATCH * 9).reshape(BATCH, 1, 3, 3) if kind == "synthetic" else faces()


@pytest.mark.parametrize("load", [parts.load_generator, parts.load_control])
def test_own_code_is_made_not_loaded(load):
    with pytest.raises(ValueError, match="promptgen_jax.Function"):
        load("function")


COND_DIMS = {"sentence": 128}  # of the embeddings of the shipped small CLIP


def sample_of(images, kind):
    """With a condition and a reference, for the controls that look at them."""
    cond, z = jnp.full((len(images), COND_DIMS.get(kind, 2)), 0.2), jnp.zeros((len(images), 1))
    return types.Sample(images=images, z=z, cond=cond, reference=images[:, :, ::-1])


@pytest.mark.parametrize("name", GENERATORS)
class TestGenerator:
    def test_says_what_it_makes_and_shows_it(self, name):
        generator = generator_of(name)
        output = {"flame": "mesh", "synthetic": "points"}.get(name, "images")
        flow, params = pg.init_flow(KEY, generator.prior, num_layers=2, hidden_dim=8)
        assert types.makes(generator) == types.makes(pg.Prompt(generator, flow, params)) == output
        shape = jax.eval_shape(generator, KEY, generator.prior.sample(KEY, BATCH)).shape
        made = np.random.default_rng(0).uniform(size=shape).astype(np.float32)
        shown = types.view(pg.Prompt(generator, flow, params), made)
        assert shown.shape[0] == BATCH
        assert output == "points" or min(shown.shape[1:3]) > 1
        if output == "images":
            np.testing.assert_array_equal(shown, made)

    def test_draws_the_same_images_from_the_same_key(self, name):
        generator = generator_of(name)
        assert isinstance(generator, types.Generator)
        images, z, draw = drawn(name)
        assert images.dtype == jnp.float32
        assert images.shape[0] == BATCH
        assert images.shape[-1] == 3
        assert generator.image_size in (1, images.shape[1])
        np.testing.assert_array_equal(images, draw(generator, KEY, z))
        assert np.ptp(np.asarray(images), axis=0).max() > 1e-3, "all images are alike"

    def test_one_image_without_jit(self, name, request):
        if name in SLOW_WITHOUT_JIT and not request.config.getoption("--full"):
            pytest.skip("every operation is compiled alone, run with --full")
        generator = generator_of(name)
        z = generator.prior.sample(KEY, 1)
        images = generator(KEY, z)
        compiled = jax.jit(lambda generator, key, z: generator(key, z))(generator, KEY, z)
        assert images.shape == compiled.shape
        assert len(images) == 1
        assert np.all(np.isfinite(images))
        np.testing.assert_allclose(images, compiled, atol=1e-4 * max(1, np.abs(compiled).max()))
        low, high = RANGES.get(name, (0, 1))
        assert low <= np.min(images)
        assert np.max(images) <= high

    def test_weights_are_leaves(self, name):
        """Other weights, other images, under one compilation: nothing is baked in."""
        generator = generator_of(name)
        leaves, tree = jax.tree.flatten(generator)
        assert all(isinstance(leaf, jax.Array) for leaf in leaves)
        if name in ("function", "synthetic"):
            return
        images, z, draw = drawn(name)
        other = jax.tree.unflatten(tree, [jnp.asarray(1.3 * np.asarray(leaf), leaf.dtype) for leaf in leaves])
        assert np.abs(images - draw(other, KEY, z)).max() > 1e-4
        assert draw._cache_size() == 1

    def test_gradient_reaches_every_latent(self, name):
        generator = generator_of(name)
        z = generator.prior.sample(KEY, BATCH)
        slope = jax.grad(lambda z: jnp.sum(generator(KEY, z) ** 2))
        assert not lost_constants(slope, z)
        gradient = jax.jit(slope)(z)
        assert np.all(np.isfinite(gradient))
        assert np.all(np.abs(gradient).max(axis=0) > 0)

    def test_refuses_foreign_latents(self, name):
        generator = generator_of(name)
        with pytest.raises((ValueError, TypeError), match=rf"expected.*{generator.prior.dim}"):
            generator(KEY, jnp.zeros((BATCH, generator.prior.dim + 1)))


@pytest.mark.parametrize("kind", CONTROLS)
class TestControl:
    def test_energies_of_a_batch(self, kind, tiny_clip):
        control, images = tiny_control(kind, tiny_clip), images_for(kind)
        assert isinstance(control, types.Control)
        measure = jax.jit(lambda control, images: control(KEY, sample_of(images, kind)))
        energies = measure(control, images)
        assert energies.shape == (BATCH,)
        assert np.all(np.isfinite(energies))
        assert np.ptp(energies) > 1e-5
        alone = jnp.concatenate([measure(control, images[i : i + 1]) for i in range(BATCH)])
        if kind not in ("clip", "sentence"):  # whose views are drawn for the whole batch
            np.testing.assert_allclose(energies, alone, rtol=1e-4, atol=1e-5)

    def test_gradient_reaches_the_image(self, kind, tiny_clip):
        control, images = tiny_control(kind, tiny_clip), images_for(kind)
        slope = jax.grad(lambda images: jnp.sum(control(KEY, sample_of(images, kind))))
        assert not lost_constants(slope, images)
        gradient = jax.jit(slope)(images)
        assert np.all(np.isfinite(gradient))
        assert np.all(np.abs(gradient).max(axis=(1, 2, 3)) > 0)


@pytest.mark.parametrize(
    ("energy", "lost"),
    [
        (lambda p: -jnp.log((1 - p) + 1e-8), [(1, 1e-8)]),
        (lambda p: jnp.cumprod(1 - p + jnp.full(3, 1e-10)), [(1, 1e-10)]),
        (jax.grad(lambda p: -jnp.log(1e-8 + (1 - jax.nn.sigmoid(p)[0]))), [(1, 1e-8)]),
        (lambda p: -jnp.log(jnp.maximum(1 - p, 0) + 1e-8), []),
        (lambda p: (1 - p) + 1e-3, []),
    ],
)
def test_constants_that_are_lost_in_compiled_code_are_found(energy, lost):
    np.testing.assert_allclose(lost_constants(energy, jnp.ones(3)), lost, rtol=1e-5)


@pytest.mark.parametrize("target", ["happy", "not happy"])
def test_the_official_floor_is_not_lost(target):
    options = {"network": "faceapi_expression", "attribute": "expression", "target": target, "floor": 1e-8}
    control = parts.load_control("classifier", **options)
    assert not lost_constants(jax.grad(lambda logits: jnp.sum(control.from_log_probs(logits))), jnp.zeros((2, 7)))


def test_mirrored_classifier_does_not_tell_left_from_right():
    options = dict(network="emotion", attribute="emotion", target="happy")
    control = parts.load_control("classifier", mirror=True, **options)
    plain = parts.load_control("classifier", **options)
    images, z = faces(), jnp.zeros((BATCH, 1))
    measure = jax.jit(lambda control, images: control(KEY, types.Sample(images=images, z=z)))
    energies = [measure(c, x) for c in (control, plain) for x in (images, images[:, :, ::-1])]
    np.testing.assert_allclose(energies[0], energies[1], rtol=1e-5)
    np.testing.assert_allclose(energies[0], (energies[2] + energies[3]) / 2, rtol=1e-5)
    assert np.abs(energies[2] - energies[3]).max() > 0.1
