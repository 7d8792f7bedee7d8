"""Numbers, curves and densities as the report draws them."""

import math
import re

import numpy as np
import pytest
from PIL import Image

from promptgen_jax.runs.report import charts, markup, plot_density


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0714, "0.0714"),
        (-21.04, "−21.0"),
        (1234.6, "1,235"),
        (999.7, "1,000"),
        (4096, "4,096"),
        (-3, "−3"),
        (0.0, "0"),
        (None, "–"),
        (math.nan, "–"),
        (math.inf, "∞"),
        ("n/a", "n/a"),
    ],
)
def test_numbers(value, text):
    assert markup.number(value) == text


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0, 1, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (-21, 33, ["−20", "0", "20"]),
        (1, 2000, ["500", "1,000", "1,500", "2,000"]),
        (0.00012, 0.0002, ["0.00012", "0.00014", "0.00016", "0.00018", "0.0002"]),
    ],
)
def test_ticks(low, high, labels):
    assert [label for _, label in charts.ticks(low, high)] == labels


def test_ticks_stay_inside_and_are_few():
    rng = np.random.default_rng(0)
    for low, width in zip(
        rng.normal(size=300) * 10 ** rng.uniform(-4, 4, 300), 10 ** rng.uniform(-5, 5, 300), strict=True
    ):
        places = [place for place, _ in charts.ticks(low, low + width)]
        assert 2 <= len(places) <= 7
        assert low - 1e-6 * width <= min(places) <= max(places) <= low + width * (1 + 1e-6)


def test_running_mean_equals_the_slow_formula():
    values = np.random.default_rng(0).normal(size=30)
    slow = [values[max(0, i - 4) : i + 5].mean() for i in range(30)]
    np.testing.assert_allclose(charts._running_mean(values, 4), slow)


@pytest.mark.parametrize("values", [[1.0], [math.nan, 1.0], []])
def test_too_short_a_curve_is_left_out(values):
    assert charts.line_chart("loss", np.arange(len(values)), np.array(values)) is None


@pytest.mark.parametrize("values", [[2.0, 2.0, 2.0], [0.0, 0.0], [1e9, -1e9], [1.0, math.nan, math.inf, 3.0]])
def test_odd_curves_draw_finite_coordinates(values):
    drawn = charts.line_chart("loss", np.arange(len(values)), np.array(values), optimum=math.nan)
    assert "nan" not in drawn
    assert "inf" not in drawn


def test_outliers_are_cut_off_and_named():
    steps = np.arange(200)
    values = np.r_[5e4, 4 + np.cos(np.arange(199))]
    drawn = charts.line_chart("loss", steps, values, optimum=2.5)
    assert "Cut off: values reach from 3.00 to 50,000." in drawn
    assert "Cut off" not in charts.line_chart("loss", steps[1:], values[1:])
    heights = [
        float(point.split(",")[1]) for points in re.findall('points="([^"]*)"', drawn) for point in points.split()
    ]
    assert min(heights) < 0  # above the frame
    assert np.ptp(heights[1:200]) > 50  # the rest fills it


def test_long_runs_stay_small():
    drawn = charts.line_chart("loss", np.arange(100_000), np.random.default_rng(0).normal(size=100_000))
    assert len(drawn) < 20_000


def test_plot_density(tmp_path):
    rng = np.random.default_rng(0)
    path = plot_density(
        tmp_path / "new" / "density.png",
        log_density=lambda points: -0.5 * np.sum(points**2, axis=-1) + 300,
        samples={"flow": rng.normal(size=(5000, 2)), "target": rng.normal(size=(10, 2))},
        extent=(-3, 3, -2, 2),
    )
    picture = np.asarray(Image.open(path).convert("RGB")).astype(int)
    assert picture.shape[1] > 2 * picture.shape[0]
    third = picture.shape[1] // 3
    orange = (picture[..., 0] - picture[..., 2]) > 60
    assert not orange[:, :third].any()
    assert orange[:, third : 2 * third].sum() > orange[:, 2 * third :].sum() > 0


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"samples": {"flow": np.zeros((5, 3))}}, r"samples 'flow' are \(5, 3\); expected \(N, 2\)"),
        ({"log_density": lambda points: np.full(len(points), -np.inf)}, "finite nowhere"),
    ],
)
def test_plot_density_errors(tmp_path, change, match):
    options = {
        "log_density": lambda points: -np.sum(points**2, axis=-1),
        "samples": {},
        "extent": (-1, 1, -1, 1),
    }
    with pytest.raises(ValueError, match=match):
        plot_density(tmp_path / "a.png", **{**options, **change})
