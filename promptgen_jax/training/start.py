"""What a first batch of weighted samples of the generator is good for: where the flow starts, and by which objective.

The samples are the prior's, weighted for the target, so neither needs a flow.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.special import logsumexp

from promptgen_jax.devices import filter_none
from promptgen_jax.draws import Draws, importance
from promptgen_jax.ebm import LatentEBM
from promptgen_jax.types import Array, Density, Prior, PyTree

NUM_DRAWS = 4096
ENOUGH = 20  # effective samples, below which the prior's samples say nothing of the target
EACH = 2  # effective samples for each latent coordinate, below which the forward divergence learns them by heart
SHARES = (0.25, 0.5, 0.75, 1.0)  # of the shift, since the mean of few samples is noisy
WORTH = 0.05  # nats of the forward gap, below which the flow stays where it is
STEPS, BATCH, RATE = 300, 128, 1e-2  # of bringing a flow to a normal, which costs no image
FLAT, MOSTLY = 0.01, 0.9  # a gradient is flat below this share of the energy's spread; most samples
ONE_MODE = 2 / np.pi  # the share of a normal's variance that is explained by which side of its mean a sample is on


def weighted_draws(ebm: LatentEBM, key: Array, *, num_samples: int = NUM_DRAWS, batch_size: int | None = None) -> Draws:
    """Samples of the generator's prior weighted for the target: what `fit(draws=...)` takes.

    Raises:
      ValueError: a control compares with an image that the flow itself makes, so there is no fixed target.
    """
    key_z, key_cond = jax.random.split(key)
    cond = ebm.draw_cond(key_cond, num_samples)
    draws = Draws.of_prior(ebm.generator.prior, key_z, num_samples, cond=cond)
    return importance(draws, ebm, batch_size=batch_size)


def closest_normal(draws: Draws, prior: Prior) -> Prior | None:
    """A diagonal normal with the moments of weighted samples (N, D), or None where the prior is as close to 0.05 nats.

    Close is a small forward gap E_target[-log q]. Candidates move a quarter to all of the way from the prior's mean to
    the weighted mean, with the prior's deviations or with those of the samples. Each is fitted on one half of the
    samples and judged on the other, and the other way round; the best one is then fitted on all.
    """
    z, log_weight = np.asarray(draws.z, np.float64), np.asarray(draws.log_weight, np.float64)
    weight = np.exp(log_weight - logsumexp(log_weight))
    halves = np.arange(len(z)) % 2 == 0, np.arange(len(z)) % 2 == 1
    loc, scale = (np.broadcast_to(np.asarray(each, np.float64), z.shape[1:]) for each in (prior.loc, prior.scale))

    def gap(candidate) -> float:
        total = 0.0
        for fitted, judged in (halves, halves[::-1]):
            mean, deviation = candidate(z[fitted], weight[fitted])
            minus_log = 0.5 * np.sum(((z[judged] - mean) / deviation) ** 2, axis=1) + np.sum(np.log(deviation))
            total += weight[judged] @ minus_log
        return total

    def moved(z, weight, *, share, narrow):
        weight = weight / weight.sum()
        mean = loc + share * (weight @ z - loc)
        variance = weight @ (z - weight @ z) ** 2
        deviation = np.sqrt((1 - share) * scale**2 + share * variance) if narrow else scale
        return mean, np.maximum(deviation, 1e-2 * scale)

    if not (min(np.max(weight[half]) for half in halves) > 0 and draws.ess() >= ENOUGH):
        return None
    candidates = [functools.partial(moved, share=share, narrow=narrow) for share in SHARES for narrow in (False, True)]
    best = min(candidates, key=gap)
    if gap(best) > gap(lambda z, weight: (loc, scale)) - WORTH:
        return None
    mean, deviation = best(z, weight)
    return prior.replace(loc=jnp.asarray(mean, jnp.float32), scale=jnp.asarray(deviation, jnp.float32))


def start_at(normal: Prior, flow: Density, params: PyTree, key: Array, ebm: LatentEBM) -> PyTree:
    """Parameters with which the flow is about this normal, by 300 steps on KL(q || normal), which cost no image."""
    optimizer = optax.adam(optax.cosine_decay_schedule(RATE, STEPS))

    @jax.jit
    def run(flow, params, ebm, normal, keys):
        def loss(params, key):
            cond = filter_none(ebm.draw_cond(jax.random.fold_in(key, 1), BATCH))
            z, _ = flow.forward_and_log_det(params, flow.prior.sample(key, BATCH), *cond)
            log_q = flow.log_prob(jax.lax.stop_gradient(params), z, *cond)  # the path gradient
            return jnp.mean(log_q - normal.log_prob(z))

        def update(carried, key):
            params, state = carried
            updates, state = optimizer.update(jax.grad(loss)(params, key), state)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(update, (params, optimizer.init(params)), keys)[0][0]

    return run(flow, params, ebm, normal, jax.random.split(key, STEPS))


class Choice(NamedTuple):
    """The name of an objective, and why."""

    objective: str
    reason: str


def choose(ebm: LatentEBM, draws: Draws | None, *, directions: int = 0) -> Choice:
    """The objective for a target, from weighted samples of the prior, by the first of these rules that applies.

    Coordinates are those that the flow moves along: all, or as many as its `directions`.

    1. The target moves with the flow (no samples): path_gradient, which needs no fixed one.
    2. The energy varies but is flat at more than 90 % of the samples, as of saturated classes: score_function.
    3. Fewer effective samples than 20, or than two for each latent coordinate: path_gradient, as the forward part of
       the others would learn the few that weigh most by heart.
    4. Several modes along a coordinate: annealed, since a part of reverse KL may settle on some of them.
    5. Otherwise mixed.
    """
    if draws is None:
        return Choice("path_gradient", "the target moves with the flow")
    flat = flat_share(ebm, draws)
    if flat > MOSTLY:
        return Choice("score_function", f"the energy has no useful gradient at {flat:.0%} of the samples")
    ess, (count, dim) = draws.ess(), draws.z.shape
    dim = directions or dim
    if ess < max(ENOUGH, EACH * dim):
        return Choice(
            "path_gradient", f"only {ess:.1f} of {count} samples of the generator are effective, in {dim} dimensions"
        )
    enough = f"{ess:.0f} of {count} samples of the generator are effective"
    if several_modes(draws):
        return Choice("annealed", f"{enough}, and show several modes")
    return Choice("mixed", f"{enough}, with no sign of several modes")


def flat_share(ebm: LatentEBM, draws: Draws, *, num_samples: int = 64) -> float:
    """Share of samples at which a step of one deviation changes the energy by less than 1 % of its own deviation."""
    some = draws.take(slice(num_samples))

    @jax.jit
    def energies(ebm, key, z, cond):
        values, back = jax.vjp(lambda z: ebm.energy(key, z, cond), z)
        return values, back(jnp.ones_like(values))[0]

    values, gradient = energies(ebm, some.key, some.z, some.cond)
    steps = np.linalg.norm(np.asarray(gradient) * np.asarray(ebm.generator.prior.scale), axis=1)
    return float(np.mean(~(steps > FLAT * np.std(values)))) if np.std(values) > 0 else 0.0


def several_modes(draws: Draws) -> bool:
    """Whether the sides of a coordinate's weighted mean explain more of its variance than they do of a normal's.

    More by three standard errors of as many samples as are effective, so few samples never say so.
    """
    z, weight = np.asarray(draws.z, np.float64), draws.weights()
    weight = np.full(len(z), 1 / len(z)) if weight is None else weight / weight.sum()
    off = z - weight @ z
    explained = (weight @ np.abs(off)) ** 2 / (weight @ off**2)  # of equal sides; less where they are not
    return bool(np.max(explained) > ONE_MODE + 3 / np.sqrt(draws.ess()))
