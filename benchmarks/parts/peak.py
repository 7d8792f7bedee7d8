"""What this machine reaches at best: matrix products and copies."""

from __future__ import annotations

from benchmarks import machine

SMALL = {"rows": 256, "numbers": 1 << 16}


def measure(quick: bool) -> list[dict]:
    """One record."""
    return [{"name": "peak/float32", "kind": "peak", **machine.best(**SMALL if quick else {})}]
