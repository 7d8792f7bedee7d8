"""StyleGAN2: golden parity through the converter from both official layouts, the generator, and files that are refused.

Golden arrays come from the official PyTorch implementations with seeded weights; in1, in2, in3 are option sets.
"""

import argparse
import collections
import functools
import pickle
import subprocess
import sys
import tempfile
import types
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import seeded
from official import GOLDEN, load_golden

from convert import nvidia_pickle, reading, stylegan2_to_flax
from promptgen_jax import catalogue, network, parts, weights
from promptgen_jax.generators import stylegan2
from promptgen_jax.models import stylegan2 as models
from promptgen_jax.ops import upfirdn

torch = pytest.importorskip("torch")
ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def highest_precision():
    with jax.default_matmul_precision("highest"):
        yield


# --- official files --------------------------------------------------------------------------------------------------


def official_state(name, *, small=False):
    """Seeded tensors by official name; small: two mapping layers, 16 pixels, 8 channels everywhere."""
    manifest = seeded.load_manifest(name, GOLDEN)
    if small:
        kept = ("style.1.", "style.2.", "input", "conv1", "to_rgb1", "to_rgbs.0", "to_rgbs.1")
        kept += tuple(f"convs.{i}." for i in range(4)) + tuple(f"noises.noise_{i}" for i in range(5))
        kept += tuple(f"synthesis.b{r}." for r in (4, 8, 16)) + ("mapping.fc0", "mapping.fc1", "mapping.w_avg")
        manifest["tensors"] = {
            key: spec | {"shape": [8 if size == 512 else size for size in spec["shape"]]}
            for key, spec in manifest["tensors"].items()
            if key.startswith(kept) and key not in ("noises.noise_10", "noises.noise_11", "noises.noise_12")
        }
    return seeded.seeded_state_dict(manifest)


def write_rosinality(path, state, *, legacy=False, **beside):
    tensors = {key: torch.from_numpy(np.asarray(value)) for key, value in state.items()}
    content = {"g_ema": tensors, "latent_avg": torch.zeros(512), **beside}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


class Persistent:
    """A module as NVIDIA pickles it: one call of a function with a dict, source text of the class included."""

    def __init__(self, class_name, source, **state):
        self.class_name, self.source, self.state = class_name, source, state

    def __reduce__(self):
        content = {"type": "class", "version": 6, "module_src": self.source, "class_name": self.class_name}
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (content | {"state": self.state},)


def nvidia_module(state, source, **attributes):
    """A tree of modules from a flat state dict; convolutions are stored channels-last."""
    children, own = {}, {}
    for key, value in state.items():
        child, _, rest = key.partition(".")
        if rest:
            children.setdefault(child, {})[rest] = value
        else:
            own[key] = torch.from_numpy(np.asarray(value))
            if own[key].ndim == 4:
                own[key] = own[key].to(memory_format=torch.channels_last)
    buffers = ("resample_filter", "noise_const", "w_avg")
    is_layer = "affine" in children or "weight" in own
    layer = {"activation": "lrelu", "conv_clamp": 256, "act_gain": np.sqrt(np.float64(2)), "bias_gain": 0.01}
    return Persistent(
        "Layer",
        source,
        training=False,
        _parameters=collections.OrderedDict(
            (key, torch.nn.Parameter(value)) for key, value in own.items() if key not in buffers
        ),
        _buffers=collections.OrderedDict((key, value) for key, value in own.items() if key in buffers),
        _non_persistent_buffers_set=set(),
        _forward_hooks=collections.OrderedDict(),
        _modules=collections.OrderedDict(
            {"absent": None} | {key: nvidia_module(value, source) for key, value in children.items()}
        ),
        **(layer if is_layer else {}) | attributes,
    )


def write_nvidia(path, state, *, source="raise SystemExit('executed')", protocol=3, **attributes):
    """A file like those of stylegan2-ada-pytorch, without any of its code."""

    def _reconstruct_persistent_obj(content):
        raise AssertionError(content)

    _reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    easy_dict = type("EasyDict", (dict,), {"__module__": "dnnlib.util"})
    stubs = {
        "torch_utils": types.ModuleType("torch_utils"),
        "torch_utils.persistence": types.SimpleNamespace(_reconstruct_persistent_obj=_reconstruct_persistent_obj),
        "dnnlib": types.ModuleType("dnnlib"),
        "dnnlib.util": types.SimpleNamespace(EasyDict=easy_dict),
    }
    attributes = {"c_dim": 0, "_init_kwargs": easy_dict(channel_base=16384)} | attributes
    generator = nvidia_module(state, source, **attributes)
    content = {"training_set_kwargs": {"path": "x"}, "G": None, "D": None, "G_ema": generator, "augment_pipe": None}
    sys.modules.update(stubs)
    try:
        path.write_bytes(pickle.dumps(content, protocol=protocol))
    finally:
        for name in stubs:
            del sys.modules[name]
    return path


