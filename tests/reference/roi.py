"""RoI pooling and RoI align of one box on one channel, a list of rows."""

import math

from tests.reference.iou import Box

Map = list[list[float]]


def roi_pool(feature: Map, box: Box, output_size: tuple[int, int], scale: float) -> Map:
    """The Caffe layer of Fast R-CNN: corners rounded half up, the last cell belongs to the box."""
    x1, y1, x2, y2 = (math.floor(c * scale + 0.5) for c in box)

    def cells(start: int, end: int, index: int, count: int, limit: int) -> range:
        side = max(end - start + 1, 1) / count
        first, stop = math.floor(index * side) + start, math.ceil((index + 1) * side) + start
        return range(min(max(first, 0), limit), min(max(stop, 0), limit))

    height, width = len(feature), len(feature[0])
    rows, columns = output_size
    return [
        [
            max(
                (feature[y][x] for y in cells(y1, y2, i, rows, height) for x in cells(x1, x2, j, columns, width)),
                default=0.0,
            )
            for j in range(columns)
        ]
        for i in range(rows)
    ]


def bilinear(feature: Map, y: float, x: float) -> float:
    """Value between four cells; the border cell reaches out one cell further, beyond is 0."""
    height, width = len(feature), len(feature[0])
    if not (-1 <= y <= height and -1 <= x <= width):
        return 0.0
    y, x = min(max(y, 0.0), height - 1), min(max(x, 0.0), width - 1)
    top, left = math.floor(y), math.floor(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    upper = feature[top][left] * (1 - (x - left)) + feature[top][right] * (x - left)
    lower = feature[bottom][left] * (1 - (x - left)) + feature[bottom][right] * (x - left)
    return upper * (1 - (y - top)) + lower * (y - top)


def roi_align(
    feature: Map, box: Box, output_size: tuple[int, int], scale: float, sampling_ratio: int, aligned: bool
) -> Map:
    x1, y1, x2, y2 = (c * scale - (0.5 if aligned else 0.0) for c in box)
    width, height = x2 - x1, y2 - y1
    if not aligned:
        width, height = max(width, 1.0), max(height, 1.0)
    rows, columns = output_size
    cell_h, cell_w = height / rows, width / columns
    ny, nx = sampling_ratio or math.ceil(cell_h), sampling_ratio or math.ceil(cell_w)

    def mean(i: int, j: int) -> float:
        samples = [
            bilinear(feature, y1 + (i + (p + 0.5) / ny) * cell_h, x1 + (j + (q + 0.5) / nx) * cell_w)
            for p in range(ny)
            for q in range(nx)
        ]
        return sum(samples) / len(samples) if samples else 0.0

    return [[mean(i, j) for j in range(columns)] for i in range(rows)]


def roi_warp(image: Map, box: Box, output_size: int, context: int) -> Map:
    """R-CNN's crop: the window in whole pixels, then every output pixel by itself."""
    grown = output_size / (output_size - 2 * context)

    def window(low: float, high: float) -> tuple[int, int]:
        middle, half = (low + high) / 2, (high - low) / 2 * grown
        start = math.floor(middle - half + 0.5)
        return start, max(math.floor(middle + half + 0.5), start + 1)

    left, right = window(box[0], box[2])
    top, bottom = window(box[1], box[3])
    height, width = len(image), len(image[0])
    rows = [row[max(left, 0) : min(right, width)] for row in image[max(top, 0) : min(bottom, height)]]  # the crop

    def value(i: int, j: int) -> float:
        y, x = (top + (i + 0.5) * (bottom - top) / output_size, left + (j + 0.5) * (right - left) / output_size)
        if not (0 <= y <= height and 0 <= x <= width) or not rows or not rows[0]:
            return 0.0
        y = min(max(y - max(top, 0) - 0.5, 0.0), len(rows) - 1.0)  # pixel centres of the crop
        x = min(max(x - max(left, 0) - 0.5, 0.0), len(rows[0]) - 1.0)
        return bilinear(rows, y, x)

    return [[value(i, j) for j in range(output_size)] for i in range(output_size)]


def feature_level(box: Box, num_levels: int, finest: int) -> int:
    """FPN, equation 1, as an index into the levels finest, finest + 1, ..."""
    side = math.sqrt((box[2] - box[0]) * (box[3] - box[1]))
    level = math.floor(4 + math.log2(side / 224) + 1e-6) if side > 0 else finest
    return min(max(level, finest), finest + num_levels - 1) - finest
