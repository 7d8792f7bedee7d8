"""Small models of transformers with seeded weights, in folders as `save_pretrained` leaves them."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch, which writes and runs the official networks, is not installed")
import transformers  # noqa: E402

transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()

LABELS = {0: "sad", 1: "happy", 2: "angry"}
NAMED = {"id2label": LABELS, "label2id": {label: index for index, label in LABELS.items()}}
TRANSFORMER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
TEXT = {"vocab_size": 1000, "max_position_embeddings": 12}
PROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "size": {"height": 16, "width": 16},
    "image_mean": [0.4, 0.5, 0.6],
    "image_std": [0.3, 0.2, 0.25],
}


def vit(**options):
    """A ViT of two blocks on four patches."""
    config = transformers.ViTConfig(**TRANSFORMER, image_size=16, patch_size=8, **NAMED, **options)
    return seeded(transformers.ViTForImageClassification, config)


def seeded(kind, config):
    """A model whose weights, biases and statistics are all drawn."""
    torch.manual_seed(0)
    model = kind(config).eval()
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith("running_var"):
                value.uniform_(0.5, 2.0)
            elif value.is_floating_point():
                value.normal_(1.0 if value.ndim == 1 and "norm" in name and "weight" in name else 0.0, 0.15)
    return model


def write(folder, model, processor=None, **options):
    """The model and the settings of its processor as a folder."""
    model.save_pretrained(folder, **options)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor or PROCESSOR))
    return folder


@functools.cache
def photographs(*shape):
    """Smooth images (2, H, W, 3) in [0, 1]."""
    coarse = np.random.default_rng(0).random((2, 5, 5, 3), np.float32)
    return np.clip(np.asarray(jax.image.resize(coarse, (2, *shape, 3), "cubic")), 0, 1)


def of_torch(model, pixels, output, **inputs):
    """What a model makes of pixels (B, H, W, 3), and the gradient by them of its sum weighted with 1, 2, 3, ..."""
    given = torch.tensor(np.array(pixels)).permute(0, 3, 1, 2).requires_grad_()
    made = output(model(pixel_values=given, **inputs))
    (made * torch.arange(1.0, made[0].numel() + 1)).sum().backward()
    return made.detach().numpy(), given.grad.permute(0, 2, 3, 1).numpy()


def of_jax(function, images):
    """The same of a function of images, compiled."""

    def weighted(images):
        made = function(images)
        return jnp.sum(made * jnp.arange(1.0, made[0].size + 1)), made

    gradient, made = jax.jit(jax.grad(weighted, has_aux=True))(jnp.asarray(images))
    return np.asarray(made), np.asarray(gradient)


def assert_close(got, wanted, tolerance=1e-4):
    """Outputs and gradients agree, relative to the largest value; float32 in another order of summation is 1e-6."""
    for one, other in zip(got, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * max(1.0, np.abs(other).max()))


def clip(vision=None, text=None, **options):
    """A CLIP of two blocks a tower, 16 pixels in patches of 8, and a vocabulary of 1,000."""
    config = transformers.CLIPConfig(
        vision_config={**TRANSFORMER, "image_size": 16, "patch_size": 8, **(vision or {})},
        text_config={**TRANSFORMER, **TEXT, "eos_token_id": 1, "bos_token_id": 0, **(text or {})},
        projection_dim=24,
        **options,
    )
    return seeded(transformers.CLIPModel, config)


def siglip(kind="SiglipModel", **options):
    """A SigLIP of the same sizes, or a classifier on its image tower."""
    naflex = kind.startswith("Siglip2")
    vision = {**TRANSFORMER, "patch_size": 8} | ({"num_patches": 4} if naflex else {"image_size": 16})
    config = getattr(transformers, "Siglip2Config" if naflex else "SiglipConfig")(
        vision_config=vision, text_config={**TRANSFORMER, **TEXT, "bos_token_id": 0, "eos_token_id": 1}, **options
    )
    return seeded(getattr(transformers, kind), config)


def resnet(layer_type="basic", **options):
    """A ResNet of three stages."""
    sizes = {"embedding_size": 8, "hidden_sizes": [16, 24, 32], "depths": [2, 1, 2]}
    return seeded(
        transformers.ResNetForImageClassification,
        transformers.ResNetConfig(layer_type=layer_type, **sizes, **NAMED, **options),
    )


def convnext(**options):
    """A ConvNeXt of two stages."""
    sizes = {"num_stages": 2, "hidden_sizes": [8, 16], "depths": [1, 2], "patch_size": 4, "image_size": 16}
    return seeded(transformers.ConvNextForImageClassification, transformers.ConvNextConfig(**sizes, **NAMED, **options))


def write_tokenizer(folder, *, end):
    """A byte-level tokenizer of CLIP with 1,000 ids, the second of which ends a text."""
    from promptgen_jax.models import tokenizer

    ranks, ids = tokenizer._vocabulary()
    merges = list(ranks)[: 1000 - tokenizer.NUM_FIXED]
    known = [*list(ids)[: 2 * tokenizer.NUM_BYTES], *("".join(merge) for merge in merges)]
    vocab = {"<|startoftext|>": 0, "<|endoftext|>": end} | {symbol: 2 + index for index, symbol in enumerate(known)}
    transformers.CLIPTokenizer(vocab=vocab, merges=merges).save_pretrained(folder)
