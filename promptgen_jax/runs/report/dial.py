"""What a prompt with strengths does along its dials: curves with the knee marked, and the table behind them."""

from __future__ import annotations

from promptgen_jax.metrics import Estimate
from promptgen_jax.metrics.dial import DialCertificate, Setting
from promptgen_jax.runs.report.charts import curve_chart
from promptgen_jax.runs.report.markup import Html, element, interval, number, percent, table

INTRO = (
    "One training serves every strength: at 0 samples are the generator's own, exactly. All settings share the noise "
    "and the generator's samples. log Z is known twice: from weights at each setting, and by adding up the energy on "
    "the way there (thermodynamic integration over samples of the target); where they agree, trust the curves."
)


def dial(found: DialCertificate | None) -> Html | None:
    """Charts of energy, shares, distances and log Z along the dials, and a table of the same.

    Args:
      found: of a prompt with strengths alone.
    """
    if not found:
        return None
    names = list(found.settings[0].condition)
    single = len(names) == 1
    axis = f"strength of {names[0]}" if single else f"{' and '.join(names)}, share of full strength"
    last = {name: found.settings[-1].condition[name] or 1.0 for name in names}
    xs = [
        each.condition[names[0]] if single else max(each.condition[name] / last[name] for name in names)
        for each in found.settings
    ]
    mark = None if found.knee is None else xs[found.knee]
    charts = [curve_chart(name, axis, xs, curves, mark=mark) for name, curves in _curves(found.settings).items()]
    remarks = element("ul", [element("li", note) for note in found.notes]) if found.notes else None
    badge = _badge(found)
    return element("div", element("p", INTRO), badge, remarks, element("div", charts, class_="charts"), _rows(found))


def _badge(found: DialCertificate) -> Html:
    mood, text = ("good", "agrees") if found.agrees else ("bad", "disagrees")
    return element("p", "log Z and its integral: ", element("span", text, class_=f"verdict {mood}"))


def _curves(settings: tuple[Setting, ...]) -> dict[str, list]:
    """Curves by chart: (style, name, estimates)."""
    found = {
        f"Energy of {name}": [
            ("mean", "flow", [each.energies[name] for each in settings]),
            ("was", "target", [each.target_energies[name] for each in settings]),
        ]
        for name in settings[0].energies
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
        *(f"Energy of {name}" for name in first.energies),
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
                *(number(energy.mean) for energy in each.energies.values()),
                *([percent(share.mean), interval(share.low, share.high, percent)] for share in each.shares.values()),
            ]
        )
    return table(header, rows)
