"""What a prompt with strengths does along its dials: curves with the knee marked, and the table behind them."""

from __future__ import annotations

from promptgen_jax.metrics import Estimate
from promptgen_jax.metrics._dials import DialCertificate, Setting
from promptgen_jax.runs.report.charts import curve_chart
from promptgen_jax.runs.report.markup import Html, element, interval, number, percent, table

INTRO = (
    "One training serves every setting. All settings share the noise and the generator's samples. log Z is known "
    "twice: from weights at each setting, and by adding up what the energy does on the way there (thermodynamic "
    "integration over samples of the target); where they agree, trust the curves."
)


def dial(found: DialCertificate | None) -> Html | None:
    """Charts of energy, shares, distances and log Z along the dials, and a table of the same.

    Args:
      found: of a prompt with strengths alone.
    """
    if not found:
        return None
    axis, xs = _way(found.settings)
    mark = None if found.knee is None else xs[found.knee]
    charts = [curve_chart(name, axis, xs, curves, mark=mark) for name, curves in _curves(found.settings).items()]
    remarks = element("ul", [element("li", note) for note in found.notes]) if found.notes else None
    badge = _badge(found)
    return element("div", element("p", INTRO), badge, remarks, element("div", charts, class_="charts"), _rows(found))


def _way(settings: tuple[Setting, ...]) -> tuple[str, list[float]]:
    """What the settings are drawn over: the one condition, or how far all of them are turned, from 0 to 1."""
    first, last = settings[0].condition, settings[-1].condition
    names = [name for name in first if first[name] != last[name]] or list(first)
    if len(names) == 1:
        return names[0], [each.condition[names[0]] for each in settings]
    way = {name: last[name] - first[name] for name in names}
    turned = [max((each.condition[name] - first[name]) / way[name] for name in names) for each in settings]
    return f"{' and '.join(names)}, together", turned


def _badge(found: DialCertificate) -> Html:
    mood, text = ("good", "agrees") if found.agrees else ("bad", "disagrees")
    return element("p", "log Z and its integral: ", element("span", text, class_=f"verdict {mood}"))


def _curves(settings: tuple[Setting, ...]) -> dict[str, list]:
    """Curves by chart: (style, name, estimates)."""
    found = {
        _title(name): [
            ("mean", "flow", [each.means[name] for each in settings]),
            ("was", "target", [each.target_means[name] for each in settings]),
        ]
        for name in settings[0].means
    }
    found |= {f"Share of {label}": [("mean", "", _of(settings, label))] for label in settings[0].shares}
    certificates = [each.certificate for each in settings]
    distances = [
        ("mean", "gap, seen from the flow", [_with(c.reverse_kl, c.reverse_kl_interval) for c in certificates]),
        ("was", "gap, seen from the target", [_with(c.forward_kl, c.forward_kl_interval) for c in certificates]),
        ("target", "target to the generator", [each.kl_generator for each in settings]),
    ]
    log_z = [
        ("mean", "by weights", [_with(c.log_z, c.log_z_interval) for c in certificates]),
        ("target", "integrated", [each.log_z_integrated for each in settings]),
    ]
    return found | {"KL divergence, nats": distances, "log Z": log_z}


def _title(name: str) -> str:
    return name[:1].upper() + name[1:]


def _of(settings: tuple[Setting, ...], label: str) -> list[Estimate]:
    return [each.shares[label] for each in settings]


def _with(value: float, ends: tuple[float, float]) -> Estimate:
    return Estimate(value, low=ends[0], high=ends[1])


def _rows(found: DialCertificate) -> Html:
    first = found.settings[0]
    header = [
        ", ".join(first.condition),
        "log Z",
        "integrated",
        "Target to the generator",
        "Gap from the flow",
        "Gap from the target",
        *(_title(name) for name in first.means),
        *(f"Share of {label}" for label in first.shares),
    ]
    rows = []
    for index, each in enumerate(found.settings):
        seen = each.certificate
        rows.append(
            [
                f"{', '.join(map(number, each.condition.values()))}{' (knee)' if index == found.knee else ''}",
                [number(seen.log_z), interval(*seen.log_z_interval)],
                [number(each.log_z_integrated.mean), "" if each.agrees else " disagrees"],
                number(each.kl_generator.mean),
                [number(seen.reverse_kl), interval(*seen.reverse_kl_interval)],
                [number(seen.forward_kl), interval(*seen.forward_kl_interval)],
                *(number(mean.mean) for mean in each.means.values()),
                *([percent(share.mean), interval(share.low, share.high, percent)] for share in each.shares.values()),
            ]
        )
    return table(header, rows)
