"""Moment constraints: the beta of p(z) exp(beta . gamma(G(z))) that gives E[gamma] = mu (Eqs. 5 to 7)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from scipy.special import logsumexp

from promptgen_jax import checks
from promptgen_jax.controls._shares import SUM_TOLERANCE, check_mu
from promptgen_jax.draws import Draws
from promptgen_jax.training.optimizer import make_optimizer

MOMENT_TOLERANCE = 1e-4
MIN_EFFECTIVE = 20
CONSTANT = 1e-6  # a component that varies by less is taken as constant


class MomentFit(NamedTuple):
    """A fitted moment constraint. The weights are w_k, proportional to exp(beta . gamma_k), over all attributes.

    Attributes:
      beta: per attribute, (K,) float64. That of an attribute on a simplex sums to zero.
      reached: per attribute, the weighted mean of gamma, (K,).
      ess: effective share of the samples, (sum w)^2 / (N sum w^2), in (0, 1].
      kl: KL(p_C || prior) in nats, beta . reached - log_z.
      log_z: log E[exp(beta . gamma)], in the same gauge as beta.
    """

    beta: dict[str, np.ndarray]
    reached: dict[str, np.ndarray]
    ess: float
    kl: float
    log_z: float


class DrawnFit(MomentFit):
    """A `MomentFit`, still of five entries, that keeps what it was fitted on.

    Attributes:
      draws: the generator's samples weighted for the target, to train with: `fit(draws=...)`; None where other controls
        have a say in the weights, or there are conditions.
    """

    draws: Draws | None = None


def fit_beta(
    gamma: Mapping[str, ArrayLike], mu: Mapping[str, ArrayLike | str], *, log_weights: jax.Array | None = None
) -> MomentFit:
    """Solves the moment constraint exactly on cached samples, all attributes jointly.

    The closest distribution to the prior with E[gamma] = mu (Eq. 5) is p(z) exp(beta . gamma(G(z))) / Z (Eq. 6), with

        beta = argmin  log mean_k exp(beta . gamma_k) - beta . mu,

    the convex dual, where beta . gamma adds up all attributes. Its gradient is the weighted mean of gamma less mu, so
    it has the root of Eq. 7. Damped Newton steps in float64 find it.

    Where the rows of gamma sum to one, adding a constant to beta changes nothing: such a beta is made to sum to zero,
    and its mu must sum to one. Other attributes, an angle say, may take any mu inside their range.

    Args:
      gamma: per attribute, (N, K) values on the same N samples.
      mu: per attribute, the (K,) wanted mean, or "uniform".
      log_weights: (N,) log importance weights, if the samples do not come from the prior itself; any constant cancels.

    Raises:
      ValueError: shapes or names that do not fit together, a mu that these samples cannot reach, or one that fewer
        than 20 effective samples support.
    """
    names, values, target, simplex = _check_inputs("fit_beta", gamma, mu)
    count = len(values[names[0]])
    base = _check_log_weights(log_weights, count)
    supported = np.isfinite(base)
    for name in names:
        _check_range(name, values[name][supported], target[name])

    shift = {name: 1 / target[name].size if name in simplex else 0.0 for name in names}
    features = np.concatenate([values[name] - shift[name] for name in names], axis=1)
    flat = _newton(features, np.concatenate([target[name] - shift[name] for name in names]), base)
    ends = np.cumsum([target[name].size for name in names])[:-1]
    beta = {name: _gauge(part, name in simplex) for name, part in zip(names, np.split(flat, ends), strict=True)}

    fit = _evaluate(beta, values, base)
    error = {name: np.max(np.abs(fit.reached[name] - target[name])) for name in names}
    worst = max(names, key=lambda name: error[name])
    effective = fit.ess * count
    if not error[worst] <= MOMENT_TOLERANCE:
        rows = values[worst][supported]
        problem = f"these samples reach only {_show(fit.reached[worst])}"
    elif effective < MIN_EFFECTIVE:
        worst = max(names, key=lambda name: np.ptp(values[name][supported] @ beta[name]))
        rows = values[worst][supported]
        problem = f"only {effective:.1f} effective samples of {count} support it, at least {MIN_EFFECTIVE} are needed"
    else:
        return fit
    raise ValueError(_infeasible(worst, target[worst], rows, problem))


def moment_loss(
    beta: Mapping[str, jax.Array], gamma: Mapping[str, jax.Array], mu: Mapping[str, jax.Array], *, joint: bool = True
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Eq. 7 on one batch: the squared distance of the self-normalised weighted mean to mu, summed over attributes.

        sum_a | sum_k w_k gamma_ak / sum_k w_k - mu_a |^2,   w_k = exp(sum_a beta_a . gamma_ak)

    The largest exponent is subtracted from all, which leaves the ratio as it is and cannot overflow.

    Args:
      beta: per attribute, (K,).
      gamma: per attribute, (N, K).
      mu: per attribute, (K,), or "uniform".
      joint: False weighs each attribute by its own exp(beta_a . gamma_ak) alone, as the official code does. The two
        differ when attributes are correlated: the energy adds up all betas, so only the joint form meets every mu.

    Returns:
      The loss, and its part per attribute.
    """
    logits = {name: jnp.matmul(gamma[name], beta[name], precision="highest") for name in beta}
    if joint:
        logits = dict.fromkeys(beta, sum(logits.values(), start=jnp.zeros(())))
    parts = {}
    for name, value in logits.items():
        mean = jnp.matmul(jax.nn.softmax(value), gamma[name], precision="highest")
        parts[name] = jnp.sum((mean - _target(mu[name], mean.shape[-1])) ** 2)
    return sum(parts.values(), start=jnp.zeros(())), parts


