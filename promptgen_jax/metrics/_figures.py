"""What metrics return: small typed results that report, card and JSON share.

A figure has a value for each of the named draws it was measured on: "before" and "after" in the report of a run, any
number of them in a comparison. In JSON they stand beside the other entries, so draws cannot be called as one of those.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

RESERVED = ("attribute", "judge", "kl", "label", "labels", "name", "num_samples", "role", "soft", "target", "unit")
TITLES = {"before": "Before", "after": "After", "weighted": "Reweighted"}


@dataclass(frozen=True)
class Estimate:
    """A number, and if known its 95 % interval and the standard deviation of what it is the mean of."""

    mean: float | None
    std: float | None = None
    low: float | None = None
    high: float | None = None

    def to_json(self) -> dict | float | None:
        """A dict, or the number if there is nothing else."""
        known = {name: value for name, value in vars(self).items() if value is not None}
        return known if len(known) > 1 else self.mean

    @classmethod
    def from_json(cls, found) -> Estimate:
        """What `to_json` wrote; what is missing is not known."""
        if not isinstance(found, dict):
            return cls(found)
        return cls(*(found.get(name) for name in ("mean", "std", "low", "high")))


@dataclass(frozen=True)
class Figure:
    """A measured number by named draws, beside its target if it has one."""

    name: str
    values: Mapping[str, Estimate]
    unit: str = ""
    target: float | None = None

    def to_json(self) -> dict:
        """The values stand beside the other entries."""
        target = {} if self.target is None else {"target": self.target}
        values = {draws: value.to_json() for draws, value in self.values.items()}
        return {"name": self.name, "unit": self.unit} | target | values

    @classmethod
    def from_json(cls, found: dict) -> Figure:
        """What `to_json` wrote."""
        values = {draws: Estimate.from_json(value) for draws, value in _by_draws(found).items()}
        return cls(found["name"], values, found.get("unit") or "", found.get("target"))


@dataclass(frozen=True)
class Figures:
    """What an own metric found: a table of figures, with a title and a sentence that explains it."""

    title: str
    rows: tuple[Figure, ...]
    text: str = ""

    def to_json(self) -> dict:
        """As in report.json."""
        return {"title": self.title, "text": self.text, "rows": [row.to_json() for row in self.rows]}

    @classmethod
    def from_json(cls, found: dict) -> Figures:
        """What `to_json` wrote."""
        return cls(found["title"], tuple(map(Figure.from_json, found.get("rows") or ())), found.get("text") or "")


@dataclass(frozen=True)
class Share:
    """A soft and a hard figure: shares of a class, or distances of shares to their target."""

    soft: Estimate
    hard: Estimate

    def to_json(self) -> dict:
        """`soft`, `soft_low`, `soft_high`, and the same of `hard`."""
        pairs = (("soft", self.soft), ("hard", self.hard))
        named = {
            f"{kind}{end}": value
            for kind, found in pairs
            for end, value in (("", found.mean), ("_low", found.low), ("_high", found.high))
        }
        return {name: value for name, value in named.items() if value is not None}

    @classmethod
    def from_json(cls, found: dict | None) -> Share:
        """What `to_json` wrote; what is missing is not known."""
        found = found or {}
        return cls(
            *(Estimate(found.get(k), low=found.get(f"{k}_low"), high=found.get(f"{k}_high")) for k in ("soft", "hard"))
        )


@dataclass(frozen=True)
class JudgedShares:
    """How often a judge sees each of its classes, by named draws.

    Attributes:
      judge: name of the network.
      role: "control" or "independent judge".
      attribute: what is judged.
      labels: K classes.
      shares: by draws and label.
      target: K shares that were asked for, or None.
      kl: distance to the target in nats, by draws.
      num_samples: of the draws, of the largest if they differ.
    """

    judge: str
    role: str
    attribute: str
    labels: tuple[str, ...]
    shares: Mapping[str, Mapping[str, Share]]
    target: tuple[float, ...] | None = None
    kl: Mapping[str, Share] = field(default_factory=dict)
    num_samples: int | None = None

    def to_json(self) -> dict:
        """The shares stand beside the other entries."""
        about = {name: getattr(self, name) for name in ("judge", "role", "attribute", "num_samples")}
        about |= {"labels": list(self.labels), "target": None if self.target is None else list(self.target)}
        shares = {draws: {k: share.to_json() for k, share in row.items()} for draws, row in self.shares.items()}
        kl = {draws: distance.to_json() for draws, distance in self.kl.items()}
        return about | shares | ({"kl": kl} if kl else {})

    @classmethod
    def from_json(cls, found: dict) -> JudgedShares:
        """What `to_json` wrote, or an earlier version, which left out some entries."""
        labels, target = tuple(map(str, found["labels"])), found.get("target")
        return cls(
            judge=found["judge"],
            role=found.get("role") or "",
            attribute=found.get("attribute") or "classes",
            labels=labels,
            shares={
                draws: {label: Share.from_json(row.get(label)) for label in labels}
                for draws, row in _by_draws(found).items()
                if isinstance(row, dict)
            },
            target=tuple(target) if target else None,
            kl={draws: Share.from_json(distance) for draws, distance in (found.get("kl") or {}).items()},
            num_samples=found.get("num_samples"),
        )


@dataclass(frozen=True)
class Headline:
    """One of the lines that say at once what was reached, by named draws.

    Attributes:
      label: what it is.
      values: of shares the hard ones, in percent.
      unit: of all numbers here.
      target: what was asked for.
      soft: of shares under a constraint the soft ones, which the constraint acts on.
    """

    label: str
    values: Mapping[str, float | None]
    unit: str = ""
    target: float | None = None
    soft: Mapping[str, float] = field(default_factory=dict)

    def text(self) -> str:
        """One line of plain text, `label: 20 -> 88 %`, or with target, soft and hard shares together."""
        hard, unit = _change(self.values), f" {self.unit}" if self.unit else ""
        if self.target is None:
            return f"{self.label}: {hard}{unit}"
        soft = f"soft {_change(self.soft)}{unit}, hard " if self.soft else ""
        return f"{self.label}: target {self.target:.3g}{unit}, {soft}{hard}{unit}"

    def to_json(self) -> dict:
        """The values stand beside the other entries."""
        target = {} if self.target is None else {"target": self.target}
        soft = {"soft": dict(self.soft)} if self.soft else {}
        return {"label": self.label, "unit": self.unit} | target | soft | dict(self.values)

    @classmethod
    def from_json(cls, found: dict) -> Headline:
        """What `to_json` wrote."""
        values, soft = _by_draws(found), found.get("soft") or {}
        return cls(found["label"], values, found.get("unit") or "", found.get("target"), soft)


def _change(values: Mapping[str, float | None]) -> str:
    """Numbers from the first to the last, named where they are not before and after."""
    plain = set(values) <= {"before", "after"}
    found = {draws: "-" if value is None else f"{value:.3g}" for draws, value in values.items()}
    return " -> ".join(found.values()) if plain else ", ".join(f"{draws} {value}" for draws, value in found.items())


def _by_draws(found: dict) -> dict:
    return {name: value for name, value in found.items() if name not in RESERVED}
