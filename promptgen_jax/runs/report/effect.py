"""What a prompt does, for its card: the measured figures of its stage as Markdown."""

from __future__ import annotations

from typing import Any

from promptgen_jax.evaluation.stage import Measured
from promptgen_jax.metrics import Estimate, Figure, JudgedShares
from promptgen_jax.metrics._figures import TITLES
from promptgen_jax.store.card import escape

EFFECT = "Measured effect"


def effect_note(stage: dict) -> tuple[str, str]:
    """Title and text on what a prompt does, from the entry of its stage in report.json."""
    found = Measured.from_json(stage)
    lines = [f"- {escape(line.text())}" for line in found.headline]
    figures = [*found.statistics, *(row for each in found.own.values() for row in each.rows)]
    if rows := [*_share_rows(found.shares), *map(_figure_row, figures)]:
        lines += ["", "| what, 95 % interval in brackets | before | after |", "| --- | --- | --- |", *rows]
    lines += _distances(found.shares)
    if found.certificate and "verdict" in found.certificate:
        text = (
            "Certificate: {verdict}. KL divergence to the target {kl:.3g} nats from the flow's side and "
            "{forward_kl:.3g} from the target's; {missed_mass:.0%} of the target is missed; of {num_samples} samples "
            "{ess:.1f} are effective."
        ).format(**found.certificate)
    elif certificate := found.certificate:
        text = (
            "Certificate: of {num_samples} samples {ess:.1f} are effective; {kl:.3g} nats of KL divergence to the "
            "target, estimated from the flow's own samples, which do not show what it misses."
        ).format(**certificate)
    else:
        text = "No certificate: this target has no fixed density."
    return EFFECT, "\n".join([*lines, "", text, *_options(found)]).strip()


def _share_rows(shares: tuple[JudgedShares, ...]) -> list[str]:
    return [
        f"| share of {escape(label)}, by {escape(row.judge)} ({row.role}, {row.num_samples} samples){_asked(row, k)} "
        f"| {_percent(row.shares['before'][label].hard)} | {_percent(row.shares['after'][label].hard)} |"
        for row in shares
        for k, label in enumerate(row.labels)
    ]


def _asked(row: JudgedShares, k: int) -> str:
    return "" if row.target is None else f", target {100 * row.target[k]:.3g} %"


def _figure_row(row: Figure) -> str:
    what = escape(", ".join(filter(None, ("mean " + row.name, row.unit))))
    return f"| {what} | {_mean(row.values.get('before'))} | {_mean(row.values.get('after'))} |"


def _distances(shares: tuple[JudgedShares, ...]) -> list[str]:
    """A table of the distances to the targets that were asked for."""
    rows = [
        f"| {escape(row.attribute)}, by {escape(row.judge)} | {TITLES.get(draws, draws).lower()} "
        f"| {_interval(distance.soft)} | {_interval(distance.hard)} |"
        for row in shares
        for draws, distance in row.kl.items()
    ]
    head = ["", "| KL to the target, nats | samples | soft shares | hard shares |", "| --- | --- | --- | --- |"]
    return [*head, *rows] if rows else []


def _options(found: Measured) -> list[str]:
    """What it was measured with."""
    options = found.options
    judges = ", ".join(
        f"{escape(name)} ({escape(', '.join(kinds))})" for name, kinds in options.get("judges", {}).items() if kinds
    )
    facts = [
        f"{options['num_samples']:,} samples" if "num_samples" in options else "",
        f"seed {options['seed']}" if "seed" in options else "",
        f"judged by {judges}" if judges else "",
    ]
    return ["", f"Measured on {', '.join(filter(None, facts))}."] if any(facts) else []


def _percent(share: Any) -> str:
    return "{:.1f} % [{:.1f}, {:.1f}]".format(*(100 * value for value in (share.mean, share.low, share.high)))


def _mean(found: Estimate | None) -> str:
    return "" if found is None else _interval(found)


def _interval(found: Estimate) -> str:
    ends = "" if found.low is None else f" [{found.low:.3g}, {found.high:.3g}]"
    return f"{found.mean:.3g}{ends}"
