"""How close a trained prompt is to its target: the flow's density is exact, so importance weights can tell.

All draws use frozen keys, because importance weights of a noisy energy are wrong.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import logsumexp

from promptgen_jax import checks
from promptgen_jax.devices import filter_none, map_batches
from promptgen_jax.ebm import LatentEBM
from promptgen_jax.metrics._intervals import Z_95
from promptgen_jax.prompt import Prompt
from promptgen_jax.types import Array


def log_weights(prompt: Prompt, ebm: LatentEBM, key: Array, num_samples: int, *, batch_size: int = 64) -> dict:
    """Draws from the flow with log w = log p_z(z) - E_C(G(z)) - log q(z).

    A conditional prompt is weighed together with its conditions: proposal p(rho) q(z | rho), target p(rho) p_z(z)
    exp(-E_C(G(z), rho)). For one condition alone give the ebm a `cond_prior` of that value.

    Returns:
      dict of NumPy arrays: `z` (N, D), `log_weights` (N,), `energy` (N,), weighted and in nats.

    Raises:
      ValueError: a control needs a reference; the ebm of a conditional prompt has no conditions.
    """
    checks.check_key("log_weights", key)
    checks.check_count("log_weights: num_samples", num_samples)
    check_certifiable(prompt, ebm)
    key_eps, key_ebm = jax.random.split(key)
    eps = prompt.prior.sample(key_eps, num_samples)
    cond = ebm.draw_cond(jax.random.fold_in(key_eps, 1), num_samples)

    return map_batches(lambda *batch: _weigh(prompt, ebm, key_ebm, *batch), batch_size, eps, *filter_none(cond))


@jax.jit
def _weigh(prompt, ebm, key, eps, cond=None):
    z, log_det = prompt.flow.forward_and_log_det(prompt.params, eps, cond)
    energy = ebm.energy(key, z, cond)
    log_q = prompt.prior.log_prob(eps) - log_det
    return {"z": z, "log_weights": prompt.prior.log_prob(z) - energy - log_q, "energy": energy}


@jax.jit
def _energy(ebm, key, z, cond=None):
    return ebm.energy(key, z, cond)


def check_certifiable(prompt: Prompt, ebm: LatentEBM) -> None:
    """Raises ValueError unless prompt and target have densities to compare."""
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


def exactness(
    prompt: Prompt,
    ebm: LatentEBM,
    key: Array,
    *,
    num_samples: int = 1024,
    reference_samples: int = 0,
    batch_size: int = 64,
) -> dict:
    """The certificate of a prompt: effective sample size, log Z with interval, KL to the target.

    KL(q || p) = loss + log Z, where loss is the mean of -log w over flow samples and log Z the best estimate at
    hand: the importance-sampled one from the prior if `reference_samples` is given and its ESS is larger, else
    that of the flow.

    Args:
      prompt: trained on `ebm`.
      ebm: the target; its generator is the prompt's inner generator.
      key: frozen draws.
      num_samples: flow samples.
      reference_samples: prior samples for an independent log Z; 0 for none.
      batch_size: images at a time.

    Returns:
      dict: `num_samples`, `ess` (count), `log_z`, `log_z_low`, `log_z_high` (95 %), `loss`, `kl`, `kl_low`, `kl_high`,
      `notes`, and with a reference also `log_z_reference`, its `..._low` and `..._high`, and `loss_optimum`, which is
      -log_z_reference. Nats. A conditional prompt is certified together with its conditions, see `log_weights`.

    Raises:
      ValueError, TypeError: as `log_weights`.
    """
    checks.check_key("exactness", key)
    checks.check_count("exactness: reference_samples", reference_samples, minimum=0)
    key_flow, key_prior, key_ebm = jax.random.split(key, 3)
    log_w = log_weights(prompt, ebm, key_flow, num_samples, batch_size=batch_size)["log_weights"]
    reference = None
    if reference_samples:
        z = ebm.generator.prior.sample(key_prior, reference_samples)
        cond = ebm.draw_cond(jax.random.fold_in(key_prior, 1), reference_samples)
        reference = -map_batches(lambda *batch: _energy(ebm, key_ebm, *batch), batch_size, z, *filter_none(cond))
    return certificate(log_w, reference)


def certificate(log_w, reference=None) -> dict:
    """The figures of `exactness` from log weights of flow samples (N,) and of prior samples (M,) or None, nats."""
    log_w = np.asarray(log_w, np.float64)
    log_z, ess, error = _log_mean(log_w)
    loss = float(np.mean(-log_w))
    result = {"num_samples": len(log_w), "ess": ess, "loss": loss}
    result |= {"log_z": log_z, "log_z_low": log_z - Z_95 * error, "log_z_high": log_z + Z_95 * error}
    best, best_error, notes = log_z, error, []
    if reference is not None:
        from_prior, prior_ess, prior_error = _log_mean(np.asarray(reference, np.float64))
        result |= {"log_z_reference": from_prior, "loss_optimum": -from_prior}
        result["log_z_reference_low"] = from_prior - Z_95 * prior_error
        result["log_z_reference_high"] = from_prior + Z_95 * prior_error
        if prior_ess > ess:
            best, best_error = from_prior, prior_error
        if abs(from_prior - log_z) > 3 * np.hypot(error, prior_error) + 0.05:
            notes.append("log Z from the flow and from the prior differ: the flow misses a part of the target.")
    spread = Z_95 * float(np.hypot(np.std(log_w) / np.sqrt(len(log_w)), best_error))
    kl = loss + best
    return result | {"kl": kl, "kl_low": kl - spread, "kl_high": kl + spread, "notes": notes}


def resample(prompt: Prompt, ebm: LatentEBM, key: Array, num_samples: int, *, num_proposals: int = 0) -> np.ndarray:
    """Importance resampling: latents (num_samples, D) of the target itself, drawn from weighted flow samples.

    Args:
      prompt: proposal.
      ebm: target; its controls are needed here.
      key: frozen draws.
      num_samples: how many to return; with repetition.
      num_proposals: flow samples to choose from; 0 means 8 per sample.

    Raises:
      ValueError, TypeError: as `log_weights`.
    """
    checks.check_key("resample", key)
    checks.check_count("resample: num_samples", num_samples)
    key_draw, key_choice = jax.random.split(key)
    drawn = log_weights(prompt, ebm, key_draw, num_proposals or 8 * num_samples)
    log_w = jnp.asarray(drawn["log_weights"])
    chosen = jax.random.categorical(key_choice, log_w, shape=(num_samples,))
    return drawn["z"][np.asarray(chosen)]


def _log_mean(log_w: np.ndarray) -> tuple[float, float, float]:
    """Log of the mean weight, effective sample size, and standard error of the log by the delta method."""
    log_mean = float(logsumexp(log_w) - np.log(len(log_w)))
    w = np.exp(log_w - log_w.max())
    ess = float(w.sum() ** 2 / np.sum(w**2))
    return log_mean, ess, float(np.std(w / w.mean()) / np.sqrt(len(w)))
