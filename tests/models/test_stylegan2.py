"""StyleGAN2: golden parity through the converter from both official layouts, and the generator.

Golden arrays come from the official PyTorch implementations with seeded weights; in, in2 and in3 are option sets.
"""

import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import seeded
from official import GOLDEN, load_golden
from official_stylegan2 import converted, torch

from benchmarks import counting
from promptgen_jax.generators import stylegan2
from promptgen_jax.models import network
from promptgen_jax.models import stylegan2 as model
from promptgen_jax.ops import upfirdn

# --- golden parity ---------------------------------------------------------------------------------------------------


def noise_maps(name, tree, key, batch):
    """Maps (batch, r, r) of an option set, drawn as the manifest says, or the stored ones."""
    stored = [tree["buffers"][f"noise_{index}"] for index in range(len(tree["buffers"]) - 1)]
    if key is None:
        return [np.broadcast_to(each, (batch, *each.shape)) for each in stored]
    return [
        np.random.RandomState(zlib.crc32((key % index).encode()))
        .standard_normal((batch, 1, *each.shape))[:, 0]
        .astype(np.float32)
        for index, each in enumerate(stored)
    ]


@functools.cache
def compiled(module):
    """Functions of latents, weights, options and noise: image with all that lies between, and gradient."""

    def forward(module, z, options, noise):
        if "cutoff" not in options:
            return module(z, truncation_psi=options["psi"], noise=noise)
        w = module.mapping(z)[:, None]
        truncated = model.truncate(w, module.mean_latent.value, options["psi"])
        slots = jnp.arange(2 * len(module.channels))[:, None]
        return (module.synthesis(jnp.where(slots < options["cutoff"], truncated, w), noise) + 1) / 2

    def observe(z, tree, options, noise):
        clamped = module.clone(conv_clamp=options.get("conv_clamp"))
        arguments = {"method": forward, "capture_intermediates": True, "mutable": ["intermediates"]}
        image, captured = clamped.apply(tree, z, options, noise, **arguments)
        return image, captured["intermediates"]

    def total(z, tree, options, noise, weighting):
        clamped = module.clone(conv_clamp=options.get("conv_clamp"))
        return jnp.sum(clamped.apply(tree, z, options, noise, method=forward) * weighting)

    return jax.jit(observe), jax.jit(jax.grad(total))


def nchw(array):
    return np.asarray(array).transpose(0, 3, 1, 2)


def statistics(array, axes):
    array = array.astype(np.float64)  # sums of a million float32 are off in the fifth digit
    return np.stack([array.mean(axes), array.std(axes)], -1)


def observe(name, prefix, options):
    """Our values of all golden arrays of an option set, by their names."""
    tree, config = converted(name)
    raw = name == "stylegan2_ada_256"  # its golden images are in [-1, 1], and some layers are not truncated
    z, size, batch = load_golden(name)[f"in{prefix}_z"], config["image_size"], len(load_golden(name)[f"in{prefix}_z"])
    slots = 2 * len(config["options"]["channels"])
    traced = {"psi": options.get("psi")}
    if raw:
        traced = {
            "psi": options["truncation_psi"],
            "cutoff": options["truncation_cutoff"] or slots,
            "conv_clamp": options.get("conv_clamp", config["options"]["conv_clamp"]),
        }
    noise = noise_maps(name, tree, options["noise_key"], batch)
    weighting = np.cos(np.arange(batch * 3 * size**2) * 0.01).reshape(batch, 3, size, size)
    weighting = weighting.astype(np.float32).transpose(0, 2, 3, 1) * (2 if raw else 1)
    forward, gradient = compiled(network.load_module(config))
    rows = []
    for index in range(batch):  # one by one, which needs less memory
        arguments = [z[index : index + 1], tree, traced, [each[index : index + 1] for each in noise]]
        rows.append((forward(*arguments), gradient(*arguments, weighting[index : index + 1])))
    (image, captured), gradient = jax.tree.map(lambda *leaves: np.concatenate(leaves), *rows)
    image = nchw(2 * image - 1 if raw else image)
    values = {f"grad{prefix}_z": gradient} | pictures(f"out{prefix}_image", image)
    (w,) = captured["mapping"]["__call__"]
    if raw:
        truncated = model.truncate(w, tree["buffers"]["mean_latent"], traced["psi"])
        values[f"mid{prefix}_ws"] = np.stack([truncated, truncated if traced["cutoff"] == slots else w], 1)
    else:
        values[f"mid{prefix}_w"] = w
    for block, outputs in captured["synthesis"].items():
        if block != "__call__":
            values |= block_values(f"mid{prefix}", int(block.removeprefix("block_")), outputs)
    return values


