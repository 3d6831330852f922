"""The cell of a keypoint in the heat map of its region, by the definition."""

from tests.reference.iou import Box


def heatmap_cell(keypoint: tuple[float, float, float], box: Box, size: int) -> int | None:
    """row * size + column; None for a point that is not labelled or not in the box, whose borders are part of it."""
    x, y, visibility = keypoint
    if visibility == 0 or not (box[0] <= x <= box[2] and box[1] <= y <= box[3]):
        return None
    column = min(int((x - box[0]) / (box[2] - box[0]) * size), size - 1)
    row = min(int((y - box[1]) / (box[3] - box[1]) * size), size - 1)
    return row * size + column
