"""How close a prompt is to its target, from both sides: samples of the flow and of the prior weighed together.

The flow's density is exact, so every sample z, wherever it was drawn, can be weighed by the balance heuristic

    w = p_z(z) exp(-E_C(G(z))) / m(z),    m = (N q + M p_z) / (N + M),

with N samples of the flow q and M of the prior p_z. The mean of w is Z. A part of the target that the flow has lost
cannot hide where the prior meets it; where the prior does not meet it either, the certificate says that it cannot tell.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from scipy.special import logsumexp

from promptgen_jax import checks, devices
from promptgen_jax.draws import Draws
from promptgen_jax.ebm import LatentEBM, check_ebm
from promptgen_jax.metrics._intervals import mean_interval
from promptgen_jax.metrics._missed import is_missed, share_notes
from promptgen_jax.metrics._observed import About, Observed
from promptgen_jax.metrics._weighing import Side, ess, pooled, quantiles, resampled, scaled
from promptgen_jax.prompt import Prompt
from promptgen_jax.types import Array, Constraint, Sample, aims_of, constraints_of

THIN = np.log(10)  # where the flow is this much thinner than the target, the target is missed
ENOUGH = 20  # effective samples of the prior, below which nothing vouches for what the flow does not visit
GOOD, FAIR = 0.1, 1.0  # nats, from either side
MISSED_GOOD, MISSED_FAIR = 0.02, 0.15


@dataclasses.dataclass(frozen=True)
class Certificate:
    """What is known of the distance between a flow and its target. Nats; intervals are of 95 %.

    Attributes:
      log_z: log of the mean of exp(-E_C) over the prior; `log_z_interval` its interval.
      reverse_kl: KL(q || target), blind to what the flow never visits; with interval.
      forward_kl: KL(target || q), large where the flow misses a part of the target; with interval.
      missed_mass: share of the target where the flow is more than ten times too thin, with interval.
      ess: effective share of all samples together, in (0, 1].
      ess_flow: effective number of the flow's samples, less what they do not account for.
      ess_prior: effective number of the prior's samples.
      pareto_k: shape of the tail of the pooled weights; above 0.7 means of them do not settle.
      log_z_prior: log Z from the prior's samples alone, with interval, to compare.
      loss: mean of log q - log p_z + E_C over samples of the flow.
      num_samples, reference_samples: of the flow and of the prior.
      verdict: "good", "fair", "bad" or "cannot tell".
      notes: sentences for people.
    """

    log_z: float
    log_z_interval: tuple[float, float]
    reverse_kl: float
    reverse_kl_interval: tuple[float, float]
    forward_kl: float
    forward_kl_interval: tuple[float, float]
    missed_mass: float
    missed_mass_interval: tuple[float, float]
    ess: float
    ess_flow: float
    ess_prior: float
    pareto_k: float
    log_z_prior: float
    log_z_prior_interval: tuple[float, float]
    loss: float
    num_samples: int
    reference_samples: int
    verdict: str
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict:
        """All of it, and the names that earlier versions gave: `ess` counts samples there, `kl` is the reverse one."""
        found = {name: value for name, value in dataclasses.asdict(self).items() if not name.endswith("_interval")}
        ends = {"log_z": self.log_z_interval, "kl": self.reverse_kl_interval}
        ends |= {"forward_kl": self.forward_kl_interval, "missed_mass": self.missed_mass_interval}
        ends |= {"log_z_reference": self.log_z_prior_interval}
        for name, (low, high) in ends.items():
            found |= {f"{name}_low": low, f"{name}_high": high}
        return found | {
            "kl": self.reverse_kl,
            "log_z_reference": self.log_z_prior,
            "ess": self.ess_flow,
            "ess_pooled": self.ess,
            "loss_optimum": -self.log_z,
            "notes": list(self.notes),
        }

    @classmethod
    def from_json(cls, found: Mapping) -> Certificate:
        """What `to_json` made."""
        plain = {name: found[name] for name in (each.name for each in dataclasses.fields(cls)) if name in found}
        ends = {f"{name}_interval": (found[f"{name}_low"], found[f"{name}_high"]) for name in ("log_z", "forward_kl")}
        ends["missed_mass_interval"] = (found["missed_mass_low"], found["missed_mass_high"])
        ends["reverse_kl_interval"] = (found["kl_low"], found["kl_high"])
        ends["log_z_prior_interval"] = (found["log_z_reference_low"], found["log_z_reference_high"])
        return cls(**plain | ends | {"ess": found["ess_pooled"], "notes": tuple(found["notes"])})

    def __str__(self) -> str:
        """A few lines for people."""
        rows = [
            f"verdict: {self.verdict}",
            f"reverse KL {self.reverse_kl:.3f} {_ends(self.reverse_kl_interval)}, forward KL {self.forward_kl:.3f} "
            f"{_ends(self.forward_kl_interval)} nats, missed {self.missed_mass:.1%} of the target",
            f"log Z {self.log_z:.3f} {_ends(self.log_z_interval)}; effective samples: {self.ess_flow:.0f} of "
            f"{self.num_samples} of the flow, {self.ess_prior:.0f} of {self.reference_samples} of the prior",
        ]
        return "\n".join([*rows, *self.notes])


def measure(seen: Mapping[str, Observed], about: About) -> Certificate | None:
    """The certificate of a prompt, from what was seen before (the prior) and after (the flow).

    Costs the flow's inverse on the prior's samples, and no image. None where the target has no density of its own, or
    either side was not seen.
    """
    if about.prompt is None or about.ebm.needs_reference or not {"before", "after"} <= set(seen):
        return None
    before, after = (seen[when].draws.weighted(seen[when].log_importance) for when in ("before", "after"))
    found = _with_conditions(of_draws(about.prompt, after, before), about.ebm)
    controls = constraints_of(about.ebm.controls)
    return _with_moments(found, controls, {control.name: _counted(seen["after"], control) for control in controls})


def _counted(seen: Observed, control: Constraint) -> np.ndarray:
    """What a constraint on shares constrains, (N, K), of what was seen; (N, 0) of one on something else."""
    columns = [np.zeros((len(seen.draws.z), 0))]
    for aim in (aim for aim in aims_of(control) if aim.unit == "share"):
        probs = np.exp(seen.log_probs(aim.network.name, aim.output))
        columns.append(np.eye(probs.shape[1])[probs.argmax(axis=1)] if aim.count == "hard" else probs)
    return np.concatenate(columns, axis=1)


def certify(
    prompt: Prompt,
    ebm: LatentEBM,
    key: Array,
    *,
    num_samples: int = 1024,
    reference_samples: int = 1024,
    batch_size: int | None = None,
) -> Certificate:
    """The certificate of a prompt. A conditional one is certified together with its conditions, by upper bounds.

    Args:
      prompt: trained on `ebm`.
      ebm: the target; its generator is the prompt's inner generator.
      key: frozen draws.
      num_samples: of the flow.
      reference_samples: of the prior.
      batch_size: images per device at a time; None for what `devices.seen_at_a_time` says.

    Raises:
      ValueError, TypeError: a control needs a reference image; conditions of the ebm that are not those of the prompt;
        a count below 1; a raw key; energies that are NaN, or infinite at all samples.
    """
    checks.check_key("certify", key)
    checks.check_count("certify: num_samples", num_samples)
    checks.check_count("certify: reference_samples", reference_samples)
    check_certifiable(prompt, ebm)
    key_flow, key_prior = jax.random.split(key, 3)[:2]
    key_eps, key_images = jax.random.split(key_flow)
    flow = _noise(ebm, key_eps, key_images, num_samples).through(prompt)
    prior = _noise(ebm, key_prior, jax.random.fold_in(key_prior, 2), reference_samples)
    (flow, gamma), (prior, _) = (_weighed(draws, ebm, batch_size) for draws in (flow, prior))
    found = _with_conditions(of_draws(prompt, flow, prior), ebm)
    return _with_moments(found, constraints_of(ebm.controls), gamma)


def _weighed(draws: Draws, ebm: LatentEBM, batch_size: int | None) -> tuple[Draws, Mapping[str, np.ndarray]]:
    """Draws weighted for the target, and what moment constraints are about, of each of them."""
    arrays = (draws.key, draws.z, *devices.filter_none(draws.cond))
    batch_size = devices.seen_at_a_time(ebm.generator.image_size, batch_size)
    seen = devices.map_batches(_look, batch_size, *arrays, shared=(ebm,))
    checks.check_density("certify", seen["log_target"])
    return draws.weighted(seen["log_target"] - np.asarray(draws.log_prob)), seen["gamma"]


@jax.jit
def _look(ebm, key, z, cond=None):
    """Of the flow's samples: the log density of the target, up to log Z, and what moment constraints are about."""
    images = ebm.images(key, z)
    energy = ebm.total(ebm.energies_of(key, Sample(images=images, z=z, cond=cond)), cond)
    gamma = {control.name: control.gamma(images) for control in constraints_of(ebm.controls)}
    return {"log_target": ebm.generator.prior.log_prob(z) - energy, "gamma": gamma}


