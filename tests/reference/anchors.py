"""Anchors of a cell as the published programs make them, and the walk over a grid."""

from tests.reference.iou import Box


def detectron2_cell(sizes: list[float], ratios: list[float]) -> list[Box]:
    boxes = []
    for ratio in ratios:
        for size in sizes:
            width = (size**2 / ratio) ** 0.5
            height = ratio * width
            boxes.append((-width / 2, -height / 2, width / 2, height / 2))
    return boxes


def py_faster_rcnn(scales: list[float], ratios: list[float], base_size: int = 16) -> list[Box]:
    """`generate_anchors`: inclusive corners, centred on the middle of the box (0, 0, base_size - 1, base_size - 1)."""
    center = (base_size - 1) / 2
    boxes = []
    for ratio in ratios:
        width = round((base_size**2 / ratio) ** 0.5)
        height = round(width * ratio)
        for scale in scales:
            half_w, half_h = (width * scale - 1) / 2, (height * scale - 1) / 2
            boxes.append((center - half_w, center - half_h, center + half_w, center + half_h))
    return boxes


def grid(cell: list[Box], feature_size: tuple[int, int], stride: tuple[float, float], offset: float) -> list[Box]:
    boxes = []
    for row in range(feature_size[0]):
        for column in range(feature_size[1]):
            x, y = (column + offset) * stride[1], (row + offset) * stride[0]
            boxes += [(x1 + x, y1 + y, x2 + x, y2 + y) for x1, y1, x2, y2 in cell]
    return boxes
