"""The parts of a stage: functions from typed figures or a piece of report.json to HTML, or to None if it is missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from promptgen_jax.evaluation.stage import Measured
from promptgen_jax.metrics import Estimate, Figure, Figures, Headline, JudgedShares, Share
from promptgen_jax.metrics._figures import TITLES
from promptgen_jax.runs.report import charts
from promptgen_jax.runs.report.certificate import certificate
from promptgen_jax.runs.report.conditions import conditions
from promptgen_jax.runs.report.dial import dial
from promptgen_jax.runs.report.markup import NO_VALUE, Html, duration, element, interval, number, percent, table
from promptgen_jax.runs.report.pictures import images
from promptgen_jax.store import logs

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


def stage_parts(folder: Path, stage: dict, found: Measured) -> list[tuple[str, str, Html]]:
    """All parts of a stage that have something to show, in reading order.

    Args:
      folder: the work directory of the stage, which holds its images and metrics.jsonl.
      stage: an entry of `stages` in report.json.
      found: the figures in it.

    Returns:
      (id, title, content) per part.

    Raises:
      ValueError: a damaged metrics.jsonl.
    """
    parts = [
        ("samples", "Samples", images(folder, stage.get("images"))),
        ("shares", "Who appears how often", shares(found.shares)),
        ("distances", "Distance to the wanted shares", distances(found.shares)),
        ("conditions", "What each condition does", conditions(found.conditions)),
        ("dial", "Along the dial", dial(found.dial)),
        ("statistics", "Measured attributes", statistics(found.statistics)),
        ("diversity", "Diversity", diversity(found.diversity)),
        *((f"metric-{index}", own.title, figures(own)) for index, own in enumerate(found.own.values())),
        ("certificate", "Certificate: how close to what was asked", certificate(found.certificate)),
        ("plots", "Plots", images(folder, stage.get("plots"))),
        ("training", "Training", training(folder, stage)),
        ("notes", "Notes", notes(found.notes)),
    ]
    return [(name, title, content) for name, title, content in parts if content is not None]


def headline(lines: tuple[Headline, ...]) -> Html | None:
    """Large before-and-after figures."""
    if not lines:
        return None
    cards = [
        element(
            "div",
            element("span", line.label, class_="card-label"),
            element("span", *change(line), class_="card-value"),
            class_="card",
        )
        for line in lines
    ]
    return element("div", cards, class_="cards")


def change(line: Headline) -> list:
    """A headline as 20 → 88 %; a constraint with its target and both kinds of shares; only what is there."""
    unit = f"\u00a0{line.unit}" if line.unit else ""
    if line.target is None:
        return [*_arrows(line.values), unit]
    kinds = {"soft": line.soft, "hard": line.values} if line.soft else {"": line.values}
    shown = [element("span", f"{kind} ", _arrows(found), unit, class_="line") for kind, found in kinds.items()]
    return [element("span", f"target {number(line.target)}{unit}", class_="line"), *shown]


def _arrows(values) -> list:
    """Numbers from the first to the last, which is bold; named where they are not before and after."""
    named = {name: number(value) for name, value in values.items() if value is not None or len(values) == 1}
    if not set(named) <= {"before", "after"}:
        named = {name: f"{name} {value}" for name, value in named.items()}
    *earlier, last = named.values()
    return [[element("span", value, class_="was"), " → "] for value in earlier] + [element("strong", last)]


def measured_line(options) -> Html | None:
    """What a stage was measured with."""
    judges = ", ".join(
        f"{name} ({', '.join(attributes)})" if attributes else name
        for name, attributes in options.get("judges", {}).items()
    )
    facts = [
        f"Measured on {number(options['num_samples'])} samples" if "num_samples" in options else None,
        f"judges: {judges}" if judges else None,
        f"own metrics: {', '.join(options['metrics'])}" if options.get("metrics") else None,
        f"real pictures: {', '.join(options['real'].values())}" if options.get("real") else None,
        f"seed {options['seed']}" if "seed" in options else None,
    ]
    stated = [fact for fact in facts if fact]
    return element("p", " · ".join(stated), class_="facts") if stated else None


def shares(judges: tuple[JudgedShares, ...]) -> Html | None:
    """Per judge a chart and a table of class shares by named draws."""
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


def _judge(judge: JudgedShares) -> Html:
    series = [(_style(name), TITLES.get(name, name), found) for name, found in judge.shares.items()]
    header = ["Class", *(["Target"] if judge.target else []), *(title for _, title, _ in series)]
    rows = [
        [label, *([percent(judge.target[k])] if judge.target else []), *(_both(found[label]) for _, _, found in series)]
        for k, label in enumerate(judge.labels)
    ]
    about = [ROLES.get(judge.role)]
    if judge.num_samples:
        about.append(f"{number(judge.num_samples)} samples each.")
    if "weighted" in judge.shares:
        about.append("Reweighted: after, with importance weights that correct what the flow left over.")
    return element(
        "section",
        element(
            "h4",
            judge.attribute,
            " as seen by ",
            element("code", judge.judge),
            element("span", judge.role, class_=f"role {'own' if judge.role == 'control' else ''}")
            if judge.role
            else None,
        ),
        element("p", " ".join(text for text in about if text)),
        _legend([(style, title.lower()) for style, title, _ in series], bool(judge.target)),
        element(
            "div",
            charts.share_chart(
                f"Shares of {', '.join(judge.labels)}",
                list(judge.labels),
                [(style, found) for style, _, found in series],
                judge.target,
            ),
            table(header, rows),
            class_="beside",
        ),
        class_="judge",
    )


def _style(draws: str) -> str:
    """Style of the chart's bars: draws other than those of a run look like reweighted ones."""
    return draws if draws in TITLES else "weighted"


