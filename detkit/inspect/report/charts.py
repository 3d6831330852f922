"""Charts as data for the page, which draws them as SVG: lines in the pixels of the plot, ticks, and what they mean.

Legend: N points of a line. A plot is `WIDTH` x `HEIGHT` px with its origin at the upper left, as SVG has it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from matplotlib.ticker import MaxNLocator

WIDTH, HEIGHT = 400, 240  # px of the plot within the axes
MAX_POINTS = 200  # of a line
FINEST = 0.1  # px: points that are nearer to the line without them say nothing

Range = tuple[float, float]


@dataclass(frozen=True)
class Axis:
    """
    label  what is measured, with its unit
    low    the value at the start of the axis
    high   the value at its end
    ticks  value and text of each
    """

    label: str
    low: float
    high: float
    ticks: Sequence[tuple[float, str]]

    def share(self, values: np.ndarray) -> np.ndarray:
        """How far along the axis the values are, in [0, 1]."""
        shares: np.ndarray = (np.asarray(values, np.float64) - self.low) / (self.high - self.low)
        return shares


@dataclass(frozen=True)
class Line:
    """A line of a chart: `path` is the `d` of an SVG path, with at most `MAX_POINTS` points."""

    name: str
    path: str


@dataclass(frozen=True)
class Chart:
    title: str
    x: Axis
    y: Axis
    lines: Sequence[Line]
    width: int = WIDTH
    height: int = HEIGHT


def line_chart(
    title: str,
    labels: tuple[str, str],
    series: Mapping[str, tuple[Sequence[float] | np.ndarray, Sequence[float] | np.ndarray]],
    *,
    x_range: Range | None = None,
    y_range: Range | None = None,
) -> Chart:
    """A chart of the x and y of each name in `series`; points that are not finite are left out.

    labels  of the x and the y axis
    ranges  of the axes; None: all that is there
    """
    finite = {name: _finite(np.asarray(x, np.float64), np.asarray(y, np.float64)) for name, (x, y) in series.items()}
    x_axis = _axis(labels[0], [x for x, _ in finite.values()], x_range)
    y_axis = _axis(labels[1], [y for _, y in finite.values()], y_range)
    lines = []
    for name, (x, y) in finite.items():
        points = np.stack([x_axis.share(x) * WIDTH, (1 - y_axis.share(y)) * HEIGHT], axis=1)
        lines.append(Line(name, svg_path(points)))
    return Chart(title, x_axis, y_axis, lines)


def svg_path(points: np.ndarray) -> str:
    """The `d` of a path through `[N, 2]`, thinned by `thin`; empty without points."""
    places = [f"{x:.1f} {y:.1f}".replace(".0", "") for x, y in thin(points).tolist()]
    if len(places) == 1:
        return f"M{places[0]}h0"  # drawn as a dot, because the ends of lines are round
    return "M" + "L".join(places) if places else ""


def thin(points: np.ndarray, most: int = MAX_POINTS) -> np.ndarray:
    """At most `most` of `[N, 2]`, first and last among them, such that the line stays where it is.

    Those are dropped that are nearest to the line without them (Douglas and Peucker), until few enough are left.
    """
    if len(points) < 3:
        return points
    curve, tolerance = np.ascontiguousarray(points, np.float32)[:, None], FINEST
    while True:
        thinned = cv2.approxPolyDP(curve, tolerance, closed=False)[:, 0]
        if len(thinned) <= most:
            return thinned
        tolerance *= 1.5


def _finite(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rows = np.isfinite(x) & np.isfinite(y)
    return x[rows], y[rows]


def _axis(label: str, values: Sequence[np.ndarray], limits: Range | None) -> Axis:
    joined = np.concatenate([*values, np.zeros(0)])
    low, high = limits or ((joined.min(), joined.max()) if len(joined) else (0.0, 1.0))
    ticks = MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    if limits is None:
        low, high = min(low, ticks[0]), max(high, ticks[-1])
    inside = [float(tick) for tick in ticks if low - 1e-9 <= tick <= high + 1e-9]
    return Axis(label, float(low), float(high), [(tick, f"{tick:.6g}") for tick in inside])