def write(path, name, state):
    return (write_nvidia if name == "stylegan2_ada_256" else write_rosinality)(path, state)


@functools.cache
def converted(name, *, small=False):
    """Tree and config of the official file with seeded weights, by way of the command line."""
    with tempfile.TemporaryDirectory() as folder:
        source = write(Path(folder) / "official", name, official_state(name, small=small))
        assert stylegan2_to_flax.main([str(source), f"{folder}/{name}"]) == 0
        return weights.load_weights(f"{folder}/{name}")


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
        truncated = models.truncate(w, module.mean_latent.value, options["psi"])
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
        truncated = models.truncate(w, tree["buffers"]["mean_latent"], traced["psi"])
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


@pytest.mark.parametrize(
    "name", ["stylegan2_ada_256", "stylegan2_256", pytest.param("stylegan2_1024", marks=pytest.mark.full)]
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


def test_generator_contract():
    generator, key = stylegan2.tiny(), jax.random.key(1)
    images = generate(generator, key, Z)
    assert images.shape == (3, generator.image_size, generator.image_size, 3)
    assert images.dtype == jnp.float32
    np.testing.assert_array_equal(images, generate(generator, key, Z))
    gradient = jax.jit(jax.grad(lambda z: jnp.sum(generator(key, z) ** 2)))(Z)
    assert np.all(np.isfinite(gradient))
    assert np.all(np.any(gradient != 0, axis=1))
    with pytest.raises(ValueError, match=r"expected \(batch, 6\)"):
        generator(key, Z[:, :5])


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
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


# --- weight folders --------------------------------------------------------------------------------------------------


def test_converted_folder_loads_without_torch(tmp_path):
    folder = tmp_path / "mine"
    source = write_rosinality(tmp_path / "official", official_state("stylegan2_256", small=True))
    assert stylegan2_to_flax.main([str(source), str(folder)]) == 0
    about = (folder / "SOURCE.md").read_text()
    assert weights.file_sha256(source) in about
    assert "python convert/stylegan2_to_flax.py official ported_weights/mine" in about
    script = (
        "import sys; sys.modules['torch'] = None; import numpy as np, jax, promptgen_jax as pg;"
        "g = pg.load_generator('mine', truncation_psi=0.7, noise='const'); key = jax.random.key(5);"
        "np.save('images.npy', jax.jit(lambda g, z: g(key, z))(g, jax.random.normal(key, (3, g.prior.dim))))"
    )
    path = {"PYTHONPATH": str(ROOT), "PROMPTGEN_WEIGHTS": str(tmp_path), "JAX_PLATFORMS": "cpu", "PATH": ""}
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path, env=path)
    images = np.load(tmp_path / "images.npy")
    generator = stylegan2.build(weights=str(folder), truncation_psi=0.7, noise="const")
    z = jax.random.normal(jax.random.key(5), (3, generator.prior.dim))
    np.testing.assert_allclose(images, generate(generator, jax.random.key(0), z), atol=1e-5)
    assert generator.name == "mine"
    assert generator.image_size == 16


@pytest.mark.parametrize("name", [name for name in catalogue.CHECKPOINTS if name.startswith("stylegan2")])
def test_missing_checkpoint_says_where_to_get_it(name, tmp_path, monkeypatch):
    monkeypatch.setenv("PROMPTGEN_WEIGHTS", str(tmp_path))
    checkpoint = catalogue.CHECKPOINTS[name]
    if name in weights.available_weights():
        pytest.skip("converted on this machine")
    for load in (lambda: parts.load_generator(name), lambda: parts.load_generator("stylegan2", weights=name)):
        with pytest.raises(FileNotFoundError) as error:
            load()
        for part in (checkpoint.file, checkpoint.url, f"python convert/stylegan2_to_flax.py {checkpoint.file}", name):
            assert part in str(error.value)


def test_folder_named_for_another_checkpoint_is_refused(tmp_path, capsys):
    source = write(tmp_path / "official", "stylegan2_256", official_state("stylegan2_256", small=True))
    assert stylegan2_to_flax.main([str(source), str(tmp_path / "stylegan2_ffhq")]) == 1
    assert "a network of 16 pixels, but stylegan2_ffhq has 1024" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["official"]


# --- official files in all their forms, and files that are refused ---------------------------------------------------


def assert_trees_equal(one, other):
    one, other = (jax.tree.leaves_with_path(tree) for tree in (one, other))
    assert [path for path, _ in one] == [path for path, _ in other]
    for (path, got), (_, want) in zip(one, other, strict=True):
        np.testing.assert_array_equal(got, want, err_msg=str(path))


