"""Whether a share is what was asked for, and the note where it is not, or where the samples cannot show it."""

from __future__ import annotations

from collections.abc import Iterator

COUNTED = {"soft": "mean probability", "hard": "first choices"}
MISSED_SHARE, EXPECTED = 0.02, 5  # of a moment that is missed; samples of a label, below which they do not show it


def is_missed(wanted: float, reached: float, low: float, high: float) -> bool:
    """Whether a share is off by more than a fiftieth, and what was wanted lies outside its interval."""
    return abs(reached - wanted) > MISSED_SHARE and not low <= wanted <= high


def share_notes(
    attribute: str,
    label: str,
    wanted: float,
    reached: float,
    low: float,
    high: float,
    num_samples: int,
    count: str = "soft",
) -> Iterator[str]:
    """A note if a share (with its interval) misses the wanted one, or is too rare to be seen.

    Too rare is a label with, or without which fewer than 5 samples are expected.
    """
    if is_missed(wanted, reached, low, high):
        yield (
            f"{attribute}: {label} was asked to be {wanted:.1%} of the samples and is {reached:.1%} by the "
            f"control's {COUNTED[count]}. Train longer, with closed_loop, or with objective='score_function'."
        )
    expected = num_samples * min(wanted, 1 - wanted)
    if expected < EXPECTED:
        yield (
            f"{attribute}: {label} was asked to be {wanted:.4%} of the samples, which {num_samples} samples cannot "
            f"show: in {expected:.1f} of them it would be otherwise, below {EXPECTED}. More num_samples would tell."
        )