def _with_conditions(found: Certificate, ebm: LatentEBM) -> Certificate:
    """With a note where conditions may differ in log Z, of which no flow takes account; the energy of shares has it."""
    if found.verdict == "good" or ebm.cond_prior is None or not ebm.cond_prior.moves_log_z:
        return found
    note = (
        "These distances are upper bounds: log Z differs from condition to condition, and the target of latents and "
        "conditions together prefers those where it is large, while every flow draws them as they are asked for. What "
        "holds at one condition is told with a cond_prior of that value, and along strengths by pg.certify_dial."
    )
    return dataclasses.replace(found, notes=(*found.notes, note))


def _with_moments(found: Certificate, controls: tuple[Constraint, ...], gamma: Mapping[str, np.ndarray]) -> Certificate:
    """With a note for every share that the flow's samples miss, or cannot show; where one is missed all is not good.

    Args:
      found: the certificate without.
      controls: the constraints.
      gamma: (N, K) probabilities of the flow's samples by name of the constraint.
    """
    notes: list[str] = []
    missed = False
    for control in controls:
        values = np.asarray(gamma[control.name], np.float64)
        for aim in (aim for aim in aims_of(control) if aim.unit == "share"):
            for (label, wanted), column in zip(aim.target, values.T, strict=True):
                ends = mean_interval(column, np.full(len(column), 1 / len(column)), len(column))
                notes += share_notes(aim.output, label, wanted, *ends, len(column), aim.count)
                missed |= is_missed(wanted, *ends)
    verdict = "fair" if missed and found.verdict == "good" else found.verdict
    return dataclasses.replace(found, verdict=verdict, notes=(*found.notes, *notes))


