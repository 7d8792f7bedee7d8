"""The certificate along a dial: what a conditional prompt does at every setting, from one pass over the prior.

The energy of a target with dials is linear in what does not depend on the setting c: E_c(x) = w(c) · F(x). Of strengths
F are the energies of the controls and w the strengths times the weights; of shares F are the probabilities of labels
and w is -beta(mu). So F of the prior's samples is computed once, and serves every setting. log Z(c) is then known
twice: from weights at c, and by thermodynamic integration from

    d log Z / dw = -E_target[F],

along the path of settings. The expectation is over the target, by weights of flow and prior together. With the flow's
own samples the integral would be the flow's bound on log Z, whatever the flow, and the check could not fail.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from promptgen_jax import checks, devices
from promptgen_jax.draws import Draws
from promptgen_jax.ebm import LatentEBM
from promptgen_jax.flows.conditions import Conditions
from promptgen_jax.metrics._dials import DialCertificate, Setting
from promptgen_jax.metrics._figures import Estimate
from promptgen_jax.metrics._intervals import mean_estimate, share_interval
from promptgen_jax.metrics._observed import About, Observed
from promptgen_jax.metrics._path import agreement, integrate, knee_of
from promptgen_jax.metrics._weighing import Side, pooled, quantiles, resampled, scaled
from promptgen_jax.metrics.certificate import Certificate, certificate, check_certifiable, log_density
from promptgen_jax.prompt import Prompt
from promptgen_jax.types import Array, Sample, aims_of, following

DIALS = ("strength", "share")
NUM_SETTINGS = 11
IN_A_REPORT = {"num_samples": 256, "num_settings": 6}


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
    batch_size: int | None = None,
) -> DialCertificate:
    """The certificate of a prompt with strengths or shares at several settings, which share all noise.

    Args:
      prompt: trained on `ebm`.
      ebm: the target; its conditions are strengths and shares, these fitted by `fit_moments`.
      key: frozen draws.
      settings: a path, (K, A) conditions or lists of K numbers by name; the dials that a mapping leaves out are 0. By
        default eleven from the low to the high ends of all of them together; strengths start at 0, where the energy
        falls most and settings lie closer.
      num_samples: of the flow, at each setting.
      reference_samples: of the prior, for all settings together.
      batch_size: images per device at a time; None for what `devices.seen_at_a_time` says.

    Raises:
      ValueError, TypeError: conditions that are no strengths or shares, settings that are no path or not known, a
        control that needs a reference image, a count below 1; a raw key.
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
        moved = noise.replace(cond=jnp.asarray(at)).through(prompt)
        log_q = log_density(prompt, reference.z, at_prior)
        found.append(_at(ebm, conditions, setting, _see(ebm, moved, setting, batch_size), before, log_q))
    return _joined(found, _names(ebm), path)


def measure(seen: Mapping[str, Observed], about: About) -> DialCertificate | None:
    """The certificate along all dials of a stage, at a few settings; nothing without any. `seen` is not used."""
    del seen
    conditions = about.ebm.cond_prior
    if about.prompt is None or conditions is None or about.ebm.needs_reference:
        return None
    if not {kind for _, kind in conditions.components} <= set(DIALS):
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
    other = [f"{name} ({kind})" for name, kind in components if kind not in DIALS]
    if other or not components:
        raise ValueError(
            f"certify_dial: conditions are {', '.join(other) or 'none'}; expected strengths or shares. Use pg.certify."
        )


def _path(conditions: Conditions, settings: Any, count: int = NUM_SETTINGS) -> np.ndarray:
    """Conditions (K, A), float32."""
    if settings is None:
        is_strength = np.array([kind == "strength" for _, kind in conditions.components])
        low, way = np.where(is_strength, 0, conditions.low), np.linspace(0, 1, count)[:, None]
        return (low + way ** (1 + is_strength) * (conditions.high - low)).astype(np.float32)
    if isinstance(settings, Mapping):
        settings = conditions.named("certify_dial: settings", settings)
    path = np.asarray(settings, np.float32)
    if path.ndim != 2 or path.shape[1] != conditions.dim or len(path) < 2 or not np.isfinite(path).all():
        raise ValueError(
            f"certify_dial: settings are {path.shape}; expected at least two rows of {conditions.dim} numbers, or "
            "lists of them by name."
        )
    return path


def _see(ebm: LatentEBM, draws: Draws, setting: np.ndarray, batch_size: int | None) -> Seen:
    cond = np.broadcast_to(setting, (len(draws.z), len(setting)))
    aims = [aim for control in ebm.controls for aim in aims_of(control) if aim.unit == "share"]
    networks = {aim.network.name: aim.network for aim in aims}
    batch_size = devices.seen_at_a_time(ebm.generator.image_size, batch_size)
    found = devices.map_batches(_look, batch_size, draws.key, draws.z, cond, shared=(ebm, networks))
    chosen = {
        label: found["first"][aim.network.name][aim.output] == aim.network.label_index(aim.output, label)
        for aim in aims
        for label in aim.labels
    }
    return Seen(draws, found["features"].astype(np.float64), found["log_prior"], chosen)


@jax.jit
def _look(ebm: LatentEBM, networks: Mapping[str, Any], key: Array, z: Array, cond: Array) -> dict:
    images = ebm.images(key, z)
    gamma = {control.name: control.gamma(images) for control in following(ebm.controls)}
    energies = ebm.energies_of(key, Sample(images=images, z=z, cond=cond))
    return {
        "features": jnp.concatenate([gamma.get(c.name, energies[c.name][:, None]) for c in ebm.controls], axis=1),
        "log_prior": ebm.generator.prior.log_prob(z),
        "first": {
            name: {output: jnp.argmax(logits, axis=1) for output, logits in network(images).items() if logits.ndim == 2}
            for name, network in networks.items()
        },
    }


def _names(ebm: LatentEBM) -> list[str]:
    """What the F features are."""
    labels = {control.name: [label for aim in aims_of(control) for label in aim.labels] for control in ebm.controls}
    followed = {control.name for control in following(ebm.controls)}
    return [
        name
        for control in ebm.controls
        for name in (
            [f"probability of {label}" for label in labels[control.name]]
            if control.name in followed
            else [f"energy of {control.name}"]
        )
    ]


def _coefficients(ebm: LatentEBM, setting: np.ndarray) -> np.ndarray:
    """W (F,) at a setting (A,), float64."""
    cond = jnp.asarray(setting)[None]
    weights = {name: np.ravel(weight)[0] for name, weight in ebm.weights(cond).items()}
    slopes = {control.name: np.asarray(control.slopes(cond))[0] for control in following(ebm.controls)}
    each = [weights[c.name] * -slopes[c.name] if c.name in slopes else weights[c.name] for c in ebm.controls]
    return np.concatenate(list(map(np.atleast_1d, each))).astype(np.float64)


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
            means={name: mean_estimate(each.after.features[:, i]) for i, name in enumerate(names)},
            target_means={name: _estimate(mean[k, :, i]) for i, name in enumerate(names)},
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
