"""The parts of a stage: functions from a piece of report.json to HTML, or to None if the piece is missing."""

from __future__ import annotations

import base64
import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from promptgen_jax.runs.report import charts
from promptgen_jax.runs.report.certificate import certificate
from promptgen_jax.runs.report.conditions import conditions
from promptgen_jax.runs.report.markup import Html, duration, element, interval, number, percent, table
from promptgen_jax.store import logs

MAX_WIDTH = 1280  # of an embedded picture; larger ones are reduced
TINY = 480  # to about this width small pictures are enlarged, by whole factors and with hard pixels
ROLES = {
    "control": "This judge is the control itself. It was optimised, so it is expected to be pleased.",
    "independent judge": "This judge took no part in training, so it can contradict the control.",
}
CURVES = {
    "loss": "The training loss: lower is better.",
    "prior": "Price of the latents under the generator's own prior.",
    "log_det": "How much the flow stretches (above 0) or squeezes latent space.",
    "grad_norm": "Size of the gradient.",
}
DIVERSITY = {
    "pixel_std": "Standard deviation of pixels over samples (larger: more diverse)",
    "embedding_cosine": "Mean cosine between embeddings of two samples (smaller: more diverse)",
}


def stage_parts(folder: Path, stage: dict) -> list[tuple[str, str, Html]]:
    """All parts of a stage that have something to show, in reading order.

    Args:
      folder: the work directory of the stage, which holds its images and metrics.jsonl.
      stage: an entry of `stages` in report.json.

    Returns:
      (id, title, content) per part.

    Raises:
      ValueError: a damaged metrics.jsonl.
    """
    parts = [
        ("samples", "Samples", images(folder, stage.get("images"))),
        ("shares", "Who appears how often", shares(stage.get("shares"))),
        ("conditions", "What each condition does", conditions(stage.get("conditions"))),
        ("statistics", "Measured attributes", statistics(stage.get("statistics"))),
        ("diversity", "Diversity", diversity(stage.get("diversity"))),
        ("certificate", "Certificate: how close to what was asked", certificate(stage.get("exactness"))),
        ("plots", "Plots", images(folder, stage.get("plots"))),
        ("training", "Training", training(folder, stage)),
        ("notes", "Notes", notes(stage.get("notes"))),
    ]
    return [part for part in parts if part[2] is not None]


def headline(items: list[dict] | None) -> Html | None:
    """Large before-and-after figures: [{"label", "before", "after", "unit"}]."""
    if not items:
        return None
    cards = [
        element(
            "div",
            element("span", item["label"], class_="card-label"),
            element("span", *change(item), class_="card-value"),
            class_="card",
        )
        for item in items
    ]
    return element("div", cards, class_="cards")


def change(item: dict) -> list:
    """A headline as 20 → 88 %; only what is there."""
    unit = f"\u00a0{item['unit']}" if item.get("unit") else ""
    before, after = item.get("before"), item.get("after")
    start = [] if before is None else [element("span", number(before), class_="was"), " → "]
    return [*start, element("strong", number(after)), unit]


def images(folder: Path, items: list[dict] | None) -> Html | None:
    """Pictures embedded as PNG: [{"file", "caption"}]; a file that cannot be shown is named instead."""
    shown = [item for item in items or [] if Path(str(item.get("file"))).suffix != ".npz"]
    return (
        element("div", [_figure(folder / item["file"], item.get("caption")) for item in shown], class_="pictures")
        if shown
        else None
    )