def _noise(ebm: LatentEBM, key: Array, key_images: Array, count: int) -> Draws:
    prior, cond = ebm.generator.prior, ebm.draw_cond(jax.random.fold_in(key, 1), count)
    return Draws.of_noise(prior, prior.sample(key, count), key_images, cond)


def check_certifiable(prompt: Prompt, ebm: LatentEBM) -> None:
    """Raises ValueError unless prompt and target have densities to compare, TypeError unless they are those."""
    check_ebm("certify", ebm)
    if ebm.needs_reference:
        names = ", ".join(control.name for control in ebm.controls if control.needs_reference)
        raise ValueError(
            f"exactness: {names} compares with an image that the flow itself makes, so there is no target density "
            "apart from the flow. Certify without it: ebm.replace(controls=...)."
        )
    wanted = ebm.cond_prior.dim if ebm.cond_prior else 0
    if prompt.flow.cond_dim != wanted:
        raise ValueError(
            f"exactness: the prompt takes conditions of length {prompt.flow.cond_dim}, the ebm draws them of length "
            f"{wanted}. Give the ebm the cond_prior that the prompt was trained with."
        )


def of_draws(prompt: Prompt, flow: Draws, prior: Draws) -> Certificate:
    """The certificate from draws of the flow and of the prior, both with importance weights for the target."""
    log_q = log_density(prompt, prior.z, prior.cond)
    return certificate(_side(prompt, flow, np.asarray(flow.log_prob)), _side(prompt, prior, log_q))


def log_density(prompt: Prompt, z: Any, cond: Any) -> np.ndarray:
    """Log density (N,) of a prompt's flow at latents (N, D), under conditions (N, A) or None."""
    batch_size = devices.latents_at_a_time(np.shape(z)[1])
    return devices.map_batches(_log_q, batch_size, z, *devices.filter_none(cond), shared=(prompt,))


@jax.jit
def _log_q(prompt, z, cond=None):
    return prompt.flow.log_prob(prompt.params, z, cond)


def _side(prompt: Prompt, draws: Draws, log_q: np.ndarray) -> Side:
    log_target = np.asarray(draws.log_weight, np.float64) + np.asarray(draws.log_prob, np.float64)
    return Side(log_target, np.asarray(prompt.prior.log_prob(draws.z)), log_q)