def fit_beta_sgd(
    sample_gamma: Callable[[jax.Array], Mapping[str, jax.Array]],
    mu: Mapping[str, jax.Array | str],
    key: jax.Array,
    *,
    num_steps: int = 500,
    learning_rate: float = 5e-2,
    joint: bool = True,
) -> MomentFit:
    """Minimises Eq. 7 on fresh batches with the official optimiser, from beta = 0.

    The optimiser is AdamW with linear decay to 0 and gradients clipped to norm 1. Of the two fits this is the paper's;
    `fit_beta` is exact on its samples and faster. The returned numbers belong to one more batch, so `reached` differs
    from mu by the sampling error; compare the two before using beta.

    Args:
      sample_gamma: key to, per attribute, (N, K) values on N new samples of the prior; 1,024 officially. It runs
        outside any jit, so compile it.
      mu: per attribute, the (K,) wanted mean, or "uniform".
      key: typed key.
      num_steps: number of updates.
      learning_rate: rate of the first update.
      joint: as in `moment_loss`.

    Raises:
      ValueError: shapes or names that do not fit together, a mu on a simplex that does not sum to one, a beta that
        is not finite.
    """
    checks.check_key("fit_beta_sgd: key", key)
    optimizer = make_optimizer(learning_rate=learning_rate, num_steps=num_steps)
    names, _, target, simplex = _check_inputs("fit_beta_sgd", sample_gamma(jax.random.fold_in(key, 0)), mu)
    wanted = {name: jnp.asarray(target[name], jnp.float32) for name in names}

    @jax.jit
    def update(beta, state, gamma):
        grads = jax.grad(lambda beta: moment_loss(beta, gamma, wanted, joint=joint)[0])(beta)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(beta, updates), state

    beta = {name: jnp.zeros_like(wanted[name]) for name in names}
    state = optimizer.init(beta)
    for step in range(num_steps):
        gamma = sample_gamma(jax.random.fold_in(key, step))
        beta, state = update(beta, state, {name: gamma[name] for name in names})

    beta = {name: _gauge(np.asarray(beta[name], np.float64), name in simplex) for name in names}
    for name, value in beta.items():
        if not np.all(np.isfinite(value)):
            raise ValueError(f"fit_beta_sgd: beta of {name} is not finite. Check gamma for NaN or infinite values.")
    _, gamma, *_ = _check_inputs("fit_beta_sgd", sample_gamma(jax.random.fold_in(key, num_steps)), target)
    return _evaluate(beta, gamma, np.zeros(len(gamma[names[0]])))


def closed_loop_update(
    beta: Mapping[str, jax.Array],
    gamma_mean: Mapping[str, jax.Array],
    mu: Mapping[str, jax.Array | str],
    *,
    rate: float,
    simplex: Collection[str] | None = None,
) -> dict[str, jax.Array]:
    """One step of feedback: beta + rate (mu - gamma_mean), for a flow that falls short of the tilt it is trained for.

    Works under jit. It is the gradient step of the dual with the flow's own samples in place of weighted ones.

    Args:
      beta: per attribute, (K,).
      gamma_mean: per attribute, the running mean of gamma over the flow's samples, (K,).
      mu: per attribute, (K,), or "uniform".
      rate: size of the step.
      simplex: the attributes whose gamma sums to one, of which beta is made to sum to zero; None means all with K > 1.
    """
    new = {}
    for name, value in beta.items():
        value = jnp.asarray(value)
        value = value + rate * (_target(mu[name], value.shape[-1]) - gamma_mean[name])
        new[name] = _gauge(value, value.shape[-1] > 1 if simplex is None else name in simplex)
    return new


def _target(mu, count):
    return jnp.full(count, 1 / count) if isinstance(mu, str) else jnp.asarray(mu)


def _gauge(beta, on_simplex):
    return beta - beta.mean() if on_simplex else beta


def _show(values):
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"


def _infeasible(name, asked, rows, problem):
    low, high = rows.min(axis=0), rows.max(axis=0)
    attainable = ", ".join(f"{a:.4g} to {b:.4g}" for a, b in zip(low, high, strict=True))
    return (
        f"fit_beta: {name} cannot have mean {_show(asked)}: {problem}; its values range over ({attainable}), so move "
        f"mu towards their mean {_show(rows.mean(axis=0))}, or pass more samples."
    )


