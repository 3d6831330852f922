"""Lines of a chart: thinned without moving, and in the pixels of the plot."""

import numpy as np
import pytest

from detkit.inspect.report.charts import HEIGHT, MAX_POINTS, WIDTH, line_chart, svg_path, thin


def distance_to_line(points: np.ndarray, line: np.ndarray) -> np.ndarray:
    """`[N]`: the distance of each point from the nearest piece of the line, slowly and by definition."""
    start, step = line[:-1], np.diff(line, axis=0)
    along = ((points[:, None] - start) * step).sum(-1) / np.maximum((step**2).sum(-1), 1e-12)
    nearest = start + np.clip(along, 0, 1)[..., None] * step
    return np.linalg.norm(points[:, None] - nearest, axis=-1).min(axis=1)


def precision_recall_curve(num_detections: int) -> np.ndarray:
    """Of a detector whose lower scores are wrong more often, in the pixels of a plot."""
    rng = np.random.default_rng(0)
    hits = rng.random(num_detections) < np.linspace(1, 0.1, num_detections)
    true = np.cumsum(hits)
    precision, recall = true / np.arange(1, num_detections + 1), true / hits.sum()
    return np.stack([recall * WIDTH, (1 - precision) * HEIGHT], axis=1)


@pytest.mark.parametrize("num_detections", [3, 150, 5_000, 50_000])
def test_a_curve_is_thinned_and_stays_where_it_is(num_detections: int) -> None:
    points = precision_recall_curve(num_detections)
    thinned = thin(points)
    assert len(thinned) <= MAX_POINTS
    np.testing.assert_allclose(thinned[[0, -1]], points[[0, -1]], rtol=1e-6)
    assert distance_to_line(points[:: max(1, num_detections // 2000)], thinned).max() < 1.0, "px"


def test_points_on_a_straight_line_are_its_ends() -> None:
    steps = np.linspace(0, 100, 500)
    assert thin(np.stack([steps, 2 * steps], axis=1)).tolist() == [[0, 0], [100, 200]]


def test_values_become_pixels_with_y_upwards() -> None:
    chart = line_chart("t", ("x", "y"), {"a": ([0, 1], [0, 1])}, x_range=(0, 1), y_range=(0, 1))
    assert chart.lines[0].path == f"M0 {HEIGHT}L{WIDTH} 0"
    assert [text for _, text in chart.x.ticks] == ["0", "0.2", "0.4", "0.6", "0.8", "1"]


def test_what_is_not_finite_is_left_out() -> None:
    chart = line_chart("t", ("x", "y"), {"a": ([0, 1, 2], [1, np.nan, np.inf]), "b": ([], [])}, x_range=(0, 2))
    assert [line.path.count("L") for line in chart.lines] == [0, 0]
    assert chart.lines[0].path.endswith("h0"), "one point is a dot"
    assert chart.lines[1].path == ""


@pytest.mark.parametrize("value", [0.0, 5.0, -3.0])
def test_a_constant_is_a_level_line_within_the_plot(value: float) -> None:
    chart = line_chart("t", ("x", "y"), {"a": ([0, 1], [value, value])})
    assert chart.y.low < value < chart.y.high
    assert len(chart.y.ticks) >= 2


def test_no_point_is_no_path() -> None:
    assert svg_path(np.zeros((0, 2))) == ""