def pictures(prefix, image):
    size = image.shape[-1]
    middle = slice(size // 2 - 32, size // 2 + 32)
    blocks = image.reshape(*image.shape[:2], 64, size // 64, 64, size // 64)
    return {
        f"{prefix}_pool": blocks.mean((3, 5)),
        f"{prefix}_crop": image[:, :, middle, middle],
        f"{prefix}_stats": statistics(image, (2, 3)),
    }


def block_values(prefix, resolution, outputs):
    features, image = outputs["__call__"][0]
    values = {
        f"{prefix}_feat_{resolution}_stats": statistics(features, (1, 2, 3)),
        f"{prefix}_feat_{resolution}_pix": features[:, resolution // 2, resolution // 2],
    }
    if resolution <= (64 if prefix == "mid" else 32):
        values[f"{prefix}_rgb_{resolution}"] = nchw(image)
    if "conv0" in outputs:
        values[f"{prefix}_feat_{resolution}_up_stats"] = statistics(outputs["conv0"]["__call__"][0], (1, 2, 3))
    return values


@pytest.mark.full
@pytest.mark.parametrize(
    "name", ["stylegan2_ada_256", "stylegan2_256", pytest.param("stylegan2_1024", marks=pytest.mark.largest)]
)
def test_golden(name):
    golden, problems, compared = load_golden(name), [], set()
    sets = seeded.load_manifest(name, GOLDEN)["golden_sets"]["sets"].values()
    values = {}
    for prefix, options in zip(("", "2", "3"), sets, strict=True):
        values |= observe(name, prefix, options)
    if "in_mean_latent" in golden:
        values["in_mean_latent"] = converted(name)[0]["buffers"]["mean_latent"]
    for key, got in values.items():
        want = golden[key]
        assert got.shape == want.shape, key
        compared.add(key)
        if key.startswith("grad"):
            relative = np.linalg.norm(got - want) / np.linalg.norm(want)
            cosine = np.sum(got * want) / np.linalg.norm(got) / np.linalg.norm(want)
            print(f"{key}: relative L2 {relative:.1e}, 1 - cosine {1 - cosine:.1e}")
            if relative > 1e-2 or cosine < 0.9999:
                problems.append(f"{key}: relative L2 {relative:.2e}, cosine {cosine:.6f}")
        else:
            # images absolutely; features reach 10, and are compared relative to that
            error, scale = np.max(np.abs(got - want)), max(1.0, np.max(np.abs(want)))
            print(f"{key}: {error:.1e} of {scale:.2f}")
            if error > 5e-5 * (1 if key.startswith("out") else scale):
                problems.append(f"{key}: {error:.2e}")
    assert not problems
    assert compared | {"in_z", "in2_z", "in3_z"} == golden.keys()


# --- the generator ---------------------------------------------------------------------------------------------------


generate = jax.jit(lambda generator, key, z: generator(key, z))
Z = jax.random.normal(jax.random.key(5), (3, 6))


@jax.jit
def apply(generator, z, noise):
    return generator.module.apply(generator.weights, z, noise=noise)


def pytorch_upsample(images, kernel):
    """Transposed convolution and 4x4 filter, as the official code composes them, (B, C, H, W)."""
    fir = torch.tensor(np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 16, dtype=torch.float32)
    images = torch.nn.functional.conv_transpose2d(images, kernel, stride=2)
    channels = images.shape[1]
    return torch.nn.functional.conv2d(images, fir.expand(channels, 1, 4, 4), padding=1, groups=channels)


def test_upsampling_convolution_is_pytorchs():
    rng = np.random.default_rng(0)
    images, kernel = rng.normal(size=(2, 5, 6, 7)), rng.normal(size=(5, 4, 3, 3))  # torch: (in, out, height, width)
    images, kernel = (torch.tensor(each, dtype=torch.float32) for each in (images, kernel))
    images.requires_grad_()
    expected = pytorch_upsample(images, kernel)
    torch.sum(expected**2).backward()

    def ours(x):
        return upfirdn.upsample_conv(x, jnp.asarray(kernel.numpy())[:, :, ::-1, ::-1].transpose(2, 3, 0, 1))

    x = images.detach().numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(nchw(ours(x)), expected.detach().numpy(), atol=2e-5)
    gradient = jax.grad(lambda x: jnp.sum(ours(x) ** 2))(x)
    np.testing.assert_allclose(nchw(gradient), images.grad.numpy(), rtol=1e-5, atol=1e-3)


def test_upsampling_is_bilinear_inside_and_darker_on_the_border():
    images = jax.random.uniform(jax.random.key(0), (2, 6, 5, 3))
    doubled = upfirdn.upsample(images)
    library = jax.image.resize(images, (2, 12, 10, 3), "bilinear")
    np.testing.assert_allclose(doubled[:, 1:-1, 1:-1], library[:, 1:-1, 1:-1], atol=1e-6)
    np.testing.assert_allclose(doubled[:, 0, 1:-1], 0.75 * library[:, 0, 1:-1], atol=1e-6)


def test_random_noise_is_drawn_from_the_key_for_every_sample():
    generator, same = stylegan2.tiny(), jnp.tile(Z[:1], (3, 1))
    first = generate(generator, jax.random.key(1), same)
    assert np.max(np.abs(first[0] - first[1])) > 1e-2
    assert np.max(np.abs(first - generate(generator, jax.random.key(2), same))) > 1e-2


@pytest.mark.parametrize("noise", ["const", "none"])
def test_fixed_noise_ignores_the_key(noise):
    generator = stylegan2.tiny().replace(noise=noise)
    images = generate(generator, jax.random.key(1), Z)
    np.testing.assert_array_equal(images, generate(generator, jax.random.key(2), Z))
    buffers = generator.weights["buffers"]
    maps = [(noise == "const") * buffers[f"noise_{index}"][None] for index in range(5)]
    np.testing.assert_allclose(images, apply(generator, Z, maps), atol=1e-5)


def test_truncation_goes_to_the_image_of_the_mean():
    generator, key = stylegan2.tiny().replace(noise="none"), jax.random.key(1)
    spread = [np.std(generate(generator.replace(truncation_psi=psi), key, Z), axis=0).max() for psi in (1.0, 0.7, 0.0)]
    assert spread[0] > spread[1] > 1e-2
    assert spread[2] < 1e-5


def test_features_computed_again_are_not_kept_and_give_the_same_gradient():
    generator, key = stylegan2.tiny(), jax.random.key(1)

    def energy(z, generator):
        return jnp.mean(generator(key, z) ** 2)

    gradient = jax.jit(jax.grad(energy))
    kept = {}
    for pixels in (None, 4, 8, 32):
        one = generator.replace(remat_from=pixels)
        np.testing.assert_allclose(gradient(Z, one), gradient(Z, generator), rtol=1e-5, atol=1e-7)
        kept[pixels] = counting.kept_mib(energy, Z, one)
    assert kept[4] < kept[8] < 0.7 * kept[None]
    assert kept[32] == kept[None]  # there are 16 pixels


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"remat_from": 0}, "remat_from: got 0"),
        ({"truncation_psi": 1.5}, "truncation_psi is 1.5; expected a number from 0 to 1"),
        ({"truncation_psi": -0.1}, "expected a number from 0 to 1"),
        ({"truncation_psi": "0.7"}, "expected a number from 0 to 1"),
        ({"truncation_psi": float("nan")}, "expected a number from 0 to 1"),
        ({"noise": "constant"}, "Did you mean 'const'"),
    ],
)
def test_generator_refuses_options(options, message):
    with pytest.raises(ValueError, match=message):
        stylegan2.tiny().replace(**options)


def test_other_weights_are_refused():
    with pytest.raises(ValueError, match="dcgan_digiface: holds no StyleGAN2"):
        stylegan2.build(weights="dcgan_digiface")
