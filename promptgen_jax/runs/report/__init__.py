"""Reports: a run's work directory as one self-contained HTML file, and plots of two-dimensional targets.

`python -m promptgen_jax.report WORKDIR` makes the report of a finished run again.
"""

from promptgen_jax.runs.report.comparison import write_comparison
from promptgen_jax.runs.report.density import plot_density
from promptgen_jax.runs.report.effect import effect_note
from promptgen_jax.runs.report.page import write_report
from promptgen_jax.runs.report.sweep import write_sweep

__all__ = ["effect_note", "plot_density", "write_comparison", "write_report", "write_sweep"]
