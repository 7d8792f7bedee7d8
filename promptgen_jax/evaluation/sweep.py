"""One key of a configuration at several values: what each buys, energy against the distance to the generator.

The flow of Eq. 10 trades energy for closeness to the generator. From a knee on, a nat of distance buys less energy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from scipy.special import stdtrit

from promptgen_jax.draws import Draws
from promptgen_jax.ebm import LatentEBM
from promptgen_jax.evaluation.compare import FLOW, PRIOR, asked
from promptgen_jax.metrics import About, Estimate, Figure, Observed, certificate, diversity, observe
from promptgen_jax.metrics._intervals import mean_estimate
from promptgen_jax.prompt import Prompt
from promptgen_jax.store.fingerprint import fingerprint
from promptgen_jax.training.together import bare
from promptgen_jax.types import Array

ENERGY, TO_GENERATOR, TO_TARGET, SHARE = "energy", "KL to the generator", "KL to the target", "effective share"
FAR = 0.1  # effective share below which a flow is not close to its target


class Pool:
    """Samples of the prior, seen once for all targets that differ in the weights of controls alone."""

    def __init__(self, key: Array, num_samples: int):
        """Of a key and a number of samples; none drawn yet."""
        self.key, self.num_samples = key, num_samples
        self._seen: dict[str, Observed] = {}

    def of(self, about: About) -> Draws:
        """The samples, weighted for the target."""
        ebm = about.ebm
        plain = ebm.replace(controls=tuple(control.replace(weight=1.0) for control in ebm.controls))  # type: ignore
        asked_for = fingerprint(plain)
        if asked_for not in self._seen:
            self._seen[asked_for] = observe({PRIOR: self.drawn(ebm)}, about)[PRIOR]
        seen = self._seen[asked_for]
        return seen.draws.weighted(-np.asarray(ebm.total(seen.energies, seen.draws.cond)))  # type: ignore[arg-type]

    def drawn(self, ebm: LatentEBM) -> Draws:
        """The samples, equally weighted."""
        cond = ebm.draw_cond(jax.random.fold_in(self.key, 1), self.num_samples)
        return Draws.of_prior(ebm.generator.prior, self.key, self.num_samples, cond=cond)


def measure(
    prompt: Prompt, ebm: LatentEBM, ruler: LatentEBM, pool: Pool, judges: Mapping, *, earlier: tuple = ()
) -> tuple[Figure, ...]:
    """Figures of a trained flow, as draws of the name "flow".

    Args:
      prompt: trained on `ebm`.
      ebm: its target.
      ruler: a target with the same controls, by whose weights all energies are told, so that they compare.
      pool: samples of the prior.
      judges: attributes by name of a network.
      earlier: controls of the prompts below.
    """
    ebm = bare(ebm)
    about, prompt = About.of(ebm, judges, earlier=earlier), Prompt(ebm.generator, prompt.flow, prompt.params)
    moved = pool.drawn(ebm).through(prompt)
    seen = observe({FLOW: moved}, about)
    found = seen[FLOW]
    energy = np.asarray(ruler.total(found.energies, moved.cond), np.float64)  # type: ignore[arg-type]
    log_prior = np.asarray(ebm.generator.prior.log_prob(moved.z), np.float64)
    known = certificate.of_draws(prompt, moved.weighted(found.log_importance), pool.of(about))
    return (
        Figure(ENERGY, {FLOW: mean_estimate(energy)}, "nats"),
        Figure(TO_GENERATOR, {FLOW: mean_estimate(np.asarray(moved.log_prob) - log_prior)}, "nats"),
        Figure(TO_TARGET, {FLOW: Estimate(known.reverse_kl, None, *known.reverse_kl_interval)}, "nats", target=0.0),
        Figure(SHARE, {FLOW: Estimate(known.ess_flow / len(moved.z))}, target=1.0),
        *asked(about, seen),
        *diversity.measure(seen, about),
    )


def over_seeds(found: Sequence[tuple[Figure, ...]]) -> tuple[Figure, ...]:
    """Figures of one value over its seeds: mean and Student's interval; those of a single one as they are."""
    return tuple(_over_seeds(rows) for rows in zip(*found, strict=True))


