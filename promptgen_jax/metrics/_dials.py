"""What is known of a prompt along its dials: typed figures that the library, the report and JSON share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from promptgen_jax.metrics._figures import Estimate
from promptgen_jax.metrics.certificate import Certificate

TABLES = ("means", "target_means", "shares")


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is known at one setting. Nats; intervals are of 95 %.

    Attributes:
      condition: by name, in the units of people.
      certificate: of the flow against the target at this setting.
      log_z_integrated: log Z by thermodynamic integration from the first setting.
      agrees: whether that is log Z.
      kl_generator: KL(target || p_z), what the setting costs.
      means: over the flow's samples of what the energy is linear in: "energy of smile", unweighted, or
        "probability of female".
      target_means: likewise over the target.
      shares: of first choices of the flow's samples, by label that a control asks for.
    """

    condition: Mapping[str, float]
    certificate: Certificate
    log_z_integrated: Estimate
    agrees: bool
    kl_generator: Estimate
    means: Mapping[str, Estimate]
    target_means: Mapping[str, Estimate]
    shares: Mapping[str, Estimate]

    def to_json(self) -> dict:
        """As in report.json."""
        tables = {name: {k: each.to_json() for k, each in getattr(self, name).items()} for name in TABLES}
        return tables | {
            "condition": dict(self.condition),
            "certificate": self.certificate.to_json(),
            "agrees": self.agrees,
            "log_z_integrated": self.log_z_integrated.to_json(),
            "kl_generator": self.kl_generator.to_json(),
        }

    @classmethod
    def from_json(cls, found: Mapping) -> Setting:
        """What `to_json` made."""
        tables: Any = {name: {k: Estimate.from_json(v) for k, v in found[name].items()} for name in TABLES}
        return cls(
            condition=found["condition"],
            certificate=Certificate.from_json(found["certificate"]),
            log_z_integrated=Estimate.from_json(found["log_z_integrated"]),
            agrees=found["agrees"],
            kl_generator=Estimate.from_json(found["kl_generator"]),
            **tables,
        )


@dataclasses.dataclass(frozen=True)
class DialCertificate:
    """The settings of a path, in its order.

    Attributes:
      settings: what is known at each.
      knee: number of the setting after which turning further changes the energy of the flow's samples least for its
        way, or None of fewer than three settings, or where the energy does not fall.
      notes: sentences for people.
    """

    settings: tuple[Setting, ...]
    knee: int | None
    notes: tuple[str, ...] = ()

    @property
    def agrees(self) -> bool:
        """Whether log Z agrees with its thermodynamic integral at every setting."""
        return all(setting.agrees for setting in self.settings)

    def to_json(self) -> dict:
        """As in report.json."""
        return {"settings": [each.to_json() for each in self.settings], "knee": self.knee, "notes": list(self.notes)}

    @classmethod
    def from_json(cls, found: Mapping) -> DialCertificate:
        """What `to_json` made."""
        return cls(tuple(map(Setting.from_json, found["settings"])), found["knee"], tuple(found["notes"]))

    def __str__(self) -> str:
        """A table for people, the knee marked."""
        lines = ["setting | log Z, integrated | KL to the generator | gap reverse, forward | means | first choices"]
        for number, each in enumerate(self.settings):
            told = ", ".join(f"{name} {value:.3g}" for name, value in each.condition.items())
            found = each.certificate
            cells = [
                f"{told}{' (knee)' if number == self.knee else ''}",
                f"{found.log_z:.3f}, {each.log_z_integrated.mean:.3f}{'' if each.agrees else ' (disagree)'}",
                f"{each.kl_generator.mean:.3f}",
                f"{found.reverse_kl:.3f}, {found.forward_kl:.3f}",
                ", ".join(f"{name} {mean.mean:.3f}" for name, mean in each.means.items()),
                ", ".join(f"{label} {share.mean:.1%}" for label, share in each.shares.items()),
            ]
            lines.append(" | ".join(cells))
        return "\n".join([*lines, *self.notes])
