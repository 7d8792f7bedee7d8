"""Perceptual distance: against pairs that are formed, and what it says of pictures that are alike."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from promptgen_jax import parts
from promptgen_jax.draws import Draws, images_of
from promptgen_jax.ebm import LatentEBM
from promptgen_jax.metrics import About, Observed, perceptual
from promptgen_jax.metrics.perceptual import perceptual_distance
from promptgen_jax.models.layers import MAPS
from promptgen_jax.models.network import Network, load_network

RNG = np.random.default_rng(0)
PICTURES = RNG.random((9, 8, 8, 3), np.float32)


class TwoLayers(nn.Module):
    """A network that shows pixels, and their squares at half the size."""

    @nn.compact
    def __call__(self, images):
        self.sow("intermediates", MAPS, images)
        self.sow("intermediates", MAPS, images[:, ::2, ::2] ** 2)
        return {"embedding": jnp.mean(images, axis=(1, 2))}


class NoLayers(nn.Module):
    """A network that shows none."""

    @nn.compact
    def __call__(self, images):
        return {"embedding": jnp.mean(images, axis=(1, 2))}


def network(module=None):
    return Network(weights={}, module=module or TwoLayers(), name="mine", checksum="", attributes=())


def lpips(one, other):
    """Of two pictures, as its definition says."""
    total = 0.0
    for maps in zip(network().maps(one[None]), network().maps(other[None]), strict=True):
        first, second = (np.asarray(each, np.float64) for each in maps)
        first, second = (each / np.linalg.norm(each, axis=-1, keepdims=True) for each in (first, second))
        total += np.mean(np.sum((first - second) ** 2, axis=-1))
    return total


def test_it_is_the_mean_over_pairs():
    pairs = list(itertools.combinations(range(len(PICTURES)), 2))
    each = [lpips(PICTURES[i], PICTURES[j]) for i, j in pairs]
    found = perceptual_distance(PICTURES, network=network())
    np.testing.assert_allclose(found.mean, np.mean(each), rtol=1e-5)
    assert found.low < found.mean < found.high
    counts = np.array([1, 0, 3, 2, 1, 1, 0, 1, 4])
    expected = np.average(each, weights=[counts[i] * counts[j] for i, j in pairs])
    np.testing.assert_allclose(
        perceptual_distance(PICTURES, network=network(), weights=7.0 * counts).mean, expected, rtol=1e-5
    )


def test_what_is_alike_is_at_no_distance():
    alike = np.repeat(PICTURES[:1], 6, axis=0)
    assert perceptual_distance(alike, network=network()).mean == pytest.approx(0, abs=1e-5)
    assert perceptual_distance(PICTURES, network=network(), weights=np.eye(9)[2]).mean == 0
    two = perceptual_distance(PICTURES[:2], network=network())
    np.testing.assert_allclose(two.mean, lpips(*PICTURES[:2]), rtol=1e-5)
    assert two.low is None


def test_its_interval_covers_as_often_as_it_says():
    rng, truth, covered = np.random.default_rng(1), [], 0
    pictures = rng.random((400, 2, 2, 3), np.float32) * rng.random((400, 1, 1, 3), np.float32)
    truth = perceptual_distance(pictures, network=network()).mean
    for rows in np.split(pictures, 20):
        found = perceptual_distance(rows, network=network())
        covered += found.low < truth < found.high
    assert 16 <= covered


@pytest.mark.parametrize(("name", "layers"), [("faceres", 5), ("tinyclip_faces", 4)])
def test_shipped_networks_show_their_layers(name, layers):
    """And give what they gave before; fewer kinds of people are closer to one another."""
    judge = load_network(name, **({"input_size": 64} if name == "faceres" else {}))
    generator = parts.load_generator("dcgan_digiface")
    draws = Draws.of_prior(generator.prior, jax.random.key(0), 8)
    pictures = np.clip(images_of(generator, draws.key, draws.z), 0, 1)
    maps = jax.eval_shape(judge.maps, pictures)
    assert len(maps) == layers
    varied = perceptual_distance(pictures, network=judge)
    narrow = Draws.of_noise(generator.prior, 0.3 * draws.z, jax.random.key(0))
    alike = perceptual_distance(np.clip(images_of(generator, narrow.key, narrow.z), 0, 1), network=judge)
    assert 0 < alike.mean < varied.mean < 4 * layers


def test_named_draws_by_every_judge_that_shows_its_layers(monkeypatch):
    generator = parts.load_generator("dcgan_digiface")
    ebm = LatentEBM(generator, (parts.load_control("synthetic", energy="quadratic", target=(0.0,)),))
    about = About(ebm=ebm, networks={"mine": network(), "blind": network(NoLayers()), "own": lambda images: {}})
    draws = Draws.of_prior(generator.prior, jax.random.key(0), len(PICTURES))
    plain = Observed(draws, PICTURES, {}, {}, None)
    weighted = plain._replace(draws=draws.weighted(np.linspace(0, 1, 9)))
    (row,) = perceptual.measure({"plain": plain, "weighted": weighted}, about)
    assert row.name == "perceptual distance (mine)"
    assert row.values["plain"] == perceptual_distance(PICTURES, network=network())
    monkeypatch.setattr(perceptual, "PICTURES", 6)
    (few,) = perceptual.measure({"weighted": weighted}, about)
    first = perceptual_distance(PICTURES[:6], network=network(), weights=np.exp(np.linspace(0, 1, 9))[:6])
    assert few.values["weighted"].mean == pytest.approx(first.mean)
    assert row.values["weighted"].mean != row.values["plain"].mean
    points = parts.load_generator("synthetic", problem="linear", dim=2)
    assert perceptual.measure({"plain": plain}, About(ebm=ebm.replace(generator=points))) == ()


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: perceptual_distance(PICTURES[:1], network=network()), "got one image"),
        (lambda: perceptual_distance(PICTURES, network=network(NoLayers())), "mine shows no layers. Use faceres"),
        (lambda: perceptual_distance(PICTURES, network=network(), weights=np.zeros(9)), "weights are"),
    ],
    ids=["one", "no layers", "no weight"],
)
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()
