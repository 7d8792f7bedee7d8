import itertools
import math

import numpy as np
import pytest

from promptgen_jax.metrics import _intervals
from promptgen_jax.metrics import diversity as variety
from promptgen_jax.metrics import shares as bias

LABELS = ("angry", "happy", "neutral")


def random_log_probs(num, classes=3, seed=0, spread=2.0):
    logits = np.random.default_rng(seed).normal(size=(num, classes)) * spread
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def certain(counts):
    """Log-probabilities of samples whose class is certain, `counts[k]` of class k."""
    with np.errstate(divide="ignore"):
        return np.log(np.repeat(np.eye(len(counts)), counts, axis=0))


def test_by_hand():
    log_probs = np.log([[0.6, 0.4], [0.7, 0.3], [0.1, 0.9], [0.8, 0.2]])
    result = bias.shares(log_probs, labels=("a", "b"))
    assert result["a"]["soft"] == pytest.approx(0.55)
    assert result["a"]["hard"] == 0.75
    assert result["b"]["soft"] == pytest.approx(0.45)
    half = 3.182446 * np.std([0.6, 0.7, 0.1, 0.8], ddof=1) / 2  # Student, 3 degrees of freedom
    assert result["a"]["soft_low"] == pytest.approx(0.55 - half, abs=1e-6)
    assert (result["a"]["hard_low"], result["a"]["hard_high"]) == pytest.approx((0.3006, 0.9544), abs=1e-4)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("num", [1, 2, 7, 500])
@pytest.mark.parametrize("weighted", [False, True], ids=["equal", "weighted"])
def test_properties(seed, num, weighted):
    rng = np.random.default_rng(seed)
    weights = rng.exponential(size=num) ** 3 if weighted else None
    result = bias.shares(random_log_probs(num, seed=seed), labels=LABELS, weights=weights)
    assert tuple(result) == LABELS
    for kind in ("soft", "hard"):
        assert sum(result[label][kind] for label in LABELS) == pytest.approx(1)
        for share in result.values():
            assert 0 <= share[f"{kind}_low"] <= share[kind] <= share[f"{kind}_high"] <= 1


def test_empty_class_and_full_class_have_intervals_without_nan():
    result = bias.shares(certain([50, 0, 0]), labels=LABELS)
    assert result["happy"]["hard"] == 0
    assert result["happy"]["hard_low"] == 0
    assert result["happy"]["hard_high"] == pytest.approx(0.0714, abs=1e-4)  # z² / (n + z²)
    assert result["angry"]["hard_low"] == pytest.approx(1 - 0.0714, abs=1e-4)
    assert all(math.isfinite(value) for share in result.values() for value in share.values())


def test_one_sample_promises_nothing():
    share = bias.shares(np.log([[0.9, 0.1]]), labels="ab")["a"]
    assert (share["soft_low"], share["soft_high"]) == (0, 1)
    assert share["hard_low"] < 0.25


@pytest.mark.parametrize("truth", [0.02, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("num", [30, 400])
def test_wilson_covers(truth, num):
    counts = np.random.default_rng(0).binomial(num, truth, size=4000)
    intervals = {count: _intervals.wilson_interval(count / num, num) for count in np.unique(counts)}
    covered = np.mean([intervals[count][0] <= truth <= intervals[count][1] for count in counts])
    assert 0.92 < covered < 0.99  # the interval is exact on average over truth, not at each one


def test_soft_interval_covers():
    truth = 2 / 7  # mean of Beta(2, 5)
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(1000):
        p = rng.beta(2, 5, size=40)
        share = bias.shares(np.log(np.stack([p, 1 - p], axis=1)), labels="ab")["a"]
        hits += share["soft_low"] <= truth <= share["soft_high"]
    assert 930 < hits < 970


def test_weighted_intervals_cover_the_target_of_importance_sampling():
    # proposal: p ~ U(0, 1); target density 2p, under which E p = 2/3 and P(p > 1/2) = 3/4
    rng = np.random.default_rng(2)
    soft = hard = 0
    for _ in range(1000):
        p = rng.random(200)
        share = bias.shares(np.log(np.stack([p, 1 - p], axis=1)), labels="ab", weights=7 * p)["a"]
        soft += share["soft_low"] <= 2 / 3 <= share["soft_high"]
        hard += share["hard_low"] <= 3 / 4 <= share["hard_high"]
    assert 925 < soft < 975
    assert 925 < hard < 1000


def test_equal_weights_change_nothing_and_whole_weights_count_copies():
    log_probs = random_log_probs(60)
    plain = bias.shares(log_probs, labels=LABELS)
    equal = bias.shares(log_probs, labels=LABELS, weights=np.full(60, 3.0))
    copies = np.arange(60) % 3
    repeated = bias.shares(np.repeat(log_probs, copies, axis=0), labels=LABELS)
    weighted = bias.shares(log_probs, labels=LABELS, weights=copies)
    for label in LABELS:
        assert equal[label] == pytest.approx(plain[label])
        assert weighted[label]["soft"] == pytest.approx(repeated[label]["soft"])
        assert weighted[label]["hard"] == pytest.approx(repeated[label]["hard"])


def test_a_dominating_weight_promises_nothing():
    weights = np.r_[1.0, np.full(999, 1e-9)]
    share = bias.shares(random_log_probs(1000), labels=LABELS, weights=weights)["happy"]
    assert share["soft_high"] - share["soft_low"] > 0.99
    assert share["hard_high"] - share["hard_low"] > 0.7


def test_effective_sample_size():
    assert _intervals.effective_sample_size(np.full(40, 0.2)) == pytest.approx(40)
    assert _intervals.effective_sample_size([1, 0, 0]) == 1
    assert _intervals.effective_sample_size([2, 1, 1]) == pytest.approx(16 / 6)


@pytest.mark.parametrize(
    ("share", "mu", "kl"),
    [
        ([0.5, 0.5], [0.5, 0.5], 0.0),
        ([1, 0], [0.5, 0.5], math.log(2)),
        ([0.5, 0.5, 0], [0.5, 0.5, 0], 0.0),
        ([0.7, 0.3], [0.3, 0.7], 0.4 * math.log(7 / 3)),
        ([0.5, 0.5], [1, 0], math.inf),
    ],
)
def test_kl(share, mu, kl):
    assert bias.kl_to_target(share, mu) == pytest.approx(kl, abs=1e-12)


def test_kl_is_never_negative():
    rng = np.random.default_rng(0)
    for share, mu in zip(rng.dirichlet(np.ones(5), 100), rng.dirichlet(np.ones(5), 100), strict=True):
        assert bias.kl_to_target(share, mu) > 0
        assert bias.kl_to_target(share, share * (1 + 1e-9)) >= 0


def test_distance_to_target_is_the_kl_of_the_shares():
    log_probs, mu = random_log_probs(500), np.array([0.2, 0.3, 0.5])
    found, shares = bias.distance_to_target(log_probs, mu), bias.shares(log_probs, labels=LABELS)
    for kind in ("soft", "hard"):
        assert found[kind] == pytest.approx(bias.kl_to_target([shares[label][kind] for label in LABELS], mu))
        assert found[f"{kind}_low"] < found[kind] < found[f"{kind}_high"]
    weighted = bias.distance_to_target(log_probs, mu, weights=np.full(500, 7.0))
    assert weighted == pytest.approx(found)
    one_weight = np.eye(500)[0]
    assert bias.distance_to_target(log_probs, mu, weights=one_weight)["soft_high"] == pytest.approx(
        bias.kl_to_target(np.exp(log_probs[0]), mu)
    )


def test_interval_of_the_distance_covers_it():
    """Of 100 samples of a known distribution, most intervals hold its distance."""
    share, mu, hits = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.3, 0.5]), 0
    rng = np.random.default_rng(0)
    for _ in range(100):
        chosen = np.eye(3)[rng.choice(3, 400, p=share)]
        with np.errstate(divide="ignore"):
            found = bias.distance_to_target(np.log(chosen), mu)
        hits += found["hard_low"] <= bias.kl_to_target(share, mu) <= found["hard_high"]
    assert 85 <= hits <= 99