def _over_seeds(rows: tuple[Figure, ...]) -> Figure:
    if len(rows) == 1:
        return rows[0]
    means = np.array([row.values[FLOW].mean for row in rows], np.float64)
    half = float(stdtrit(len(rows) - 1, 0.975) * means.std(ddof=1) / np.sqrt(len(rows)))
    mean = float(means.mean())
    value = Estimate(mean, float(means.std(ddof=1)), mean - half, mean + half)
    return Figure(rows[0].name, {FLOW: value}, rows[0].unit, rows[0].target)


def side_by_side(found: Mapping[str, tuple[Figure, ...]]) -> tuple[Figure, ...]:
    """The figures of all values, by value."""
    tables = [{row.name: row for row in rows} for rows in found.values()]
    names = dict.fromkeys(name for table in tables for name in table)
    first = {name: next(table[name] for table in tables if name in table) for name in names}
    return tuple(
        Figure(
            name,
            {v: table[name].values[FLOW] for v, table in zip(found, tables, strict=True) if name in table},
            row.unit,
            row.target,
        )
        for name, row in first.items()
    )


def knee(distance: Sequence[float], energy: Sequence[float]) -> int | None:
    """Where the curve of energy over distance lies furthest below the line between its ends, both scaled to 1.

    None with fewer than three points, and for a curve that lies nowhere below it by more than a twentieth.
    """
    x, y = np.asarray(distance, np.float64), np.asarray(energy, np.float64)
    first, last = int(np.argmin(x)), int(np.argmax(x))
    if len(x) < 3 or x[first] == x[last] or y[first] <= y[last]:
        return None
    across, down = (x - x[first]) / (x[last] - x[first]), (y[first] - y) / (y[first] - y[last])
    below = down - across
    best = int(np.argmax(below))
    return best if below[best] > 0.05 else None


def advice(rows: Sequence[Figure], *, same_target: bool) -> tuple[str | None, str]:
    """The value to use and the sentence that says so.

    Args:
      rows: as `side_by_side` gives them.
      same_target: whether the values change how the flow is trained and not what for.
    """
    table = {row.name: {value: _mean(found) for value, found in row.values.items()} for row in rows}
    energy, distance, apart = table[ENERGY], table[TO_GENERATOR], table[TO_TARGET]
    if same_target:
        best = min(apart, key=lambda value: apart[value])
        return best, (
            f"Use {best} unless another is cheaper: all have the same target, and its flow is the closest, "
            f"{apart[best]:.3g} nats from it."
        )
    values = list(energy)
    at = knee([distance[value] for value in values], [energy[value] for value in values])
    if at is None:
        return None, (
            "There is no knee: no value buys clearly more energy for a nat than the others. Choose by the "
            "shares below, or try values further apart."
        )
    best, ends = values[at], sorted(values, key=lambda value: distance[value])
    before, after = (_price(energy, distance, *pair) for pair in ((ends[0], best), (best, ends[-1])))
    more = next((f"{row.name} above {row.values[best].mean:.3g} %" for row in rows if row.unit == "%"), "less energy")
    return best, (
        f"Use {best} unless you need {more}: up to there a nat of distance to the generator lowers the energy "
        f"by {before:.3g}, beyond by {after:.3g}."
    )


def _mean(found: Estimate) -> float:
    return float("nan") if found.mean is None else found.mean


def _price(energy: Mapping[str, Any], distance: Mapping[str, Any], one: str, other: str) -> float:
    gained = energy[one] - energy[other]
    return gained / max(distance[other] - distance[one], 1e-9)


def notes(rows: Sequence[Figure], *, num_seeds: int) -> Iterator[str]:
    """Remarks on what the figures do not show."""
    shares = next(row for row in rows if row.name == SHARE).values
    far = [value for value, found in shares.items() if found.mean is not None and found.mean < FAR]
    if far:
        yield (
            f"{', '.join(far)}: the flow is not close to its target, with an effective share below {FAR:g}; so the "
            "figures there are of the training as much as of the value. Train longer."
        )
    energy = list(next(row for row in rows if row.name == ENERGY).values.values())
    lowest, highest = (end(energy, key=_mean) for end in (min, max))
    if lowest.high is not None and highest.low is not None and lowest.high > highest.low:
        yield (
            "The energies of all values lie within each other's intervals, so the curve may be chance. Take more "
            "samples or seeds, or values further apart."
        )
    if num_seeds == 1:
        yield "Trained with one seed: the intervals are of samples alone. More seeds show how much trainings differ."
