"""The certificate along a dial: what a conditional prompt does at every setting, from one pass over the prior.

The energy of a target with dials is linear in what does not depend on the setting c: E_c(x) = w(c) · F(x), where F are
the energies of the controls and w their strengths times their weights. So F of the prior's samples is computed once,
and serves every setting. log Z(c) is then known twice: from weights at c, and by thermodynamic integration from

    d log Z / dw = -E_target[F],

along the path of settings. The expectation is over the target, by weights of flow and prior together. With the flow's
own samples the integral would be the flow's bound on log Z, whatever the flow, and the check could not fail.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from promptgen_jax import checks, devices
from promptgen_jax.draws import Draws
from promptgen_jax.ebm import LatentEBM
from promptgen_jax.flows.conditions import Conditions
from promptgen_jax.metrics._figures import Estimate
from promptgen_jax.metrics._intervals import mean_estimate, share_interval
from promptgen_jax.metrics._observed import About, Observed
from promptgen_jax.metrics._path import agreement, integrate, knee_of
from promptgen_jax.metrics._weighing import Side, pooled, quantiles, resampled, scaled
from promptgen_jax.metrics.certificate import Certificate, certificate, check_certifiable, log_density
from promptgen_jax.prompt import Prompt
from promptgen_jax.types import Array, Sample, aims_of

NUM_SETTINGS = 11
IN_A_REPORT = {"num_samples": 256, "num_settings": 6}


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is known at one setting. Nats; intervals are of 95 %.

    Attributes:
      condition: by name, in the units of people.
      certificate: of the flow against the target at this setting.
      log_z_integrated: log Z by thermodynamic integration from the first setting.
      agrees: whether that is log Z.
      kl_generator: KL(target || p_z), what the setting costs.
      energies: unweighted, of the flow's samples by control.
      target_energies: likewise of the target.
      shares: of first choices of the flow's samples, by label that a control asks for.
    """

    condition: Mapping[str, float]
    certificate: Certificate
    log_z_integrated: Estimate
    agrees: bool
    kl_generator: Estimate
    energies: Mapping[str, Estimate]
    target_energies: Mapping[str, Estimate]
    shares: Mapping[str, Estimate]

    def to_json(self) -> dict:
        """As in report.json."""
        tables = {name: {k: each.to_json() for k, each in getattr(self, name).items()} for name in TABLES}
        return tables | {
            "condition": dict(self.condition),
            "certificate": self.certificate.to_json(),
            "agrees": self.agrees,
            "log_z_integrated": self.log_z_integrated.to_json(),
            "kl_generator": self.kl_generator.to_json(),
        }

    @classmethod
    def from_json(cls, found: Mapping) -> Setting:
        """What `to_json` made."""
        tables: Any = {name: {k: Estimate.from_json(v) for k, v in found[name].items()} for name in TABLES}
        return cls(
            condition=found["condition"],
            certificate=Certificate.from_json(found["certificate"]),
            log_z_integrated=Estimate.from_json(found["log_z_integrated"]),
            agrees=found["agrees"],
            kl_generator=Estimate.from_json(found["kl_generator"]),
            **tables,
        )


TABLES = ("energies", "target_energies", "shares")


@dataclasses.dataclass(frozen=True)
class DialCertificate:
    """The settings of a path, in its order.

    Attributes:
      settings: what is known at each.
      knee: number of the setting after which turning further changes the energy of the flow's samples least for its
        way, or None of fewer than three settings, or where the energy does not fall.
      notes: sentences for people.
    """

    settings: tuple[Setting, ...]
    knee: int | None
    notes: tuple[str, ...] = ()

    @property
    def agrees(self) -> bool:
        """Whether log Z agrees with its thermodynamic integral at every setting."""
        return all(setting.agrees for setting in self.settings)

    def to_json(self) -> dict:
        """As in report.json."""
        return {"settings": [each.to_json() for each in self.settings], "knee": self.knee, "notes": list(self.notes)}

    @classmethod
    def from_json(cls, found: Mapping) -> DialCertificate:
        """What `to_json` made."""
        return cls(tuple(map(Setting.from_json, found["settings"])), found["knee"], tuple(found["notes"]))

    def __str__(self) -> str:
        """A table for people, the knee marked."""
        lines = ["setting | log Z, integrated | KL to the generator | gap reverse, forward | energy | shares"]
        for number, each in enumerate(self.settings):
            told = ", ".join(f"{name} {value:.3g}" for name, value in each.condition.items())
            found = each.certificate
            cells = [
                f"{told}{' (knee)' if number == self.knee else ''}",
                f"{found.log_z:.3f}, {each.log_z_integrated.mean:.3f}{'' if each.agrees else ' (disagree)'}",
                f"{each.kl_generator.mean:.3f}",
                f"{found.reverse_kl:.3f}, {found.forward_kl:.3f}",
                ", ".join(f"{name} {energy.mean:.3f}" for name, energy in each.energies.items()),
                ", ".join(f"{label} {share.mean:.1%}" for label, share in each.shares.items()),
            ]
            lines.append(" | ".join(cells))
        return "\n".join([*lines, *self.notes])


