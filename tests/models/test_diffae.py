"""Diffusion autoencoder: golden parity through the converter, a small one against PyTorch, and the generator.

Golden arrays come from the official PyTorch implementation with seeded weights; in and in2 are option sets.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import official_diffae
import pytest
from golden import seeded
from official import GOLDEN, load_golden
from official_diffae import converted, small_state, torch, write

from convert import diffae_to_flax, reading
from promptgen_jax import commands, parts
from promptgen_jax.generators import diffae
from promptgen_jax.models import diffusion, network
from promptgen_jax.models.diffae import generate

pytestmark = pytest.mark.usefixtures("highest_precision")


def nchw(array):
    return np.asarray(array).transpose(0, 3, 1, 2)


def nhwc(array):
    return np.asarray(array).transpose(0, 2, 3, 1)


def weighting(shape):
    """The cosine of the flat index, (B, 3, H, W), as (B, H, W, 3)."""
    return nhwc(np.float32(np.cos(0.01 * np.arange(np.prod(shape)))).reshape(shape))


@functools.cache
def compiled(module, latent_steps, image_steps):
    """Images and the gradients of their weighted sum by z and by the noise."""

    def total(z, noise, tree, weights):
        images = generate(module, tree, z, noise, latent_steps=latent_steps, image_steps=image_steps)
        return jnp.sum(images * weights), images

    return jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))


# --- a small one against PyTorch -------------------------------------------------------------------------------------


def test_small_generator_is_pytorchs():
    rng = np.random.default_rng(0)
    z, noise = np.float32(rng.normal(size=(2, 8))), np.float32(rng.normal(size=(2, 3, 16, 16)))
    official = [torch.tensor(each, requires_grad=True) for each in (z, noise)]
    want = official_diffae.Networks(small_state()).generate(*official, 5, 4)
    weights = weighting((2, 3, 16, 16))
    torch.sum(want * torch.from_numpy(nchw(weights).copy())).backward()
    tree, config = converted()
    module = network.load_module(config)
    (_, images), slopes = compiled(module, 5, 4)(z, nhwc(noise), tree, weights)
    assert np.ptp(images) > 0.5
    np.testing.assert_allclose(nchw(images), want.detach(), atol=5e-5)
    for got, wanted in zip((slopes[0], nchw(slopes[1])), (each.grad.numpy() for each in official), strict=True):
        assert np.linalg.norm(got - wanted) < 1e-3 * np.linalg.norm(wanted)


@pytest.mark.parametrize(("steps", "stride"), [(1, 1000), (5, 200), (7, 143), (100, 10), (1000, 1)])
def test_schedule_ends_at_the_data(steps, stride):
    schedule = diffusion.make_schedule(diffusion.linear_betas(), steps)
    np.testing.assert_array_equal(schedule.time, np.arange(0, 1000, stride)[::-1])
    assert schedule.next_signal[-1] == 1
    np.testing.assert_array_equal(schedule.next_signal[:-1], schedule.signal[1:])


@pytest.mark.parametrize("name", ["diffae_ffhq128", "diffae_ffhq256"])
def test_schedules_are_the_official_ones(name):
    golden = load_golden(name)
    for betas, short, counts in (
        (diffusion.linear_betas(), "img", (5, 100)),
        (diffusion.constant_betas(), "lat", (5, 1000)),
    ):
        for count in counts:
            schedule = diffusion.make_schedule(betas, count)
            np.testing.assert_array_equal(schedule.time[::-1], golden[f"mid_sched_{short}{count}_t"])
            signal = golden[f"mid_sched_{short}{count}_alphas_cumprod"]
            np.testing.assert_allclose(schedule.signal[::-1], signal, rtol=1e-12)


# --- golden parity ---------------------------------------------------------------------------------------------------


def load(name):
    tree, config = converted(name)
    golden, manifest = load_golden(name), seeded.load_manifest(name, GOLDEN)
    for key, spec in manifest["inputs"].items():
        golden[key] = seeded.seeded_tensor(key, spec, manifest["seed"])
    return network.load_module(config), jax.tree.map(jnp.asarray, tree), golden


class Comparison:
    """Compares with golden arrays, and collects what differs."""

    def __init__(self, golden):
        self.golden, self.problems = golden, []

    def __call__(self, key, got, tolerance):
        """Largest error, relative to the largest value if that is above 1."""
        want, got = self.golden[key], np.asarray(got)
        assert got.shape == want.shape, (key, got.shape, want.shape)
        error = np.max(np.abs(got - want)) / max(1.0, np.max(np.abs(want)))
        self._judge(key, error, tolerance)

    def images(self, prefix, images, tolerance):
        images = nchw(images)
        size = images.shape[-1]
        blocks = images.reshape(*images.shape[:2], 64, size // 64, 64, size // 64).mean((3, 5))
        self(f"{prefix}_pool", blocks, tolerance)
        self(f"{prefix}_crop", middle(images, 64), tolerance)
        flat = np.float64(images[0]).reshape(3, -1)
        self(f"{prefix}_stats", np.stack([flat.mean(1), flat.std(1, ddof=1)]), tolerance)

    def gradient(self, key, got, tolerance):
        want = self.golden[key]
        self._judge(key, np.linalg.norm(got - want) / np.linalg.norm(want), tolerance)

    def _judge(self, key, error, tolerance):
        print(f"{key}: {error:.1e}")
        if not error <= tolerance:
            self.problems.append(f"{key}: {error:.1e}")


def middle(array, size):
    """The central square of (..., H, W)."""
    start = array.shape[-1] // 2 - size // 2
    return array[..., start : start + size, start : start + size]


def entries(captured, module):
    """Features (C, H, W) behind every entry of the official lists of blocks."""
    found = {name: np.asarray(each["__call__"][0])[0] for name, each in captured.items() if name != "__call__"}
    count = 3 * len(module.multipliers)
    names = [[f"down_{index}_attention", f"down_{index}"] for index in range(count)] + [["middle_1"]]
    names += [[f"up_{index}_double", f"up_{index}_attention", f"up_{index}"] for index in range(count)]
    return [next(found[name] for name in each if name in found).transpose(2, 0, 1) for each in names]


def draw_latents(module, tree, z, steps):
    schedule = diffusion.make_schedule(diffusion.constant_betas(), steps)

    @jax.jit
    def run(tree, z):
        return diffusion.sample(
            lambda x, time: module.apply(tree, x, time, method="latent_noise"), z, schedule, clip=False
        )

    return run(tree, z)


@pytest.mark.full
@pytest.mark.parametrize("name", ["diffae_ffhq128", "diffae_ffhq256"])
def test_golden_networks(name):
    module, tree, golden = load(name)
    compare = Comparison(golden)

    @jax.jit
    def predict(tree, x, time, style):
        options = {"capture_intermediates": True, "mutable": ["intermediates"], "method": "image_noise"}
        noise, captured = module.apply(tree, x, time, style, **options)
        return noise, captured["intermediates"]["unet"]

    noise, captured = predict(tree, nhwc(golden["in_x_T"]), golden["in_unet_t"], golden["in_unet_cond"])
    compare.images("out_unet_eps", noise, 2e-5)
    compare("mid_unet_time_emb", captured["time"]["__call__"][0], 1e-5)
    features = entries(captured, module)
    statistics = [[np.mean(each), np.std(each, ddof=1)] for each in map(np.float64, features)]
    compare("mid_unet_blocks_stats", statistics, 2e-5)
    compare("mid_unet_blocks_crop", [middle(each[:8], 8) for each in features], 5e-5)

    latent_noise = jax.jit(functools.partial(module.apply, method="latent_noise"))
    compare("out_latnet_eps", latent_noise(tree, golden["in_latnet_x"], golden["in_latnet_t"]), 1e-5)
    latent, steps = draw_latents(module, tree, golden["in_z"], 5)
    compare("mid_latent_x", steps, 1e-5)
    compare("out_latent", latent, 1e-5)
    compare("out_cond", jax.jit(functools.partial(module.apply, method="to_style"))(tree, latent), 1e-5)

    assert not compare.problems


@pytest.mark.full
@pytest.mark.parametrize("name", ["diffae_ffhq128", pytest.param("diffae_ffhq256", marks=pytest.mark.largest)])
def test_golden_images(name):
    """Five steps of both samplers, and the gradient through all of them."""
    module, tree, golden = load(name)
    compare = Comparison(golden)
    z, noise = golden["in_z"][:1], nhwc(golden["in_x_T"])
    weights = weighting((1, 3, module.image_size, module.image_size))
    (_, images), (slope, _) = compiled(module, 5, 5)(z, noise, tree, weights)
    compare.images("out_image", images, 5e-4)
    compare.gradient("grad_z", slope, 1e-2)
    assert not compare.problems


@pytest.mark.full
@pytest.mark.parametrize("name", [pytest.param("diffae_ffhq128", marks=pytest.mark.largest), "diffae_ffhq256"])
def test_golden_steps(name):
    """With other step counts, at 128 pixels those of the official pictures: 1000 of latents and 100 of pictures."""
    module, tree, golden = load(name)
    compare, (latent_steps, image_steps) = Comparison(golden), (int(each) for each in golden["in2_steps"])
    latent, _ = draw_latents(module, tree, golden["in2_z"], latent_steps)
    compare("out2_latent", latent, 2e-5)
    run = jax.jit(functools.partial(generate, module, latent_steps=latent_steps, image_steps=image_steps))
    compare.images("out2_image", run(tree, golden["in2_z"], nhwc(golden["in2_x_T"])), 1e-3)
    assert not compare.problems


def test_diffae_ffhq128_and_diffae_ffhq256_are_read_by_their_shapes():
    """Sizes, and that every tensor has its place."""
    sizes = {"diffae_ffhq128": (128, [1, 1, 2, 3, 4]), "diffae_ffhq256": (256, [1, 1, 2, 2, 4, 4])}
    for name, (image_size, multipliers) in sizes.items():
        specs = seeded.load_manifest(name, GOLDEN)["tensors"]
        shapes = {key.removeprefix("ema_model."): np.broadcast_to(0, spec["shape"]) for key, spec in specs.items()}
        shapes = {key: value for key, value in shapes.items() if not key.startswith("encoder.")}
        options = diffae_to_flax.read_options(name, shapes)
        assert (options["image_size"], options["multipliers"]) == (image_size, multipliers)
        assert (options["style_dim"], options["latent_layers"], options["latent_width"]) == (512, 10, 2048)
        parts = diffae_to_flax.recipe(options).values()
        assert {source for part in parts for source in part.sources} == shapes.keys()


# --- the generator ---------------------------------------------------------------------------------------------------

draw = jax.jit(lambda generator, key, z: generator(key, z))
KEY = jax.random.key(1)


def test_picture_noise_is_drawn_or_controlled():
    generator = diffae.tiny()
    z = generator.prior.sample(KEY, 2)
    images = draw(generator, KEY, z)
    assert np.abs(images - draw(generator, jax.random.key(2), z)).max() > 1e-2
    full = generator.replace(prior=diffae.make_prior(generator.module, False))
    assert full.prior.dim == 6 + 3 * 16**2
    noise = jax.random.normal(KEY, (2, 16, 16, 3)).transpose(0, 3, 1, 2).reshape(2, -1)
    controlled = draw(full, jax.random.key(2), jnp.concatenate([z, noise], axis=1))
    np.testing.assert_allclose(controlled, images, atol=1e-5)


def test_more_steps_make_other_pictures():
    generator = diffae.tiny()
    z = generator.prior.sample(KEY, 2)
    images = draw(generator.replace(latent_steps=10, image_steps=4), KEY, z)
    assert np.abs(images - draw(generator, KEY, z)).max() > 1e-2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latent_steps": 0}, "latent_steps: got 0; expected an integer of at least 1"),
        ({"image_steps": 2.5}, "image_steps: got 2.5; expected an integer"),
        ({"image_steps": 99}, "image_steps is 99 steps: no stride through 1000 levels gives them. Use 100"),
        ({"latent_steps": 1001}, "Use 1000"),
    ],
)
def test_generator_refuses_options(options, message):
    with pytest.raises(ValueError, match=message):
        diffae.tiny().replace(**options)


def test_converted_folder_is_a_generator(tmp_path, monkeypatch):
    monkeypatch.setenv("PROMPTGEN_WEIGHTS", str(tmp_path))
    source = write(tmp_path / "official.ckpt", small_state())
    assert diffae_to_flax.main([str(source), str(tmp_path / "mine")]) == 0
    generator = parts.load_generator("mine", latent_only=False, latent_steps=10)
    assert (generator.prior.dim, generator.image_size) == (8 + 3 * 16**2, 16)
    assert (generator.latent_steps, generator.image_steps) == (10, 5)
    with pytest.raises(ValueError, match="dcgan_digiface: holds no diffusion autoencoder"):
        diffae.build(weights="dcgan_digiface")


# --- files that are refused ------------------------------------------------------------------------------------------


def changed(**entries):
    state = small_state() | {f"ema_model.{name}": value for name, value in entries.items()}
    return {name: value for name, value in state.items() if value is not None}


def nan(name):
    return {name: small_state()[f"ema_model.{name}"] * np.float32(np.nan)}


REFUSED = {
    "missing": (changed(**{"out.0.bias": None}), {}, "1 problems: missing out.0.bias"),
    "extra": (changed(other=np.zeros(3, np.float32)), {}, "unexpected other"),
    "nan": (changed(**nan("out.0.bias")), {}, "out.0.bias holds NaN"),
    "shape": (changed(**{"out.2.bias": np.zeros(4, np.float32)}), {}, "params/unet/output/bias is (4,)"),
    "copies that differ": (
        changed(**{"latent_net.layers.0.cond_layers.1.bias": np.zeros(12, np.float32)}),
        {},
        "latent_net.layers.0.linear_emb.bias differ, which are one layer",
    ),
    "no latents": (
        {name: value for name, value in small_state().items() if "latent_net" not in name},
        {},
        "0 layers of latent_net",
    ),
    "no state": (changed(), {"state_dict": None}, "holds no state_dict"),
    "NVAE": (changed(), {"state_dict": {"dec_tower.0.conv.bias": torch.zeros(1)}}, "this looks like a NVAE file"),
    "StyleGAN2": (changed(), {"state_dict": None, "g_ema": {"a": torch.zeros(1)}}, "this looks like a StyleGAN2 file"),
    "no statistics": (
        {name: value for name, value in small_state().items() if name != "conds_std"},
        {},
        "official_latent.pkl: holds no conds_mean and conds_std",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_files_are_refused(case, tmp_path, capsys):
    state, beside, message = REFUSED[case]
    source = write(tmp_path / "official.ckpt", state, **beside)
    assert diffae_to_flax.main([str(source), str(tmp_path / "out")]) == 1
    answer = capsys.readouterr().err
    assert message in answer
    assert answer.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_statistics_are_asked_for(tmp_path, capsys):
    source = write(tmp_path / "official.ckpt", small_state())
    (tmp_path / "official_latent.pkl").unlink()
    assert diffae_to_flax.main([str(source), str(tmp_path / "out")]) == 1
    assert "official_latent.pkl: no such file, nor latent.pkl, and no statistics" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["latent.pkl", "../run/latent.pkl", None])
def test_statistics_are_found(tmp_path, place):
    """Under the official name, in the official folder, or in the checkpoint itself: the same tree."""
    state, folder = small_state(), tmp_path / "run_latent"
    folder.mkdir()
    expected, _ = converted()
    own = {name: torch.from_numpy(state[name])[None] for name in ("conds_mean", "conds_std")}
    source = write(folder / "last.ckpt", state)
    if place is None:
        tensors = reading.read_torch(source, diffae_to_flax.LIGHTNING)["state_dict"]
        torch.save({"state_dict": tensors | own}, source)
        (folder / "last_latent.pkl").unlink()
    else:
        (folder / place).resolve().parent.mkdir(exist_ok=True)
        (folder / "last_latent.pkl").rename((folder / place).resolve())
    tree, config = diffae_to_flax.convert(source)
    jax.tree.map(np.testing.assert_array_equal, tree, expected)
    assert f"those of {'latent.pkl' if place else 'the checkpoint'}." in config["about"]


def test_statistics_are_no_network(tmp_path, capsys):
    source = write(tmp_path / "official.ckpt", small_state())
    assert diffae_to_flax.main([str(source.with_name("official_latent.pkl")), str(tmp_path / "out")]) == 1
    assert "the statistics of the latents, no network. Pass the checkpoint" in capsys.readouterr().err
    assert commands.main(["convert", f"--from={tmp_path}"]) == 0
    assert "official_latent.pkl: statistics of latents, which the checkpoint beside" in capsys.readouterr().out


def test_classes_of_other_programs_are_refused(tmp_path, capsys):
    source = write(tmp_path / "official.ckpt", small_state(), hook=pytest.raises)
    assert diffae_to_flax.main([str(source), str(tmp_path / "out")]) == 1
    assert "a file that needs code to load is refused" in capsys.readouterr().err
