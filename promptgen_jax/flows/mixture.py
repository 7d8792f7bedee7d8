"""A mixture of flows: a density with several separated modes, which no single smooth map has without bridges.

    q(z) = Σ_k w_k q_k(z),   q_k the density of loc + width_k (f_k(eps) - loc) + scale * shift_k

It is a density, not a map: there is no way back from z to one eps. Yet every noise has one latent, since the first
number of eps chooses the part k, and stretched to the whole line again it is as normal as before within it. So each
part keeps "same noise, same person", and every objective trains a mixture unchanged, as its shares w_k stay: the
gradient goes through the parts, not through the choice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import distrax
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.scipy.special import ndtr, ndtri

from promptgen_jax import checks
from promptgen_jax.flows import base
from promptgen_jax.types import Array, Prior, PyTree, Spec

TAIL = 1e-7  # of the normal, beyond which float32 tells no numbers apart


class MixtureFlow(struct.PyTreeNode):
    """The density of a mixture as pure functions of params, which hold those of the parts along a first axis.

    Attributes:
      buffers: those of the parts, along a first axis.
      prior: base distribution of every part.
      module: the networks of a part, and how many parts there are.
    """

    buffers: PyTree = struct.field(repr=False)
    prior: Prior
    module: Mixture = struct.field(pytree_node=False)

    @property
    def spec(self) -> Spec:
        """Kind and complete options."""
        return self.module.spec

    @property
    def cond_dim(self) -> int:
        """A, length of a condition; 0 if the flow takes none."""
        return self.module.cond_dim

    def forward_and_log_det(self, params: PyTree, eps: Array, cond: Array | None = None) -> tuple[Array, Array]:
        """Noise (B, D) to latents (B, D) and log p(eps) - log q(z) (B,), nats, which of a map is its log_det.

        Raises:
          ValueError, TypeError: as `Flow.forward_and_log_det`.
        """
        self._check("flow.forward_and_log_det", eps, cond)
        part, within = self._choose(eps)

        every = jax.vmap(lambda params, buffers: self._bijector(params, buffers, cond).forward(within))(
            params, self.buffers
        )
        z = jnp.take_along_axis(every, part[None, :, None], axis=0)[0]
        return z, self.prior.log_prob(eps) - self._log_prob(params, z, cond)

    def forward_and_log_dets(
        self, params: PyTree, eps: Array, cond: Array | None = None
    ) -> tuple[Array, tuple[Array, ...]]:
        """As `forward_and_log_det`; the blocks of the prior are not told apart."""
        z, log_det = self.forward_and_log_det(params, eps, cond)
        return z, (log_det,)

    def log_prob(self, params: PyTree, z: Array, cond: Array | None = None) -> Array:
        """Exact log density (B,), nats, of latents (B, D).

        Raises:
          ValueError, TypeError: as `Flow.log_prob`.
        """
        self._check("flow.log_prob", z, cond)
        return self._log_prob(params, z, cond)

    def sample_and_log_prob(
        self, params: PyTree, key: Array, num_samples: int, cond: Array | None = None
    ) -> tuple[Array, Array]:
        """Draws latents (num_samples, D) and their exact log density (num_samples,), nats.

        Raises:
          ValueError, TypeError: as `Flow.sample_and_log_prob`.
        """
        checks.check_key("flow.sample_and_log_prob", key)
        checks.check_count("flow.sample_and_log_prob: num_samples", num_samples)
        eps = self.prior.sample(key, num_samples)
        z, difference = self.forward_and_log_det(params, eps, cond)
        return z, self.prior.log_prob(eps) - difference

    def part_of(self, eps: Array) -> Array:
        """The number (B,) of the part that shows a noise (B, D)."""
        return self._choose(eps)[0]

    def _choose(self, eps: Array) -> tuple[Array, Array]:
        """The parts (B,) of noises (B, D), and the noises within them, distributed as the prior again."""
        shares = jnp.asarray(self.module.shares)
        edges = jnp.cumsum(shares)
        rank = ndtr((eps[:, 0] - self.prior.loc[0]) / self.prior.scale[0])
        part = jnp.minimum(jnp.sum(rank[:, None] >= edges[None], axis=1), len(shares) - 1)
        within = jnp.clip((rank - (edges - shares)[part]) / shares[part], TAIL, 1 - TAIL)
        return part, eps.at[:, 0].set(self.prior.loc[0] + self.prior.scale[0] * ndtri(within))

    def _log_prob(self, params: PyTree, z: Array, cond: Array | None) -> Array:
        def one(params: PyTree, buffers: PyTree) -> Array:
            eps, log_det = self._bijector(params, buffers, cond).inverse_and_log_det(z)
            return self.prior.log_prob(eps) + log_det

        log_shares = jnp.log(jnp.asarray(self.module.shares))
        return jax.nn.logsumexp(log_shares[:, None] + jax.vmap(one)(params, self.buffers), axis=0)

    def _bijector(self, params: PyTree, buffers: PyTree, cond: Array | None) -> distrax.Bijector:
        """The map of one part."""
        middle, width = self.prior.loc, jnp.exp(params["log_widths"])
        place = distrax.ScalarAffine((1 - width) * middle + self.prior.scale * params["shifts"], scale=width)
        return distrax.Chain([distrax.Block(place, 1), self.module.part.bijector(params["parts"], buffers, cond)])

    def _check(self, where: str, latents: Array, cond: Array | None) -> None:
        checks.check_latents(where, latents, self.prior.dim)
        checks.check_cond(where, cond, self.cond_dim, latents.shape[0])


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Equal networks for every part.

    Attributes:
      part: what makes the bijector of one part.
      shares: w, adding up to 1.
      spread: length of the first shifts, in standard deviations of the prior; parts of one start would stay together.
      width: first factor on what the flow of a part makes.
      cond_dim: A, length of a condition; 0 if the flow takes none.
    """

    conditioning: ClassVar[str] = "mixture"
    flow_class: ClassVar[type] = MixtureFlow

    part: Any
    shares: tuple[float, ...]
    spread: float
    width: float
    cond_dim: int
    dim: int

    @property
    def spec(self) -> Spec:
        """Kind and complete options."""
        part = {"kind": self.part.spec.kind, **self.part.spec.options}
        places = {"shares": self.shares, "spread": self.spread, "width": self.width}
        return Spec.of("mixture", {"num_parts": len(self.shares), **places, "part": part})

    def draw(self, key: Array) -> dict[str, PyTree]:
        """New `params`, those of the parts, their log widths and their shifts over the prior's scale, and `buffers`."""
        key_parts, key_shifts = jax.random.split(key)
        count = len(self.shares)
        parts = jax.vmap(self.part.draw)(jax.random.split(key_parts, count))
        shifts = self.spread * _directions(key_shifts, count, self.dim)
        places = {"shifts": shifts, "log_widths": jnp.full(shifts.shape, np.log(self.width), jnp.float32)}
        return {"params": {"parts": parts["params"], **places}, "buffers": parts["buffers"]}