def _legend(series: list[tuple[str, str]], target: bool) -> Html:
    keys = [element("span", element("i", class_=f"key {style}"), title) for style, title in series]
    keys.append(element("span", element("i", class_="key hard"), "hard share"))
    keys += [element("span", element("i", class_="key target"), "target")] if target else []
    return element("p", keys, class_="legend")


def _both(share: Share) -> list:
    kinds = {"soft": share.soft, "hard": share.hard}
    return [
        element("span", element("span", f"{kind} ", class_="was"), _cell(found, percent), class_="line")
        for kind, found in kinds.items()
    ]


def _cell(found: Estimate, form=number) -> list:
    return [form(found.mean), interval(found.low, found.high, form)]


def distances(judges: tuple[JudgedShares, ...]) -> Html | None:
    """One table of how far the shares are from their targets, by judge and by named draws."""
    asked = [judge for judge in judges if judge.kl]
    if not asked:
        return None
    names = list(dict.fromkeys(name for judge in asked for name in judge.kl))
    text = "KL divergence of the shares to the target in nats, with 95\u00a0% intervals; 0 is a perfect match."
    rows = [
        [
            [f"{judge.attribute} as seen by ", element("code", judge.judge), f", {kind}"],
            *(_cell(of(judge.kl[name])) if name in judge.kl else NO_VALUE for name in names),
        ]
        for judge in asked
        for kind, of in (("soft shares", lambda share: share.soft), ("hard shares", lambda share: share.hard))
    ]
    header = ["Shares", *(TITLES.get(name, name) for name in names)]
    return element("div", element("p", text), table(header, rows))


def statistics(rows: tuple[Figure, ...]) -> Html | None:
    """Continuous attributes: mean and spread by named draws, beside the target."""
    if not rows:
        return None
    text = (
        "Dots are means, bars reach one standard deviation to each side, a dashed line is the target. Small "
        "print is the 95\u00a0% interval of the mean."
    )
    return element("div", element("p", text), [_statistic(row) for row in rows])


def _statistic(row: Figure) -> Html:
    drawn = [(name, found) for name, found in row.values.items() if found.mean is not None]
    cells = [[TITLES.get(name, name), _cell(found), number(found.std)] for name, found in row.values.items()]
    cells += [["Target", number(row.target), ""]] if row.target is not None else []
    return element(
        "div",
        element("h4", row.name, f" ({row.unit})" if row.unit else ""),
        element(
            "div",
            charts.spread_chart(f"{row.name} by samples", drawn, row.target) if drawn else None,
            table(["", "Mean", "Standard deviation"], cells),
            class_="beside",
        ),
    )


def diversity(rows: tuple[Figure, ...]) -> Html | None:
    """Figures that would fall if all samples came to look alike."""
    if not rows:
        return None
    text = "Control should change what was asked for, not make all samples alike. After should stay near before."
    return element("div", element("p", text), _table(rows))


def figures(found: Figures) -> Html:
    """What an own metric found."""
    return element("div", element("p", found.text) if found.text else None, _table(found.rows))


def _table(rows: tuple[Figure, ...]) -> Html:
    """A row a figure, a column for each of the named draws."""
    names = list(dict.fromkeys(name for row in rows for name in row.values))
    target = any(row.target is not None for row in rows)
    cells = [
        [
            f"{DIVERSITY.get(row.name, row.name)}{f', {row.unit}' if row.unit else ''}",
            *(_cell(row.values.get(name, Estimate(None))) for name in names),
            *([number(row.target)] if target else []),
        ]
        for row in rows
    ]
    return table(["Measure", *(TITLES.get(name, name) for name in names), *(["Target"] if target else [])], cells)


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
    stated = [fact for fact in facts if fact]
    return element("p", " · ".join(stated), class_="facts") if stated else None


def notes(items: tuple[str, ...]) -> Html | None:
    """Free remarks."""
    return element("ul", [element("li", item) for item in items]) if items else None
