"""StyleNeRF: golden parity through the converter, volume rendering, the generator, and files that are refused.

Golden arrays come from the official PyTorch implementation with seeded weights; in and in2 are option sets. `official_
layout.pkl` has the layout of the released files, with a line that raises where they embed their source text.
"""

import functools
import pickle
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from official import load_golden, load_json
from official_stylegan2 import official_state, write_nvidia, write_rosinality
from official_stylenerf import SAMPLE, converted, settings_of

from convert import nvidia_pickle, reading, stylegan2_to_flax, stylenerf_to_flax
from promptgen_jax import parts
from promptgen_jax.generators import stylenerf
from promptgen_jax.models import network, volume
from promptgen_jax.models.stylegan2 import truncate

pytestmark = pytest.mark.usefixtures("highest_precision")


# --- golden parity ---------------------------------------------------------------------------------------------------


class Comparison:
    """Compares with golden arrays by mean and quantile, since the encoding of points amplifies rounding."""

    def __init__(self, golden):
        self.golden, self.problems, self.checked = golden, [], set()

    def __call__(self, key, got, tolerance):
        """Mean error below the tolerance, 99.9 % of them below 30 times that, relative to the scale if above 1."""
        want, got = self.golden[key], np.asarray(got)
        assert got.shape == want.shape, (key, got.shape, want.shape)
        errors = np.abs(np.float64(got) - want) / max(1.0, np.max(np.abs(want)))
        mean, most = np.mean(errors), np.quantile(errors, 0.999)
        self._judge(key, f"{mean:.1e}, {most:.1e}, {np.max(errors):.1e}", mean < tolerance and most < 30 * tolerance)

    def gradient(self, key, got, tolerance):
        want = self.golden[key]
        error = np.linalg.norm(got - want) / np.linalg.norm(want)
        self._judge(key, f"relative L2 {error:.1e}", error < tolerance)

    def _judge(self, key, text, good):
        self.checked.add(key)
        print(f"{key}: {text}")
        if not good:
            self.problems.append(f"{key}: {text}")


def nchw(array):
    return np.asarray(array).transpose(0, 3, 1, 2)


def stats(features):
    """(B, 2, C) mean and standard deviation of (B, H, W, C)."""
    features = np.float64(features)
    return np.stack([features.mean((1, 2)), features.std((1, 2))], axis=1)


