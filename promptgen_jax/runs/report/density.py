"""A picture of a two-dimensional target beside what was sampled."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from promptgen_jax.store import weights

MAX_DOTS = 4000  # of a panel; more would be a blot


def plot_density(
    path: str | Path,
    *,
    log_density: Callable[[np.ndarray], np.ndarray],
    samples: Mapping[str, np.ndarray],
    extent: tuple[float, float, float, float],
    resolution: int = 200,
) -> Path:
    """Draws contours of a 2-D target and one panel of samples per entry, all on the same axes, as PNG.

    The first panel shows the target alone; the others repeat its contours under the samples.

    Args:
      path: PNG file, written atomically.
      log_density: (N, 2) points to (N,) log densities, any normalisation.
      samples: {panel title: (N, 2) points}, e.g. flow and prior; the first 4000 are drawn.
      extent: (x low, x high, y low, y high).
      resolution: grid points along each axis.

    Returns:
      The path written.

    Raises:
      ValueError: samples that are not (N, 2), or a density that is nowhere finite on the extent.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    x, y = np.linspace(*extent[:2], resolution), np.linspace(*extent[2:], resolution)
    points = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    values = np.asarray(log_density(points), np.float64).reshape(resolution, resolution)
    if not np.isfinite(values).any():
        raise ValueError("plot_density: log_density is finite nowhere on the extent. Check the extent.")
    density = np.exp(values - values[np.isfinite(values)].max())
    for name, drawn in samples.items():
        if np.ndim(drawn) != 2 or np.shape(drawn)[1] != 2:
            raise ValueError(
                f"plot_density: samples {name!r} are {np.shape(drawn)}; expected (N, 2). Pick two columns."
            )
    figure = Figure(figsize=(3.2 * (len(samples) + 1), 3.4), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(samples) + 1, sharex=True, sharey=True, squeeze=False)[0]
    levels = _mass_levels(density)
    panels[0].contourf(x, y, density, levels=[*levels, 1.001], cmap="Blues")
    for panel, (name, drawn) in zip(panels, [("target", np.empty((0, 2))), *samples.items()], strict=True):
        panel.contour(x, y, density, levels=levels, colors="#1f3a6d", linewidths=0.8, alpha=0.7)
        drawn = np.asarray(drawn)[:MAX_DOTS]
        panel.scatter(*drawn.T, s=3, color="#d9541e", alpha=min(1.0, 600 / max(len(drawn), 1)), linewidths=0)
        panel.set(title=name, xlim=extent[:2], ylim=extent[2:], aspect="equal")
    file = io.BytesIO()
    figure.savefig(file, format="png")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    weights.write_bytes(path, file.getvalue())
    return path


def _mass_levels(density: np.ndarray) -> list[float]:
    """Increasing heights whose contours hold 95, 80, 50 and 20 % of the mass on the grid."""
    heights = np.sort(density[np.isfinite(density)])[::-1]
    mass = np.cumsum(heights) / heights.sum()
    levels = [float(heights[np.searchsorted(mass, share)]) for share in (0.95, 0.8, 0.5, 0.2)]
    return sorted({level for level in levels if 0 < level < 1}) or [0.5]
