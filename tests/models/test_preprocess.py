"""The image processors of transformers, without their rounding to 8 bits: sizes, filters, crops, colours, gradients."""

import json

import jax.numpy as jnp
import numpy as np
import official_transformers as official
import PIL.Image
import pytest
from official_transformers import of_jax, of_torch, photographs, torch, transformers

import promptgen_jax as pg
from promptgen_jax.models import preprocess
from promptgen_jax.ops import resample

SIZES = [(7, 7), (16, 5), (5, 16), (33, 12), (1, 3)]
# what stands in preprocessor_config.json of public models, shrunk to a few pixels
PROCESSORS = {
    "ViT": {"image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16}},
    "ViT, old": {"feature_extractor_type": "ViTFeatureExtractor", "size": 16, "resample": 2},
    "ViT, other aspect, fast": {"image_processor_type": "ViTImageProcessorFast", "size": {"height": 16, "width": 24}},
    "ViT, nearest": {"image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16}, "resample": 0},
    "ViT, lanczos": {"image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16}, "resample": 1},
    "ViT, as it is": {"image_processor_type": "ViTImageProcessor", "do_resize": False},
    "ViT, other scale": {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": 16, "width": 16},
        "rescale_factor": 1 / 127.5,
        "image_mean": [1.0, 1.0, 1.0],
        "image_std": [1.0, 1.0, 1.0],
    },
    "ViT, not normalised": {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": 16, "width": 16},
        "do_normalize": False,
    },
    "ViT, 0 to 255": {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": 16, "width": 16},
        "do_rescale": False,
        "do_normalize": False,
    },
    "DeiT": {
        "image_processor_type": "DeiTImageProcessor",
        "size": {"height": 20, "width": 20},
        "crop_size": {"height": 16, "width": 16},
    },
    "CLIP": {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 16},
        "crop_size": {"height": 16, "width": 16},
    },
    "CLIP, old": {"feature_extractor_type": "CLIPFeatureExtractor", "size": 18, "crop_size": 16, "resample": 3},
    "CLIP, crop beyond the image": {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 16},
        "crop_size": {"height": 20, "width": 20},
    },
    "ConvNext, cropped": {"feature_extractor_type": "ConvNextFeatureExtractor", "size": 16, "crop_pct": 0.875},
    "ConvNext, warped": {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 384}},
    "SigLIP": {"image_processor_type": "SiglipImageProcessor", "size": {"height": 16, "width": 16}},
    "Bit": {
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": 18},
        "crop_size": {"height": 16, "width": 16},
    },
}


@pytest.mark.parametrize("name", resample.FILTERS)
def test_filters_are_those_of_pillow(name):
    """On floats, which Pillow does not round."""
    number = list(resample.FILTERS).index(name)
    for num_in, num_out in SIZES:
        line = np.random.default_rng(0).random((1, num_in), np.float32)
        wanted = np.asarray(PIL.Image.fromarray(line).resize((num_out, 1), number))
        np.testing.assert_allclose(line @ resample.filter_matrix(num_in, num_out, name).T, wanted, atol=2e-6)


@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_are_those_of_transformers(tmp_path, name):
    """Up to its rounding to 8 bits, half a grey level after each of two passes, of which the second adds up a few."""
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSORS[name]))
    processor, way = transformers.AutoImageProcessor.from_pretrained(tmp_path), preprocess.read(tmp_path)
    for size in [(16, 16), (41, 24), (24, 41)]:
        images = np.uint8(60 + 130 * photographs(*size))
        wanted = processor([PIL.Image.fromarray(image) for image in images], return_tensors="np")["pixel_values"]
        got = np.asarray(way(jnp.asarray(images / np.float32(255))))
        level = 1.2 / 255 / np.min(way.std)
        np.testing.assert_allclose(got, wanted.transpose(0, 2, 3, 1), rtol=0, atol=level)


QUICK = {"CLIP", "ConvNext, cropped"}
# what such a processor comes with in public models, and its output; ViT for any other
MODELS = {
    "CLIP": official.clip,
    "ConvNext": official.convnext,
    "Bit": official.resnet,
    "SigLIP": lambda: official.siglip("SiglipForImageClassification", **official.NAMED),
}


def pillow_matrix(num_in, num_out, number):
    """What Pillow makes of every unit vector, (num_in, num_out)."""
    return torch.tensor(np.array(PIL.Image.fromarray(np.eye(num_in, dtype="f4")).resize((num_out, num_in), number)))


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.full) for name in PROCESSORS]
)
def test_gradients_reach_the_image_through_every_processor(tmp_path, name):
    """Against Pillow's filters as matrices in PyTorch, from the output to the image before it is resized."""
    model, images = MODELS.get(name.partition(",")[0], official.vit)(), photographs(41, 24)
    net = pg.load_network(official.write(tmp_path, model, PROCESSORS[name]))
    way = preprocess.read(tmp_path)
    is_clip = name.startswith("CLIP")

    def prepared(pixel_values):
        pixels = pixel_values
        if way.rule:
            number, sides = list(resample.FILTERS).index(way.filter), pixels.shape[2:]
            rows, columns = (pillow_matrix(*side, number) for side in zip(sides, way.resized(*sides), strict=True))
            pixels = torch.einsum("bkhw,hr,wc->bkrc", pixels, rows, columns)
        if way.crop:
            top, left = ((side - wanted) // 2 for side, wanted in zip(pixels.shape[2:], way.crop, strict=True))
            if top < 0 or left < 0:
                pad = [max(-left, 0), max(-left, 0), max(-top, 0), max(-top, 0)]
                pixels, top, left = torch.nn.functional.pad(pixels, pad), max(top, 0), max(left, 0)
            pixels = pixels[:, :, top : top + way.crop[0], left : left + way.crop[1]]
        mean, std = (torch.tensor(part)[:, None, None] for part in (way.mean, way.std))
        pixels = (pixels - mean) / std
        options = {} if name.startswith(("ConvNext", "Bit")) else {"interpolate_pos_encoding": True}
        if is_clip:
            return model.get_image_features(pixel_values=pixels, **options).pooler_output
        return model(pixel_values=pixels, **options).logits

    wanted = of_torch(prepared, images, lambda made: made)
    official.assert_close(of_jax(lambda images: net(images)["embedding" if is_clip else "label"], images), wanted)


REFUSED = {
    "padding": ({"image_processor_type": "ViTImageProcessor", "do_pad": True}, "do_pad is True, which is not computed"),
    "longest edge": (
        {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 16, "longest_edge": 32}},
        "size is .*longest_edge.*, which is not computed here; expected height and width, or shortest_edge",
    ),
    "another processor": ({"image_processor_type": "GLPNImageProcessor"}, "GLPNImageProcessor.* is not computed here"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_by_name_what_is_not_computed(tmp_path, case):
    settings, message = REFUSED[case]
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=message):
        preprocess.read(tmp_path)


def test_settings_can_be_changed_by_name(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSORS["ViT"]))
    way = preprocess.read(tmp_path, size={"height": 8, "width": 12}, image_mean=[0.0, 0.5, 1.0])
    assert (way.size, way.mean) == ((8, 12), (0.0, 0.5, 1.0))
    assert preprocess.Preprocess.from_json(json.loads(json.dumps(way.to_json()))) == way
    with pytest.raises(ValueError, match="setting: unknown name 'do_rezise'. Did you mean 'do_resize'"):
        preprocess.read(tmp_path, do_rezise=False)