def pictures(prefix, images):
    size = images.shape[-1]
    if size == 64:
        return {prefix: images}
    start = size // 2 - 32
    blocks = images.reshape(*images.shape[:2], 64, size // 64, 64, size // 64)
    return {
        f"{prefix}_pool": blocks.mean((3, 5)),
        f"{prefix}_crop": images[:, :, start : start + 64, start : start + 64],
        f"{prefix}_stats": stats(images.transpose(0, 2, 3, 1)),
    }


def activate(x):
    return np.clip(np.where(x > 0, x, 0.2 * x) * np.sqrt(2), -256, 256)


# as users run them: compiled
look_at_origin, opacity, composite = map(jax.jit, (volume.look_at_origin, volume.opacity, volume.composite))
background_points, finer = map(jax.jit, (volume.background_points, volume.finer))


def cast_rays(rotation, grid, fov):
    return jax.jit(lambda rotation: volume.cast_rays(rotation, grid, fov))(rotation)


def geometry(module, angles, density, further):
    """Golden names of camera, rays and weights, from the densities that the networks gave."""
    rotation, centres = look_at_origin(angles)
    world = np.tile(np.eye(4, dtype=np.float32), (len(angles), 1, 1))
    world[:, :3, :3], world[:, :3, 3] = rotation, centres
    grid = volume.pixel_grid(module.volume_size, module.volume_size << len(module.channels), module.align_corner)
    rays = cast_rays(rotation, grid, module.fov)
    length = jnp.linalg.norm(rays, axis=-1, keepdims=True)
    even = np.linspace(0, 1, module.num_samples, dtype=np.float32)
    near, far = module.depth_range
    depth = jnp.broadcast_to(near * (1 - even) + far * even, density.shape)
    fine = finer(even, composite(opacity(density, depth, length))[0])
    positions = np.concatenate([fine, np.broadcast_to(even, fine.shape)], axis=-1)
    order = np.argsort(positions, axis=-1, kind="stable")
    merged = np.take_along_axis(positions, order, axis=-1)
    both = np.take_along_axis(np.concatenate([further, density], axis=-1), order, axis=-1)
    weight, left = composite(opacity(both, near * (1 - merged) + far * merged, length))
    inverse = np.linspace(module.background_start, 0, module.num_background_samples, dtype=np.float32)
    spread = np.tan(np.deg2rad(module.fov) / 2)
    return {
        "cam_mat": np.diag([spread, spread, 1, 1]),
        "world_mat": world,
        "fg_points_px0": centres[:, None, None] + depth[:, :4, :, None] * rays[:, :4, None],
        "fg_sigma_coarse": density[:, ::16],
        "fg_depth_merged": merged[:, ::16],
        "fg_weights": weight[:, ::16],
        "bg_lambda": left,
        "bg_points_px0": background_points(centres, rays, inverse)[:, :4],
    }


def observe(module, tree, golden, prefix):
    """Our values of the golden arrays of an option set but for gradients, by their names."""
    normal, psi = golden[f"in{prefix}_cam_normal"].T, float(golden[f"in{prefix}_truncation_psi"])
    angles = np.float32(np.array(module.camera_mean) + np.array(module.camera_std) * normal)
    capture = {
        "capture_intermediates": lambda _, method: method in ("__call__", "_render"),
        "mutable": ["intermediates"],
    }

    @jax.jit
    def run(tree, *inputs):
        return module.apply(tree, *inputs, truncation_psi=psi, **capture)

    images, captured = run(tree, golden[f"in{prefix}_z"], angles, golden[f"in{prefix}_z_bg"])
    captured = jax.tree.map(np.asarray, captured["intermediates"])
    values = pictures(f"out{prefix}_img", nchw(images))
    (_, density), (_, further) = captured["foreground"]["__call__"]
    middle = geometry(module, angles, density, further)
    middle["w"] = truncate(captured["mapping"]["__call__"][0], tree["buffers"]["mean_latent"], psi)
    ((_, far_density),) = captured["background"]["__call__"]
    opaque = 1 - np.exp(-np.maximum(far_density, 0) * module.background_start / (module.num_background_samples - 1))
    opaque[..., -1] = 1
    middle["bg_weights"] = composite(opaque)[0][:, ::16]
    size = module.volume_size
    rendered = captured["_render"][0].reshape(len(angles), size, size, -1)
    middle |= {
        "nerf_feat_stats": stats(rendered[..., 3:]),
        "nerf_feat_ch0_4": nchw(rendered[..., 3:7]),
        "nerf_img": nchw(rendered[..., :3]),
    }
    for index in range(len(module.channels)):
        block, name = captured[f"block_{index}"], f"b{size << index + 1}"
        x, image = block["__call__"][0]
        middle[f"{name}_conv0_stats"] = stats(activate(block["conv0"]["__call__"][0]))
        middle |= {f"{name}_x_stats": stats(x), f"{name}_rgb_stats": stats(image)}
    return values | {f"mid{prefix}_{name}": value for name, value in middle.items()}, angles


FULL = [
    pytest.param(name, marks=pytest.mark.full) for name in ("stylenerf_tiny", "stylenerf_ffhq256", "stylenerf_ffhq1024")
]


@pytest.mark.parametrize("name", FULL)
def test_golden(name):
    tree, config = converted(name)
    module, compare = network.load_module(config), Comparison(load_golden(name))
    for prefix in ("2", ""):
        values, angles = observe(module, tree, compare.golden, prefix)
        for key, value in values.items():
            compare(key, value, 5e-5)
    if "grad_z" in compare.golden:
        size, batch = config["image_size"], len(angles)
        weighting = np.cos(0.01 * np.arange(batch * 3 * size**2)).reshape(batch, 3, size, size).transpose(0, 2, 3, 1)
        code = compare.golden["in_z_bg"]

        @functools.partial(jax.jit, static_argnums=2)
        def slope(z, tree, block_gradient):
            def total(z):
                return jnp.sum(module.apply(tree, z, angles, code, block_gradient=block_gradient) * weighting)

            return jax.grad(total)(z)

        for key, block_gradient in (("grad_z", True), ("grad_z_full", False)):
            compare.gradient(key, slope(compare.golden["in_z"], tree, block_gradient), 2e-2)
    assert not compare.problems
    assert {key for key in compare.golden if not key.startswith("in")} == compare.checked


def test_stylenerf_tiny_settings_are_read_from_the_file():
    """As the released files keep them, and without running what is embedded."""
    content = reading.read_checkpoint(SAMPLE)
    wanted = load_json("stylenerf_tiny/official_layout_kwargs.json")
    for network_name, module in content.items():
        if f"{network_name} init_kwargs" in wanted:
            state = module.state
            assert nvidia_pickle.plain(state["_init_kwargs"]) == wanted[f"{network_name} init_kwargs"]
            assert nvidia_pickle.plain(state["_init_args"]) == wanted[f"{network_name} init_args"]
    tensors = content["G_ema"].tensors()
    expected = official_state("stylenerf_tiny")
    assert tensors.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(tensors[name], value, err_msg=name)


# --- volume rendering ------------------------------------------------------------------------------------------------


def test_light_is_conserved():
    opaque = jax.random.uniform(jax.random.key(0), (5, 7))
    weights, left = composite(opaque)
    np.testing.assert_allclose(weights.sum(-1) + left * (1 - opaque[..., -1]), 1, atol=1e-5)


def test_light_is_left_behind_what_is_opaque_also_in_compiled_code():
    clear = composite(jnp.ones((1, 3)))[1]
    assert float(clear[0]) == pytest.approx(1e-20, rel=1e-3)


def test_finer_samples_lie_where_the_weights_are():
    even = np.linspace(0, 1, 14, dtype=np.float32)
    weights = np.zeros((1, 1, 14), np.float32)
    weights[..., 6] = 1
    fine = finer(even, jnp.asarray(weights))
    assert np.mean(np.abs(fine - even[6]) < 1.01 / 13 / 2) > 0.8
    assert np.all(np.diff(fine) >= 0)


def test_background_points_are_on_the_sphere():
    rotation, centres = look_at_origin(jnp.array([[0.2, 1.4]]))
    rays = cast_rays(rotation, volume.pixel_grid(4, 8, False), 12.0)
    points = background_points(centres, rays, np.float32([0.5, 0.25, 0.0]))
    np.testing.assert_allclose(jnp.linalg.norm(points[..., :3], axis=-1), 1, atol=1e-5)
    far = points[:, :, -1, :3]
    np.testing.assert_allclose(far, rays / jnp.linalg.norm(rays, axis=-1, keepdims=True), atol=1e-3)


# --- the generator ---------------------------------------------------------------------------------------------------

draw = jax.jit(lambda generator, key, z: generator(key, z))
KEY = jax.random.key(1)


def test_camera_is_drawn_or_given():
    generator = stylenerf.tiny()
    z = jnp.tile(generator.prior.sample(KEY, 1), (2, 1))
    views = draw(generator, KEY, z)
    assert np.abs(views[0] - views[1]).max() > 1e-3
    front, side = (draw(generator.replace(camera=(angle, 1.5)), KEY, z) for angle in (0.0, 0.5))
    assert np.abs(front - side).max() > 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"truncation_psi": 1.5}, "truncation_psi is 1.5; expected a number from 0 to 1"),
        ({"camera": "front"}, "camera is 'front'; expected 'random' or two angles"),
        ({"camera": (0.0, 0.0)}, "expected 'random' or two angles"),
        ({"camera": (float("nan"), 1.0)}, "expected 'random' or two angles"),
        ({"block_gradient": "no"}, "expected True or False"),
    ],
)
def test_generator_refuses_options(options, message):
    with pytest.raises(ValueError, match=message):
        stylenerf.tiny().replace(**options)