class Seen(NamedTuple):
    """Samples of one side, in NumPy.

    Attributes:
      draws: what was looked at.
      features: (N, F) what the energy is linear in.
      log_prior: (N,) log p_z.
      chosen: (N,) whether a label that is asked for is the first choice, by label.
    """

    draws: Draws
    features: np.ndarray
    log_prior: np.ndarray
    chosen: Mapping[str, np.ndarray]


def certify_dial(
    prompt: Prompt,
    ebm: LatentEBM,
    key: Array,
    *,
    settings: Any = None,
    num_samples: int = 1024,
    reference_samples: int = 4096,
    batch_size: int = 64,
) -> DialCertificate:
    """The certificate of a prompt with strengths at several settings, which share the prior's samples and all noise.

    Args:
      prompt: trained on `ebm`.
      ebm: the target; its conditions are strengths.
      key: frozen draws.
      settings: a path, (K, A) conditions or lists of K numbers by name; the dials that a mapping leaves out are 0. By
        default eleven from nothing to all dials at their ends, closer at the start, where the energy falls most.
      num_samples: of the flow, at each setting.
      reference_samples: of the prior, for all settings together.
      batch_size: images per device at a time.

    Raises:
      ValueError, TypeError: conditions that are no strengths, settings that are no path or not known, a control that
        needs a reference image, a count below 1; a raw key.
    """
    checks.check_key("certify_dial", key)
    checks.check_count("certify_dial: num_samples", num_samples)
    checks.check_count("certify_dial: reference_samples", reference_samples)
    check_certifiable(prompt, ebm)
    _check_dials(ebm)
    conditions: Any = ebm.cond_prior
    path = _path(conditions, settings)
    prior, key_flow, key_prior = ebm.generator.prior, *jax.random.split(key)
    noise, reference = (
        Draws.of_noise(prior, prior.sample(each, size), jax.random.fold_in(each, 1))
        for each, size in ((key_flow, num_samples), (key_prior, reference_samples))
    )
    before, found = _see(ebm, reference, path[0], batch_size), []
    for setting in path:
        at, at_prior = (np.broadcast_to(setting, (size, len(setting))) for size in (num_samples, reference_samples))
        moved = noise.replace(cond=jnp.asarray(at)).through(prompt, batch_size=batch_size)
        log_q = log_density(prompt, reference.z, at_prior, batch_size)
        found.append(_at(ebm, conditions, setting, _see(ebm, moved, setting, batch_size), before, log_q))
    return _joined(found, [control.name for control in ebm.controls], path)


def measure(seen: Mapping[str, Observed], about: About) -> DialCertificate | None:
    """The certificate along all dials of a stage, at a few settings; nothing without strengths. `seen` is not used."""
    del seen
    conditions = about.ebm.cond_prior
    if about.prompt is None or conditions is None or about.ebm.needs_reference:
        return None
    if set(kind for _, kind in conditions.components) != {"strength"}:
        return None
    return certify_dial(
        about.prompt,
        about.ebm,
        about.key,
        settings=_path(conditions, None, IN_A_REPORT["num_settings"]),
        num_samples=min(about.num_samples, IN_A_REPORT["num_samples"]),
        reference_samples=about.num_samples,
        batch_size=about.batch_size,
    )


def _check_dials(ebm: LatentEBM) -> None:
    components = () if ebm.cond_prior is None else ebm.cond_prior.components
    other = [f"{name} ({kind})" for name, kind in components if kind != "strength"]
    if other or not components:
        raise ValueError(
            f"certify_dial: conditions are {', '.join(other) or 'none'}; expected strengths alone. Use pg.certify."
        )


def _path(conditions: Conditions, settings: Any, count: int = NUM_SETTINGS) -> np.ndarray:
    """Conditions (K, A), float32."""
    if settings is None:
        return np.linspace(0, 1, count)[:, None].astype(np.float32) ** 2 * np.asarray(conditions.high)
    if isinstance(settings, Mapping):
        settings = conditions.named("certify_dial: settings", settings)
    path = np.asarray(settings, np.float32)
    if path.ndim != 2 or path.shape[1] != conditions.dim or len(path) < 2 or not np.isfinite(path).all():
        raise ValueError(
            f"certify_dial: settings are {path.shape}; expected at least two rows of {conditions.dim} numbers, or "
            "lists of them by name."
        )
    return path


def _see(ebm: LatentEBM, draws: Draws, setting: np.ndarray, batch_size: int) -> Seen:
    cond = np.broadcast_to(setting, (len(draws.z), len(setting)))
    found = devices.map_batches(_look, batch_size, draws.key, draws.z, cond, shared=(ebm,))
    return Seen(draws, found["features"].astype(np.float64), found["log_prior"], found["chosen"])


@jax.jit
def _look(ebm: LatentEBM, key: Array, z: Array, cond: Array) -> dict:
    images = ebm.images(key, z)
    energies = ebm.energies_of(key, Sample(images=images, z=z, cond=cond))
    chosen: dict[str, Array] = {}
    for aim in (aim for control in ebm.controls for aim in aims_of(control) if aim.unit == "share"):
        first = jnp.argmax(aim.network.log_probs(images, aim.output), axis=1)
        chosen |= {label: first == aim.network.label_index(aim.output, label) for label in aim.labels}
    features = jnp.stack([energies[control.name] for control in ebm.controls], axis=1)
    return {"features": features, "log_prior": ebm.generator.prior.log_prob(z), "chosen": chosen}


