"""Everything the report says of one trained prompt: shares, pose, diversity, certificate, before and after.

Before is the generator that the prompt stands on, after the prompt, on the same noise; weighted is after, reweighted to
the target. The noise is drawn from the prior, so its own energies also estimate log Z.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax

from promptgen_jax import parts
from promptgen_jax.draws import Draws
from promptgen_jax.ebm import LatentEBM
from promptgen_jax.metrics import (
    About,
    Figure,
    Figures,
    Headline,
    JudgedShares,
    certificate,
    conditions,
    cost,
    dial,
    diversity,
    energies,
    frechet,
    kid,
    observe,
    pose,
    shares,
)
from promptgen_jax.metrics._dials import DialCertificate
from promptgen_jax.metrics._missed import share_notes
from promptgen_jax.prompt import Prompt

POSES = {"frechet": frechet.measure, "kid": kid.measure}  # beside errors and identity, as in Table 3 of the paper
NO_CERTIFICATE = (
    "There is no certificate: {} compares with an image that the flow itself makes, so there is no target density "
    "apart from the flow."
)


@dataclass(frozen=True)
class Measured:
    """What is known of a stage, for report, card and JSON.

    Attributes:
      headline: the few lines that say what was reached.
      shares: of judges' classes.
      statistics: angles and energies.
      diversity: of pixels and embeddings.
      certificate: figures of `exactness`, or None where the target has no density of its own.
      conditions: of a prompt with conditions, else None.
      dial: the certificate along the dials of a prompt with strengths alone, else None.
      own: what metrics of one's own found, by their names.
      notes: remarks.
      options: what it was measured with.
    """

    headline: tuple[Headline, ...] = ()
    shares: tuple[JudgedShares, ...] = ()
    statistics: tuple[Figure, ...] = ()
    diversity: tuple[Figure, ...] = ()
    certificate: Mapping | None = None
    conditions: conditions.ConditionFigures | None = None
    dial: DialCertificate | None = None
    own: Mapping[str, Figures] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    options: Mapping = field(default_factory=dict)

    def to_json(self) -> dict:
        """As in evaluation.json and report.json."""
        rows = {
            name: [row.to_json() for row in getattr(self, name)]
            for name in ("headline", "shares", "statistics", "diversity")
        }
        return rows | {
            "exactness": None if self.certificate is None else dict(self.certificate),
            "conditions": None if self.conditions is None else self.conditions.to_json(),
            "dial": None if self.dial is None else self.dial.to_json(),
            "metrics": {name: found.to_json() for name, found in self.own.items()},
            "notes": list(self.notes),
            "measured": dict(self.options),
        }

    @classmethod
    def from_json(cls, stage: dict) -> Measured:
        """From an entry of `stages` in report.json, of this or an earlier version; what is missing is left out."""
        types: dict = {
            "headline": Headline,
            "shares": JudgedShares,
            "statistics": Figure,
            "diversity": Figure,
        }
        rows: Any = {name: tuple(map(kind.from_json, stage.get(name) or ())) for name, kind in types.items()}
        found, turned = stage.get("conditions"), stage.get("dial")
        return cls(
            **rows,
            certificate=stage.get("exactness"),
            conditions=conditions.ConditionFigures.from_json(found) if found else None,
            dial=DialCertificate.from_json(turned) if turned else None,
            own={name: Figures.from_json(figures) for name, figures in (stage.get("metrics") or {}).items()},
            notes=tuple(stage.get("notes") or ()),
            options=stage.get("measured") or {},
        )


def evaluate(prompt: Prompt, ebm: LatentEBM, earlier: tuple, judges: dict, key, **options) -> dict:
    """`measure` as JSON.

    Returns:
      dict: `headline`, `shares`, `statistics`, `diversity`, `exactness`, `conditions`, `dial`, `metrics`, `notes`,
      `measured`, as in report.json; `exactness` is None where the target has no density of its own, `conditions` of a
      prompt without conditions, `dial` of one without strengths.
    """
    return measure(prompt, ebm, key, judges=judges, earlier=earlier, **options).to_json()


def measure(
    prompt: Prompt,
    ebm: LatentEBM,
    key,
    *,
    num_samples: int,
    judges: Mapping[str, Sequence[str]] | None = None,
    earlier: tuple = (),
    trained: bool = True,
    metrics: Sequence[str | Callable] = (),
    samplers: Mapping[str, Callable] | None = None,
    real: Mapping[str, str | Path] | None = None,
    batch_size: int | None = None,
) -> Measured:
    """Measures a prompt on fresh noise, a conditional one on conditions drawn from those trained on.

    Args:
      prompt: trained on `ebm`.
      ebm: target; its generator is the prompt's inner generator.
      key: frozen draws.
      num_samples: of the prior and of the prompt.
      judges: attributes by name of a network, shown beside those of the controls; () for a network without classes.
      earlier: controls of the prompts inside it, which are no independent judges any more.
      trained: False for a prompt that is the identity still: the headline then tells the reweighted shares.
      metrics: of one's own, beside those that are always measured: functions, or names of modules, with `measure`.
      samplers: of the same target, by name, see `promptgen_jax.samplers`; as many draws of each are measured beside.
      real: folders of real pictures, or .npz files of their statistics, by name of the network that they are compared
        with samples by, see `metrics.frechet`.
      batch_size: images per device at a time, on which the result does not depend; None for what
        `devices.seen_at_a_time` says.

    Raises:
      ValueError: an unknown metric, attribute or network; what a sampler raises, and `frechet.of_real`.
    """
    own = {_name(metric): metric if callable(metric) else parts.find("metrics", metric).measure for metric in metrics}
    own |= {"cost": cost.measure} if samplers else {}
    asked, judges, real = list(own), dict(judges or {}), dict(real or {})
    own |= {"frechet": frechet.measure} if real else {}
    own |= POSES if ebm.cond_prior is not None and ebm.cond_prior.of_kind("angle") else {}
    draw: Any = {"prompt": prompt, "key": key, "num_samples": num_samples, "batch_size": batch_size}
    known = {name: frechet.of_real(path, network=name) for name, path in real.items()}
    about = About.of(ebm, dict.fromkeys(real, ()) | judges, earlier=earlier, real=known, **draw)
    eps = prompt.prior.sample(key, num_samples)
    cond = ebm.draw_cond(jax.random.fold_in(key, 1), num_samples)
    before = Draws.of_noise(prompt.prior, eps, jax.random.fold_in(key, 2), cond)
    seen = observe({"before": before, "after": before.through(prompt)}, about)
    found = certificate.measure(seen, about)
    if not ebm.needs_reference:
        seen["weighted"] = seen["after"].reweighted()
    for name, sampler in (samplers or {}).items():
        seen |= observe({name: sampler(jax.random.fold_in(key, 3), ebm, num_samples)}, about)
    when = "after" if trained else "weighted"
    result = Measured(
        shares=shares.measure(seen, about),
        statistics=(*pose.measure(seen, about), *energies.measure(seen, about)),
        diversity=diversity.measure(seen, about),
        certificate=None if found is None else found.to_json(),
        conditions=conditions.measure(seen, about),
        dial=dial.measure(seen, about),
        own={name: rows for name, metric in own.items() if (rows := _figures(name, metric(seen, about)))},
        notes=tuple(NO_CERTIFICATE.format(control.name) for control in ebm.controls if control.needs_reference),
        options={
            "num_samples": num_samples,
            "judges": {name: list(attributes) for name, attributes in about.attributes.items()},
            "metrics": asked,
            "samplers": list(samplers or {}),
        }
        | ({"real": {name: Path(path).name for name, path in real.items()}} if real else {}),
    )
    notes = result.notes if found else (*result.notes, *_missed_shares(result, about))  # the certificate has them too
    return replace(result, notes=notes, headline=headline(result, about, when))


def _missed_shares(result: Measured, about: About) -> Iterator[str]:
    """The notes of shares that a control asks for."""
    for row in (row for row in result.shares if row.target and row.role == "control"):
        aim = about.aim(row.judge, row.attribute)
        count = aim.count if aim else "soft"
        for label, wanted in zip(row.labels, row.target or (), strict=True):
            share = getattr(row.shares["after"][label], count)
            ends = (share.mean, share.low, share.high)
            yield from share_notes(row.attribute, label, wanted, *ends, row.num_samples or 0, count)


def _name(metric: str | Callable) -> str:
    if isinstance(metric, str):
        return metric
    return metric.__module__ if metric.__name__ == "measure" else metric.__name__


def _figures(name: str, found) -> Figures | None:
    """What an own metric returned: `Figures`, rows of them, or nothing where there is nothing to measure."""
    if isinstance(found, (tuple, list)) and all(isinstance(row, Figure) for row in found):
        found = Figures(name, tuple(found)) if found else None
    if not isinstance(found, Figures | None):
        raise ValueError(
            f"metric {name}: returned a {type(found).__name__}; expected Figures, a tuple of Figure, or None. See "
            "docs/extending.md."
        )
    return found


def headline(result: Measured, about: About, when: str) -> tuple[Headline, ...]:
    """What was asked, now and in earlier stages, by every judge that knows it: the control's and the others'.

    Where no control names a label or an angle, as a text does not, what moved most by each judge. Under a constraint on
    shares target, soft and hard share stand together: people count the hard ones, the constraint acts on the soft ones
    unless it says otherwise, and the line tells.
    """
    labels = {label for aim in about.aims() for label in aim.labels}
    wanted = {label: share for aim in about.aims() if aim.unit == "share" for label, share in aim.target}
    asked, most_moved = [], []
    for row in result.shares:
        aim = about.aim(row.judge, row.attribute)
        what = "share" if aim is None or aim.count == "soft" else "share of first choices"
        lines = {label: _share_line(what, row, label, wanted.get(label), when) for label in row.labels}
        asked += [line for label, line in lines.items() if label in labels]
        most_moved.append(max(lines.values(), key=_movement))
    angles = []
    for figure in (figure for figure in result.statistics if figure.unit == "degrees"):
        values = {name: figure.values[name].mean for name in ("before", "after")}
        target = "" if figure.target is None else f", target {figure.target:g}"
        angles.append(Headline(f"mean {figure.name}{target}", values, figure.unit))
        asked += angles[-1:] if figure.target is not None else []
    asked += _condition_lines(result.conditions) if result.conditions else []
    return tuple(asked or most_moved + sorted(angles, key=_movement)[-1:])


def _share_line(what: str, row: JudgedShares, label: str, target: float | None, when: str) -> Headline:
    def percent(kind):
        found = {"before": row.shares["before"][label], "after": row.shares[when][label]}
        return {name: 100 * getattr(share, kind).mean for name, share in found.items()}

    return Headline(
        f"{what} of {label} ({row.judge}, {row.role})",
        percent("hard"),
        unit="%",
        target=None if target is None else 100 * target,
        soft={} if target is None else percent("soft"),
    )


def _condition_lines(found: conditions.ConditionFigures) -> list[Headline]:
    lines = [
        Headline(
            f"mean error of {row['angle']}",
            {when: row[when]["error"] for when in ("before", "after")},
            unit=found.unit(row["angle"]),
        )
        for row in found.pose
    ]
    return lines + [
        Headline(
            f"identity distance, one face in two poses ({row['network']}); two faces: {row['different']:.2f}",
            {"after": row["same"]},
        )
        for row in found.identity
    ]


def _movement(line: Headline) -> float:
    values: Any = line.values
    return abs(values["after"] - values["before"])
