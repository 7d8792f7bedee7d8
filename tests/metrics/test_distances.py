"""Distances of sets of pictures, against closed forms and brute force."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from promptgen_jax import parts
from promptgen_jax.controls.clip import ClipControl
from promptgen_jax.draws import Draws, images_of
from promptgen_jax.ebm import LatentEBM
from promptgen_jax.metrics import About, Observed, clip_score, cmmd, frechet, kid, manifold
from promptgen_jax.metrics.frechet import Accumulator, Statistics, frechet_distance
from promptgen_jax.metrics.frechet_infinity import frechet_infinity
from promptgen_jax.models import clip, inception
from promptgen_jax.models.network import Network
from promptgen_jax.store import images
from promptgen_jax.types import Prior

RNG = np.random.default_rng(0)
FEATURES = RNG.normal(size=(40, 3)) @ RNG.normal(size=(3, 3)) + (1e4, 0, -3)  # a large mean loses digits in float32


def spd(seed):
    root = np.random.default_rng(seed).normal(size=(4, 4))
    return root @ root.T


def test_streamed_statistics_are_those_of_numpy():
    found = Accumulator()
    for start, stop in ((0, 1), (1, 17), (17, 17), (17, 40)):
        found.add(FEATURES[start:stop].reshape(-1, 3))
    found = found.statistics()
    np.testing.assert_allclose(found.mean, FEATURES.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(FEATURES, rowvar=False), rtol=1e-9)
    assert found.num_samples == pytest.approx(40)


def test_weights_count_samples_in_any_order_and_scale():
    counts = np.arange(40) % 4
    weights = np.where(counts, counts, 1e-300)
    expected_mean = np.average(FEATURES, axis=0, weights=counts)
    expected = np.cov(FEATURES, rowvar=False, aweights=counts)
    for order in (np.arange(40), np.arange(40)[::-1]):
        found = Accumulator()
        for rows in np.split(order, 4):
            found.add(FEATURES[rows], np.log(weights[rows]) + 900)  # whose exponential overflows
        found = found.statistics()
        np.testing.assert_allclose(found.mean, expected_mean, rtol=1e-12)
        np.testing.assert_allclose(found.covariance, expected, rtol=1e-7)


def test_frechet_distance():
    one, other = Statistics(np.zeros(4), spd(1)), Statistics(np.arange(4.0), spd(2))
    root = scipy.linalg.sqrtm(one.covariance @ other.covariance).real
    expected = 14 + np.trace(one.covariance + other.covariance - 2 * root)
    np.testing.assert_allclose(frechet_distance(one, other), expected, rtol=1e-8)
    np.testing.assert_allclose(frechet_distance(other, one), expected, rtol=1e-8)
    assert abs(frechet_distance(one, one)) < 1e-7
    diagonal = [Statistics(np.zeros(2), np.diag(each)) for each in ((1.0, 4.0), (9.0, 0.0))]
    np.testing.assert_allclose(frechet_distance(*diagonal), (1 - 3) ** 2 + 4, rtol=1e-10)


def test_statistics_are_kept_and_those_of_clean_fid_are_read(tmp_path):
    saved = Statistics(np.zeros(4), spd(1), "faceres", 100.0)
    saved.save(tmp_path / "ours.npz")
    again = frechet.load_statistics(tmp_path / "ours.npz")
    assert (again.features, again.num_samples) == ("faceres", 100.0)
    np.savez(tmp_path / "clean.npz", mu=np.zeros(4), sigma=spd(1))
    theirs = frechet.load_statistics(tmp_path / "clean.npz", features="inception")
    with pytest.raises(ValueError, match="faceres and .* of inception; expected the same"):
        frechet_distance(again, theirs)
    assert abs(frechet_distance(again, frechet.load_statistics(tmp_path / "clean.npz"))) < 1e-7


def test_bad_input(tmp_path):
    with pytest.raises(ValueError, match="3 effective samples of 3 features"):
        Accumulator().add(FEATURES[:3]).statistics()
    with pytest.raises(ValueError, match="expected \\(N, 3\\)"):
        Accumulator().add(FEATURES).add(FEATURES[:, :2])
    (tmp_path / "empty").mkdir()
    np.savez(tmp_path / "no.npz", mu=np.zeros(3))
    for call, error, message in (
        (lambda: frechet.of_folder(tmp_path / "none"), FileNotFoundError, "no such folder"),
        (lambda: frechet.of_folder(tmp_path / "empty"), ValueError, "holds no pictures"),
        (lambda: frechet.load_statistics(tmp_path / "no.npz"), ValueError, "holds no statistics"),
        (lambda: frechet.of_images([], network="emotion"), ValueError, "emotion: output"),
        (lambda: kid.kid(FEATURES, FEATURES[:1]), ValueError, "at least two rows"),
        (lambda: manifold.manifold(FEATURES, FEATURES[:5]), ValueError, "more than 5 rows"),
    ):
        with pytest.raises(error, match=message):
            call()


class Colours(nn.Module):
    """A network of three features."""

    @nn.compact
    def __call__(self, images):
        return {"embedding": jnp.mean(images**2, axis=(1, 2))}


def test_a_generator_and_a_folder_of_its_pictures_agree(tmp_path):
    generator = parts.load_generator("dcgan_digiface")
    draws = Draws.of_prior(generator.prior, jax.random.key(0), 6)
    for number, image in enumerate(np.asarray(images_of(generator, draws.key, draws.z))):
        images.save_png(tmp_path / f"{number}.png", images.to_uint8(image[None])[0])
    network = Network(weights={}, module=Colours(), name="colours", checksum="", attributes=())
    one = frechet.of_draws(generator, draws, network=network, batch_size=4)
    other = frechet.of_folder(tmp_path, network=network, batch_size=4)
    assert one.features == other.features == "colours"
    np.testing.assert_allclose(one.mean, other.mean, rtol=1e-6)
    np.testing.assert_allclose(one.covariance, other.covariance, rtol=1e-5)
    half = frechet.of_draws(generator, draws.weighted(np.where(np.arange(6) < 5, 0, -np.inf)), network=network)
    assert half.num_samples == pytest.approx(5)


def test_real_pictures_beside_the_reference(tmp_path):
    """From a folder, or from the file of their statistics; those of others are refused."""
    network = Network(weights={}, module=Colours(), name="colours", checksum="", attributes=())
    made = np.random.default_rng(2).random((3, 8, 4, 4, 3), np.float32)
    for number, image in enumerate(made[2]):
        images.save_png(tmp_path / "real" / f"{number}.png", images.to_uint8(image[None])[0])
    real = frechet.of_real(tmp_path / "real", network=network)
    real.save(tmp_path / "real.npz")
    np.savez(tmp_path / "clean.npz", mu=real.mean, sigma=real.covariance)
    for name in ("real.npz", "clean.npz"):
        np.testing.assert_array_equal(frechet.of_real(tmp_path / name, network=network).mean, real.mean)
    outputs = [{"colours": {"embedding": np.mean(each**2, axis=(1, 2))}} for each in made]
    draws = Draws.of_prior(Prior.standard(2), jax.random.key(0), 8)
    seen = {
        name: Observed(draws, None, each, {}, None) for name, each in zip(("before", "after"), outputs, strict=False)
    }
    found = frechet.measure(seen, About(ebm=None, networks={"colours": network}, real={"colours": real}))
    between, apart = found.rows
    assert (between.name, apart.name) == ("FD (colours)", "FD (colours) to real pictures")
    assert (list(between.values), list(apart.values)) == (["after"], ["before", "after"])
    after = Accumulator().add(outputs[1]["colours"]["embedding"]).statistics()
    assert apart.values["after"].mean == pytest.approx(frechet_distance(after, real))
    Statistics(real.mean, real.covariance, "others").save(tmp_path / "others.npz")
    np.savez(tmp_path / "four.npz", mu=np.zeros(4), sigma=np.eye(4))
    for name, message in (("others.npz", "3 features of others; expected 3 of colours"), ("four.npz", "4 features of")):
        with pytest.raises(ValueError, match=message):
            frechet.of_real(tmp_path / name, network=network)


def kernel(x, y):
    return (x @ y / len(x) + 1) ** 3


def test_kid_is_the_mean_over_pairs():
    x, y = RNG.normal(size=(7, 3)), RNG.normal(size=(5, 3)) + 0.5
    within = [np.mean([kernel(*pair) for pair in itertools.permutations(rows, 2)]) for rows in (x, y)]
    expected = sum(within) - 2 * np.mean([kernel(a, b) for a in x for b in y])
    np.testing.assert_allclose(kid.kid(x, y).mean, expected, rtol=1e-10)
    repeated = np.array([1, 2, 3, 0, 1, 1, 1])
    pairs = [(i, j) for i in range(7) for j in range(7) if i != j]
    own = np.average([kernel(x[i], x[j]) for i, j in pairs], weights=[repeated[i] * repeated[j] for i, j in pairs])
    mixed = np.average([[kernel(a, b) for b in y] for a in x], axis=0, weights=repeated).mean()
    np.testing.assert_allclose(kid.kid(x, y, weights=repeated).mean, own + within[1] - 2 * mixed, rtol=1e-10)


def test_kid_covers_zero_for_one_distribution_as_often_as_it_says():
    rng, covered = np.random.default_rng(1), 0
    for _ in range(20):
        found = kid.kid(rng.normal(size=(64, 2)), rng.normal(size=(64, 2)))
        covered += found.low < 0 < found.high
    assert 16 <= covered
    apart = kid.kid(rng.normal(size=(64, 2)), rng.normal(size=(64, 2)) + 3)
    assert apart.low > 0


def test_kid_of_one_weight_is_unknown_and_of_one_block_without_an_interval():
    x, y = RNG.normal(size=(64, 2)), RNG.normal(size=(64, 2))
    assert kid.kid(x, y, weights=np.eye(64)[0]).mean is None
    block = np.zeros(64)
    block[[0, kid.BLOCKS, 2 * kid.BLOCKS]] = 1  # of the samples that one block holds
    found = kid.kid(x, y, weights=block)
    assert np.isfinite(found.mean)
    assert found.low is None


def test_manifold_is_what_its_definition_says():
    x, y, k = RNG.normal(size=(12, 2)), RNG.normal(size=(9, 2)) + 0.7, 2

    def ball(rows, i):
        return np.sort(np.linalg.norm(rows - rows[i], axis=1))[k]

    inside = np.array([[np.linalg.norm(a - y[j]) <= ball(y, j) for j in range(9)] for a in x])
    theirs = np.array([[np.linalg.norm(b - x[i]) <= ball(x, i) for i in range(12)] for b in y])
    expected = {
        "precision": inside.any(axis=1).mean(),
        "recall": theirs.any(axis=1).mean(),
        "density": inside.sum(axis=1).mean() / k,
        "coverage": inside.any(axis=0).mean(),
    }
    assert manifold.manifold(x, y, neighbours=k) == pytest.approx(expected)
    first = manifold.manifold(x, y, neighbours=k, weights=np.r_[1, np.full(11, 1e-12)])
    assert first["precision"] == pytest.approx(float(inside[0].any()))
    assert first["recall"] == expected["recall"]


def test_draws_of_few_weights_are_left_out_of_the_manifold():
    """A report is not given up for weights that underflow."""

    def seen(log_weight):
        draws = Draws(z=np.zeros((32, 1)), log_weight=log_weight, key=None)
        return Observed(draws, None, {"face": {"embedding": RNG.normal(size=(32, 2))}}, {}, None)

    few = np.r_[np.zeros(3), np.full(29, -1000.0)]
    found = manifold.measure({"before": seen(np.zeros(32)), "few": seen(few), "many": seen(np.zeros(32))}, About(None))
    assert {name for row in found.rows for name in row.values} == {"many"}


def test_a_lost_mode_costs_coverage_and_a_strange_one_precision():
    two = np.r_[RNG.normal(size=(200, 2)), RNG.normal(size=(200, 2)) + 9]
    one = RNG.normal(size=(400, 2))
    lost, strange = manifold.manifold(one, two), manifold.manifold(two, one)
    assert lost["coverage"] < 0.6 < lost["precision"]
    assert strange["precision"] < 0.6 < strange["coverage"]


@pytest.mark.parametrize("metric", [frechet, kid, manifold])
def test_measured_against_the_named_reference(metric):
    def seen(shift, seed):
        rows = np.random.default_rng(seed).normal(size=(64, 2)) + shift
        draws = Draws(z=np.zeros((64, 1)), log_weight=np.zeros(64), key=None)
        return Observed(draws, None, {"face": {"embedding": rows}, "judge": {"class": rows}}, {}, None)

    about = About(ebm=None, reference="truth")
    found = metric.measure({"truth": seen(0, 0), "near": seen(0, 1), "far": seen(3, 2)}, about)
    row = found.rows[0]
    assert "(face)" in row.name
    assert "truth" in found.text
    assert set(row.values) == {"near", "far"}
    far, near = (row.values[name].mean for name in ("far", "near"))
    assert far < near if metric is manifold else far > near
    assert metric.measure({"near": seen(0, 1)}, about) is None


def network_of(module, name):
    return Network(weights={}, module=module, name=name, checksum="", attributes=())


def test_names_say_which_network_and_which_resize():
    """FID is that of InceptionV3 alone, and statistics of one resize do not go with those of another."""
    clean, plain = (network_of(inception.InceptionV3(resize=way), "inception") for way in inception.WAYS)
    face = network_of(Colours(), "colours")
    names = [frechet.called("F", network, network.name) for network in (clean, plain, face)]
    assert names == ["FID", "FID (pytorch-fid)", "FD (colours)"]
    assert frechet.called("K", clean, "inception") == "KID"
    one, other = (Statistics(np.zeros(4), spd(1), frechet.features_of(network)) for network in (clean, plain))
    with pytest.raises(ValueError, match="of inception and .* of inception, pytorch_fid; expected the same"):
        frechet_distance(one, other)


def test_memory_does_not_grow_with_the_number_of_samples():
    """50,000 rows: the same to the last digit but rounding as of all at once, and two matrices are all that is kept."""
    rng, found, everything = np.random.default_rng(3), Accumulator(), []
    for _ in range(100):
        rows = rng.normal(size=(500, 8)).astype(np.float32) + 100
        everything.append(rows)
        found.add(rows)
        assert sum(np.size(value) for value in vars(found).values() if isinstance(value, np.ndarray)) == 8 + 64
    expected = np.cov(np.concatenate(everything).astype(np.float64), rowvar=False)
    np.testing.assert_allclose(found.statistics().covariance, expected, atol=1e-10)


def test_the_extrapolated_distance_has_lost_the_bias_of_few_samples():
    truth, width = Statistics(np.zeros(16), np.eye(16), "f"), 16
    plain, endless = [], []
    for seed in range(8):
        rows = np.random.default_rng(seed).normal(size=(400, width)) + 0.1
        plain.append(frechet_distance(Accumulator("f").add(rows).statistics(), truth) - 0.16)
        endless.append(frechet_infinity(rows, truth, seed=seed).mean - 0.16)
    assert np.mean(plain) > 0.15  # of a true distance of 0.16
    assert abs(np.mean(endless)) < 0.05
    log_weight = np.where(np.arange(400) < 300, 0, -np.inf)  # the last ones do not count
    few = rows + np.where(np.arange(400) < 300, 0, 50)[:, None]
    assert abs(frechet_infinity(few, truth, log_weight=log_weight).mean - 0.16) < 0.3
    with pytest.raises(ValueError, match="N above 4 F"):
        frechet_infinity(rows[:64], truth)
    with pytest.raises(ValueError, match="expected the same"):
        frechet_infinity(rows, Statistics(np.zeros(4), np.eye(4), "f"))


def test_cmmd_is_the_mean_over_all_pairs_of_directions(monkeypatch):
    monkeypatch.setattr(cmmd, "BLOCK", 3)
    x, y = RNG.normal(size=(7, 3)), RNG.normal(size=(5, 3)) + 2

    def mean(one, other):
        directions = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (one, other)]
        return np.mean([[np.exp(-np.sum((a - b) ** 2) / 200) for b in directions[1]] for a in directions[0]])

    expected = 1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y))
    np.testing.assert_allclose(cmmd.cmmd(x, 7 * y), expected, rtol=1e-8)
    repeated = np.array([1, 2, 0, 0, 1, 0, 0])
    np.testing.assert_allclose(cmmd.cmmd(x, y, weights=repeated), cmmd.cmmd(x[[0, 1, 1, 4]], y), rtol=1e-8)
    assert abs(cmmd.cmmd(x, x)) < 1e-9
    with pytest.raises(ValueError, match="none of them 0"):
        cmmd.cmmd(x, 0 * y)


def test_cmmd_is_measured_by_clip_alone():
    tower = network_of(clip.VisionTower(image_size=8, patch_size=4, width=8, layers=1, heads=1, embed_dim=4), "small")

    def seen(shift):
        rows = np.random.default_rng(0).normal(size=(64, 2)) + shift
        draws = Draws(z=np.zeros((64, 1)), log_weight=np.zeros(64), key=None)
        return Observed(draws, None, {name: {"embedding": rows} for name in ("small", "face")}, {}, None)

    about = About(ebm=None, networks={"small": tower, "face": network_of(Colours(), "face")}, reference="truth")
    found = cmmd.measure({"truth": seen(0), "far": seen(3)}, about)
    assert [row.name for row in found.rows] == ["CMMD (small)"]
    assert found.rows[0].values["far"].mean > 0.5
    assert cmmd.measure({"truth": seen(0), "far": seen(3)}, About(ebm=None, reference="truth")) is None


def test_clip_score_is_the_mean_cosine_above_zero():
    images, text = np.array([[1.0, 0.0], [0.0, 2.0], [-1.0, 0.0]]), np.array([3.0, 0.0])
    assert clip_score.clip_score(images, text).mean == pytest.approx(100 / 3)
    assert clip_score.clip_score(images, text, weights=[3, 1, 0]).mean == pytest.approx(75)
    two = clip_score.clip_score(images, np.eye(2), [1, 3], weights=[1, 1, 0])
    assert two.mean == pytest.approx((25 + 75) / 2)
    with pytest.raises(ValueError, match="Use one CLIP for both"):
        clip_score.clip_score(images, np.ones((1, 3)))


def test_clip_score_of_text_controls_whose_clip_judges():
    tower = network_of(clip.VisionTower(image_size=8, patch_size=4, width=8, layers=1, heads=1, embed_dim=2), "small")
    options = {"num_augmentations": 1, "policy": "", "antialias": True, "chunk": 1}
    smiling = ClipControl(tower, jnp.array([[0.0, 1.0]]), jnp.ones(1), 1.0, name="smiling", **options)
    ebm = LatentEBM(parts.load_generator("synthetic", problem="linear", dim=2), (smiling,))
    draws = Draws(z=np.zeros((2, 1)), log_weight=np.log([0.75, 0.25]), key=None)
    seen = {"after": Observed(draws, None, {"small": {"embedding": np.eye(2)}}, {}, None)}
    (row,) = clip_score.measure(seen, About(ebm=ebm, networks={"small": tower}))
    assert row.name == "CLIP score of smiling (small)"
    assert row.values["after"].mean == pytest.approx(25)
    assert clip_score.measure(seen, About(ebm=ebm)) == ()