def _coefficients(ebm: LatentEBM, setting: np.ndarray) -> np.ndarray:
    """W (F,) at a setting (A,), float64."""
    weights = ebm.weights(jnp.asarray(setting)[None])
    return np.array([np.ravel(weights[control.name])[0] for control in ebm.controls], np.float64)


class _At(NamedTuple):
    """A setting before it is joined with those before it; the first row of a bootstrap is the samples themselves."""

    told: Mapping[str, float]
    certificate: Certificate
    after: Seen
    coefficients: np.ndarray  # (F,)
    log_z: np.ndarray  # (R,)
    mean: np.ndarray  # (R, F) of the target
    covariance: np.ndarray  # (R, F, F) of the target


def _at(ebm: LatentEBM, conditions: Conditions, setting: np.ndarray, after: Seen, before: Seen, log_q: Any) -> _At:
    coefficients = _coefficients(ebm, setting)
    flow, prior = (
        Side(np.asarray(seen.log_prior, np.float64) - seen.features @ coefficients, seen.log_prior, log_density)
        for seen, log_density in ((after, np.asarray(after.draws.log_prob)), (before, log_q))
    )
    features = np.concatenate([after.features, before.features])
    weight, log_scale = scaled(pooled(flow, prior))
    counts = resampled(len(after.features), len(before.features))  # the same at every setting
    total = counts @ weight
    products = features[:, :, None] * features[:, None, :]
    mean = counts @ (weight[:, None] * features) / total[:, None]
    second = np.einsum("rn,nij->rij", counts * weight, products) / total[:, None, None]
    return _At(
        told=dict(zip(conditions.ranges(), map(float, conditions.write(jnp.asarray(setting))), strict=True)),
        certificate=certificate(flow, prior),
        after=after,
        coefficients=coefficients,
        log_z=np.log(total / len(features)) + log_scale,
        mean=mean,
        covariance=second - mean[:, :, None] * mean[:, None, :],
    )


def _joined(found: list[_At], names: list[str], path: np.ndarray) -> DialCertificate:
    coefficients, log_z, mean, covariance = (
        np.stack([getattr(each, name) for each in found]) for name in ("coefficients", "log_z", "mean", "covariance")
    )
    gained, corrections = integrate(coefficients, mean, covariance)
    integrated = log_z[0] + gained
    agrees = agreement(log_z, integrated, corrections)
    kl = -np.einsum("krf,kf->kr", mean, coefficients) - log_z
    settings = tuple(
        Setting(
            condition=each.told,
            certificate=each.certificate,
            log_z_integrated=_estimate(integrated[k]),
            agrees=bool(agrees[k]),
            kl_generator=_estimate(np.maximum(kl[k], 0)),
            energies={name: mean_estimate(each.after.features[:, i]) for i, name in enumerate(names)},
            target_energies={name: _estimate(mean[k, :, i]) for i, name in enumerate(names)},
            shares={label: _share(chosen) for label, chosen in each.after.chosen.items()},
        )
        for k, each in enumerate(found)
    )
    energy = np.array([each.after.features.mean(axis=0) @ coefficients[-1] for each in found])
    knee = knee_of(np.linalg.norm(np.diff(path, axis=0, prepend=path[:1]), axis=1).cumsum(), energy)
    return DialCertificate(settings, knee, tuple(_notes(settings, energy, knee)))


def _notes(settings: tuple[Setting, ...], energy: np.ndarray, knee: int | None) -> list[str]:
    notes = []
    if knee is not None:
        at, last = settings[knee], settings[-1]
        fallen = (energy[0] - energy[knee]) / (energy[0] - energy[-1])
        notes.append(
            f"The knee is at {_told(at)}: {fallen:.0%} of the fall of the energy for {at.kl_generator.mean:.2f} of "
            f"{last.kl_generator.mean:.2f} nats to the generator."
        )
    if apart := [setting for setting in settings if not setting.agrees]:
        worst = max(apart, key=lambda each: abs(_difference(each)))
        notes.append(
            f"log Z and its integral are {abs(_difference(worst)):.2f} nats apart at {_told(worst)}, more than their "
            "errors allow. More settings, num_samples or reference_samples would tell which of them is wrong."
        )
    return notes


def _difference(setting: Setting) -> float:
    return float(setting.log_z_integrated.mean or 0.0) - setting.certificate.log_z


def _told(setting: Setting) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in setting.condition.items())


def _estimate(values: np.ndarray) -> Estimate:
    """Of a bootstrap (R,), whose first entry is the samples themselves."""
    low, high = quantiles(values)
    return Estimate(float(values[0]), low=low, high=high)


def _share(chosen: np.ndarray) -> Estimate:
    share, low, high = share_interval(chosen, np.full(len(chosen), 1 / len(chosen)), len(chosen))
    return Estimate(share, low=low, high=high)