def certificate(flow: Side, prior: Side, *, seed: int = 0) -> Certificate:
    """The certificate from samples of the flow (N,) and of the prior (M,), in NumPy.

    Intervals are quantiles of a bootstrap over both sets of samples.

    Args:
      flow: N samples of the flow.
      prior: M samples of the prior.
      seed: of the bootstrap, so that the same samples give the same intervals.

    Raises:
      ValueError: energies that are NaN, or infinite at all samples.
    """
    n, m = len(flow.log_q), len(prior.log_q)
    log_target, log_prior, log_q = (np.concatenate(pair).astype(np.float64) for pair in zip(flow, prior, strict=True))
    checks.check_met("certificate", log_target)
    log_weight = pooled(flow, prior)
    log_importance = (log_target - log_q)[:n]

    counts = resampled(n, m, seed=seed)  # the first row is the samples themselves
    weight, log_scale = scaled(log_weight)
    total = counts @ weight
    log_z = np.log(total / (n + m)) + log_scale
    distance = log_target - log_q  # log target / q, up to log Z
    reverse = log_z - (counts[:, :n] @ np.maximum(log_importance, -1e6)) / n
    forward = counts @ (weight * np.clip(distance, -1e6, 1e6)) / total - log_z
    missed = (counts * (distance - log_z[:, None] > THIN)) @ weight / total

    ess_prior = ess((log_target - log_prior)[n:])
    accounted = float(np.exp(min(0.0, logsumexp(log_importance) - np.log(n) - log_z[0])))
    alone, log_scale_alone = scaled((log_target - log_prior)[n:])
    found = {
        "log_z": log_z,
        "log_z_prior": np.log(counts[:, n:] @ alone / m) + log_scale_alone,
        "reverse_kl": reverse,
        "forward_kl": forward,
        "missed_mass": missed,
    }
    values: dict[str, Any] = {name: float(each[0]) for name, each in found.items()}
    values |= {f"{name}_interval": quantiles(each) for name, each in found.items()}
    verdict, notes = _verdict(values, ess_prior, m)
    k = pareto_shape(log_weight)
    if k > 0.7:
        notes.append(f"The weights have heavy tails (Pareto k {k:.2f}, above 0.7), so the figures rest on few samples.")
    return Certificate(
        **values,
        ess=ess(log_weight) / (n + m),
        ess_flow=ess(log_importance) * accounted,
        ess_prior=ess_prior,
        pareto_k=k,
        loss=float(-np.mean(log_importance)),
        num_samples=n,
        reference_samples=m,
        verdict=verdict,
        notes=tuple(notes),
    )


def _verdict(found: dict, ess_prior: float, m: int) -> tuple[str, list[str]]:
    """A verdict that a reader can act on, and the notes that belong to it."""
    low, high = found["missed_mass_interval"]
    notes = []
    if low > MISSED_GOOD and ess_prior >= ENOUGH:
        notes.append(
            f"The flow misses {found['missed_mass']:.0%} of the target ({low:.0%} to {high:.0%}): it is more than ten "
            "times too thin there. Train longer, or with an objective that sees it, such as forward_kl."
        )
    if found["reverse_kl_interval"][0] > FAIR:
        return "bad", notes
    if ess_prior < ENOUGH:
        notes.append(
            f"Only {ess_prior:.1f} of {m} samples of the generator are effective for this target, below {ENOUGH}, so "
            "nothing vouches for what the flow does not visit. More reference_samples would tell."
        )
        return "cannot tell", notes
    worst = max(found["reverse_kl"], found["forward_kl"])
    if worst <= GOOD and found["missed_mass"] <= MISSED_GOOD:
        return "good", notes
    return ("fair" if worst <= FAIR and found["missed_mass"] <= MISSED_FAIR else "bad"), notes


def _ends(interval: tuple[float, float]) -> str:
    return "[{:.3f}, {:.3f}]".format(*interval)


def pareto_shape(log_weight: np.ndarray) -> float:
    """Shape k of the generalised Pareto distribution of the largest weights; their variance is finite below 0.5.

    Source: J. Zhang and M. A. Stephens, A new and efficient estimation method for the generalized Pareto distribution,
    2009; the use on importance weights of arXiv 1507.02646.
    """
    weight = np.sort(np.exp(log_weight - np.max(log_weight)))
    count = int(min(0.2 * len(weight), 3 * np.sqrt(len(weight))))
    if count < 5:
        return np.inf
    excess = weight[-count:] - weight[-count - 1]
    excess = excess[excess > 0]
    if len(excess) < 5 or excess[-1] < 1e-12:
        return -np.inf  # a tail of equal weights
    num, quartile = len(excess), excess[int(len(excess) / 4 + 0.5) - 1]
    grid = 30 + int(np.sqrt(num))
    theta = 1 / excess[-1] + (1 - np.sqrt(grid / (np.arange(1, grid + 1) - 0.5))) / (3 * quartile)
    shape = np.mean(np.log1p(-theta[:, None] * excess), axis=1)
    log_likelihood = num * (np.log(-theta / shape) - shape - 1)
    posterior = 1 / np.exp(log_likelihood - log_likelihood[:, None]).sum(axis=1)
    best = np.sum(theta * posterior) / posterior.sum()
    return float(np.mean(np.log1p(-best * excess)))