def _figure(path: Path, caption: str | None) -> Html:
    try:
        content, width, height, note = _embeddable(path)
    except FileNotFoundError:
        return element("p", f"{path.name}: this picture is not in the run's folder.", class_="missing")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return element("p", f"{path.name}: this file is not a picture that can be shown.", class_="missing")
    scale = max(1, TINY // width)
    picture = element(
        "img",
        src="data:image/png;base64," + base64.b64encode(content).decode(),
        alt=caption or path.name,
        width=width * scale,
        height=height * scale,
        class_="tiny" if scale > 1 else None,
    )
    text = element("figcaption", caption, f" {note}" if note else None) if caption or note else None
    return element("figure", picture, text, style=f"width:{width * scale}px")


def _embeddable(path: Path) -> tuple[bytes, int, int, str]:
    """PNG bytes of a picture, its width and height, and a remark if it had to be reduced."""
    content = path.read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # a large grid of our own
        with Image.open(io.BytesIO(content)) as picture:
            picture.load()
            width, height = picture.size
            if picture.format == "PNG" and width <= MAX_WIDTH:
                return content, width, height, ""
            small = picture.convert("RGB")
    note = ""
    if width > MAX_WIDTH:
        small = small.resize((MAX_WIDTH, max(1, round(height * MAX_WIDTH / width))), Image.Resampling.LANCZOS)
        note = f"(Reduced; the file {path.name} has {width} × {height} pixels.)"
    file = io.BytesIO()
    small.save(file, format="PNG", optimize=True)
    return file.getvalue(), *small.size, note


def shares(judges: list[dict] | None) -> Html | None:
    """Per judge a chart and a table of class shares before and after."""
    if not judges:
        return None
    explanation = element(
        "p",
        "A judge is a classifier that looks at samples. The ",
        element("b", "soft share"),
        " of a class is the probability that the judge gives it, averaged over samples; the ",
        element("b", "hard share"),
        " is how often the class is its first choice. Small print and whiskers are 95\u00a0% intervals. "
        "A judge can be wrong: shares are what it sees, not what is true.",
    )
    return element("div", explanation, [_judge(judge) for judge in judges])


def _judge(judge: dict) -> Html:
    labels, target = [str(label) for label in judge["labels"]], judge.get("target")
    named = [
        ("before", "before", "Before"),
        ("after", "after", "After"),
        ("weighted", "weighted", "Reweighted"),
    ]
    series = [(style, title, judge[key]) for key, style, title in named if judge.get(key)]
    header = ["Class", *(["Target"] if target else [])]
    header += [f"{title}, {kind}" for _, title, _ in series for kind in ("soft", "hard")]
    rows = [
        [label, *([percent(target[k])] if target else [])]
        + [_share_cell(found.get(label) or {}, kind) for _, _, found in series for kind in ("soft", "hard")]
        for k, label in enumerate(labels)
    ]
    role = judge.get("role")
    about = [ROLES.get(role)]
    if judge.get("num_samples"):
        about.append(f"{number(judge['num_samples'])} samples each.")
    if judge.get("weighted"):
        about.append("Reweighted: after, with importance weights that correct what the flow left over.")
    return element(
        "section",
        element(
            "h4",
            judge.get("attribute", "classes"),
            " as seen by ",
            element("code", judge["judge"]),
            element("span", role, class_=f"role {'own' if role == 'control' else ''}") if role else None,
        ),
        element("p", " ".join(text for text in about if text)),
        _legend([(style, title.lower()) for style, title, _ in series], bool(target)),
        charts.share_chart(
            f"Shares of {', '.join(labels)}", labels, [(style, found) for style, _, found in series], target
        ),
        table(header, rows),
        _kl_line(judge),
        class_="judge",
    )


def _legend(series: list[tuple[str, str]], target: bool) -> Html:
    keys = [element("span", element("i", class_=f"key {style}"), title) for style, title in series]
    keys.append(element("span", element("i", class_="key hard"), "hard share"))
    keys += [element("span", element("i", class_="key target"), "target")] if target else []
    return element("p", keys, class_="legend")


def _share_cell(share: dict, kind: str) -> list:
    return [percent(share.get(kind)), interval(share.get(f"{kind}_low"), share.get(f"{kind}_high"), percent)]


def _kl_line(judge: dict) -> Html | None:
    distances = [judge["kl"][when] for when in ("before", "after") if when in (judge.get("kl") or {})]
    if not distances:
        return None
    found = [element("li", f"{kind} shares: ", _arrow(distances, kind)) for kind in ("soft", "hard")]
    text = "Distance of the shares to the target (KL in nats, 0 is a perfect match), with 95\u00a0% intervals:"
    return element("div", element("p", text), element("ul", found))


def _arrow(distances: list[dict], kind: str) -> list:
    shown = []
    for found in distances:
        shown += [" → "] if shown else []
        shown += [element("b", number(found[kind])), interval(found.get(f"{kind}_low"), found.get(f"{kind}_high"))]
    return shown


def statistics(items: list[dict] | None) -> Html | None:
    """Continuous attributes: mean and spread before and after, beside the target."""
    if not items:
        return None
    text = (
        "Dots are means, bars reach one standard deviation to each side, a dashed line is the target. Small "
        "print is the 95\u00a0% interval of the mean."
    )
    return element(
        "div",
        element("p", text),
        element("div", [_statistic(item) for item in items], class_="charts"),
    )


def _statistic(item: dict) -> Html:
    unit, target = item.get("unit"), item.get("target")
    rows = [(when, item[when]) for when in ("before", "after") if item.get(when)]
    drawn = [(when, row) for when, row in rows if row.get("mean") is not None]
    cells = [
        [when, [number(row.get("mean")), interval(row.get("low"), row.get("high"))], number(row.get("std"))]
        for when, row in rows
    ]
    cells += [["target", number(target), ""]] if target is not None else []
    return element(
        "div",
        element("h4", item["name"], f" ({unit})" if unit else ""),
        charts.spread_chart(f"{item['name']} before and after", drawn, target) if drawn else None,
        table(["", "Mean", "Standard deviation"], cells),
    )


def diversity(items: list[dict] | None) -> Html | None:
    """Figures that would fall if all samples came to look alike."""
    if not items:
        return None
    rows = [[DIVERSITY.get(i["name"], i["name"]), number(i.get("before")), number(i.get("after"))] for i in items]
    text = "Control should change what was asked for, not make all samples alike. After should stay near before."
    return element("div", element("p", text), table(["Measure", "Before", "After"], rows))


def training(folder: Path, stage: dict) -> Html | None:
    """Curves of everything in metrics.jsonl, and what the training cost."""
    rows = logs.read_metrics(folder)
    names = list(dict.fromkeys(name for row in rows for name in row if name not in logs.RESERVED))
    names.sort(key=lambda name: (name != "loss", not name.startswith("energy/"), name not in CURVES))
    drawn = []
    for name in names:
        found = [(row["step"], row[name]) for row in rows if name in row]
        what = CURVES.get(name)
        if name.startswith("energy/"):
            what = f"Distance from what the control “{name.removeprefix('energy/')}” asks: lower is better."
        optimum = (stage.get("exactness") or {}).get("loss_optimum") if name == "loss" else None
        drawn.append(charts.line_chart(name, *np.array(found, float).T, optimum=optimum, what=what))
    drawn = [chart for chart in drawn if chart is not None]
    cost = _cost(stage.get("timing") or {})
    if not drawn and cost is None:
        return None
    return element("div", cost, element("div", drawn, class_="charts") if drawn else None)


def _cost(timing: dict) -> Html | None:
    compiled, trained, steps = (timing.get(key) for key in ("compile_seconds", "train_seconds", "steps"))
    facts = [
        f"{number(steps)} steps" if steps is not None else None,
        f"{duration(trained)} of training" if trained is not None else None,
        f"{number(steps / trained)} steps per second" if steps and trained else None,
        f"{duration(compiled)} of compilation" if compiled is not None else None,
        f"{number(timing['images'])} images generated" if timing.get("images") is not None else None,
    ]
    facts = [fact for fact in facts if fact]
    return element("p", " · ".join(facts), class_="facts") if facts else None


def notes(items: list[str] | None) -> Html | None:
    """Free remarks."""
    return element("ul", [element("li", item) for item in items]) if items else None
