"""The flow's own samples, made exact by a few steps of a chain."""

from __future__ import annotations

import dataclasses

import jax

from promptgen_jax import parts
from promptgen_jax.draws import Draws
from promptgen_jax.ebm import LatentEBM
from promptgen_jax.prompt import Prompt
from promptgen_jax.samplers import _chains
from promptgen_jax.types import Array


def refine(prompt, ebm, key: Array, num_samples: int, *, num_warmup: int = 10, num_steps: int = 10) -> Draws:
    """Draws of the target by MALA from the samples of a prompt: the same people, a little closer to what was asked.

    Chains that start near the target forget their start in few steps, where those from the prior take many. They stay
    in the part of the target where the flow has put them, so what the flow has lost is not found.

    Args:
      prompt: trained on `ebm`.
      ebm: the target; its controls are needed here.
      key: sample n starts from the noise that `prompt.sample` gives it under the same key.
      num_samples: chains.
      num_warmup: steps in which each chain adapts its step size.
      num_steps: steps after that.

    Raises:
      TypeError, ValueError: a raw key, a count below 1, a target that moves with the flow.
    """
    sampler = parts.load_sampler("mala", num_warmup=num_warmup, num_steps=num_steps)
    start = _chains.start("refine", key, ebm, num_samples)
    return sampler(jax.random.fold_in(key, 4), ebm, num_samples, start=start.through(prompt))


@dataclasses.dataclass(frozen=True)
class Refined:
    """`refine` as a sampler, for comparisons.

    Attributes:
      prompt: trained on the target.
      num_steps: of the chains, after as many in which they adapt.
    """

    prompt: Prompt
    num_steps: int = 10

    def __call__(self, key: Array, ebm: LatentEBM, num_samples: int) -> Draws:
        """Draws of the target from the samples of the prompt."""
        return refine(self.prompt, ebm, key, num_samples, num_warmup=self.num_steps, num_steps=self.num_steps)
