"""CLIP at full size: towers in both official layouts, transformers, and the energy of Eq. 3 with explicit draws.

Golden arrays come from openai/CLIP and the official PromptGen code on seeded weights.
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import official
import optax
import pytest
from formulas import assert_stored, formula_images
from golden import seeded
from official_clip import (
    ALLOWED,
    PROCESSOR,
    convert,
    hugging_face_state,
    torch,
    view_energies_and_gradient,
    write_archive,
    write_hugging_face,
    write_state,
)

import promptgen_jax as pg
from benchmarks import counting
from convert import clip_to_flax, hub_to_flax, promptgen_to_flax
from promptgen_jax.flows.base import load_flow
from promptgen_jax.models import clip, network, tokenizer
from promptgen_jax.ops import augment
from promptgen_jax.store import weights
from promptgen_jax.training.optimizer import make_optimizer

pytestmark = ALLOWED


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


@pytest.mark.full
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
        tree, config = clip_to_flax.convert(write_state(source / "ViT-B-32.pt", state), activation="quick_gelu")
    else:
        write_hugging_face(source, hugging_face_state(state), kind)
        tree, config = hub_to_flax.convert(str(source), "clip")
    for file in tmp_path.rglob("*.*"):
        file.unlink()
    expected, expected_config = weights.load_weights(folder)
    jax.tree.map(np.testing.assert_array_equal, tree, jax.tree.map(np.float32, expected))
    assert expected_config["options"].items() <= config["options"].items()


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
    (folder / "official" / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
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


def test_last_block_is_for_the_class_token_alone():
    tower = clip.VisionTower(image_size=32, patch_size=4, width=32, layers=1, heads=2, embed_dim=8)
    images = jax.random.uniform(jax.random.key(0), (1, 32, 32, 3))
    params = tower.init(jax.random.key(1), images)["params"]

    def with_maps(params, images):
        return tower.apply({"params": params}, images, mutable=["intermediates"])[0]

    def without(params, images):
        return tower.apply({"params": params}, images)

    fast, whole = (jax.jit(function).trace(params, images) for function in (without, with_maps))
    assert counting.gflop(fast) < 0.5 * counting.gflop(whole)
    np.testing.assert_allclose(
        jax.jit(without)(params, images)["embedding"], jax.jit(with_maps)(params, images)["embedding"], rtol=1e-5
    )


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
    views, energies, gradient = view_energies_and_gradient(control, draws, formula_images(*indices, side=side))
    assert_within("views", views, golden[f"mid{number}_clip_per_replica"], 2e-6)
    assert_within("energy", energies, golden[f"out{number}_clip"], 2e-6)
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
        energy = control.mean_energies(draws, images)
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
