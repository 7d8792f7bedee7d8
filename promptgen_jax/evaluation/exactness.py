"""How close a trained prompt is to its target: the flow's density is exact, so importance weights can tell.

All draws use frozen keys, because importance weights of a noisy energy are wrong.
"""

from __future__ import annotations

import jax
import numpy as np

from promptgen_jax import checks
from promptgen_jax.devices import filter_none, map_batches, seen_at_a_time
from promptgen_jax.draws import chosen_rows
from promptgen_jax.ebm import LatentEBM
from promptgen_jax.metrics.certificate import certify, check_certifiable
from promptgen_jax.prompt import Prompt
from promptgen_jax.types import Array


def log_weights(prompt: Prompt, ebm: LatentEBM, key: Array, num_samples: int, *, batch_size: int | None = None) -> dict:
    """Draws from the flow with log w = log p_z(z) - E_C(G(z)) - log q(z).

    A conditional prompt is weighed together with its conditions: proposal p(rho) q(z | rho), target p(rho) p_z(z)
    exp(-E_C(G(z), rho)). For one condition alone give the ebm a `cond_prior` of that value.

    Returns:
      dict of NumPy arrays: `z` (N, D), `log_weights` (N,), `energy` (N,), weighted and in nats.

    Raises:
      ValueError: a control needs a reference; the ebm of a conditional prompt has no conditions; energies are NaN.
    """
    checks.check_key("log_weights", key)
    checks.check_count("log_weights: num_samples", num_samples)
    check_certifiable(prompt, ebm)
    key_eps, key_ebm = jax.random.split(key)
    eps = prompt.prior.sample(key_eps, num_samples)
    cond = ebm.draw_cond(jax.random.fold_in(key_eps, 1), num_samples)

    batch_size = seen_at_a_time(ebm.generator.image_size, batch_size)
    found = map_batches(lambda *batch: _weigh(prompt, ebm, key_ebm, *batch), batch_size, eps, *filter_none(cond))
    checks.check_density("log_weights", found["log_weights"])
    return found


@jax.jit
def _weigh(prompt, ebm, key, eps, cond=None):
    z, log_det = prompt.flow.forward_and_log_det(prompt.params, eps, cond)
    energy = ebm.energy(key, z, cond)
    log_q = prompt.prior.log_prob(eps) - log_det
    return {"z": z, "log_weights": prompt.prior.log_prob(z) - energy - log_q, "energy": energy}


def exactness(
    prompt: Prompt,
    ebm: LatentEBM,
    key: Array,
    *,
    num_samples: int = 1024,
    reference_samples: int = 0,
    batch_size: int | None = None,
) -> dict:
    """The certificate of a prompt as a dict, see `metrics.certificate.certify`.

    Args:
      prompt: trained on `ebm`.
      ebm: the target; its generator is the prompt's inner generator.
      key: frozen draws.
      num_samples: of the flow.
      reference_samples: of the prior; 0 for as many.
      batch_size: images per device at a time; None for what `devices.seen_at_a_time` says.

    Returns:
      dict: `Certificate.to_json`; of it `ess` counts effective samples of the flow, `kl` is the reverse KL divergence,
      and `loss_optimum` is -log Z. Nats.

    Raises:
      ValueError, TypeError: as `certify`.
    """
    checks.check_key("exactness", key)
    checks.check_count("exactness: num_samples", num_samples)
    checks.check_count("exactness: reference_samples", reference_samples, minimum=0)
    sizes = {"num_samples": num_samples, "reference_samples": reference_samples or num_samples}
    return certify(prompt, ebm, key, **sizes, batch_size=batch_size).to_json()


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
    return drawn["z"][chosen_rows(key_choice, drawn["log_weights"], num_samples)]
