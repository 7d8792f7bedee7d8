"""Charts as inline SVG: sharp at any size, coloured by the page's style sheet, as dark mode and print need.

All are drawn 440 units wide; the style sheet stretches them to the column.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from promptgen_jax.metrics import Share
from promptgen_jax.runs.report.markup import Html, element, number, percent

WIDTH = 440
MAX_POINTS = 400  # of a curve; more than a screen can show


def line_chart(
    name: str, steps: np.ndarray, values: np.ndarray, *, optimum: float | None = None, what: str | None = None
) -> Html | None:
    """A training curve: every logged value thin, a running mean bold, the best reachable value dashed.

    Extreme values, as in the first steps, may be cut off; the caption then gives them.

    Args:
      name: the metric.
      steps: (N,) step numbers.
      values: (N,) values; those not finite are left out.
      optimum: height of the dashed line.
      what: one sentence for the caption.

    Returns:
      A figure, or None with fewer than two finite values.
    """
    finite = np.isfinite(values)
    steps, values = np.asarray(steps, float)[finite], np.asarray(values, float)[finite]
    if len(values) < 2 or steps[0] == steps[-1]:
        return None
    optimum = optimum if optimum is not None and math.isfinite(optimum) else None
    low, high = _robust_range(values, optimum)
    x = _scale(steps[0], steps[-1], 52, WIDTH - 14)
    y = _scale(low, high, 186, 12)
    mean = _running_mean(values, max(1, len(values) // 20))
    drawn = np.unique(np.linspace(0, len(values) - 1, MAX_POINTS).astype(int))
    floor, ceiling = 2 * low - high, 2 * high - low  # beyond one height of the frame nothing can be seen
    curves = [
        element("polyline", points=_points(x(steps[drawn]), y(curve[drawn].clip(floor, ceiling))), class_=style)
        for curve, style in ((values, "raw"), (mean, "mean"))
    ]
    dashed = None
    if optimum is not None:
        height = _text(y(optimum))
        dashed = element("line", x1=52, x2=WIDTH - 14, y1=height, y2=height, class_="target")
    marks: list = [
        [
            element("line", x1=52, x2=WIDTH - 14, y1=_text(y(tick)), y2=_text(y(tick)), class_="grid"),
            element("text", label, x=46, y=_text(y(tick) + 4), text_anchor="end"),
        ]
        for tick, label in ticks(low, high)
    ]
    marks += [
        element("text", label, x=_text(x(tick)), y=206, text_anchor="middle")
        for tick, label in ticks(steps[0], steps[-1])
    ]
    frame = element("svg", curves, x=52, y=8, width=WIDTH - 66, height=182, viewBox=f"52 8 {WIDTH - 66} 182")
    cut = values.max() > high or values.min() < low
    return element(
        "figure",
        element(
            "figcaption",
            element("b", name),
            f" {number(float(values[0]))} → {number(float(values[-1]))}",
            element("span", what, class_="what") if what else None,
            element("span", f"Dashed: the best possible value, {number(optimum)}.", class_="what") if dashed else None,
            element(
                "span",
                f"Cut off: values reach from {number(float(values.min()))} to {number(float(values.max()))}.",
                class_="what",
            )
            if cut
            else None,
        ),
        _svg(
            210,
            f"{name} by step",
            marks,
            frame,
            dashed,
            element("text", "step", x=46, y=206, text_anchor="end"),
        ),
        class_="chart",
    )


def share_chart(title: str, labels: list[str], series: list[tuple[str, Mapping[str, Share]]], target) -> Html:
    """Horizontal bars of soft shares with intervals, hard shares as diamonds, targets as dashed marks.

    Args:
      title: for screen readers.
      labels: the classes, top to bottom.
      series: (style class, `Share` by label) per bar of a class.
      target: a share or None per label.
    """
    targets = list(target) if target else [None] * len(labels)
    found = [v for _, shares in series for s in shares.values() for v in (s.soft.mean, s.soft.high, s.hard.mean)]
    largest = max([v for v in [*found, *targets] if v is not None], default=1.0)
    limit = next(step for step in (0.1, 0.2, 0.4, 0.6, 0.8, 1.0) if largest <= step or step == 1.0)
    x = _scale(0, limit, 112, WIDTH - 66)
    bar, gap = 12, 3
    group = len(series) * (bar + gap) + 12
    bottom = len(labels) * group + 6
    marks: list = [
        [
            element("line", x1=_text(x(tick)), x2=_text(x(tick)), y1=0, y2=bottom, class_="grid"),
            element("text", f"{100 * tick:.0f} %", x=_text(x(tick)), y=bottom + 16, text_anchor="middle"),
        ]
        for tick in np.linspace(0, limit, 6 if limit in (0.1, 1.0) else 5)
    ]
    for row, (label, wanted) in enumerate(zip(labels, targets, strict=True)):
        top = row * group + 8
        middle = top + (group - 12) / 2
        marks.append(
            element("text", _clipped(label, 15), x=104, y=_text(middle + 4), text_anchor="end", class_="label")
        )
        for number_, (style, shares) in enumerate(series):
            marks.append(_bar(x, top + number_ * (bar + gap), bar, style, shares[label]))
        if wanted is not None:
            at = _text(x(wanted))
            marks.append(element("line", x1=at, x2=at, y1=_text(top - 4), y2=_text(top + group - 11), class_="target"))
    return _svg(bottom + 24, title, marks)


def _bar(x, top: float, height: float, style: str, share: Share) -> list:
    soft, low, high, hard = share.soft.mean, share.soft.low, share.soft.high, share.hard.mean
    if soft is None:
        return []
    middle = top + height / 2
    drawn = [element("rect", x=_text(x(0)), y=_text(top), width=_text(x(soft) - x(0)), height=height, class_=style)]
    if low is not None and high is not None:
        drawn.append(_whisker(x(low), x(high), middle))
    if hard is not None:
        at = float(x(hard))
        points = _points([at - 4, at, at + 4, at], [middle, middle - 4, middle, middle + 4])
        drawn.append(element("polygon", points=points, class_="hard"))
    drawn.append(element("text", percent(soft), x=WIDTH - 2, y=_text(middle + 4), text_anchor="end", class_="value"))
    return drawn


def curve_chart(
    name: str, axis: str, xs: list[float], curves: list[tuple[str, str, list]], *, mark: float | None = None
) -> Html:
    """Curves of estimates with dots, and whiskers where they have an interval.

    Args:
      name: the title.
      axis: what stands below.
      xs: K positions, not all the same.
      curves: (style class `mean`, `was` or `target`, name, K `Estimate`s).
      mark: of a vertical line at the knee.
    """
    found = [v for _, _, row in curves for each in row for v in (each.mean, each.low, each.high) if v is not None]
    margin = 0.06 * (max(found) - min(found)) or 0.1 * max(abs(max(found)), 1.0)
    low, high = min(found) - margin, max(found) + margin
    x, y = _scale(min(xs), max(xs), 60, WIDTH - 14), _scale(low, high, 186, 12)
    marks: list = [
        [
            element("line", x1=52, x2=WIDTH - 6, y1=_text(y(tick)), y2=_text(y(tick)), class_="grid"),
            element("text", label, x=46, y=_text(y(tick) + 4), text_anchor="end"),
        ]
        for tick, label in ticks(low, high)
    ]
    marks += [
        element("text", label, x=_text(x(tick)), y=206, text_anchor="middle") for tick, label in ticks(min(xs), max(xs))
    ]
    if mark is not None:
        marks.append(element("line", x1=_text(x(mark)), x2=_text(x(mark)), y1=8, y2=190, class_="knee"))
        marks.append(element("text", "knee", x=_text(x(mark) + 5), y=18, class_="label"))
    for style, _, row in curves:
        heights = [float(y(each.mean)) for each in row]
        marks.append(element("polyline", points=_points(x(xs), heights), class_=f"curve {style}"))
        for at, each, height in zip(x(xs), row, heights, strict=True):
            if each.low is not None and each.high is not None:
                marks.append(
                    element("path", d=f"M{_text(at)} {_text(y(each.low))}V{_text(y(each.high))}", class_="whisker")
                )
            marks.append(element("circle", cx=_text(at), cy=_text(height), r=2.5, class_=f"point {style}"))
    names = [element("span", element("span", class_=f"key {style}"), text) for style, text, _ in curves]
    return element(
        "figure",
        element("figcaption", element("b", name), element("span", names, class_="legend") if len(curves) > 1 else None),
        _svg(224, f"{name} by {axis}", marks, element("text", axis, x=WIDTH - 6, y=221, text_anchor="end")),
        class_="chart",
    )


def spread_chart(title: str, rows: list[tuple[str, Any]], target: float | None) -> Html:
    """Mean (dot) and one standard deviation to each side (bar) per row, the target as a dashed line.

    Args:
      title: for screen readers.
      rows: (style class and name, mean with standard deviation) from top to bottom.
      target: where the mean should be.
    """
    edges = [r.mean + sign * (r.std or 0) for _, r in rows for sign in (-1, 1)]
    edges += [target] if target is not None else []
    margin = 0.08 * (max(edges) - min(edges)) or 1.0
    low, high = min(edges) - margin, max(edges) + margin
    x = _scale(low, high, 74, WIDTH - 20)
    bottom = 30 * len(rows) + 4
    marks: list = [
        [
            element("line", x1=_text(x(tick)), x2=_text(x(tick)), y1=0, y2=bottom, class_="grid"),
            element("text", label, x=_text(x(tick)), y=bottom + 16, text_anchor="middle"),
        ]
        for tick, label in ticks(low, high, 6)
    ]
    for index, (style, row) in enumerate(rows):
        middle, spread = 30 * index + 18, row.std or 0
        left, right = x(row.mean - spread), x(row.mean + spread)
        marks += [
            element("text", style, x=66, y=middle + 4, text_anchor="end", class_="label"),
            element("rect", x=_text(left), y=middle - 6, width=_text(right - left), height=12, rx=6, class_=style),
            element("circle", cx=_text(x(row.mean)), cy=middle, r=4.5, class_="dot"),
        ]
    if target is not None:
        marks.append(element("line", x1=_text(x(target)), x2=_text(x(target)), y1=0, y2=bottom, class_="target"))
    return _svg(bottom + 24, title, marks)


def trade_chart(
    title: str, points: list[tuple[str, Any, Any]], marked: str | None, axes: tuple[str, str]
) -> Html | None:
    """Named points with intervals in both directions, joined from left to right; one of them in a ring.

    Args:
      title: for screen readers.
      points: (name, horizontal estimate, vertical estimate).
      marked: name of the point in the ring, or None.
      axes: names of the horizontal and the vertical axis.

    Returns:
      A drawing, or None with fewer than two points that differ.
    """
    points = sorted(points, key=lambda point: point[1].mean)
    low_x, high_x = _reach([x for _, x, _ in points])
    low_y, high_y = _reach([y for _, _, y in points])
    if len(points) < 2 or points[0][1].mean == points[-1][1].mean:
        return None
    x, y = _scale(low_x, high_x, 52, WIDTH - 14), _scale(low_y, high_y, 206, 22)
    marks: list = [
        [
            element("line", x1=52, x2=WIDTH - 14, y1=_text(y(tick)), y2=_text(y(tick)), class_="grid"),
            element("text", label, x=46, y=_text(y(tick) + 4), text_anchor="end"),
        ]
        for tick, label in ticks(low_y, high_y)
    ]
    marks += [
        element("text", label, x=_text(x(tick)), y=226, text_anchor="middle") for tick, label in ticks(low_x, high_x)
    ]
    middles = [(float(x(one.mean)), float(y(other.mean))) for _, one, other in points]
    marks.append(element("polyline", points=_points(*zip(*middles, strict=True)), class_="mean"))
    for (name, one, other), (across, down) in zip(points, middles, strict=True):
        if one.low is not None and one.high is not None:
            marks.append(_whisker(float(x(one.low)), float(x(one.high)), down))
        if other.low is not None and other.high is not None:
            path = f"M{_text(across)} {_text(y(other.low))}V{_text(y(other.high))}"
            marks.append(element("path", d=path, class_="whisker"))
        if name == marked:
            marks.append(element("circle", cx=_text(across), cy=_text(down), r=9, class_="ring"))
        marks.append(element("circle", cx=_text(across), cy=_text(down), r=4, class_="dot"))
        side = {"x": _text(across + 8)} if across < 0.8 * WIDTH else {"x": _text(across - 8), "text_anchor": "end"}
        marks.append(element("text", name, y=_text(down - 8), class_="label", **side))
    titles = [
        element("text", f"{axes[0]}, nats", x=WIDTH - 14, y=244, text_anchor="end"),
        element("text", f"{axes[1]}, nats", x=4, y=12),
    ]
    return _svg(250, title, marks, titles)


def _reach(found: list) -> tuple[float, float]:
    """From the least to the largest of estimates and their intervals, with a margin."""
    ends = [end for each in found for end in (each.mean, each.low, each.high) if end is not None]
    margin = 0.06 * (max(ends) - min(ends)) or 1.0
    return min(ends) - margin, max(ends) + margin


def ticks(low: float, high: float, count: int = 5) -> list[tuple[float, str]]:
    """Round positions inside [low, high], about `count`, with their labels."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * 0.999)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    places = step * np.arange(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    large = max(abs(low), abs(high)) >= 1e5
    texts = [f"{p:.3g}" if large or decimals > 4 else f"{p:,.{decimals}f}" for p in places + 0.0]
    return [(float(p), text.replace("-", "−")) for p, text in zip(places, texts, strict=True)]


