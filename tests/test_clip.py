"""CLIP: towers, both official layouts, the energy of Eq. 3, and files that must be refused.

Golden arrays come from openai/CLIP and the official PromptGen code on seeded weights at full size.
"""

import functools
import json
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import official
import optax
import pytest
from golden import seeded
from test_augment import assert_stored, formula_images

import promptgen_jax as pg
from convert import clip_to_flax, promptgen_to_flax, torchscript
from promptgen_jax import catalogue, network, tokenizer, weights
from promptgen_jax.flow import load_flow
from promptgen_jax.generators import dcgan
from promptgen_jax.models import clip
from promptgen_jax.ops import augment
from promptgen_jax.optimizer import make_optimizer

torch = pytest.importorskip("torch")
# 2026-11: torch deprecates TorchScript, in which OpenAI's checkpoints are published
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

SCALARS = {"input_resolution": 16, "context_length": 16, "vocab_size": 600}
SMALL = {
    "positional_embedding": (16, 64),
    "text_projection": (64, 32),
    "logit_scale": (),
    "token_embedding.weight": (600, 64),
    "visual.class_embedding": (128,),
    "visual.positional_embedding": (5, 128),
    "visual.proj": (128, 32),
    "visual.conv1.weight": (128, 3, 8, 8),
}


@pytest.fixture(autouse=True)
def highest_precision():
    with jax.default_matmul_precision("highest"):
        yield


# --- official files --------------------------------------------------------------------------------------------------


@functools.cache
def small_state():
    """A small CLIP under OpenAI's names: 16 pixels in patches of 8, two blocks of width 128 and one of 64."""
    rng = np.random.default_rng(0)
    shapes = dict(SMALL)
    for prefix, width in (
        ("visual.transformer.resblocks.0", 128),
        ("visual.transformer.resblocks.1", 128),
        ("transformer.resblocks.0", 64),
    ):
        for name, shape in {
            "attn.in_proj_weight": (3 * width, width),
            "attn.in_proj_bias": (3 * width,),
            "attn.out_proj.weight": (width, width),
            "attn.out_proj.bias": (width,),
            "mlp.c_fc.weight": (4 * width, width),
            "mlp.c_fc.bias": (4 * width,),
            "mlp.c_proj.weight": (width, 4 * width),
            "mlp.c_proj.bias": (width,),
        }.items():
            shapes[f"{prefix}.{name}"] = shape
        shapes |= {f"{prefix}.{norm}.{part}": (width,) for norm in ("ln_1", "ln_2") for part in ("weight", "bias")}
    for norm, width in (("visual.ln_pre", 128), ("visual.ln_post", 128), ("ln_final", 64)):
        shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    state = {}
    for name, shape in shapes.items():
        value = rng.normal(1.0 if "ln_" in name and "weight" in name else 0.0, 0.1, shape)
        state[name] = value.astype(np.float16 if "attn" in name or "mlp" in name else np.float32)
    return state


def script_module(state):
    """A module whose parameters have these names."""
    root = torch.nn.Module()
    for name, value in state.items():
        module, (*path, leaf) = root, name.split(".")
        for part in path:
            if not hasattr(module, part):
                module.add_module(part, torch.nn.Module())
            module = getattr(module, part)
        module.register_parameter(leaf, torch.nn.Parameter(torch.from_numpy(value), requires_grad=False))
    for name, value in SCALARS.items():
        root.register_buffer(name, torch.tensor(value))
    return torch.jit.script(root)


def write_archive(path, state):
    torch.jit.save(script_module(state), path)
    return path


def write_state(path, state):
    torch.save({name: torch.from_numpy(value) for name, value in state.items()}, path)
    return path


def hugging_face_state(state):
    """The tensors of OpenAI's layout as a Hugging Face folder holds them."""
    entries = official.load_json("clip_vit_b32/hf_mapping.json")
    made = {"text_model.embeddings.position_ids": np.arange(77)[None]}
    for name, entry in entries.items():
        tensor, (operation, *rows) = state[entry["from"]].astype(np.float32), entry["op"].split()
        if operation == "rows":
            tensor = tensor[slice(*map(int, rows[0].split(":")))]
        made[name] = np.asarray(tensor.T if operation == "transpose" else tensor, order="C")
    return made


