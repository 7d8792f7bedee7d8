"""A model of cost: how long a step takes, from its operations, its bytes, and the data sheet of a card."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Card:
    """What a card does at best.

    Attributes:
      gflops: float32 operations a second, 1e9, without tensor cores.
      gbytes: bytes that its memory moves a second, 1e9.
      link: bytes that it sends to another card a second, 1e9.
    """

    gflops: float
    gbytes: float
    link: float


# from NVIDIA's data sheets; the links of the last two are PCIe
CARDS = {
    "H100 SXM": Card(67_000, 3_350, 900),
    "A100 SXM 80 GB": Card(19_500, 2_039, 600),
    "L4": Card(30_300, 300, 64),
    "T4": Card(8_100, 320, 32),
}


def predict(card: Card, *, gflop: float, gbytes: float, sent_gbytes: float = 0.0) -> float:
    """Seconds of a step at the least.

    Operations and memory work at the same time, so the slower of both counts; what is sent to other cards is added.

    Args:
      card: where it runs.
      gflop: operations on one card, 1e9.
      gbytes: that its memory reads and writes, 1e9.
      sent_gbytes: that it sends, 1e9; an all-reduce sends each number about twice, whatever the number of cards.
    """
    return max(gflop / card.gflops, gbytes / card.gbytes) + sent_gbytes / card.link