def _check_range(name, rows, mu):
    """A mean strictly inside the range of every component, or equal to a component that does not vary."""
    low, high = rows.min(axis=0), rows.max(axis=0)
    inside = (low < mu) & (mu < high)
    constant = (high - low < CONSTANT) & (np.abs(mu - low) < CONSTANT)
    bad = np.flatnonzero(~(inside | constant))
    if bad.size:
        i = bad[0]
        problem = f"component {i} is asked to be {mu[i]:.4g}, outside or at the edge of {low[i]:.4g} to {high[i]:.4g}"
        raise ValueError(_infeasible(name, mu, rows, problem))


def _check_log_weights(log_weights, count):
    if log_weights is None:
        return np.zeros(count)
    base = np.asarray(log_weights, np.float64)
    if base.shape != (count,):
        raise ValueError(f"fit_beta: log_weights are {base.shape}; expected ({count},). Pass one per sample.")
    if np.any(np.isnan(base) | (base == np.inf)) or not np.any(np.isfinite(base)):
        raise ValueError("fit_beta: log_weights hold NaN, +infinity or nothing finite. Check where they came from.")
    return base


def _check_inputs(where: str, gamma: Mapping, mu: Mapping) -> tuple[list[str], dict, dict, set[str]]:
    """Names, gamma and mu in float64, and the names of the attributes on a simplex, whose rows then sum to one."""
    if not mu or set(gamma) != set(mu):
        raise ValueError(
            f"{where}: mu names {sorted(mu)} and gamma {sorted(gamma)}; expected the same attributes, at least one. "
            "Pass one mu for each."
        )
    names, count, values, target, simplex = list(mu), None, {}, {}, set()
    for name in names:
        rows = np.asarray(gamma[name], np.float64)
        if rows.ndim != 2 or 0 in rows.shape:
            raise ValueError(f"{where}: gamma of {name} is {rows.shape}; expected (samples, K). Stack the samples.")
        count = len(rows) if count is None else count
        if len(rows) != count:
            raise ValueError(
                f"{where}: gamma of {name} has {len(rows)} samples and that of {names[0]} {count}; expected the same "
                "samples. Score all attributes on one batch."
            )
        checks.check_finite(f"{where}: gamma of {name}", "gamma", rows)
        sums = rows.sum(axis=1, keepdims=True)
        if rows.shape[1] > 1 and rows.min() >= -SUM_TOLERANCE and np.max(np.abs(sums - 1)) < SUM_TOLERANCE:
            simplex.add(name)
            rows = rows / sums
            goal = check_mu(f"{where}: {name}", mu[name], [str(i) for i in range(rows.shape[1])])
        elif isinstance(mu[name], str):
            raise ValueError(f"{where}: mu of {name} is {mu[name]!r}, but its gamma does not sum to one. Pass numbers.")
        else:
            goal = np.asarray(mu[name], np.float64)
            if goal.shape != rows.shape[1:] or not np.all(np.isfinite(goal)):
                raise ValueError(
                    f"{where}: mu of {name} is {goal}; expected {rows.shape[1]} finite numbers. Pass one per column."
                )
        values[name], target[name] = rows, goal
    return names, values, target, simplex


def _newton(features, mu, base, max_steps=500, tolerance=1e-7):
    """Minimises logsumexp(features @ beta + base) - beta . mu with Levenberg's damping; stops on small gradients."""
    spread = np.ptp(features[np.isfinite(base)], axis=0)
    scale = np.where(spread < CONSTANT, np.inf, spread)  # infinite drops what no beta can move
    features, mu = features / scale, mu / scale

    def value(beta):
        return logsumexp(features @ beta + base) - beta @ mu

    beta, damping = np.zeros(mu.size), 1e-2
    current = value(beta)
    for _ in range(max_steps):
        logits = features @ beta + base
        weights = np.exp(logits - logsumexp(logits))
        mean = weights @ features
        centred = features - mean
        grad = mean - mu
        if np.max(np.abs(grad)) < tolerance:
            break
        hessian = (centred * weights[:, None]).T @ centred
        while damping < 1e12:
            trial = beta - np.linalg.solve(hessian + damping * np.eye(mu.size), grad)
            new = value(trial)
            if new <= current:
                break
            damping *= 10
        else:
            break
        beta, current, damping = trial, new, max(damping / 10, 1e-8)
    return beta / scale


def _evaluate(beta, gamma, base):
    logits = base + sum(gamma[name] @ beta[name] for name in beta)
    weights = np.exp(logits - logsumexp(logits))
    reached = {name: weights @ gamma[name] for name in beta}
    log_z = float(logsumexp(logits) - logsumexp(base))
    kl = float(sum(beta[name] @ reached[name] for name in beta)) - log_z
    return MomentFit(beta, reached, float(1 / (weights.size * np.sum(weights**2))), max(kl, 0.0), log_z)
