"""Outputs of judges and energies of controls on draws, computed once for all metrics, over all devices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from promptgen_jax import checks, devices
from promptgen_jax.draws import Draws
from promptgen_jax.ebm import LatentEBM
from promptgen_jax.metrics._figures import RESERVED
from promptgen_jax.models.network import load_network
from promptgen_jax.types import Aim, Sample, aims_of

EMBEDDING = "embedding"  # the output of networks whose features tell pictures apart
SMALL = 64  # pixels a side of the images that are kept


class Observed(NamedTuple):
    """Draws as they were seen, in NumPy.

    Attributes:
      draws: what was looked at.
      images: (N, h, w, 3), at most 64 pixels a side.
      outputs: by network and output, (N, ...).
      energies: by control, (N,) and unweighted; empty where a control needs a reference.
      log_importance: (N,) nats, log weights that turn these draws into draws of the target, or None if there are none.
    """

    draws: Draws
    images: np.ndarray
    outputs: Mapping[str, Mapping[str, np.ndarray]]
    energies: Mapping[str, np.ndarray]
    log_importance: np.ndarray | None

    def log_probs(self, network: str, attribute: str) -> np.ndarray:
        """Log-probabilities (N, K) in float64 of a network's attribute."""
        return log_softmax(self.outputs[network][attribute])

    def weights(self) -> np.ndarray | None:
        """Of the draws, (N,), or None if all are equal."""
        return self.draws.weights()

    def first(self, count: int) -> Observed:
        """The first of the draws, or all if there are no more."""
        return jax.tree.map(lambda leaf: leaf[:count] if np.ndim(leaf) else leaf, self)

    def reweighted(self) -> Observed:
        """The same draws as samples of the target."""
        return self._replace(draws=self.draws.replace(log_weight=self.log_importance))


@dataclass(frozen=True)
class About:
    """What a metric may know beside what was seen.

    Attributes:
      ebm: the target.
      networks: judges by name.
      attributes: what each of them judges, by name.
      earlier: controls of the prompts below, which are no independent judges any more.
      prompt: what was trained, or None; for metrics that have to draw themselves.
      key: of such draws.
      num_samples: of such draws.
      batch_size: samples per device at a time; None for what `devices.seen_at_a_time` says.
      reference: the name of the draws that others are compared with.
      real: statistics of real pictures by network, `frechet.Statistics`.
    """

    ebm: LatentEBM
    networks: Mapping[str, Any] = field(default_factory=dict)
    attributes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    earlier: tuple = ()
    prompt: Any = None
    key: Any = None
    num_samples: int = 0
    batch_size: int | None = None
    reference: str = "before"
    real: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, ebm: LatentEBM, judges: Mapping, *, earlier: tuple = (), **options) -> About:
        """With the networks of the controls, which always judge, and those asked for, attributes by name.

        Raises:
          FileNotFoundError, ValueError: an unknown network or attribute, with the nearest match.
        """
        networks: dict[str, Any] = {}
        attributes: dict[str, list[str]] = {}
        for aim in (aim for control in (*earlier, *ebm.controls) for aim in aims_of(control)):
            if aim.unit == "share":
                networks[aim.network.name] = aim.network
                attributes.setdefault(aim.network.name, []).append(aim.output)
        for name, wanted in judges.items():
            networks[name] = networks.get(name) or load_network(name)
            for attribute in wanted:
                networks[name].labels(attribute)
            attributes.setdefault(name, []).extend(wanted)
        unique = {name: tuple(dict.fromkeys(found)) for name, found in attributes.items()}
        return cls(ebm=ebm, networks=networks, attributes=unique, earlier=earlier, **options)

    def aims(self) -> list[Aim]:
        """Of all controls, those below first."""
        return [aim for control in (*self.earlier, *self.ebm.controls) for aim in aims_of(control)]

    def aim(self, network: str, output: str) -> Aim | None:
        """The target's own aim at this output, the last one if there are several."""
        own = [aim for control in self.ebm.controls for aim in aims_of(control)]
        return next((aim for aim in reversed(own) if aim.network.name == network and aim.output == output), None)

    def target(self, network: str, output: str) -> dict[str, float]:
        """What that aim asks for, by label or component."""
        aim = self.aim(network, output)
        return dict(aim.target) if aim else {}

    def role(self, network: str, output: str) -> str:
        """Whether a judge of this output was a control, here or below, or could contradict one."""
        own = any(aim.network.name == network and aim.output == output for aim in self.aims())
        return "control" if own else "independent judge"


class Metric(Protocol):
    """The function `measure` of a file of `metrics`, or a function of your own."""

    def __call__(self, seen: Mapping[str, Observed], about: About) -> Any:
        """Figures of named draws: `Figures`, a tuple of `Figure`, or None where there is nothing to measure."""


def observe(draws: Mapping[str, Draws], about: About) -> dict[str, Observed]:
    """Looks at named draws with all networks and controls; one program, compiled once, for all of them.

    Raises:
      ValueError: no draws, or a name that JSON has another use for.
    """
    if not draws or set(draws) & set(RESERVED):
        raise ValueError(
            f"observe: draws are named {', '.join(draws) or 'nothing'}; expected at least one, and no name of "
            f"{', '.join(RESERVED)}. Rename them."
        )
    return {name: _observed(found, about) for name, found in draws.items()}


def embeddings(seen: Mapping[str, Observed]) -> dict[str, dict[str, np.ndarray]]:
    """By every network that gives an `embedding`, of all draws by name, (N, F)."""
    first = next(iter(seen.values()))
    networks = [network for network, outputs in first.outputs.items() if EMBEDDING in outputs]
    return {network: {name: found.outputs[network][EMBEDDING] for name, found in seen.items()} for network in networks}


def _observed(draws: Draws, about: About) -> Observed:
    checks.check_latents("observe", draws.z, about.ebm.generator.prior.dim)
    arrays = (draws.key, draws.z, *devices.filter_none(draws.cond))
    batch_size = devices.seen_at_a_time(about.ebm.generator.image_size, about.batch_size)
    seen = devices.map_batches(_look, batch_size, *arrays, shared=(about.ebm, dict(about.networks)))
    log_importance = None
    checks.check_density("observe", seen.get("log_target", 0.0))
    if "log_target" in seen and draws.log_prob is not None:
        log_importance = seen["log_target"].astype(np.float64) - np.asarray(draws.log_prob)
    return Observed(draws, seen["images"], seen["outputs"], seen.get("energies", {}), log_importance)


@jax.jit
def _look(ebm, networks, keys, z, cond=None):
    images = ebm.images(keys, z)  # judges see the very ones whose energies weigh them
    shape = (*(min(side, SMALL) for side in images.shape[1:3]), 3)
    seen = {
        "images": jax.image.resize(images, (images.shape[0], *shape), "linear"),
        "outputs": {name: network(images) for name, network in networks.items()},
    }
    if not ebm.needs_reference:
        energies = ebm.energies_of(keys, Sample(images=images, z=z, cond=cond))
        seen |= {"energies": energies, "log_target": ebm.generator.prior.log_prob(z) - ebm.total(energies, cond)}
    return seen


def log_softmax(logits) -> np.ndarray:
    """Log-probabilities (N, K) in float64."""
    logits = np.asarray(logits, np.float64)
    return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