def test_converted_folder_is_a_generator(tmp_path, monkeypatch):
    monkeypatch.setenv("PROMPTGEN_WEIGHTS", str(tmp_path))
    assert stylenerf_to_flax.main([str(SAMPLE), str(tmp_path / "mine")]) == 0
    generator = parts.load_generator("mine", truncation_psi=0.7, camera=[0.1, 1.5])
    assert (generator.prior.dim, generator.image_size, generator.camera) == (16, 64, (0.1, 1.5))
    with pytest.raises(ValueError, match="dcgan_digiface: holds no StyleNeRF"):
        stylenerf.build(weights="dcgan_digiface")


# --- files that are refused ------------------------------------------------------------------------------------------


def with_settings(section="", **changes):
    settings = settings_of("stylenerf_tiny")
    synthesis = dict(settings["synthesis_kwargs"])
    if section:
        synthesis[section] = synthesis[section] | changes
    else:
        synthesis |= changes
    return settings | {"synthesis_kwargs": synthesis}


def changed(**entries):
    state = official_state("stylenerf_tiny") | {name.replace("__", "."): value for name, value in entries.items()}
    return {name: value for name, value in state.items() if value is not None}


REFUSED = {
    "missing": (changed(synthesis__b32__conv1__bias=None), with_settings(), "stylenerf"),
    "missing bias": (changed(mapping__fc0__bias=None), with_settings(), "1 problems: missing mapping.fc0.bias"),
    "extra": (changed(mapping__x=np.zeros(3, np.float32)), with_settings(), "unexpected mapping.x"),
    "nan": (changed(mapping__w_avg=np.full(16, np.nan, np.float32)), with_settings(), "mapping.w_avg holds NaN"),
    "no gain": (
        changed(synthesis__b32__conv0__w_avg=np.float32(0)),
        with_settings(),
        "params/block_0/gain0 cannot be made",
    ),
    "unfinished": (
        changed(synthesis__alpha=np.float32(0.5)),
        with_settings(),
        "alpha 0.5, which is unfinished training",
    ),
    "camera": (
        changed(),
        with_settings("camera_kwargs", gaussian_camera=False, range_radius=[1.0, 2.0]),
        "gaussian_camera False instead of True, range_radius [1.0, 2.0] instead of [1, 1]",
    ),
    "upsampler": (changed(), with_settings(upsample_mode="bilinear"), "upsample_mode 'bilinear' instead of one of"),
    "noise": (changed(), with_settings(use_noise=True), "use_noise True instead of False"),
    "no settings": (changed(), {}, "upsample_mode None"),
}
REFUSED["missing"] = (*REFUSED["missing"][:2], "unexpected synthesis.b32.conv1.affine.bias")


