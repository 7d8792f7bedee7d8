"""Methods side by side on one target: how close each is to the truth, and what it costs (Table 4 of the paper).

Energy alone does not rank methods: the target has one mean energy, and below it a method has gone too far. So every
method stands beside a reference, sequential Monte Carlo. All methods but the reference start from the same noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from promptgen_jax import checks, devices, parts
from promptgen_jax.draws import Draws, images_of, importance
from promptgen_jax.ebm import LatentEBM
from promptgen_jax.metrics import (
    About,
    Estimate,
    Figure,
    JudgedShares,
    Observed,
    certificate,
    clip_score,
    cmmd,
    coverage,
    diversity,
    frechet,
    kid,
    manifold,
    observe,
    perceptual,
    shares,
)
from promptgen_jax.metrics._figures import RESERVED
from promptgen_jax.metrics._intervals import mean_estimate
from promptgen_jax.metrics.certificate import check_certifiable
from promptgen_jax.prompt import Prompt
from promptgen_jax.samplers._chains import stopwatch
from promptgen_jax.types import Array

PRIOR, FLOW, REFERENCE = "prior", "flow", "reference"
REWEIGHTED = "{} reweighted"
OURS = (PRIOR, REWEIGHTED.format(PRIOR), FLOW, REWEIGHTED.format(FLOW), REFERENCE)
RARITY = "how often the generator makes what is asked"
TIMED = 256  # samples that a timing takes at most


@dataclass(frozen=True)
class Comparison:
    """What methods do on one target.

    Attributes:
      figures: rows with a value by method: energy and its gap to the reference, KL, costs.
      shares: of judges' classes by method.
      log_z: nats: "reference" by sequential Monte Carlo, and with a flow "pooled" by flow and prior together.
      notes: remarks.
      options: what it was measured with.
      draws: by method.
    """

    figures: tuple[Figure, ...]
    shares: tuple[JudgedShares, ...] = ()
    log_z: Mapping[str, Estimate] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    draws: Mapping[str, Draws] = field(default_factory=dict, repr=False)

    def figure(self, name: str) -> Figure:
        """A row by its name."""
        return next(row for row in self.figures if row.name == name)

    def to_json(self) -> dict:
        """All but the draws."""
        return {
            "figures": [row.to_json() for row in self.figures],
            "shares": [row.to_json() for row in self.shares],
            "log_z": {name: found.to_json() for name, found in self.log_z.items()},
            "notes": list(self.notes),
            "measured": dict(self.options),
        }

    @classmethod
    def from_json(cls, found: dict) -> Comparison:
        """What `to_json` wrote."""
        return cls(
            figures=tuple(map(Figure.from_json, found["figures"])),
            shares=tuple(map(JudgedShares.from_json, found.get("shares") or ())),
            log_z={name: Estimate.from_json(value) for name, value in (found.get("log_z") or {}).items()},
            notes=tuple(found.get("notes") or ()),
            options=found.get("measured") or {},
        )


def compare(
    ebm: LatentEBM,
    key: Array,
    *,
    num_samples: int,
    prompt: Prompt | None = None,
    samplers: Mapping[str, Callable] | None = None,
    reference: Any = None,
    reference_samples: int = 0,
    judges: Mapping[str, Sequence[str]] | None = None,
    earlier: tuple = (),
    training_seconds: float | None = None,
    rarity: bool = False,
    batch_size: int | None = None,
) -> Comparison:
    """Compares the prior, its reweighting, a flow, its reweighting, and any samplers.

    Args:
      ebm: the target, with its moment constraints fitted.
      key: of all draws.
      num_samples: of every method.
      prompt: trained on `ebm`, or None to compare without a flow.
      samplers: by name, see `promptgen_jax.samplers`.
      reference: has `sample_and_log_z`, as the sampler "smc", which is the default.
      reference_samples: of it; 0 for as many as of the methods.
      judges: attributes by name of a network, beside those of the controls.
      earlier: controls of the prompts below, which are no independent judges any more.
      training_seconds: of the flow, for the number of images from which on it has paid.
      rarity: whether to estimate how often the generator makes what is asked at all, see `metrics.coverage`.
      batch_size: samples per device at a time; None for what `devices.seen_at_a_time` says.

    Raises:
      ValueError: a target that moves with the flow, a name of a sampler that is taken, fewer than two samples; what a
        sampler raises.
    """
    samplers = dict(samplers or {})
    check(ebm, samplers, num_samples, rarity=rarity)
    if reference_samples:
        checks.check_count("compare: reference_samples", reference_samples, minimum=2)
    if prompt is not None:
        check_certifiable(prompt, ebm)
    checks.check_key("compare", key)
    key_draws, key_reference = jax.random.split(key)
    about = About.of(ebm, judges or {}, earlier=earlier, prompt=prompt, batch_size=batch_size, reference=REFERENCE)
    made = _of_prior_and_flow(ebm, prompt, key_draws, num_samples)
    for name, sampler in samplers.items():
        print(f"  {name}", flush=True)
        made[name] = sampler(key_draws, ebm, num_samples)
    print(f"  {REFERENCE}", flush=True)
    reference = parts.load_sampler("smc") if reference is None else reference
    made[REFERENCE], log_z = reference.sample_and_log_z(key_reference, ebm, reference_samples or num_samples)
    seen = observe(made, about)
    constants = {REFERENCE: Estimate(log_z)}
    if prompt is not None:
        pooled = _pooled(prompt, seen)
        constants = {"pooled": Estimate(pooled.log_z, None, *pooled.log_z_interval), **constants}
    best = next(iter(constants.values())).mean
    energies = {name: _energy(about, found) for name, found in _weighted(seen).items()}
    key_rare = jax.random.fold_in(key, 1)
    rare = coverage.coverage(ebm, key_rare, num_samples=num_samples, sampler=reference) if rarity else None
    return Comparison(
        figures=(
            *_closeness(about, seen, energies, best),
            *([Figure(RARITY, {PRIOR: rare.share})] if rare else []),
            *_features(about, _weighted(seen)),
            *_costs(ebm, _with_costs(ebm, seen, batch_size), training_seconds, batch_size),
        ),
        shares=shares.measure(_weighted(seen), about),
        log_z=constants,
        notes=(*_notes(ebm, energies), *(rare.notes if rare else ())),
        options={
            "num_samples": num_samples,
            "reference_samples": reference_samples or num_samples,
            "training_seconds": training_seconds,
            "judges": {name: list(attributes) for name, attributes in about.attributes.items()},
        },
        draws=made,
    )


def check(ebm: LatentEBM, samplers: Mapping, num_samples: int, *, rarity: bool = False) -> None:
    """Raises ValueError for what `compare` cannot do, before any work."""
    checks.check_count("compare: num_samples", num_samples, minimum=2)
    if rarity:
        coverage.check_asking(ebm)
    if taken := sorted({*OURS, *RESERVED} & set(samplers)):
        raise ValueError(f"compare: a sampler is called {taken[0]}, which has a meaning of its own. Rename it.")
    if ebm.needs_reference:
        names = ", ".join(control.name for control in ebm.controls if control.needs_reference)
        raise ValueError(
            f"compare: {names} compares with an image that the flow itself makes, so there is no fixed target to "
            "compare on. Compare without it: ebm.replace(controls=...)."
        )


def _of_prior_and_flow(ebm, prompt, key: Array, num_samples: int) -> dict[str, Draws]:
    cond = ebm.draw_cond(jax.random.fold_in(key, 1), num_samples)
    made = {PRIOR: Draws.of_prior(ebm.generator.prior, key, num_samples, cond=cond)}
    if prompt is not None:
        moved, seconds = timed(lambda: made[PRIOR].through(prompt))
        made[FLOW] = moved.replace(cost=moved.cost._replace(seconds=seconds))
    return made


def timed(function: Callable) -> tuple[Any, float]:
    """What a function returns the second time, once all is compiled and loaded, and its seconds."""
    jax.block_until_ready(jax.tree.leaves(function()))
    with stopwatch() as seconds:
        found = function()
        jax.block_until_ready(jax.tree.leaves(found))
    return found, seconds()


def _pooled(prompt: Prompt, seen: Mapping[str, Observed]) -> certificate.Certificate:
    flow, prior = (seen[name].draws.weighted(seen[name].log_importance) for name in (FLOW, PRIOR))
    return certificate.of_draws(prompt, flow, prior)


def _weighted(seen: Mapping[str, Observed]) -> dict[str, Observed]:
    """With the reweighted draws of prior and flow beside them."""
    found = {}
    for name, observed in seen.items():
        found[name] = observed
        if name in (PRIOR, FLOW):
            found[REWEIGHTED.format(name)] = observed.reweighted()
    return found


def _energy(about: About, found: Observed) -> Estimate:
    weights = about.ebm.weights(found.draws.cond)
    total = sum(np.asarray(weight, np.float64) * found.energies[name] for name, weight in weights.items())
    return mean_estimate(total, found.weights())


def _closeness(
    about: About, seen: Mapping[str, Observed], energies: Mapping[str, Estimate], log_z: Any
) -> Iterator[Figure]:
    """How close each method is to the target."""
    reference, prior = energies[REFERENCE], about.ebm.generator.prior
    yield Figure("mean energy", energies, "nats")
    gaps = {name: _difference(found, reference) for name, found in energies.items() if name != REFERENCE}
    yield Figure("gap to the reference", gaps, "nats", target=0.0)
    known = {name: found.log_importance for name, found in seen.items() if found.log_importance is not None}
    yield Figure("KL to the target", {name: _kl(found, log_z) for name, found in known.items()}, "nats", target=0.0)
    sizes = {name: found.draws.weighted(found.log_importance).ess() for name, found in seen.items() if name in known}
    yield Figure("effective share", {name: Estimate(size / len(known[name])) for name, size in sizes.items()}, target=1)
    yield from asked(about, _weighted(seen))
    norms = {}
    for name, found in _weighted(seen).items():
        standard = (np.asarray(found.draws.z, np.float64) - prior.loc) / prior.scale
        norms[name] = mean_estimate(0.5 * np.sum(np.asarray(standard) ** 2, axis=1), found.weights())
    yield Figure(f"distance to the prior, ½|z|² (the prior itself: {prior.dim / 2:g})", norms)


def _difference(one: Any, other: Any) -> Any:
    half = np.hypot(one.high - one.mean, other.high - other.mean)
    gap = one.mean - other.mean
    return Estimate(gap, None, float(gap - half), float(gap + half))


def _kl(log_importance: np.ndarray, log_z: float) -> Estimate:
    found = mean_estimate(log_z - log_importance)
    return Estimate(found.mean, None, found.low, found.high)


def asked(about: About, seen: Mapping[str, Observed]) -> Iterator[Figure]:
    """Shares, in percent, of the labels that the controls are about, by every judge that knows them."""
    labels = {label for aim in about.aims() for label in aim.labels}
    for row in shares.measure(seen, about):
        for label in (label for label in row.labels if label in labels):
            found = {name: each[label].hard for name, each in row.shares.items()}
            percent = {
                name: Estimate(*(v and 100 * v for v in (e.mean, None, e.low, e.high))) for name, e in found.items()
            }
            target = None if row.target is None else 100 * row.target[row.labels.index(label)]
            yield Figure(f"share of {label} ({row.judge}, {row.role})", percent, "%", target)


def _features(about: About, seen: Mapping[str, Observed]) -> Iterator[Figure]:
    """How like the reference the pictures are, and how different from one another."""
    yield from diversity.measure(seen, about)
    yield from perceptual.measure(seen, about)
    yield from clip_score.measure(seen, about)
    for metric in (frechet, kid, cmmd, manifold):
        found = metric.measure(seen, about)
        yield from found.rows if found else ()


def _with_costs(ebm: LatentEBM, seen: Mapping[str, Observed], batch_size: int | None) -> dict[str, Draws]:
    """The draws with what they cost; those that are weighed cost an energy more each."""
    few = seen[PRIOR].draws.take(np.arange(min(TIMED, len(seen[PRIOR].draws.z))))
    _, seconds = timed(lambda: importance(few, ebm, batch_size=batch_size))
    found = {}
    for name, observed in _weighted(seen).items():
        draws = observed.draws
        if name not in seen:
            calls, more = draws.cost.energy_calls + len(draws.z), len(draws.z) * seconds / len(few.z)
            draws = draws.replace(cost=draws.cost._replace(energy_calls=calls, seconds=draws.cost.seconds + more))
        found[name] = draws
    return found


def _costs(
    ebm: LatentEBM, made: Mapping[str, Draws], training: float | None, batch_size: int | None
) -> Iterator[Figure]:
    """What an effective sample costs, its image included, and from how many on a flow has paid."""
    few = made[PRIOR].take(np.arange(min(TIMED, len(made[PRIOR].z))))
    batch_size = devices.images_at_a_time(ebm.generator.image_size, batch_size)
    _, seconds = timed(lambda: devices.map_batches(images_of, batch_size, few.key, few.z, shared=(ebm.generator,)))
    image = seconds / len(few.z)
    size = {name: draws.ess() for name, draws in made.items()}
    for title, calls in (("energies", "energy_calls"), ("gradients", "gradient_calls")):
        yield Figure(f"{title} per sample", {n: Estimate(getattr(d.cost, calls) / size[n]) for n, d in made.items()})
    spent = {name: draws.cost.seconds / size[name] + image for name, draws in made.items()}
    yield Figure("seconds per image", {name: Estimate(value) for name, value in spent.items()}, "s")
    if FLOW in made:
        yield Figure("times as slow as the flow", {n: Estimate(v / spent[FLOW]) for n, v in spent.items() if n != FLOW})
    if FLOW in made and training is not None:
        yield Figure("training", {FLOW: Estimate(training)}, "s")
        saved = {name: value - spent[FLOW] for name, value in spent.items() if name not in (FLOW, PRIOR)}
        paid = {name: Estimate(float(np.ceil(training / each))) for name, each in saved.items() if each > 0}
        yield Figure("images from which on the flow has paid", paid)


def _notes(ebm: LatentEBM, energies: Mapping[str, Estimate]) -> Iterator[str]:
    reference = energies[REFERENCE]
    if ebm.cond_prior is not None and ebm.cond_prior.moves_log_z:
        yield (
            "Conditions vary. The reference, smc, importance and rejection sample them together with the latents, so "
            "those of a large Z come more often than they were drawn, which is not so of flow, chains and best of n. "
            "Compare under a cond_prior of one value."
        )
    yield (
        "The reference is sequential Monte Carlo. Its particles have common ancestors, so its own interval is narrower "
        "than its error: repeat with another seed to see that."
    )
    for name, found in energies.items():
        if name != REFERENCE and _difference(found, reference).high < 0:
            yield (
                f"{name}: its mean energy {found.mean:.3g} lies below that of the target, {reference.mean:.3g}. It "
                "does not sample the target better but another one, with the energy weighed higher."
            )