def convert(source, folder):
    assert clip_to_flax.main([str(source), str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    return convert(write_archive(folder / "small.pt", small_state()), folder / "clip_small")


@pytest.fixture(scope="module")
def vit_b32(tmp_path_factory):
    """The seeded ViT-B/32, written as OpenAI's archive and converted; and its state dict."""
    state = seeded.seeded_state_dict(official.load_json("clip_vit_b32/manifest.json"))
    folder = tmp_path_factory.mktemp("clip_vit_b32")
    archive = write_archive(folder / "ViT-B-32.pt", state)
    yield convert(archive, folder / "clip_vit_b32"), state
    for file in folder.rglob("*.*"):
        file.unlink()


def load(folder):
    module, tree, _ = network.load_params(folder, kind="clip", example=clip.CLIP.example)
    return module, tree


@functools.partial(jax.jit, static_argnums=0)
def run_vision(tower, params, images, weighting):
    """Features, gradient of their weighted sum by the normalised pixels, and what `ln_pre` and the blocks gave."""

    def total(images):
        outputs, seen = tower.apply(
            {"params": params},
            images,
            capture_intermediates=lambda module, _: isinstance(module, clip.Block) or module.name == "ln_pre",
        )
        return jnp.sum(outputs["embedding"] * weighting), (outputs["embedding"], seen["intermediates"])

    gradient, (features, seen) = jax.grad(total, has_aux=True)(images)
    return features, gradient * jnp.array(clip.STD), seen


@functools.partial(jax.jit, static_argnums=0)
def run_text(tower, params, tokens):
    """Features and what the blocks gave."""
    features, seen = tower.apply(
        {"params": params}, tokens, capture_intermediates=lambda module, _: isinstance(module, clip.Block)
    )
    return features, seen["intermediates"]


def blocks_of(seen):
    return np.stack([seen[f"block{index}"]["__call__"][0] for index in range(12)])


def statistics_of(blocks):
    return np.stack([blocks.mean((2, 3)), blocks.std((2, 3), ddof=1)], axis=-1)


def assert_within(name, got, expected, tolerance):
    error = np.max(np.abs(np.asarray(got) - expected))
    print(f"{name}: {error:.1e} of {np.max(np.abs(expected)):.1e}")
    assert np.shape(got) == expected.shape
    assert error < tolerance, f"{name}: {error:.2e}"


def check_golden(folder, number):
    """Everything the golden set `number` ("" or "2") holds of the seeded ViT-B/32.

    Tolerances are those of its notes; ln_pre with epsilon 1e-6 or an exact GELU would miss them.
    """
    golden, (module, tree) = official.load_golden("clip_vit_b32"), load(folder)
    images = golden[f"in{number}_image_u8"].transpose(0, 2, 3, 1).astype(np.float32) / 255
    tokens = golden[f"in{number}_tokens"]
    weighting = np.cos(np.arange(len(images) * 512) * 0.01).reshape(-1, 512).astype(np.float32)
    features, gradient, seen = run_vision(module.vision_tower(), tree["vision"], images, weighting)
    assert_within("image features", features, golden[f"out{number}_image_features"], 2e-5)
    assert_stored(golden, f"out{number}_grad_image", gradient, 2e-6)
    assert_within("ln_pre", seen["ln_pre"]["__call__"][0][:, :5, :64], golden[f"mid{number}_vision_ln_pre"], 2e-5)
    blocks = blocks_of(seen)
    assert_within("vision blocks", blocks[:, :, 0, :32], golden[f"mid{number}_vision_cls"], 2e-5)
    assert_within("vision statistics", statistics_of(blocks), golden[f"mid{number}_vision_stats"], 2e-5)

    texts, seen = run_text(module.text_tower(), tree["text"], tokens)
    assert_within("text features", texts, golden[f"out{number}_text_features"], 2e-5)
    blocks = blocks_of(seen)
    ends = blocks[:, np.arange(len(tokens)), tokens.argmax(axis=1), :32]
    assert_within("text blocks", ends, golden[f"mid{number}_text_eot"], 2e-5)
    assert_within("text statistics", statistics_of(blocks), golden[f"mid{number}_text_stats"], 2e-5)

    logits = jax.jit(module.apply)({"params": tree}, (images, tokens))
    assert_within("logits", logits, golden[f"out{number}_logits_per_image"], 1e-4)


def test_clip_vit_b32_openai_archive(vit_b32):
    check_golden(vit_b32[0], "")


@pytest.mark.full
def test_clip_vit_b32_second_set(vit_b32):
    check_golden(vit_b32[0], "2")


@pytest.mark.full
@pytest.mark.parametrize("kind", ["safetensors", "bin", "state dict"])
def test_clip_vit_b32_other_layouts(vit_b32, tmp_path, kind):
    """They give the same tree as the archive, bit for bit once loaded."""
    folder, state = vit_b32
    source = tmp_path / "source"
    source.mkdir()
    if kind == "state dict":
        source = write_state(source / "ViT-B-32.pt", state)
    else:
        write_hugging_face(source, hugging_face_state(state), kind)
    tree, config = clip_to_flax.convert(source)
    for file in tmp_path.rglob("*.*"):
        file.unlink()
    expected, expected_config = weights.load_weights(folder)
    jax.tree.map(np.testing.assert_array_equal, tree, jax.tree.map(np.float32, expected))
    assert {**expected_config["options"], "activation": "quick_gelu"} == {
        "activation": "quick_gelu",
        **config["options"],
    }


def write_hugging_face(folder, tensors, kind="safetensors", **config):
    content = {"vision_config": {"num_attention_heads": 12}, "text_config": {"num_attention_heads": 8}, **config}
    (folder / "config.json").write_text(json.dumps(content))
    if kind == "bin":
        return write_state(folder / "pytorch_model.bin", tensors)
    from safetensors.numpy import save_file

    save_file(tensors, folder / "model.safetensors")
    return folder / "model.safetensors"


# --- against transformers --------------------------------------------------------------------------------------------


def transformers_model(vision, text, embed_dim, **options):
    """A CLIPModel with random weights, all of them drawn so that each matters."""
    from transformers import CLIPConfig, CLIPModel

    last = text.get("vocab_size", 49408) - 1
    text = {"eos_token_id": last, "bos_token_id": last - 1, **text}
    towers = [tower | options | {"projection_dim": embed_dim} for tower in (vision, text)]
    model = CLIPModel(CLIPConfig(vision_config=towers[0], text_config=towers[1], projection_dim=embed_dim)).eval()
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.ndim > 1 and "embedding" not in name:
                value.normal_(0, value[0].numel() ** -0.5, generator=draw)
            else:
                value.normal_(float("norm" in name and name.endswith("weight")), 0.2, generator=draw)
    return model


def compare_with_transformers(model, folder):
    """Embeddings of unit length, and logits, of a CLIPModel and of its conversion."""
    model.save_pretrained(folder / "official")
    rng = np.random.default_rng(0)
    vision, text = model.config.vision_config, model.config.text_config
    images = rng.uniform(0, 1, (1, vision.image_size, vision.image_size, 3)).astype(np.float32)
    tokens = rng.integers(1, text.vocab_size - 2, (2, text.max_position_embeddings)).astype(np.int32)
    tokens[0, 5], tokens[1, -1] = text.eos_token_id, text.eos_token_id
    pixels = torch.from_numpy((images - np.float32(clip.MEAN)) / np.float32(clip.STD)).permute(0, 3, 1, 2)
    with torch.no_grad():
        outputs = model(input_ids=torch.from_numpy(tokens).long(), pixel_values=pixels)
    folder = convert(folder / "official", folder / "converted")
    module, tree = load(folder)
    features = jax.jit(module.vision_tower().apply)({"params": tree["vision"]}, images)["embedding"]
    assert_within("image", clip.normalise(features), outputs.image_embeds.numpy(), 1e-4)
    features = jax.jit(module.text_tower().apply)({"params": tree["text"]}, tokens)
    assert_within("text", clip.normalise(features), outputs.text_embeds.numpy(), 1e-4)
    logits = jax.jit(module.apply)({"params": tree}, (images, tokens))
    assert_within("logits", logits, outputs.logits_per_image.numpy(), 1e-4)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_small_clip_equals_transformers(tmp_path, activation):
    vision = {"hidden_size": 96, "intermediate_size": 384, "num_hidden_layers": 3, "num_attention_heads": 3}
    text = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision |= {"image_size": 40, "patch_size": 8}
    text |= {"vocab_size": 600, "max_position_embeddings": 12}
    compare_with_transformers(transformers_model(vision, text, 24, hidden_act=activation), tmp_path)


def published(width, layers, heads, patch):
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "patch_size": patch,
        "image_size": 224,
    }


PUBLISHED = {
    "B32": (published(768, 12, 12, 32), {}, 512),
    "B16": (published(768, 12, 12, 16), {}, 512),
    "L14": (
        published(1024, 24, 16, 14),
        {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
        768,
    ),
}


@pytest.mark.full
@pytest.mark.parametrize("size", PUBLISHED)
def test_published_sizes_equal_transformers(tmp_path, size):
    compare_with_transformers(transformers_model(*PUBLISHED[size]), tmp_path)
    for file in tmp_path.rglob("*.*"):
        file.unlink()


# --- the energy ------------------------------------------------------------------------------------------------------


def golden_draws(golden, prefix, num_images, image_size):
    """The explicit draws of the golden data as fields (B, R)."""

    def stack(name):
        return np.stack([golden[f"{prefix}_draw{index}_{name}"] for index in range(num_images)])

    names = ("u_brightness", "u_saturation", "u_contrast", "t_rows", "t_cols", "c_rows", "c_cols")
    *colour, rows, cols, cutout_rows, cutout_cols = map(stack, names)
    side = augment.resized_side(stack("r_resize"), image_size).astype(np.int32)
    side = np.broadcast_to(side[:, None], rows.shape)
    return augment.Draws(*colour, rows, cols, side, cutout_rows, cutout_cols)


@jax.jit
def view_energies_and_gradient(control, draws, images):
    def total(images):
        energies = control.view_energies(draws, images)
        return jnp.sum(jnp.mean(energies, axis=1)), energies

    gradient, energies = jax.grad(total, has_aux=True)(images)
    return energies, gradient


@pytest.mark.full
@pytest.mark.parametrize(
    ("number", "text", "indices", "side"),
    [("", "a photo of a baby", (0, 1), 256), ("2", "autumn scene", (2,), 64)],
    ids=["256 px", "64 px"],
)
def test_energies_clip(vit_b32, number, text, indices, side):
    golden = official.load_golden("energies")
    control = pg.load_control("clip", network=str(vit_b32[0]), text=text)
    np.testing.assert_array_equal(tokenizer.tokenize(text)[0], golden[f"in{number}_clip_tokens"])
    draws = golden_draws(golden, f"in{number}_clip", len(indices), side)
    energies, gradient = view_energies_and_gradient(control, draws, formula_images(*indices, side=side))
    assert_within("views", energies, golden[f"mid{number}_clip_per_replica"], 2e-6)
    assert_within("energy", jnp.mean(energies, axis=1), golden[f"out{number}_clip"], 2e-6)
    assert_stored(golden, f"out{number}_clip_grad", gradient, 0.0, relative=1e-4)


@pytest.mark.full
def test_energies_clip_training_steps(vit_b32, tmp_path):
    """Two official optimisation steps: total loss, gradients and parameters."""
    golden = official.load_golden("energies")
    official.write_bin(tmp_path / "in.bin", official.state_dict(official.load_json("energies/manifest_inn.json")))
    assert promptgen_to_flax.main([str(tmp_path / "in.bin"), str(tmp_path / "flow")]) == 0
    flow, params = load_flow(tmp_path / "flow")
    toy = seeded.seeded_state_dict(official.load_json("energies/manifest.json"))["toy_generator.weight"]
    control = pg.load_control("clip", network=str(vit_b32[0]), text="a photo of a baby", weight=600.0)
    optimizer = make_optimizer(learning_rate=1e-3, num_steps=10)

    def loss_fn(params, control, eps, draws):
        z, log_det = flow.forward_and_log_det(params, eps)
        small = (0.5 + 0.5 * jnp.tanh(z @ toy)).reshape(-1, 3, 16, 16)
        images = small.transpose(0, 2, 3, 1).repeat(4, axis=1).repeat(4, axis=2)
        energy = jnp.mean(control.view_energies(draws, images), axis=1)
        prior = 0.5 * jnp.sum(z**2, axis=1)
        total = control.weight * energy + prior - log_det
        parts = {"image": small, "CLIPEnergy": energy, "PriorZEnergy": prior, "neg_log_det": -log_det}
        return jnp.mean(total), parts | {"weighted_loss": total}

    @jax.jit
    def step(params, state, control, eps, draws):
        (loss, parts), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, control, eps, draws)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, parts | {"loss": loss}, grads

    state = optimizer.init(params)
    for number, eps in enumerate(golden["in_train_eps"]):
        draws = golden_draws(golden, f"in_train_step{number}", 2, 64)
        params, state, parts, grads = step(params, state, control, eps, draws)
        if number == 0:
            for name, got in parts.items():
                official.assert_close(name, got, golden[f"out_train_{name}"])
            named = official.by_official_name(grads)
            norms = [np.linalg.norm(named[name]) for name in official.load_json("energies/param_order.json")]
            official.assert_close("norms", norms, golden["out_train_grad_norms"])
            official.assert_close("total norm", optax.tree.norm(grads), golden["out_train_total_norm"])
            official.assert_close("grad", named["module_list.3.subnet.2.bias"], golden["out_train_grad_block3_bias2"])
        named = official.by_official_name(params)
        for name, got in {
            "block0_global_offset": named["module_list.0.global_offset"][0],
            "block3_bias2": named["module_list.3.subnet.2.bias"],
            "block7_global_scale": named["module_list.7.global_scale"][0],
            "weight": named["module_list.5.subnet.0.weight"][:16, :16],
        }.items():
            # against the size of one update, 1e-3: parameters themselves hardly move, and would hide any error
            assert_within(f"{number + 1} {name}", got, golden[f"out_train_step{number + 1}_{name}"], 2e-6)


def build(small, **options):
    options = {"text": "a smile", "num_augmentations": 4, "chunk": 3, "name": "clip"} | options
    return pg.load_control("clip", network=str(small), **options)


PHOTOS = np.random.default_rng(1).uniform(0, 1, (2, 24, 24, 3)).astype(np.float32)
DRAWS = augment.draw(jax.random.key(0), num_images=2, num_views=4, image_size=24)
NEUTRAL = augment.draw(jax.random.key(0), num_images=2, num_views=4, image_size=16, policy="")


@jax.jit
def energies(control, draws=DRAWS, images=PHOTOS):
    return jnp.mean(control.view_energies(draws, images), axis=1)


def test_energy_without_augmentation_is_the_cosine_distance(small):
    texts, text_weights = ("a smile", "a frown"), (0.7, 0.5)
    control = build(small, text=texts, text_weights=text_weights)
    images = PHOTOS[:, :16, :16]  # the size of the tower: nothing to resize
    module, tree = load(small)
    tokens = tokenizer.tokenize(texts, context_length=16, vocab_size=600)
    cosines = jax.jit(module.apply)({"params": tree}, (images, tokens)) / np.exp(tree["logit_scale"])
    expected = (1 - cosines) @ np.float32(text_weights)
    np.testing.assert_allclose(energies(control, NEUTRAL, images), expected, atol=1e-6)


def test_energies_of_texts_add_with_their_weights(small):
    one, other = (energies(build(small, text=text)) for text in ("a smile", "a frown"))
    assert np.all(np.abs(one - other) > 1e-4)
    both = ("a smile", "a frown")
    np.testing.assert_allclose(energies(build(small, text=both)), (one + other) / 2, atol=1e-6)
    weighted = build(small, text=both, text_weights=(2.0, -0.5))
    np.testing.assert_allclose(energies(weighted), 2 * one - other / 2, atol=2e-6)


def test_several_clip_models_add_with_their_weights(small):
    """Also: gradients reach the latents, and the energies are a function of the key."""
    controls = (build(small, weight=2.0), build(small, text="a frown", name="second", weight=3.0))
    ebm = pg.LatentEBM(dcgan.tiny(), controls)
    z = ebm.generator.prior.sample(jax.random.key(3), 2)

    @jax.jit
    def run(ebm, key, z):
        def total(z):
            values = ebm.energies(key, z)
            return jnp.sum(ebm.total(values)), values

        return jax.value_and_grad(total, has_aux=True)(z)

    (total, values), gradient = run(ebm, jax.random.key(4), z)
    np.testing.assert_allclose(total, np.sum(2 * values["clip"] + 3 * values["second"]), rtol=1e-6)
    assert values["clip"].shape == (2,)
    assert np.all((values["clip"] >= 0) & (values["clip"] <= 2))
    assert np.all(np.isfinite(gradient))
    assert np.all(np.any(gradient != 0, axis=1))
    again, other = (run(ebm, jax.random.key(seed), z)[0][1]["clip"] for seed in (4, 5))
    np.testing.assert_array_equal(again, values["clip"])
    assert np.all(other != values["clip"])


@pytest.mark.parametrize("chunk", [1, 50])
def test_chunks_change_nothing(small, chunk):
    expected = view_energies_and_gradient(build(small, chunk=3), DRAWS, PHOTOS)
    for got, want in zip(view_energies_and_gradient(build(small, chunk=chunk), DRAWS, PHOTOS), expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)


def test_antialias_reaches_the_resize(small):
    smooth = energies(build(small, antialias=True))
    assert np.all(np.abs(smooth - energies(build(small))) > 1e-5)


def test_control_carries_the_image_tower_only(small):
    _, tree = load(small)
    control = build(small)
    numbers = sum(leaf.size for leaf in jax.tree.leaves(tree["vision"]))
    assert sum(leaf.size for leaf in jax.tree.leaves(control)) == numbers + 32 + 1 + 1  # features, their weight, lambda
    assert control.network.name == "clip_small"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"text": ""}, ValueError, "text is ''; expected words"),
        ({"text": ()}, ValueError, r"text is \(\); expected words"),
        ({"text": ("a", 3)}, ValueError, r"text is \('a', 3\); expected words"),
        ({"text": "long " * 20}, ValueError, "expected at most 16. Shorten it"),
        ({"text": ("a", "b"), "text_weights": (1.0,)}, ValueError, "expected 2 numbers, one per text"),
        ({"text_weights": (float("nan"),)}, ValueError, "expected 1 numbers, one per text"),
        ({"num_augmentations": 0}, ValueError, "num_augmentations: got 0; expected an integer of at least 1"),
        ({"chunk": 0}, ValueError, "chunk: got 0; expected an integer of at least 1"),
        ({"policy": "colour"}, ValueError, "Did you mean 'color'"),
        ({"network": "faceapi_expression"}, ValueError, "holds a network, expected a clip"),
    ],
    ids=lambda part: next(iter(part)) if isinstance(part, dict) else None,
)
def test_build_refuses(small, options, error, message):
    with pytest.raises(error, match=message):
        pg.load_control("clip", **{"network": str(small), "text": "a smile"} | options)


