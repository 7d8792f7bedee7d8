"""How well a conditional prompt does what it is told: pose error, and who it is in different poses (Table 3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from promptgen_jax import draws
from promptgen_jax.controls.identity import unit
from promptgen_jax.devices import map_batches, seen_at_a_time
from promptgen_jax.ebm import LatentEBM
from promptgen_jax.metrics._intervals import Z_95
from promptgen_jax.metrics._observed import About, Observed
from promptgen_jax.prompt import Prompt
from promptgen_jax.types import aims_of

BINS = 4  # of the asked angles


@dataclass(frozen=True)
class ConditionFigures:
    """What a conditional prompt does with its conditions.

    Attributes:
      names: of the components.
      ranges: (low, high) of each, in its unit.
      num_samples: faces.
      units: of each, as people write it; degrees if left out, as in earlier reports.
      told: what the conditions were drawn from, where ranges do not say it: "228 sentences".
      pose: per control and component, errors before and after, and what was reached by what was asked.
      identity: per network, distances within and between faces.
    """

    names: tuple[str, ...]
    ranges: tuple[tuple[float, float], ...]
    num_samples: int
    pose: tuple[dict[str, Any], ...] = ()
    identity: tuple[dict[str, Any], ...] = ()
    units: tuple[str, ...] = ()
    told: tuple[str, ...] = ()

    def __post_init__(self):
        """Fills in the units of earlier reports."""
        object.__setattr__(self, "units", tuple(self.units) or len(self.names) * ("degrees",))

    def unit(self, name: str) -> str:
        """Unit of a component by name."""
        return self.units[self.names.index(name)]

    def to_json(self) -> dict:
        """As in report.json."""
        lists = {name: list(getattr(self, name)) for name in ("names", "units", "told", "pose", "identity")}
        return lists | {"ranges": [list(ends) for ends in self.ranges], "num_samples": self.num_samples}

    @classmethod
    def from_json(cls, found: dict) -> ConditionFigures:
        """What `to_json` wrote."""
        names, ranges = tuple(found["names"]), tuple((low, high) for low, high in found["ranges"])
        lists = {name: tuple(found.get(name) or ()) for name in ("pose", "identity", "units", "told")}
        return cls(names, ranges, found["num_samples"], **lists)


def measure(seen: Mapping[str, Observed], about: About) -> ConditionFigures | None:
    """On fresh noise, each with two conditions; nothing without conditions. `seen` is not used."""
    del seen
    if about.ebm.cond_prior is None or about.prompt is None:
        return None
    own = {aim.network.name: aim.network for aim in about.aims() if aim.output == "embedding"}
    sizes: Any = {"num_samples": about.num_samples, "batch_size": about.batch_size}
    return _measured(about.prompt, about.ebm, own | dict(about.networks), about.key, **sizes)


def evaluate_conditions(
    prompt: Prompt, ebm: LatentEBM, networks: dict, key, *, num_samples: int, batch_size: int | None = None
) -> dict:
    """Evaluates on fresh noise, each with two conditions drawn from those trained on.

    Pose errors are those of the first condition, beside the untouched generator's under the same demand. Identity is
    measured as in Table 3 of the paper: distances sqrt(2 (1 - cos)) of embeddings within a face, under its two
    conditions, and between one face and the next.

    Args:
      prompt: conditional, trained on `ebm`.
      ebm: its controls whose aims follow the condition are judged by their own network.
      networks: by name; those that return an `embedding` tell faces apart.
      key: frozen draws.
      num_samples: faces.
      batch_size: faces per device at a time; None for what `devices.seen_at_a_time` says.

    Returns:
      dict: `names`, `units`, `ranges` in these, `told`, `num_samples`, `pose`, `identity`, as in report.json.
    """
    return _measured(prompt, ebm, networks, key, num_samples=num_samples, batch_size=batch_size).to_json()


def _measured(
    prompt, ebm: LatentEBM, networks: dict, key, *, num_samples: int, batch_size: int | None
) -> ConditionFigures:
    key_eps, key_image, *keys = jax.random.split(key, 4)
    eps = prompt.prior.sample(key_eps, num_samples)
    prior: Any = ebm.cond_prior  # there is one, as the prompt is conditional
    asked, other = (prior.sample(each, num_samples) for each in keys)
    aims = [(control, aim) for control in ebm.controls for aim in aims_of(control)]
    own = {aim.network.name for _, aim in aims if aim.output == "embedding"}
    readers = {control.name: control for control, aim in aims if aim.follows}
    shape = jax.eval_shape(prompt.generator, key, eps[:1])
    embedders = {name: net for name, net in networks.items() if "embedding" in jax.eval_shape(net, shape)}

    @jax.jit
    def observe(prompt, readers, embedders, keys, eps, asked, other):
        before, first = (draws.images_of(g, keys, eps, *c) for g, c in ((prompt.generator, ()), (prompt, (asked,))))
        second = draws.images_of(prompt, keys, eps, other)
        return {
            "before": {name: reader.pose(before) for name, reader in readers.items()},
            "after": {name: reader.pose(first) for name, reader in readers.items()},
            "embeddings": {
                name: tuple(unit(net(images)["embedding"]) for images in (first, second))
                for name, net in embedders.items()
            },
        }

    arrays = (draws.sample_keys(key_image, np.arange(num_samples)), eps, asked, other)
    batch_size = seen_at_a_time(prompt.image_size, batch_size)
    seen = map_batches(observe, batch_size, *arrays, shared=(prompt, readers, embedders))
    wanted = prior.write(asked)
    ranges = np.array([ends[:2] for ends in prior.ranges().values()])
    reached = {
        when: {name: prior.write(found[:, : prior.dim]) for name, found in seen[when].items()}
        for when in ("before", "after")
    }
    return ConditionFigures(
        names=tuple(name for name, _ in prior.components),
        units=prior.units,
        told=tuple(prior.told().values()) if prior.texts else (),
        ranges=tuple(map(tuple, ranges.tolist())),
        num_samples=num_samples,
        pose=tuple(
            {"control": control, "angle": name}
            | {
                when: pose_error(reached[when][control][:, i], wanted[:, i], around=360 if kind == "angle" else None)
                for when in ("before", "after")
            }
            | {"reached": _reached(reached["after"][control][:, i], wanted[:, i], ranges[i])}
            for control in readers
            for i, (name, kind) in enumerate(prior.components)
        ),
        identity=tuple(
            {"network": name, "role": "control" if name in own else "independent judge"} | identity_distances(*pair)
            for name, pair in seen["embeddings"].items()
        ),
    )


def pose_error(seen, asked, *, around: float | None = 360) -> dict:
    """Mean absolute error of what is seen (N,) with its 95 % interval, bias, and spread around it.

    Args:
      seen: (N,), of angles in degrees.
      asked: (N,) likewise.
      around: after how much it is the same again; None if never.
    """
    error = np.asarray(seen, np.float64) - asked
    if around:
        error = (error + around / 2) % around - around / 2
    return {**_mean("error", np.abs(error)), "bias": float(error.mean()), "std": float(error.std())}


def identity_distances(first, second) -> dict:
    """Table 3: distances sqrt(2 (1 - cos)) within faces and between a face and the next.

    Args:
      first: (N, F) embeddings of length 1, N at least 2.
      second: (N, F) of the same faces in another pose.

    Returns:
      dict: `same`, `different` and `margin` (different less same) with 95 % intervals, and `closer`, the share of
      faces that are nearer to themselves than to the next one.
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    same, different = (
        np.sqrt(2 * np.maximum(0, 1 - np.sum(first * partner, axis=1))) for partner in (second, np.roll(second, 1, 0))
    )
    found = _mean("same", same) | _mean("different", different) | _mean("margin", different - same)
    return found | {"closer": float(np.mean(same < different))}


def _reached(seen: np.ndarray, asked: np.ndarray, ends: np.ndarray) -> list[dict]:
    """Mean and spread of what is seen, by bins of what was asked."""
    edges = np.linspace(ends[0], ends[1], BINS + 1).tolist()
    if ends[0] == ends[1]:
        edges = ends.tolist()
    index = np.clip(np.searchsorted(edges, asked, side="right") - 1, 0, len(edges) - 2)
    return [
        {"low": round(edges[k], 4), "high": round(edges[k + 1], 4), "asked": float(asked[index == k].mean())}
        | {"mean": float(seen[index == k].mean()), "std": float(seen[index == k].std())}
        for k in range(len(edges) - 1)
        if np.any(index == k)
    ]


def _mean(name: str, values: np.ndarray) -> dict:
    mean, half = float(values.mean()), Z_95 * float(values.std()) / np.sqrt(len(values))
    return {name: mean, f"{name}_low": mean - half, f"{name}_high": mean + half}