def test_rosinality_files_of_every_age_are_read(tmp_path):
    state = official_state("stylegan2_256", small=True)
    expected = converted("stylegan2_256", small=True)[0]
    settings = {"args": argparse.Namespace(size=16, lr=0.002), "d": {"a": torch.zeros(2)}, "ada_aug_p": 0.3}
    for options in ({"legacy": True}, settings, {"legacy": True, **settings}):
        assert_trees_equal(
            stylegan2_to_flax.convert(write_rosinality(tmp_path / "any.name", state, **options))[0], expected
        )


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_nvidia_files_are_read_without_their_code(tmp_path, protocol):
    state = official_state("stylegan2_ada_256", small=True)
    hostile = f"import pathlib; pathlib.Path({str(tmp_path / 'executed')!r}).touch()"
    source = write_nvidia(tmp_path / "network", state, source=hostile, protocol=protocol)
    tensors = reading.read_checkpoint(source)["G_ema"].tensors()
    assert tensors.keys() == state.keys()
    for name, value in state.items():
        np.testing.assert_array_equal(tensors[name], value, err_msg=name)
    stylegan2_to_flax.convert(source)
    assert [path.name for path in tmp_path.iterdir()] == ["network"]


def test_both_layouts_describe_one_network(tmp_path):
    """The NVIDIA tensors under rosinality's names convert to the same tree but for the mean latent."""
    state = official_state("stylegan2_ada_256", small=True)
    renamed = {}
    theirs, ours = stylegan2_to_flax.NVIDIA, stylegan2_to_flax.ROSINALITY
    for one, other in zip(
        *(stylegan2_to_flax.recipe(each, [4, 8, 16], 2).values() for each in (theirs, ours)), strict=True
    ):
        for source, target in zip(one.sources, other.sources, strict=True):
            renamed[target] = state[source] * (4 if "resample_filter" in source else 1)
    got, config = stylegan2_to_flax.convert(write_rosinality(tmp_path / "file", renamed))
    want, _ = stylegan2_to_flax.convert(write_nvidia(tmp_path / "other", state))
    assert config["options"]["conv_clamp"] is None
    del got["buffers"]["mean_latent"], want["buffers"]["mean_latent"]
    assert_trees_equal(got, want)


class RunsCode:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def with_nan(array):
    array = np.array(array)
    array.flat[-1] = np.nan
    return array


def without(state, *names):
    return {name: value for name, value in state.items() if name not in names}


ROSINALITY_CONTENTS = {
    "missing": (
        lambda s: without(s, "convs.1.conv.weight", "style.1.bias"),
        "2 problems: missing convs.1.conv.weight; ",
    ),
    "no blur": (lambda s: without(s, "convs.2.conv.blur.kernel"), "missing convs.2.conv.blur.kernel"),
    "extra": (lambda s: s | {"convs.9.conv.weight": s["style.1.bias"]}, "unexpected convs.9.conv.weight"),
    "missing and extra": (
        lambda s: without(s, "conv1.noise.weight") | {"a": s["style.1.bias"]},
        "missing .*unexpected a",
    ),
    "nan": (lambda s: s | {"input.input": with_nan(s["input.input"])}, "input.input holds NaN"),
    "shape": (lambda s: s | {"conv1.activate.bias": s["conv1.activate.bias"][:5]}, r"is \(5,\), expected \(8,\)|wrong"),
    "flat": (lambda s: s | {"conv1.conv.weight": s["conv1.conv.weight"].ravel()}, "kernel cannot be made from"),
    "other filter": (
        lambda s: s | {"to_rgbs.0.upsample.kernel": np.ones((4, 4), np.float32)},
        "block_8/to_rgb/kernel cannot be made from",
    ),
    "other network": (lambda s: {"main.0.weight": s["style.1.bias"]}, "no StyleGAN2 generator"),
}


@pytest.mark.parametrize("case", ROSINALITY_CONTENTS)
def test_rosinality_contents_are_refused(tmp_path, case, capsys):
    change, message = ROSINALITY_CONTENTS[case]
    source = write_rosinality(tmp_path / "g.pt", change(official_state("stylegan2_256", small=True)))
    with pytest.raises(ValueError, match=message):
        stylegan2_to_flax.convert(source)
    assert stylegan2_to_flax.main([str(source), str(tmp_path / "out")]) == 1
    assert str(source) in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["g.pt"]