def test_control_refuses_images(small):
    with pytest.raises(ValueError, match=r"expected \(batch, height, width, 3\)"):
        build(small)(jax.random.key(0), pg.Sample(images=jnp.asarray(PHOTOS[0]), z=None))
    with pytest.raises(ValueError, match="Crop them to squares"):
        build(small)(jax.random.key(0), pg.Sample(images=jnp.asarray(PHOTOS[:, :20]), z=None))


@pytest.mark.parametrize("name", ["clip_vit_b32", "clip_vit_b16", "clip_vit_l14"])
def test_missing_weights_say_where_to_get_them(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    checkpoint = catalogue.CHECKPOINTS[name]
    with pytest.raises(FileNotFoundError) as caught:
        pg.load_control("clip", network=name, text="a photo of a baby")
    for part in (checkpoint.url, f"`python convert/clip_to_flax.py {checkpoint.file} ported_weights/{name}`"):
        assert part in str(caught.value)


def test_converted_folder_loads_without_torch(small):
    program = f"""
import sys
sys.modules["torch"] = None
import jax, jax.numpy as jnp, promptgen_jax as pg
control = pg.load_control("clip", network={str(small)!r}, text="a smile", num_augmentations=2)
print(control(jax.random.key(0), pg.Sample(images=jnp.full((1, 16, 16, 3), 0.5), z=None)).shape)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "(1,)\n"), done.stderr


# --- files -----------------------------------------------------------------------------------------------------------


def test_torchscript_reads_the_state_dict(tmp_path):
    """Of strided views and shared storages too, and without the programs of the archive."""
    base = torch.arange(12.0).reshape(3, 4)
    module = torch.nn.Module()
    module.register_buffer("transposed", base.T)
    module.register_buffer("column", base[:, 1])
    module.register_buffer("float16", base.half())
    module.register_buffer("empty", torch.zeros(0, 3))
    module.register_buffer("number", torch.tensor(7))
    module.register_buffer("flags", torch.tensor([True, False]))
    module.child = torch.nn.Linear(2, 3)
    torch.jit.save(torch.jit.script(module), tmp_path / "full.pt")
    rewrite_zip(tmp_path / "full.pt", tmp_path / "bare.pt", lambda name, content: None if "/code/" in name else content)
    expected = torch.jit.load(tmp_path / "full.pt").state_dict()
    for name in ("full.pt", "bare.pt"):
        assert torchscript.is_torchscript(tmp_path / name)
        got = torchscript.read_torchscript(tmp_path / name)
        assert got.keys() == expected.keys()
        for key, value in expected.items():
            assert got[key].dtype == value.numpy().dtype
            np.testing.assert_array_equal(got[key], value.numpy())


def test_converter_writes_its_source(small):
    text = (small / "SOURCE.md").read_text()
    config = weights.read_config(small)
    for part in ("# clip_small", config["source_sha256"], "small.pt", config["license"]):
        assert part in text
    assert weights.load_weights(small)[0]["vision"]["block0"]["mlp_in"]["kernel"].dtype == np.float16


def rewrite_zip(source, target, change):
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.infolist():
            content = change(entry.filename, old.read(entry))
            if content is not None:
                new.writestr(entry.filename, content)


class RunsCode:
    """An object whose pickle calls a function when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def changed(**changes):
    return {name: value for name, value in (small_state() | changes).items() if value is not None}


BAD_STATES = {
    "missing": (
        lambda s: changed(**{"ln_final.bias": None, "visual.transformer.resblocks.1.ln_2.weight": None}),
        r"2 problems: missing ln_final.bias; missing visual.transformer.resblocks.1.ln_2.weight",
    ),
    "extra": (lambda s: changed(stranger=s["visual.proj"]), "unexpected stranger"),
    "nan": (lambda s: changed(**{"visual.proj": s["visual.proj"] * np.nan}), "visual.proj holds NaN"),
    "shape": (
        lambda s: changed(**{"ln_final.bias": s["ln_final.bias"][:5]}),
        r"text/ln_final/bias is \(5,\), expected",
    ),
    "no blocks": (
        lambda s: {name: value for name, value in s.items() if not name.startswith("transformer")},
        "no transformer.resblocks.0",
    ),
    "resnet": (
        lambda s: {name.replace("visual.", "visual.layer1."): value for name, value in s.items()},
        r"not a CLIP with vision transformers \(missing visual.conv1.weight",
    ),
    "other model": (lambda s: {"weight": s["visual.proj"]}, "missing token_embedding.weight"),
    "flat": (
        lambda s: changed(**{"text_projection": s["text_projection"].ravel()}),
        r"text_projection is \(2048,\), expected 2 axes",
    ),
}


@pytest.mark.parametrize("write", [write_archive, write_state], ids=["archive", "state dict"])
@pytest.mark.parametrize("case", BAD_STATES)
def test_refuses_tensors(tmp_path, case, write, capsys):
    change, message = BAD_STATES[case]
    source = write(tmp_path / "bad.pt", change(small_state()))
    refuses(source, tmp_path, message, capsys)


def refuses(source, folder, message, capsys):
    """One sentence that names the file, nothing executed, nothing written."""
    before = sorted(folder.rglob("*"))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        clip_to_flax.convert(source)
    assert clip_to_flax.main([str(source), str(folder / "out")]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {source}")
    assert error.count("\n") == 1
    assert sorted(folder.rglob("*")) == before


def replace_entry(ending, content):
    return lambda name, old: content if name.endswith(ending) else old


BAD_ARCHIVES = {
    "code": lambda folder: replace_entry("/data.pkl", pickle.dumps(RunsCode(folder / "executed"), protocol=2)),
    "code in a tensor": lambda folder: replace_entry(
        "/data.pkl", pickle.dumps({"a": [RunsCode(folder / "executed")]}, protocol=4)
    ),
    "eval": lambda folder: replace_entry("/data.pkl", b"c__builtin__\neval\n(S'1'\ntR."),
    "no module": lambda folder: replace_entry("/data.pkl", pickle.dumps({"a": 1})),
    "short storage": lambda folder: replace_entry("/data/0", b"\0" * 8),
    "no storage": lambda folder: lambda name, old: None if name.endswith("/data/3") else old,
    "no pickle": lambda folder: lambda name, old: None if name.endswith("/data.pkl") else old,
    "cut pickle": lambda folder: lambda name, old: old[:-40] if name.endswith("/data.pkl") else old,
}


@pytest.mark.parametrize("case", BAD_ARCHIVES)
def test_refuses_archives(tmp_path, case, capsys):
    write_archive(tmp_path / "good.pt", small_state())
    rewrite_zip(tmp_path / "good.pt", tmp_path / "bad.pt", BAD_ARCHIVES[case](tmp_path))
    refuses(tmp_path / "bad.pt", tmp_path, "not a complete TorchScript archive of plain tensors", capsys)


@pytest.mark.parametrize(
    "case", ["truncated", "flipped", "empty", "text", "plain pickle", "torch pickle", "list", "none"]
)
def test_refuses_files(tmp_path, case, capsys):
    source = write_archive(tmp_path / "bad.pt", small_state())
    content = source.read_bytes()
    if case == "torch pickle":
        torch.save({"visual.proj": RunsCode(tmp_path / "executed")}, source)
    elif case == "list":
        torch.save([1, 2], source)
    elif case == "none":
        source.unlink()
    else:
        middle = len(content) // 2
        source.write_bytes(
            {
                "truncated": content[:middle],
                "flipped": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
                "empty": b"",
                "text": b"not an archive\n",
                "plain pickle": pickle.dumps(RunsCode(tmp_path / "executed"), protocol=2),
            }[case]
        )
    refuses(source, tmp_path, "not a|neither a|no such file|no state dict|Bad CRC", capsys)


def config_file(content):
    return lambda folder: (folder / "config.json").write_text(content)


def towers(vision, text):
    return config_file(json.dumps({"vision_config": vision, "text_config": text}))


BAD_FOLDERS = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "expected config.json beside"),
    "no tensors": (lambda folder: (folder / "model.safetensors").unlink(), "expected config.json beside"),
    "cut config": (config_file('{"vision_config":'), "not the configuration of a CLIP model"),
    "other config": (config_file('{"model_type": "bert"}'), "not the configuration of a CLIP model"),
    "activation": (towers({"hidden_act": "relu"}, {"hidden_act": "relu"}), "hidden_act .*relu"),
    "two activations": (towers({"hidden_act": "gelu"}, {}), "hidden_act .*gelu.*quick_gelu"),
    "epsilon": (towers({"layer_norm_eps": 1e-6}, {}), "layer_norm_eps"),
    "heads": (towers({"num_attention_heads": 7}, {}), "vision width 768 is no multiple of 7 heads"),
    "cut tensors": (
        lambda folder: (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-9]),
        "not a complete safetensors file",
    ),
    "other names": (lambda folder: write_hugging_face(folder, small_state()), "not a CLIP with vision transformers"),
}


@functools.cache
def hugging_face_stand_in():
    """Tensors of the right names and axes; the folder is refused before or because of their shapes."""
    small = small_state()
    sources = {name: np.zeros(SMALL.get(name, (1,)), np.float32) for name in small}
    made = {}
    for name, entry in official.load_json("clip_vit_b32/hf_mapping.json").items():
        made[name] = sources.get(entry["from"], np.zeros(1, np.float32))
    made["vision_model.embeddings.patch_embedding.weight"] = np.zeros((768, 3, 8, 8), np.float32)
    return made


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_refuses_hugging_face_folders(tmp_path, case, capsys):
    damage, message = BAD_FOLDERS[case]
    folder = tmp_path / "official"
    folder.mkdir()
    write_hugging_face(folder, hugging_face_stand_in())
    damage(folder)
    refuses(folder, tmp_path, message, capsys)
