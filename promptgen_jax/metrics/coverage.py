"""How often the generator makes what is asked at all, however rarely: a limit that no training moves (Appendix F).

    P = E_{z ~ p_z}[ Π_i exp(-E_i(G(z))) ]

of the controls at weight 1. Of a classifier, E = -log P(target | x), that is the mean probability of what is asked; of
other energies from 0 up the share that rejection would keep. Sequential Monte Carlo estimates it also where no sample
of the prior shows it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from scipy.special import logsumexp, stdtrit

from promptgen_jax import checks, parts
from promptgen_jax.ebm import LatentEBM
from promptgen_jax.metrics._figures import Estimate, Figure, Figures
from promptgen_jax.metrics._observed import About, Observed
from promptgen_jax.types import Array, Constraint, constraints_of

RARE, REPEATS = 1e-6, 4


@dataclass(frozen=True)
class Coverage:
    """How often the generator makes what is asked.

    Attributes:
      share: in (0, 1], with its 95 % interval from independent repeats.
      notes: a warning if it is less than one in a million.
    """

    share: Estimate
    notes: tuple[str, ...] = ()


def coverage(
    ebm: LatentEBM, key: Array, *, num_samples: int = 256, repeats: int = REPEATS, sampler: Any = None
) -> Coverage:
    """Estimates how often the generator makes what the controls ask, by independent runs of sequential Monte Carlo.

    Args:
      ebm: the target; its constraints on shares do not count, as they ask for nothing of one sample.
      key: of the runs.
      num_samples: particles of a run.
      repeats: runs, at least 2.
      sampler: has `sample_and_log_z`; "smc" by default.

    Raises:
      ValueError: no control that asks for something, a target that moves with the flow, or energies below 0, which are
        no probabilities.
    """
    checks.check_key("coverage", key)
    checks.check_count("coverage: num_samples", num_samples)
    checks.check_count("coverage: repeats", repeats, minimum=2)
    asking = check_asking(ebm)
    sampler = parts.load_sampler("smc") if sampler is None else sampler
    controls: tuple[Any, ...] = tuple(asking)
    plain = ebm.replace(controls=tuple(control.replace(weight=1.0) for control in controls))
    if ebm.cond_prior is not None:
        plain = plain.replace(cond_prior=ebm.cond_prior.fixed_at("strength", 1.0))
    keys = jax.random.split(key, repeats)
    found = np.array([sampler.sample_and_log_z(each, plain, num_samples)[1] for each in keys])
    mean = float(logsumexp(found) - np.log(repeats))
    if mean > 0:
        names = ", ".join(control.name for control in asking)
        raise ValueError(f"coverage: the energies of {names} are below 0, so they are no probabilities. Leave it out.")
    half = float(stdtrit(repeats - 1, 0.975) * found.std(ddof=1) / np.sqrt(repeats))
    share = float(np.exp(mean))
    estimate = Estimate(share, None, float(np.exp(mean - half)), float(min(1, np.exp(mean + half))))
    return Coverage(estimate, (_warning(share),) if share < RARE else ())


def check_asking(ebm: LatentEBM) -> list:
    """The controls that ask for something of each sample. Raises ValueError if there is none."""
    asking = [control for control in ebm.controls if not isinstance(control, Constraint)]
    if not asking:
        raise ValueError(
            "coverage: the target has constraints on shares alone, which any sample may meet. Leave it out."
        )
    return asking


def _warning(share: float) -> str:
    return (
        f"The generator makes what is asked about once in {1 / share:.1e} samples, less than once in a million. What a "
        "flow then finds is where the judges err sooner than what was meant: look at the pictures, and ask an "
        "independent judge."
    )


def measure(seen: Mapping[str, Observed], about: About) -> Figures | None:
    """How often the generator makes what is asked; nothing where only shares are. `seen` is not used."""
    del seen
    if about.ebm.needs_reference or len(constraints_of(about.ebm.controls)) == len(about.ebm.controls):
        return None
    found = coverage(about.ebm, about.key, num_samples=about.num_samples)
    text = "Of all samples of the generator, by sequential Monte Carlo. " + " ".join(found.notes)
    return Figures("How often the generator makes what is asked", (Figure("share", {"before": found.share}),), text)
