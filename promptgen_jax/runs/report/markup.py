"""HTML from Python: elements that escape what they hold, and numbers as people read them."""

from __future__ import annotations

import datetime
import html
import math

VOID = ("img", "meta")  # elements without content or end tag
NO_VALUE = "–"


class Html(str):
    """Text that is HTML already; every other text is escaped on its way into an element."""

    __slots__ = ()


def element(name: str, /, *children, **attributes) -> Html:
    """An HTML or SVG element, safe by construction.

    Args:
      name: the tag.
      *children: `Html` goes in as it is, lists are opened, None is left out, all else is text and escaped.
      **attributes: `class_` becomes class, `stroke_width` stroke-width; None leaves the attribute out.
    """
    named = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items()}
    written = "".join(f' {key}="{html.escape(str(value))}"' for key, value in named.items() if value is not None)
    return Html(f"<{name}{written}>" if name in VOID else f"<{name}{written}>{_content(children)}</{name}>")


def _content(children) -> str:
    parts: list[str] = []
    for child in children:
        if isinstance(child, Html):
            parts.append(child)
        elif isinstance(child, list | tuple):
            parts.append(_content(child))
        elif child is not None:
            parts.append(html.escape(str(child)))
    return "".join(parts)


def table(header: list, rows: list[list], *, caption: str | None = None) -> Html:
    """A table whose first column names the row; a phone names each cell, so that nothing scrolls sideways."""
    head = [element("th", cell, scope="col") for cell in header]
    body = []
    for first, *others in rows:
        cells = [
            element("td", element("span", cell), data_column=name)
            for name, cell in zip(header[1:], others, strict=True)
        ]
        body.append(element("tr", element("th", first, scope="row"), cells))
    return element(
        "div",
        element(
            "table",
            element("caption", caption) if caption else None,
            element("thead", element("tr", head)),
            element("tbody", body),
        ),
        class_="scroll",
    )


def number(value, digits: int = 3) -> str:
    """Three significant digits (4.21, 0.0312, −23.0), thousands apart (4,096), a dash for None and NaN."""
    if value is None or isinstance(value, str):
        return NO_VALUE if value is None else value
    if isinstance(value, int):
        return f"{value:,}".replace("-", "−")
    if not math.isfinite(value):
        return NO_VALUE if math.isnan(value) else ("∞" if value > 0 else "−∞")
    if value == 0:
        return "0"
    rounded = f"{value:#.{digits}g}"
    text = f"{value:,.0f}" if abs(float(rounded)) >= 10**digits else rounded.rstrip(".")
    return text.replace("-", "−")


def percent(value) -> str:
    """0.8714 as 87.1 %."""
    return NO_VALUE if value is None or not math.isfinite(value) else f"{100 * value:.1f}\u00a0%"


def interval(low, high, form=number) -> Html | None:
    """A 95 % interval in small print, or nothing if it was not given."""
    if low is None or high is None:
        return None
    return element("span", f"{form(low)} to {form(high)}", class_="interval")


def duration(seconds: float) -> str:
    """4.2 s, or 0:02:03 from a minute on."""
    return f"{seconds:.1f} s" if seconds < 60 else str(datetime.timedelta(seconds=round(seconds)))