def _robust_range(values: np.ndarray, optimum: float | None) -> tuple[float, float]:
    """Range of a vertical axis: all values, or the central ones if outliers would flatten the curve."""
    shown = np.append(values, [] if optimum is None else optimum)
    low, high = float(shown.min()), float(shown.max())
    middle = np.append(np.percentile(values, [2, 95]), [values[-1], *([] if optimum is None else [optimum])])
    span = float(middle.max() - middle.min())
    if span > 0 and high - low > 4 * span:
        low, high = max(low, float(middle.min()) - 0.5 * span), min(high, float(middle.max()) + 0.5 * span)
    margin = 0.05 * (high - low) or max(abs(high), 1.0) * 0.1
    return low - margin, high + margin


def _running_mean(values: np.ndarray, radius: int) -> np.ndarray:
    """Mean over the `radius` neighbours to each side, fewer at the ends."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    left, right = np.maximum(index - radius, 0), np.minimum(index + radius + 1, len(values))
    return (total[right] - total[left]) / (right - left)


def _scale(low: float, high: float, start: float, end: float):
    return lambda value: start + (np.asarray(value, float) - low) / (high - low) * (end - start)


def _svg(height: float, title: str, *marks) -> Html:
    return element("svg", element("title", title), *marks, viewBox=f"0 0 {WIDTH} {_text(height)}", role="img")


def _whisker(left: float, right: float, middle: float) -> Html:
    path = f"M{_text(left)} {_text(middle)}H{_text(right)}M{_text(left)} {_text(middle - 3)}v6"
    return element("path", d=f"{path}M{_text(right)} {_text(middle - 3)}v6", class_="whisker")


def _points(xs, ys) -> str:
    return " ".join(f"{_text(x)},{_text(y)}" for x, y in zip(xs, ys, strict=True))


def _text(value: float) -> str:
    return f"{float(value):.1f}"


def _clipped(label: str, length: int) -> str:
    return label if len(label) <= length else label[: length - 1] + "…"