def _directions(key: Array, count: int, dim: int) -> Array:
    """Unit vectors (count, dim) far from each other: of 64 times as many, each time the one least like those taken."""
    drawn = jax.random.normal(key, (64 * count, dim))
    drawn = drawn / jnp.linalg.norm(drawn, axis=1, keepdims=True)
    taken = drawn[:1]
    for _ in range(count - 1):
        taken = jnp.concatenate([taken, drawn[jnp.argmin(jnp.max(drawn @ taken.T, axis=1))][None]])
    return taken


def build(
    prior: Prior,
    *,
    cond_dim: int = 0,
    num_parts: int = 4,
    shares: Sequence[float] = (),
    spread: float = 1.5,
    width: float = 1.0,
    part: Mapping | None = None,
) -> Mixture:
    """A mixture of equal networks.

    Args:
      prior: base distribution of every part.
      cond_dim: length of the condition, 0 for none.
      num_parts: K.
      shares: of the parts, positive, adding up to 1; equal if left out. They are not trained.
      spread: how far from the middle the parts start, in standard deviations of the prior.
      width: how wide the parts start, over the prior's width; narrow ones mix less, and pay for it where D is large.
      part: kind and options of the flow of each part; the paper's starts as the identity unless they say otherwise.

    Raises:
      ValueError: a count below 2, shares that are none, options that the parts do not have.
    """
    checks.check_count("flow mixture: num_parts", num_parts, minimum=2)
    checks.check_number("flow mixture: spread", spread, 0, 1e3, above=True)
    checks.check_number("flow mixture: width", width, 0, 1e3, above=True)
    try:
        weights = tuple(map(float, shares)) or (1 / num_parts,) * num_parts
    except (TypeError, ValueError):
        weights = ()
    if len(weights) != num_parts or min(weights) <= 0 or abs(sum(weights) - 1) > 1e-6:
        raise ValueError(f"flow mixture: shares are {shares}; expected {num_parts} positive numbers that add up to 1.")
    if part is not None and not isinstance(part, Mapping):
        raise ValueError(f"flow mixture: part is {part!r}; expected options of a flow, such as {{'preset': 'large'}}.")
    part = dict(part or {})
    if part.get("kind", base.PAPER) == base.PAPER:
        part = {"identity_start": True, **part}
    networks = base.build_module(prior, cond_dim=cond_dim, **part)
    if isinstance(networks, Mixture):
        raise ValueError("flow mixture: its parts are mixtures themselves. Give more parts instead.")
    return Mixture(networks, weights, float(spread), float(width), cond_dim, prior.dim)
