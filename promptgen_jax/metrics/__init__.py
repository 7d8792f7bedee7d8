"""Metrics, one file each: `measure(seen, about)` of named draws gives typed figures.

`seen` has what judges saw of every named draws (`Observed`), `about` the target and the judges (`About`). Before and
after are two entries of `seen`, a comparison is a longer list.
"""

from promptgen_jax.metrics._figures import Estimate, Figure, Figures, Headline, JudgedShares, Share
from promptgen_jax.metrics._observed import About, Metric, Observed, observe

__all__ = [
    "About",
    "Estimate",
    "Figure",
    "Figures",
    "Headline",
    "JudgedShares",
    "Metric",
    "Observed",
    "Share",
    "observe",
]