@pytest.mark.parametrize("case", REFUSED)
def test_files_are_refused(case, tmp_path, capsys):
    state, settings, message = REFUSED[case]
    source = write_nvidia(tmp_path / "official.pkl", state, _init_kwargs=settings)
    assert stylenerf_to_flax.main([str(source), str(tmp_path / "out")]) == 1
    answer = capsys.readouterr().err
    assert message in answer
    assert answer.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_old_files_without_sections_are_read():
    """Where there are no sections, their settings stand one level up; without progress a ray has 20 samples."""
    settings = settings_of("stylenerf_tiny")
    synthesis = dict(settings["synthesis_kwargs"])
    for section in ("camera_kwargs", "renderer_kwargs"):
        synthesis |= synthesis.pop(section)
    state = official_state("stylenerf_tiny")
    flat = stylenerf_to_flax.read_options("flat", settings | {"synthesis_kwargs": synthesis}, state)
    assert flat == stylenerf_to_flax.read_options("tiny", settings, state)
    state["synthesis.alpha"] = np.float32(-1)
    assert stylenerf_to_flax.read_options("old", settings, state)["num_samples"] == 20


def test_other_families_are_refused_by_name(tmp_path, capsys):
    stylegan2 = write_nvidia(tmp_path / "sg2.pkl", official_state("stylegan2_ada_256", small=True))
    rosinality = write_rosinality(tmp_path / "sg2.pt", official_state("stylegan2_256", small=True))
    for convert, source, found in (
        (stylenerf_to_flax, stylegan2, "StyleGAN2"),
        (stylenerf_to_flax, rosinality, "StyleGAN2"),
        (stylegan2_to_flax, SAMPLE, "StyleNeRF"),
    ):
        assert convert.main([str(source), str(tmp_path / "out")]) == 1
        assert f"this looks like a {found} file" in capsys.readouterr().err


def test_settings_run_no_code(tmp_path):
    source = tmp_path / "file.pkl"
    source.write_bytes(b"\x80\x03comegaconf.omegaconf\nOmegaConf\n.")
    with pytest.raises(ValueError, match="omegaconf.omegaconf.OmegaConf, which is no part of a network"):
        reading.read_checkpoint(source)
    source.write_bytes(pickle.dumps({"a": Path("x")}))
    with pytest.raises(ValueError, match="which is no part of a network"):
        reading.read_checkpoint(source)
