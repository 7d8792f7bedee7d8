"""InceptionV3 of FID against its twin in PyTorch on seeded weights, and how pictures get into it against Pillow."""

import jax
import numpy as np
import pytest
from official_inception import seeded_inception, write_inception
from PIL import Image

from convert import inception_to_flax
from promptgen_jax.models import inception, network
from promptgen_jax.store import catalogue

torch = pytest.importorskip("torch", reason="torch, which writes and runs the official networks, is not installed")
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("inception")
    source = write_inception(root / catalogue.CHECKPOINTS["inception"].file)
    assert inception_to_flax.main([str(source), str(root / "inception")]) == 0
    return root / "inception"


@pytest.fixture(scope="module")
def twin():
    return seeded_inception()


def of_torch(model, pixels):
    with torch.no_grad():
        return model(torch.from_numpy(np.moveaxis(pixels, -1, 1))).numpy()


@jax.jit
def features(net, pixels):
    return net.module.apply({"params": net.weights}, pixels, method="features")


@pytest.mark.parametrize("size", [75, pytest.param(299, marks=pytest.mark.full)])
def test_features_are_those_of_pytorch(folder, twin, size):
    pixels = RNG.uniform(-1, 1, (2, size, size, 3)).astype(np.float32)
    expected, got = of_torch(twin, pixels), features(network.load_network(folder), pixels)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(got, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.full
def test_pictures_to_features_as_pytorch_fid_takes_them(folder, twin):
    images = (RNG.integers(0, 256, (2, 64, 80, 3)) / 255).astype(np.float32)
    resized = torch.nn.functional.interpolate(
        torch.from_numpy(np.moveaxis(images, -1, 1)), (299, 299), mode="bilinear", align_corners=False
    )
    with torch.no_grad():
        expected = twin(2 * resized - 1).numpy()
    got = jax.jit(lambda net, images: net(images))(network.load_network(folder, resize="pytorch_fid"), images)
    assert got["embedding"].shape == (2, 2048)
    np.testing.assert_allclose(got["embedding"], expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("size", [(32, 32), (299, 299), (400, 512)])
def test_pictures_are_resized_as_clean_fid_does(size):
    """Channel by channel by Pillow in floating point, antialiased, cut off at black and white, and not rounded."""
    picture = np.where(RNG.uniform(size=(*size, 3)) < 0.5, 0, RNG.integers(200, 256, (*size, 3))).astype(np.float32)
    channels = [Image.fromarray(picture[..., c]).resize((299, 299), Image.Resampling.BICUBIC) for c in range(3)]
    expected = (np.stack([np.asarray(c) for c in channels], -1).clip(0, 255) - 128) / 128
    got = jax.jit(inception.preprocess)(picture[None] / 255)[0]
    np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("way", inception.WAYS)
def test_pictures_of_a_generator_are_seen_as_their_files_are(way):
    images = RNG.uniform(-0.2, 1.2, (1, 32, 32, 3)).astype(np.float32)
    read = np.rint(255 * images.clip(0, 1)) / 255
    expected, got = (inception.preprocess(each, way) for each in (read.astype(np.float32), images))
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_the_two_ways_differ():
    images = RNG.uniform(size=(1, 600, 600, 3)).astype(np.float32)
    clean, plain = (inception.preprocess(images, way) for way in inception.WAYS)
    assert np.abs(clean - plain).max() > 0.5  # which aliases
    with pytest.raises(ValueError, match="Did you mean 'clean'"):
        inception.preprocess(images, "claen")


def test_a_file_that_lacks_a_layer_is_refused(tmp_path):
    state = seeded_inception().state_dict()
    del state["Mixed_7c.branch3x3_2b.conv.weight"]
    torch.save(state, tmp_path / "file.pth")
    with pytest.raises(ValueError, match="missing Mixed_7c.branch3x3_2b.conv.weight"):
        inception_to_flax.convert(tmp_path / "file.pth")
