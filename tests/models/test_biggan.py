"""BigGAN-deep: golden parity through the converter, a small one against PyTorch, its prior, and two flows together.

Golden arrays come from the official PyTorch implementation with seeded weights; in, in2 and in3 are option sets.
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import official_biggan
import pytest
from flax import struct
from golden import seeded
from official import GOLDEN, load_golden
from official_biggan import SMALL, converted, small_state, torch, write

import promptgen_jax as pg
from convert import biggan_to_flax
from promptgen_jax import parts
from promptgen_jax.flows.base import init_flow
from promptgen_jax.generators import biggan
from promptgen_jax.models import network
from promptgen_jax.models.biggan import statistics_row

pytestmark = pytest.mark.usefixtures("highest_precision")


def weighting(shape):
    """The cosine of the flat index, (B, 3, H, W), as (B, H, W, 3)."""
    return np.float32(np.cos(0.01 * np.arange(np.prod(shape)))).reshape(shape).transpose(0, 2, 3, 1)


def make_generator(name, truncation):
    tree, config = converted(name)
    prior = biggan.make_prior(tree["buffers"]["embeddings"], "rms")
    return biggan.BigGAN(
        weights=jax.tree.map(jnp.asarray, tree),
        prior=prior,
        module=network.load_module(config),
        name=name,
        checksum="",
        image_size=config["image_size"],
        truncation=truncation,
    )


@jax.jit
def image_and_gradient(generator, z, weights):
    def total(z):
        images = generator(jax.random.key(0), z)
        return jnp.sum(images * weights), images

    (_, images), gradient = jax.value_and_grad(total, has_aux=True)(z)
    return images, gradient


# --- parity ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("truncation", [0.4, 0.675, 1.0])
def test_small_generator_is_pytorchs(truncation):
    rng, dim = np.random.default_rng(1), SMALL["z_dim"]
    z = np.float32(1.5 * rng.normal(size=(2, 2 * dim)))
    z[0, 0], z[1, 2] = 2.5, -3
    latents = torch.tensor(z, requires_grad=True)
    noise, embedding = truncation * latents[:, :dim].clamp(-2, 2), latents[:, dim:]
    want = (official_biggan.generate(small_state(), SMALL, noise, embedding, truncation) + 1) / 2
    weights = weighting((2, 3, 16, 16))
    torch.sum(want * torch.from_numpy(weights.transpose(0, 3, 1, 2).copy())).backward()
    images, gradient = image_and_gradient(make_generator("small", truncation), z, weights)
    assert np.ptp(images) > 0.3
    np.testing.assert_allclose(images.transpose(0, 3, 1, 2), want.detach(), atol=2e-5)
    wanted = latents.grad.numpy()
    np.testing.assert_allclose(gradient, wanted, atol=1e-4 * np.abs(wanted).max())
    assert np.all((gradient == 0) == (np.abs(z) > 2) * (np.arange(2 * dim) < dim))


def pictures(prefix, images):
    images = np.asarray(images).transpose(0, 3, 1, 2)
    size = images.shape[-1]
    middle = slice(size // 2 - 32, size // 2 + 32)
    blocks = images.reshape(*images.shape[:2], 64, size // 64, 64, size // 64)
    statistics = [each(images.astype(np.float64), axis=(2, 3)) for each in (np.mean, np.std)]
    return {
        f"{prefix}_pool": blocks.mean((3, 5)),
        f"{prefix}_crop": images[:, :, middle, middle],
        f"{prefix}_stats": np.stack(statistics, axis=-1),
    }


def features(prefix, captured):
    """Statistics of everything that the golden data lists between the layers."""
    (first,) = captured["input"]["__call__"]
    values = {f"{prefix}_gen_z_first512": first[:, :512]}
    outputs = [
        (f"block_{index}", captured[f"block_{index}"])
        for index in range(sum(key.startswith("block_") for key in captured))
    ]
    outputs.insert(8, ("attention", captured["attention"]))
    wanted = {f"{prefix}_bn": captured["norm"]}
    for index, (_, output) in enumerate(outputs):
        wanted[f"{prefix}_layers_{index}"] = output
        if index < 2:
            wanted |= {f"{prefix}_layers_{index}_bn_{number}": output[f"norm{number}"] for number in range(4)}
    for name, output in wanted.items():
        array = np.float64(output["__call__"][0])
        values[f"{name}_stats"] = np.stack([array.mean((1, 2)), array.std((1, 2))], axis=-1)
    colours = np.asarray(captured["to_rgb"]["__call__"][0]).transpose(0, 3, 1, 2)
    middle = slice(colours.shape[-1] // 2 - 32, colours.shape[-1] // 2 + 32)
    return values | {f"{prefix}_pre_tanh_crop": colours[:, :, middle, middle]}


@functools.partial(jax.jit, static_argnums=(0, 3))
def observe(module, tree, cond, truncation):
    options = {"capture_intermediates": True, "mutable": ["intermediates"]}
    images, captured = module.apply(tree, cond, truncation=truncation, **options)
    return images, captured["intermediates"]


@pytest.mark.full
@pytest.mark.parametrize("name", ["biggan_deep_256", pytest.param("biggan_deep_512", marks=pytest.mark.largest)])
def test_golden(name):
    golden, problems, checked = load_golden(name), [], set()

    def compare(key, got, tolerance):
        want = golden[key]
        checked.add(key)
        error = np.max(np.abs(np.asarray(got).reshape(want.shape) - want)) / max(1, np.max(np.abs(want)))
        print(f"{key}: {error:.1e}")
        if not error <= tolerance:
            problems.append(f"{key}: {error:.1e}")

    for prefix in ("", "2"):
        generator = make_generator(name, float(golden[f"in{prefix}_truncation"]))
        latents = np.concatenate([golden[f"in{prefix}_{part}"] for part in "zy"], axis=1)
        size = generator.image_size
        weights = weighting((len(latents), 3, size, size))
        gradients, rows = [], []
        for index in range(len(latents)):  # one by one, which needs less memory
            row = slice(index, index + 1)
            gradients.append(image_and_gradient(generator, latents[row], weights[row])[1])
            noise = np.float32(generator.truncation) * np.clip(latents[row, :128], -2, 2)
            cond = np.concatenate([noise, latents[row, 128:]], axis=1)
            images, captured = observe(generator.module, generator.weights, cond, generator.truncation)
            rows.append(pictures(f"out{prefix}_image", images) | features(f"mid{prefix}", captured))
        for key in rows[0]:
            compare(key, np.concatenate([row[key] for row in rows]), 5e-5)
        gradient = np.concatenate(gradients)
        for part, got in zip("zy", np.split(gradient, 2, axis=1), strict=True):
            for key in (f"grad{prefix}_{part}", f"grad64{prefix}_{part}"):
                if key in golden:
                    want = golden[key]
                    checked.add(key)
                    error = np.linalg.norm(got - want) / np.linalg.norm(want)
                    print(f"{key}: relative L2 {error:.1e}")
                    if not error < 2e-2:  # decisions of ReLU and pooling flip
                        problems.append(f"{key}: relative L2 {error:.1e}")
                    assert np.all((got == 0) == (want == 0))
    embedding = generator.weights["buffers"]["embeddings"][golden["in3_class"]]
    compare("out3_class_embedding", embedding, 1e-6)
    cond = np.concatenate([golden["in3_z"], embedding], axis=1)
    images, _ = observe(generator.module, generator.weights, cond, float(golden["in3_truncation"]))
    for key, got in pictures("out3_raw_image", 2 * images - 1).items():
        compare(key, got, 5e-4)
    prior = generator.prior
    compare("out_y_scale", prior.scale[-1], 1e-6)
    compare("out_prior_y_energy", jnp.sum((golden["in_y"] / prior.scale[128:]) ** 2, axis=1) / 2, 1e-5)
    norm = generator.weights["buffers"]["norm"]
    for kind, stored in (("mean", norm["means"]), ("var", norm["variances"])):
        rows = [statistics_row(float(each), 51) for each in golden["in_probe_truncation"]]
        got = [f * stored[i] + (1 - f) * stored[min(i + 1, 50)] for i, f in rows]
        compare(f"out_probe_running_{kind}", np.stack(got), 1e-6)
    state = seeded.seeded_state_dict(seeded.load_manifest(name, GOLDEN))
    names = [key.removesuffix("_orig") for key in state if key.endswith(".weight_orig")]
    sigmas = [biggan_to_flax.sigma(*(state[f"{key}{part}"] for part in ("_orig", "_u", "_v"))) for key in names]
    compare("mid_sigma", sigmas, 1e-5)
    assert not problems
    assert {key for key in golden if not key.startswith("in")} == checked


def test_biggan_deep_256_statistics_of_a_truncation_are_the_official_rows():
    """Also where the official arithmetic rounds to the next row."""
    expected = {0.4: (20, 1.0), 0.675: (33, 0.75), 1.0: (50, 1.0), 0.02: (1, 1.0)}
    for truncation, (index, fraction) in expected.items():
        assert statistics_row(truncation, 51) == pytest.approx((index, fraction))
    stored = seeded.seeded_state_dict(seeded.load_manifest("biggan_deep_256", GOLDEN) | {"tensors": NORM})
    golden = load_golden("biggan_deep_256")
    for kind, key in (("mean", "means"), ("var", "vars")):
        table = stored[f"generator.bn.running_{key}"]
        for truncation, want in zip(golden["in_probe_truncation"], golden[f"out_probe_running_{kind}"], strict=True):
            index, fraction = statistics_row(float(truncation), 51)
            got = fraction * table[index] + (1 - fraction) * table[min(index + 1, 50)]
            np.testing.assert_allclose(got, want, atol=1e-6)


NORM = {
    key: spec
    for key, spec in seeded.load_manifest("biggan_deep_256", GOLDEN)["tensors"].items()
    if key.startswith("generator.bn.")
}


# --- the generator ---------------------------------------------------------------------------------------------------


def test_priors_of_the_class_embedding():
    embeddings = jnp.asarray(np.random.default_rng(0).normal(0.5, 2.0, (1000, 3)), jnp.float32)
    moments, rms = (biggan.make_prior(embeddings, kind) for kind in ("moments", "rms"))
    assert moments.blocks == rms.blocks == (3, 3)
    np.testing.assert_array_equal(moments.loc[:3], 0)
    np.testing.assert_array_equal(moments.scale[:3], 1)
    np.testing.assert_allclose(moments.loc[3:], np.mean(embeddings, axis=0), rtol=1e-5)
    np.testing.assert_allclose(moments.scale[3:], np.std(embeddings, axis=0, ddof=1), rtol=1e-5)
    np.testing.assert_array_equal(rms.loc, 0)
    np.testing.assert_allclose(rms.scale[3:], np.sqrt(np.mean(np.square(embeddings))), rtol=1e-5)


@pytest.mark.parametrize("truncation", [0, 1.2, True, "0.4", float("nan")])
def test_generator_refuses_a_truncation(truncation):
    with pytest.raises(ValueError, match="expected a number above 0, at most 1"):
        biggan.tiny().replace(truncation=truncation)


def test_converted_folder_is_a_generator(tmp_path, monkeypatch):
    monkeypatch.setenv("PROMPTGEN_WEIGHTS", str(tmp_path))
    source = write(tmp_path, small_state(), SMALL)
    assert biggan_to_flax.main([str(source), str(tmp_path / "mine")]) == 0
    generator = parts.load_generator("mine", truncation=0.6, embedding_prior="rms")
    assert (generator.prior.blocks, generator.image_size, generator.truncation) == ((6, 6), 16, 0.6)
    expected = jax.tree.leaves(make_generator("small", 0.6))
    for got, want in zip(jax.tree.leaves(generator), expected, strict=True):
        np.testing.assert_array_equal(got, want)
    with pytest.raises(ValueError, match="Did you mean 'moments'"):
        parts.load_generator("mine", embedding_prior="moment")
    with pytest.raises(ValueError, match="dcgan_digiface: holds no BigGAN"):
        biggan.build(weights="dcgan_digiface")


# --- two flows together (Eq. 11) -------------------------------------------------------------------------------------


@struct.dataclass
class Linear:
    """E = slope · z, so that p(z|C) is the prior moved by -scale² slope."""

    slope: jax.Array
    weight: float = 1.0
    name: str = struct.field(pytree_node=False, default="linear")
    needs_reference: bool = struct.field(pytree_node=False, default=False)

    def __call__(self, key, sample):
        return sample.z @ self.slope


def test_two_flows_learn_a_linear_energy():
    generator = biggan.tiny()
    slope = jnp.asarray([1.0, -1.0, 0.5, 0.0, -2.0, 1.0, 0.0, 3.0])
    ebm = pg.LatentEBM(generator, (Linear(slope),))
    flow = {"architecture": "coupling", "num_layers": 4, "hidden_dim": 16}
    options = {"num_steps": 300, "batch_size": 64, "learning_rate": 1e-2, "clip_norm": 100.0, "log_every": 50}
    prompt, history = pg.fit(ebm, flow=flow, **options)
    prior, last = generator.prior, history[-1]
    log_z = float(jnp.sum((prior.scale * slope) ** 2) / 2 - prior.loc @ slope)
    assert abs(last["loss"] + log_z) < 0.1
    z = prompt.latents(prior.sample(jax.random.key(7), 4096))
    error = (jnp.mean(z, axis=0) - (prior.loc - prior.scale**2 * slope)) / prior.scale
    assert np.abs(error).max() < 0.15
    for row in history:
        assert row["log_det"] == pytest.approx(row["log_det/0"] + row["log_det/1"], abs=1e-5)
    before, _ = init_flow(jax.random.key(0), prior, **flow)
    for name in ("flows_0", "flows_1"):
        moved = jax.tree.map(lambda leaf: float(jnp.max(jnp.abs(leaf))), prompt.params[name])
        assert max(jax.tree.leaves(moved)) > 1e-2


@pytest.mark.parametrize("objective", ["reverse_kl", "score_function"])
def test_log_dets_of_the_blocks_are_those_of_their_flows(objective):
    generator = biggan.tiny()
    ebm = pg.LatentEBM(generator, (Linear(jnp.ones(8)),))
    flow, params = init_flow(jax.random.key(0), generator.prior, num_layers=2, hidden_dim=8)
    _, metrics = jax.jit(parts.load("objectives", objective, batch_size=16))(params, jax.random.key(1), ebm, flow)
    eps = generator.prior.sample(jax.random.split(jax.random.key(1))[0], 16)
    for index, block in enumerate(jnp.split(eps, 2, axis=1)):
        _, log_det = flow.bijector(params).bijectors[index].forward_and_log_det(block)
        assert metrics[f"log_det/{index}"] == pytest.approx(float(jnp.mean(log_det)), abs=1e-5)


# --- files that are refused ------------------------------------------------------------------------------------------


def without(state, name):
    return {key: value for key, value in state.items() if key != name}


REFUSED = {
    "missing": (lambda s: without(s, "generator.bn.bias"), SMALL, "1 problems: missing generator.bn.bias"),
    "extra": (lambda s: s | {"generator.x": s["generator.bn.bias"]}, SMALL, "unexpected generator.x"),
    "nan": (
        lambda s: s | {"generator.bn.bias": s["generator.bn.bias"] * np.float32(np.nan)},
        SMALL,
        "generator.bn.bias holds NaN",
    ),
    "other vector": (
        lambda s: s | {"generator.gen_z.weight_u": s["generator.gen_z.weight_u"][:-1]},
        SMALL,
        "params/input cannot be made from generator.gen_z.weight_orig",
    ),
    "other size": (lambda s: s, SMALL | {"channel_width": 8}, "wrong entries"),
    "other layers": (lambda s: s, SMALL | {"layers": SMALL["layers"][:-1]}, "unexpected generator.layers.4"),
    "blocks that do not fit": (
        lambda s: s,
        SMALL | {"layers": [[False, 8, 4], *SMALL["layers"][1:]]},
        "blocks that do not fit each other",
    ),
    "eps": (lambda s: s, SMALL | {"eps": 1e-12}, "eps 1e-12 instead of 0.0001"),
    "no configuration": (lambda s: s, {"model_type": "gpt2"}, "not the configuration of a BigGAN"),
    "StyleGAN2": (
        lambda s: {"g_ema": {"input.input": s["embeddings.weight"]}},
        SMALL,
        "this looks like a StyleGAN2 file",
    ),
    "nothing known": (lambda s: {"a": s["embeddings.weight"]}, SMALL, "missing embeddings.weight"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_files_are_refused(case, tmp_path, capsys):
    change, config, message = REFUSED[case]
    state = change(small_state())
    if "g_ema" in state:
        source = write(tmp_path, {}, config)
        torch.save({"g_ema": {name: torch.from_numpy(each) for name, each in state["g_ema"].items()}}, source)
    else:
        source = write(tmp_path, state, config)
    assert biggan_to_flax.main([str(source), str(tmp_path / "out")]) == 1
    answer = capsys.readouterr().err
    assert message in answer
    assert answer.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_configuration_is_asked_for(tmp_path, capsys):
    source = write(tmp_path, small_state(), SMALL)
    (tmp_path / "biggan-deep-16-config.json").unlink()
    assert biggan_to_flax.main([str(source), str(tmp_path / "out")]) == 1
    assert "biggan-deep-16-config.json: no such file. Download it" in capsys.readouterr().err


def test_a_folder_is_read_as_hugging_face_keeps_it(tmp_path):
    source = write(tmp_path, small_state(), SMALL, legacy=False)
    folder = tmp_path / "biggan-deep-16"
    folder.mkdir()
    source.rename(folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(SMALL))
    assert biggan_to_flax.main([str(folder), str(tmp_path / "mine")]) == 0
    source = json.loads((tmp_path / "mine" / "config.json").read_text())["source"]
    assert source == "biggan-deep-16/pytorch_model.bin"
