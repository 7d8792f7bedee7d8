"""What a conditional prompt does with its conditions: pose errors and identity distances."""

from __future__ import annotations

from promptgen_jax.metrics.conditions import ConditionFigures
from promptgen_jax.runs.report.markup import Html, element, interval, number, percent, table


def conditions(found: ConditionFigures | None) -> Html | None:
    """Tables of pose errors, asked against reached angles, and distances within and between faces.

    Args:
      found: of a conditional prompt.
    """
    if not found:
        return None
    ranges = ", ".join(
        _in(unit, f"{name} {number(low)} to {number(high)}")
        for name, unit, (low, high) in zip(found.names, found.units, found.ranges, strict=True)
    )
    text = (
        f"One prompt for every condition: each of {number(found.num_samples)} faces is asked for conditions drawn "
        f"from {', '.join(found.told) or ranges}."
    )
    return element("div", element("p", text), _pose(found), _identity(found.identity))


def _in(unit: str, text: str) -> str:
    return f"{text} {unit}" if unit else text


def _pose(found: ConditionFigures) -> Html | None:
    rows = found.pose
    if not rows:
        return None
    angles = {found.unit(row["angle"]) for row in rows} == {"degrees"}
    text = (
        "The error is the difference of what the control's network reads and what was asked for. "
        "Before: the untouched generator, which does not know what is asked."
    )
    errors = [
        [
            row["angle"],
            *([_with_interval(row[when], "error")] for when in ("before", "after")),
            number(row["after"]["bias"]),
            number(row["after"]["std"]),
        ]
        for row in rows
    ]
    reached = [
        [
            f"{row['angle']}, {number(part['low'])} to {number(part['high'])}",
            number(part["asked"]),
            number(part["mean"]),
            number(part["std"]),
        ]
        for row in rows
        for part in row["reached"]
    ]
    return element(
        "section",
        element("h4", "Pose error in degrees" if angles else "Error of the condition"),
        element("p", text),
        table(["Condition", "Mean error before", "Mean error after", "Bias after", "Spread after"], errors),
        table(["Asked for", "Mean asked", "Mean seen", "Spread seen"], reached),
        class_="judge",
    )


def _identity(rows: tuple[dict, ...]) -> Html | None:
    if not rows:
        return None
    text = (
        "Distance of face embeddings, √(2 (1 − cosine)): between one face under two conditions, which should be small, "
        "and between two faces. The network of the control was optimised, so it is expected to be pleased."
    )
    cells = [
        [
            [element("code", row["network"]), element("span", row["role"], class_=_style(row["role"]))],
            *([_with_interval(row, key)] for key in ("same", "different", "margin")),
            percent(row["closer"]),
        ]
        for row in rows
    ]
    header = ["Embedding", "Same face", "Two faces", "Margin", "Nearer to itself"]
    return element("section", element("h4", "Identity"), element("p", text), table(header, cells), class_="judge")


def _style(role: str) -> str:
    return "role own" if role == "control" else "role"


def _with_interval(row: dict, key: str) -> list:
    return [number(row[key]), interval(row[f"{key}_low"], row[f"{key}_high"])]
