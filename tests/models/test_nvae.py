"""NVAE: golden parity through the converter, a small one against PyTorch, and the generator.

Golden arrays come from the official PyTorch implementation with seeded weights; in, in2, in3 and in4 are option sets.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import official_nvae
import pytest
from golden import seeded
from official import GOLDEN, load_golden
from official_nvae import GROUPS, SMALL, converted, small_state, torch, write

from convert import nvae_to_flax
from promptgen_jax import parts
from promptgen_jax.generators import nvae
from promptgen_jax.models import network
from promptgen_jax.models import nvae as model

pytestmark = pytest.mark.usefixtures("highest_precision")


def nchw(array):
    return np.asarray(array).transpose(0, 3, 1, 2)


def weighting(shape):
    """The cosine of the flat index, (B, 3, H, W), as (B, H, W, 3)."""
    return np.float32(np.cos(0.01 * np.arange(np.prod(shape)))).reshape(shape).transpose(0, 2, 3, 1)


@functools.cache
def make(module, temperature=1.0):
    """Logits and mean image with all that lies between, and the gradient of a weighted sum of the image."""

    def forward(tree, eps, num_truncated=0):
        capture = {"capture_intermediates": True, "mutable": ["intermediates"]}
        logits, captured = module.apply(tree, eps, temperature=temperature, num_truncated=num_truncated, **capture)
        return logits, model.mean_image(logits), captured["intermediates"]

    def gradient(tree, eps, weights, num_truncated=0):
        def total(eps):
            logits = module.apply(tree, eps, temperature=temperature, num_truncated=num_truncated)
            return jnp.sum(model.mean_image(logits) * weights)

        return jax.grad(total)(eps)

    return jax.jit(forward), jax.jit(gradient)


# --- a small one against PyTorch -------------------------------------------------------------------------------------


def small_noise(batch=2):
    """Noise of every group, (B, Z, H, W), and as one vector."""
    rng, sizes = np.random.default_rng(3), [4] * GROUPS[0] + [8] * GROUPS[1]
    eps = [np.float32(1.2 * rng.normal(size=(batch, 3, size, size))) for size in sizes]
    return eps, np.concatenate([each.reshape(batch, -1) for each in eps], axis=1)


def test_small_generator_is_pytorchs():
    """The first three of five groups by the rule of the later wrapper, the others by the official one."""
    temperature, num_truncated = 0.7, 3
    tree, config = converted()
    eps, flat = small_noise()
    noises = [torch.tensor(each, requires_grad=True) for each in eps]
    want = official_nvae.generate(official_nvae.tensors(small_state()), noises, temperature, num_truncated)
    forward, gradient = make(network.load_module(config), temperature)
    logits, _, _ = forward(tree, flat, num_truncated)
    np.testing.assert_allclose(nchw(logits), want.detach(), atol=2e-5)

    weights, (mean, coefficient) = weighting((2, 3, 16, 16)), torch_mixture(want)
    image = torch_chain(mean, coefficient)
    torch.sum(image * torch.from_numpy(weights.transpose(0, 3, 1, 2).copy())).backward()
    np.testing.assert_allclose(nchw(jax.jit(model.mean_image)(logits)), image.detach(), atol=2e-5)
    wanted = np.concatenate([each.grad.flatten(1).numpy() for each in noises], axis=1)
    slope = gradient(tree, flat, weights, num_truncated)
    np.testing.assert_allclose(slope, wanted, atol=2e-4 * np.abs(wanted).max())
    assert np.all((wanted == 0) <= (np.abs(flat) >= 1.25))


def torch_mixture(logits):
    """Averages (B, 3, H, W) of means and coefficients."""
    count = SMALL["num_mixture_dec"]
    mixture = logits[:, None, :count].softmax(dim=2)
    means, _, coefficients = logits[:, count:].unflatten(1, (3, 3 * count)).chunk(3, dim=2)
    return [(mixture * each).sum(dim=2) for each in (means, coefficients.tanh())]


def torch_chain(mean, coefficient):
    red = mean[:, 0].clamp(-1, 1)
    green = (mean[:, 1] + coefficient[:, 0] * red).clamp(-1, 1)
    blue = (mean[:, 2] + coefficient[:, 1] * red + coefficient[:, 2] * green).clamp(-1, 1)
    return torch.stack([red, green, blue], dim=1) / 2 + 0.5


def test_statistics_are_adjusted_as_in_pytorch():
    tree, config = converted()
    state = official_nvae.tensors(small_state())
    for _ in range(2):
        eps, flat = small_noise(batch=4)
        official_nvae.generate(state, [torch.tensor(each) for each in eps], 0.8, adjust=True)
    module = network.load_module(config)
    adjusted = nvae_to_flax.readjust(module, tree, num_batches=2, temperature=0.8, noise=lambda _: jnp.asarray(flat))
    recipe = nvae_to_flax.recipe(config["options"])
    want = nvae_to_flax.reading.build_tree(
        "adjusted",
        {name: np.asarray(value) for name, value in state.items() if name in used(recipe)},
        recipe,
    )
    before = jax.tree.leaves(tree["buffers"])
    for got, wanted, old in zip(*map(jax.tree.leaves, (adjusted["buffers"], want["buffers"])), before, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
        assert np.abs(got - old).max() > 1e-3


def used(recipe):
    return {source for part in recipe.values() for source in part.sources}


# --- golden parity ---------------------------------------------------------------------------------------------------


class Comparison:
    """Collects golden arrays that were compared, and those that differ."""

    def __init__(self, golden):
        self.golden, self.problems, self.checked = golden, [], set()

    def values(self, key, got, tolerance):
        want = self.golden[key]
        self.checked.add(key)
        got = np.asarray(got)
        assert got.shape == want.shape, (key, got.shape, want.shape)
        self._judge(key, np.max(np.abs(got - want)) / max(1.0, np.max(np.abs(want))), tolerance)

    def gradients(self, key, got, tolerance):
        want = self.golden[key]
        self.checked.add(key)
        got = np.asarray(got)
        assert got.shape == want.shape, (key, got.shape, want.shape)
        self._judge(key, np.linalg.norm(got - want) / np.linalg.norm(want), tolerance)

    def _judge(self, key, error, tolerance):
        print(f"{key}: {error:.1e}")
        if not error <= tolerance:
            self.problems.append(f"{key}: {error:.1e}")


def drawn(manifest, prefix):
    """Noise of every group by its golden name, (B, Z, H, W)."""
    names = sorted(name for name in manifest["inputs"] if name.startswith(f"in{prefix}_eps_"))
    return [seeded.seeded_tensor(name, manifest["inputs"][name], manifest["seed"]) for name in names]


def flat(noises):
    return np.concatenate([each.reshape(len(each), -1) for each in noises], axis=1)


def stats(array, axes):
    array = np.float64(array)
    return np.stack([array.mean(axes), array.std(axes, ddof=1)], axis=-1)


def middle(array, size):
    """The central square of (..., H, W)."""
    start = [side // 2 - size // 2 for side in array.shape[-2:]]
    return array[..., start[0] : start[0] + size, start[1] : start[1] + size]


def pictures(prefix, images):
    """Whole, if small; else block means, crop and statistics."""
    images = nchw(images)
    size = images.shape[-1]
    if size == 64:
        return {prefix: images}
    blocks = images.reshape(*images.shape[:2], 64, size // 64, 64, size // 64).mean((3, 5))
    return {
        f"{prefix}_pool": blocks,
        f"{prefix}_crop": middle(images, 64),
        f"{prefix}_stats": stats(images[0], (1, 2)).T,
    }


def cells(captured, groups):
    """Features (C, H, W) behind every entry of the official list of cells, of one sample."""
    entries = [captured["combiner"]["__call__"][0]]
    for scale, count in enumerate(groups):
        found = captured.get(f"groups_{scale}", {})
        for index in range(count - (scale == 0)):
            entries += [found[name]["__call__"][0][index] for name in ("cell_0", "cell_1", "combiner")]
        if scale < len(groups) - 1:
            entries.append(captured[f"up_{scale}"]["__call__"][0])
    entries += [captured[f"post_0_{index}"]["__call__"][0] for index in range(2)]
    return [np.asarray(each)[0].transpose(2, 0, 1) for each in entries]


def group_statistics(captured, groups, noises, temperature):
    """Mean and standard deviation of the mean, the scale and the draw of every group."""
    rows = [(np.zeros_like(noises[0]), np.zeros_like(noises[0]))]
    for scale, count in enumerate(groups):
        for index in range(count - (scale == 0)):
            sampled = nchw(captured[f"groups_{scale}"]["sampler"]["__call__"][0][index])
            rows.append(np.split(sampled, 2, axis=1))
    table = []
    for (mean, log_scale), noise in zip(rows, noises, strict=True):
        mean = 5 * np.tanh(np.float64(mean) / 5)
        sigma = temperature * (np.exp(5 * np.tanh(np.float64(log_scale) / 5)) + 0.01)
        table.append([stats(each, (0, 1, 2, 3)) for each in (mean, sigma, mean + sigma * noise)])
    return np.reshape(table, (len(noises), 6))


@pytest.mark.full
@pytest.mark.parametrize("name", ["nvae_celeba64", pytest.param("nvae_ffhq256", marks=pytest.mark.largest)])
def test_golden(name):
    tree, config = converted(name)
    tree = jax.tree.map(jnp.asarray, tree)
    module, manifest = network.load_module(config), seeded.load_manifest(name, GOLDEN)
    compare, size, groups = Comparison(load_golden(name)), config["image_size"], config["options"]["groups"]
    weights = weighting((1, 3, size, size))
    noises, second = drawn(manifest, ""), drawn(manifest, "2")

    forward, gradient = make(module)
    logits, image, captured = forward(tree, flat(noises))
    features = cells(captured, groups)
    compare.values("mid_cells_stats", [stats(each, (0, 1, 2)) for each in features], 2e-5)
    compare.values("mid_cells_crop", [middle(each[:8], 8) for each in features], 5e-5)
    compare.values("mid_groups_stats", group_statistics(captured, groups, noises, 1.0), 2e-5)
    compare.values("out_logits_stats", stats(nchw(logits)[0], (1, 2)).T, 2e-5)
    compare.values("out_logits_crop", middle(nchw(logits), 16), 5e-5)
    uniform = [
        seeded.seeded_tensor(each, manifest["inputs"][each], manifest["seed"]).transpose(0, 2, 3, 1)
        for each in ("in_u_mix", "in_u_pix")
    ]
    for prefix, made in (("out_mean", image), ("out_sample", jax.jit(model.sample_image)(logits, *uniform))):
        for key, got in pictures(prefix, made).items():
            compare.values(key, got, 5e-5)
    sizes = np.cumsum(module.group_sizes)[:-1]
    slopes = [
        np.asarray(each).reshape(noise.shape)
        for each, noise in zip(np.split(gradient(tree, flat(noises), weights), sizes, axis=1), noises, strict=True)
    ]
    compare.gradients("grad_z_crop", np.concatenate([middle(each, 8) for each in slopes]), 2e-3)
    compare.gradients("grad_z_stats", [stats(each, (0, 1, 2, 3)) for each in slopes], 2e-3)

    temperature = float(compare.golden["in2_temperature"][0])
    _, image, captured = make(module, temperature)[0](tree, flat(second))
    compare.values("mid2_cells_stats", [stats(each, (0, 1, 2)) for each in cells(captured, groups)], 2e-5)
    for key, got in pictures("out2_mean", image).items():
        compare.values(key, got, 5e-5)

    for prefix, count in (("3", 1), ("4", 3)):  # the rule of the later wrapper
        z = compare.golden[f"in{prefix}_z"]
        forward, gradient = make(module, 0.8)
        eps = np.concatenate([z, flat(second[count:])], axis=1)
        for key, got in pictures(f"out{prefix}_mean", forward(tree, eps, count)[1]).items():
            compare.values(key, got, 5e-5)
        slope = gradient(tree, eps, weights, count)[:, : z.shape[1]]
        compare.gradients(f"grad{prefix}_z", slope, 2e-3)
        np.testing.assert_array_equal(slope == 0, np.abs(z) > 1.25)

    if "out_bn_mean" in compare.golden:
        noise = flat(drawn(manifest, "_bn"))
        adjusted = nvae_to_flax.readjust(module, tree, num_batches=1, temperature=0.8, noise=lambda _: noise)
        # the stored statistics are those before the pass; the picture is made with those after it
        buffers = tree["buffers"]
        found = {
            "a": (buffers["groups_0"]["cell_0"], "norm0", 0),
            "b": (buffers["groups_0"]["cell_0"], "norm2", 0),
            "c": (buffers["up_1"], "norm0", ...),
            "d": (buffers["post_0_1"], "norm3", ...),
        }
        for letter, (cell, norm, index) in found.items():
            for kind, ours in (("mean", "mean"), ("var", "variance")):
                compare.values(f"out_bn_{letter}_running_{kind}", cell[norm][ours][index], 0)
        image = make(module)[0](adjusted, flat(noises))[1]
        compare.values("out_bn_mean", nchw(image), 5e-5)
    assert not compare.problems
    assert {key for key in compare.golden if not key.startswith("in")} == compare.checked


def test_nvae_celeba64_and_nvae_ffhq256_groups_are_the_official_ones():
    for name in ("nvae_celeba64", "nvae_ffhq256"):
        manifest = seeded.load_manifest(name, GOLDEN)
        content = {"args": official_nvae.argparse.Namespace(**manifest["source"]["args"])}
        content["state_dict"] = {key: np.zeros(each["shape"][:0]) for key, each in manifest["tensors"].items()}
        content["state_dict"]["prior_ftr0"] = np.zeros(manifest["tensors"]["prior_ftr0"]["shape"])
        module = network.load_module({"module": "nvae.NVAE", "options": nvae_to_flax.read_options(name, content)})
        assert module.group_sizes == [np.prod(each) for each in manifest["config"]["groups"]]
        assert sum(module.group_sizes) == manifest["config"]["latent_dim"]
        assert used(nvae_to_flax.recipe(nvae_to_flax.read_options(name, content))) == {
            key for key in manifest["tensors"] if not key.endswith(".num_batches_tracked")
        }


# --- the generator ---------------------------------------------------------------------------------------------------

generate = jax.jit(lambda generator, key, z: generator(key, z))
Z = jax.random.normal(jax.random.key(5), (2, 32))
KEY = jax.random.key(6)


def test_groups_below_and_pixels_are_drawn_from_the_key():
    generator = nvae.tiny()
    mean, draw = (generate(generator.replace(output=output), KEY, Z) for output in nvae.OUTPUTS)
    assert np.abs(mean - generate(generator, jax.random.key(7), Z)).max() > 1e-3
    same = generate(generator, KEY, jnp.tile(Z[:1], (2, 1)))
    assert np.abs(same[0] - same[1]).max() > 1e-3
    assert np.abs(mean - draw).max() > 1e-2
    for images in (mean, draw):
        assert np.min(images) >= 0
        assert np.max(images) <= 1


def test_converted_folder_is_a_generator(tmp_path, monkeypatch):
    monkeypatch.setenv("PROMPTGEN_WEIGHTS", str(tmp_path))
    source = write(tmp_path / "checkpoint.pt", small_state(), SMALL)
    assert nvae_to_flax.main([str(source), str(tmp_path / "mine")]) == 0
    dims = {count: parts.load_generator("mine", control_groups=count).prior.dim for count in (1, 3, "all")}
    assert dims == {1: 48, 3: 2 * 48 + 192, "all": 2 * 48 + 3 * 192}
    controlled = parts.load_generator("mine", control_groups="all")
    images = [generate(controlled, key, jnp.ones((1, 672))) for key in (KEY, jax.random.key(7))]
    np.testing.assert_array_equal(*images)  # nothing is left to the key
    assert images[0].shape == (1, 16, 16, 3)
    for options, message in (
        ({"control_groups": 6}, "control_groups is 6; expected 1 to 5"),
        ({"control_groups": True}, "expected 1 to 5"),
        ({"temperature": 0}, "temperature is 0; expected a number above 0"),
        ({"rule": "truncate"}, "Did you mean 'truncated'"),
        ({"output": "median"}, "output"),
    ):
        with pytest.raises(ValueError, match=message):
            parts.load_generator("mine", **options)
    with pytest.raises(ValueError, match="dcgan_digiface: holds no NVAE"):
        nvae.build(weights="dcgan_digiface")