NVIDIA_CONTENTS = {
    "missing": (lambda s: without(s, "synthesis.b8.conv0.noise_const"), {}, "missing synthesis.b8.conv0.noise_const"),
    "no mean": (lambda s: without(s, "mapping.w_avg"), {}, "missing mapping.w_avg"),
    "extra": (lambda s: s | {"mapping.embed.bias": s["mapping.w_avg"]}, {}, "unexpected mapping.embed.bias"),
    "nan": (lambda s: s | {"mapping.w_avg": with_nan(s["mapping.w_avg"])}, {}, "mapping.w_avg holds NaN"),
    "residual": (lambda s: s | {"synthesis.b8.skip.weight": s["mapping.w_avg"]}, {}, "unexpected synthesis.b8.skip"),
    "other network": (lambda s: {"b4.fc.weight": s["mapping.w_avg"]}, {}, "has no module mapping"),
    "class labels": (lambda s: s, {"c_dim": 10}, "class labels 10 instead of 0"),
}


@pytest.mark.parametrize("case", NVIDIA_CONTENTS)
def test_nvidia_contents_are_refused(tmp_path, case):
    change, attributes, message = NVIDIA_CONTENTS[case]
    source = write_nvidia(tmp_path / "g.pkl", change(official_state("stylegan2_ada_256", small=True)), **attributes)
    with pytest.raises(ValueError, match=message):
        stylegan2_to_flax.convert(source)
    assert stylegan2_to_flax.main([str(source), str(tmp_path / "out")]) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["g.pkl"]


def test_storages_are_read_and_damaged_ones_refused():
    (stream,) = torch.arange(4.0)._typed_storage().__reduce__()[1]
    np.testing.assert_array_equal(nvidia_pickle._read_storage(stream), np.arange(4))
    damaged = {
        "other count": stream[:-24] + np.int64(3).tobytes() + stream[-16:],
        "truncated": stream[:-1],
        "other class": stream.replace(b"FloatStorage", b"CUDAGraphABC"),
        "text": b"abc",
    }
    for case, content in damaged.items():
        with pytest.raises(nvidia_pickle.DAMAGE):
            pytest.fail(f"{case}: read {nvidia_pickle._read_storage(content)}")


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [(0, (5,), (1,)), (2, (3,), (1,)), (0, (2, 2), (1, 3)), (-1, (2,), (1,)), (0, (2,), (-1,)), (0, (9, 9), (0, 0))],
)
def test_tensors_beyond_their_storage_are_refused(offset, size, stride):
    with pytest.raises(pickle.UnpicklingError):
        nvidia_pickle.strided(np.arange(4.0), offset, size, stride)
    np.testing.assert_array_equal(nvidia_pickle.strided(np.arange(4.0), 1, (1, 2), (3, 1)), [[1, 2]])


def bad_files(folder):
    rosinality = write_rosinality(folder / "a", official_state("stylegan2_256", small=True)).read_bytes()
    nvidia = write_nvidia(folder / "b", official_state("stylegan2_ada_256", small=True)).read_bytes()
    code = RunsCode(folder / "executed")
    torch.save({"g_ema": code}, folder / "c")
    torch.save({"g_ema": code}, folder / "d", _use_new_zipfile_serialization=False)
    system = b"cposix\nsystem\n(S'touch executed'\ntR."
    files = {
        "zip running code": ((folder / "c").read_bytes(), "not a complete PyTorch archive"),
        "old archive running code": ((folder / "d").read_bytes(), "not a complete PyTorch archive"),
        "pickle running code": (pickle.dumps({"G_ema": code}, protocol=3), "which is no part of a network"),
        "pickle running a command": (b"\x80\x03" + system, "posix.system, which is no part of a network"),
        "bare opcodes": (system, "neither a PyTorch archive"),
        "truncated zip": (rosinality[: len(rosinality) // 2], "not a complete PyTorch archive"),
        "truncated pickle": (nvidia[: len(nvidia) // 2], "not a complete network pickle"),
        "empty": (b"", "neither a PyTorch archive"),
        "text": (b"<!DOCTYPE html><html>quota exceeded</html>", "neither a PyTorch archive"),
        "TensorFlow network": (
            pickle.dumps(0)[:2] + b"cdnnlib.tflib.network\nNetwork\n.",
            "dnnlib.tflib.network.Network, which is no part.*legacy.py",
        ),
    }
    for path in list(folder.iterdir()):
        path.unlink()
    return files


@pytest.mark.parametrize(
    "case",
    [
        "zip running code",
        "old archive running code",
        "pickle running code",
        "pickle running a command",
        "bare opcodes",
        "truncated zip",
        "truncated pickle",
        "empty",
        "text",
        "TensorFlow network",
    ],
)
def test_files_are_refused(tmp_path, monkeypatch, case, capsys):
    monkeypatch.chdir(tmp_path)
    content, message = bad_files(tmp_path)[case]
    source = tmp_path / "network"
    source.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        stylegan2_to_flax.convert(source)
    assert stylegan2_to_flax.main([str(source), str(tmp_path / "out")]) == 1
    answer = capsys.readouterr().err
    assert answer.startswith(f"error: {source}: ")
    assert answer.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["network"]
