"""The command `python -m promptgen_jax.report WORKDIR`; the pages are made in `promptgen_jax.runs.report`."""

from promptgen_jax.runs.report import plot_density, write_report

__all__ = ["plot_density", "write_report"]