def test_diversity_equals_the_slow_formula():
    rng = np.random.default_rng(0)
    images, embeddings = rng.random((6, 4, 5, 3), np.float32), rng.normal(size=(6, 8))
    result = variety.diversity(images, embeddings)
    assert result["pixel_std"] == pytest.approx(images.astype(np.float64).std(axis=0).mean())
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    pairs = [unit[i] @ unit[j] for i, j in itertools.combinations(range(6), 2)]
    assert result["embedding_cosine"] == pytest.approx(np.mean(pairs))


def test_diversity_of_copies():
    result = variety.diversity(np.full((3, 2, 2, 3), 0.1, np.float32), np.full((3, 4), 2.0))
    assert result == pytest.approx({"pixel_std": 0.0, "embedding_cosine": 1.0}, abs=1e-7)
    assert list(variety.diversity(np.zeros((2, 2, 2, 3)))) == ["pixel_std"]


ONES = np.ones((2, 2, 2, 3))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: bias.shares(np.zeros((3, 2)), labels=LABELS), "one label per column"),
        (lambda: bias.shares(np.zeros((0, 3)), labels=LABELS), "at least one sample"),
        (lambda: bias.shares(random_log_probs(3), labels=("a", "a", "b")), "2 different labels"),
        (lambda: bias.shares(np.zeros((3, 3)), labels=LABELS), "add up to 3; .* log_softmax"),
        (lambda: bias.shares(np.full((3, 3), np.nan), labels=LABELS), "add up to nan"),
        (lambda: bias.shares(random_log_probs(2), labels=LABELS, weights=[1, -1]), "at least 0"),
        (lambda: bias.shares(random_log_probs(2), labels=LABELS, weights=[0, 0]), "not all 0"),
        (lambda: bias.shares(random_log_probs(2), labels=LABELS, weights=[1, np.inf]), "sum inf"),
        (lambda: bias.shares(random_log_probs(2), labels=LABELS, weights=[1]), r"expected \(2,\)"),
        (lambda: bias.kl_to_target([0.5, 0.5], [1]), "one target share per label"),
        (lambda: bias.kl_to_target([0.5, 0.6], [0.5, 0.5]), "shares .* are no distribution"),
        (lambda: bias.kl_to_target([0.5, 0.5], [1.5, -0.5]), "target .* are no distribution"),
        (lambda: bias.kl_to_target([np.nan, 1], [0.5, 0.5]), "shares .* are no distribution"),
        (lambda: variety.diversity(np.zeros((1, 2, 2, 3))), "at least two. Sample more"),
        (lambda: variety.diversity(ONES * np.nan), "NaN"),
        (lambda: variety.diversity(ONES, np.zeros((2, 4))), "not zero"),
        (lambda: variety.diversity(ONES, np.ones((3, 4))), r"expected \(2, features\)"),
        (lambda: variety.diversity(ONES, np.full((2, 4), np.nan)), "finite"),
    ],
)
def test_errors(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_a_target_that_forbids_a_class_is_infinitely_far():
    log_probs = np.log(np.tile([0.5, 0.3, 0.2], (40, 1)))
    found = bias.distance_to_target(log_probs, (0.5, 0.5, 0.0))
    assert (found["soft"], found["soft_low"], found["soft_high"]) == (np.inf, np.inf, np.inf)
    assert np.isfinite(found["hard_low"])
