"""The page as a whole: reads a work directory, puts the stages together, writes one self-contained file."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

from promptgen_jax.evaluation.stage import Measured
from promptgen_jax.runs.report.markup import Html, element, table
from promptgen_jax.runs.report.sections import change, headline, measured_line, stage_parts
from promptgen_jax.store import disk, documents

INPUT, OUTPUT, CONFIG = "report.json", "report.html", "config.json"
AGAIN = "Run again, or repair the file."
# the page asks for nothing outside itself, and a browser is told to hold it to that
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def write_report(workdir: str | Path) -> Path:
    """Renders `workdir/report.json`, with the metrics and images it names, to `workdir/report.html`.

    Nothing is computed, so the report can be made again at any time. Every entry is optional but the title
    and the names of the stages; what is missing is left out.

    Returns:
      The path of the HTML file, written atomically.

    Raises:
      FileNotFoundError: no such folder, or no report.json in it.
      ValueError: report.json, config.json or a metrics.jsonl is damaged.
    """
    workdir = Path(workdir)
    if not workdir.is_dir():
        raise FileNotFoundError(f"{workdir}: no such folder. Give the work directory of a run.")
    if not (workdir / INPUT).is_file():
        raise FileNotFoundError(
            f"{workdir}: holds no {INPUT}, which a run writes at its end. Give the folder of a finished run."
        )
    path, report = workdir / OUTPUT, _read_report(workdir / INPUT)
    disk.sweep(workdir, OUTPUT)
    with documents.one_sentence(workdir / INPUT, "not what a run writes", advice=AGAIN):
        page = render(workdir, report)
    disk.write_bytes(path, page.encode())
    return path


def render(workdir: Path, report: dict) -> str:
    """The HTML text of a report; arguments and errors as `write_report`."""
    stages = []
    for index, stage in enumerate(report["stages"], start=1):
        found = Measured.from_json(stage)
        parts = stage_parts(disk.inside(workdir, stage.get("folder", ".")), stage, found)
        stages.append((f"stage-{index}", stage, found, parts))
    main = element(
        "main",
        header(report),
        _overview(stages) if len(stages) > 1 else None,
        [_stage(*stage) for stage in stages],
        _licenses(report["stages"]),
        _configuration(workdir / CONFIG),
        element(
            "footer",
            f"Made by promptgen_jax from {INPUT}. To make it again: ",
            element("code", "promptgen report WORKDIR"),
        ),
    )
    return document(report["title"], _contents(report, stages), main)


def document(title: str, *body: Html) -> str:
    """The HTML text of a self-contained page."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", Html(resources.files(__package__).joinpath("style.css").read_text(encoding="utf-8"))),
    )
    return f"<!DOCTYPE html>\n{element('html', head, element('body', *body), lang='en')}\n"


def _read_report(path: Path) -> dict:
    report = _without_nan(documents.read(path, documents.Report, advice=AGAIN))
    return {**report, "stages": report.get("stages", [])}


def write_rendered(
    folder: str | Path, source: str, page: str, render: Callable[[Path, dict], str], whence: str
) -> Path:
    """Renders the JSON file `source` of a folder to its file `page`, written atomically; returns its path.

    Raises:
      FileNotFoundError: no such file, `whence` says what writes it; ValueError: it is damaged.
    """
    folder = Path(folder)
    if not (folder / source).is_file():
        raise FileNotFoundError(f"{folder}: holds no {source}, {whence}")
    disk.write_bytes(folder / page, render(folder, read_json(folder / source)).encode())
    return folder / page


def read_json(path: Path) -> dict:
    """The JSON of a file, NaN as None. Raises ValueError where it is damaged."""
    return _without_nan(disk.read_json(path, advice=AGAIN))


def _without_nan(value):
    """NaN means that there is no number; an infinite distance means what it says."""
    if isinstance(value, dict):
        return {name: _without_nan(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def header(report: dict) -> Html:
    """Title, description, and how the page was made."""
    facts = [("Created", _minutes(report.get("created"))), ("Hardware", report.get("hardware"))]
    versions = " · ".join(f"{name} {version}" for name, version in (report.get("versions") or {}).items())
    facts += [("Versions", versions)]
    terms = [[element("dt", name), element("dd", value)] for name, value in facts if value]
    return element(
        "header",
        element("h1", report["title"]),
        element("p", report["description"], class_="lead") if report.get("description") else None,
        element("dl", terms) if terms else None,
        element("pre", element("code", report["command"]), class_="command") if report.get("command") else None,
    )


def _minutes(created: Any) -> Any:
    """An ISO time without its seconds; anything else as it is."""
    try:
        return datetime.datetime.fromisoformat(created).isoformat(sep=" ", timespec="minutes")
    except (TypeError, ValueError):
        return created


def _contents(report: dict, stages: list) -> Html:
    items = [
        element(
            "li",
            element("a", stage["name"], href=f"#{anchor}"),
            element(
                "ul",
                [element("li", element("a", title, href=f"#{anchor}-{part}")) for part, title, _ in parts],
            ),
        )
        for anchor, stage, _, parts in stages
    ]
    if _licenses(report["stages"]) is not None:
        items.append(element("li", element("a", "Licences", href="#licenses")))
    return element("nav", element("b", "Contents"), element("ul", items), aria_label="Contents")


def _overview(stages: list) -> Html | None:
    rows = [
        [element("a", stage["name"], href=f"#{anchor}") if index == 0 else "", line.label, change(line)]
        for anchor, stage, found, _ in stages
        for index, line in enumerate(found.headline)
    ]
    if not rows:
        return None
    return element(
        "section",
        element("h2", "At a glance"),
        table(["Stage", "Measure", "Before → after"], rows),
        class_="overview",
    )


def _stage(anchor: str, stage: dict, found: Measured, parts: list) -> Html:
    return element(
        "section",
        element("h2", stage["name"]),
        element("p", stage["summary"], class_="lead") if stage.get("summary") else None,
        headline(found.headline),
        measured_line(found.options),
        [
            element("section", element("h3", title), content, id=f"{anchor}-{part}", class_="part")
            for part, title, content in parts
        ],
        id=anchor,
        class_="stage",
    )


def _licenses(stages: list[dict]) -> Html | None:
    """Each weight file that any stage used, once."""
    rows = {
        tuple(str(item.get(key) or "–") for key in ("name", "license", "source")): None
        for stage in stages
        for item in stage.get("licenses") or []
    }
    if not rows:
        return None
    text = "Of every file of weights that this run used. Results inherit these terms."
    return element(
        "section",
        element("h2", "Licences"),
        element("p", text),
        table(["Weights", "Licence", "Source"], [list(row) for row in rows]),
        id="licenses",
        class_="licenses",
    )


def _configuration(path: Path) -> Html | None:
    if not path.is_file():
        return None
    text = json.dumps(read_json(path), indent=2, ensure_ascii=False)
    return element("details", element("summary", "Full configuration"), element("pre", element("code", text)))
