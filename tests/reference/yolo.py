"""The steps that darknet's detection, region and yolo layers take: `delta`, minus the gradient, at every output.

One image at a time, cell by cell and anchor by anchor, as the layers run. Objects are `(box xyxy in px, label)`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.reference.iou import Box, box_iou

Object = tuple[Box, int]
Row = list[float]


@dataclass
class Level:
    """Cells of `stride` px and the width and height in px of the anchors of each."""

    columns: int
    rows: int
    stride: int
    anchors: Sequence[tuple[float, float]]

    def index(self, column: int, row: int, anchor: int) -> int:
        return (row * self.columns + column) * len(self.anchors) + anchor


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def softmax(logits: Row) -> Row:
    powers = [math.exp(x - max(logits)) for x in logits]
    return [power / sum(powers) for power in powers]


def corners(x: float, y: float, w: float, h: float) -> Box:
    return x - w / 2, y - h / 2, x + w / 2, y + h / 2


def center_and_sides(box: Box) -> tuple[float, float, float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2, box[2] - box[0], box[3] - box[1]


def cell_of(x: float, y: float, columns: int, rows: int, width: float, height: float) -> tuple[int, int]:
    return min(int(x / width * columns), columns - 1), min(int(y / height * rows), rows - 1)


def best_anchor(w: float, h: float, anchors: Sequence[tuple[float, float]]) -> int:
    best, best_iou = 0, 0.0
    for n, (anchor_w, anchor_h) in enumerate(anchors):
        iou = box_iou(corners(0, 0, w, h), corners(0, 0, anchor_w, anchor_h))
        if iou > best_iou:
            best, best_iou = n, iou
    return best


def predicted_box(raw: Row, column: int, row: int, anchor: tuple[float, float], stride: int) -> Box:
    x, y = (sigmoid(raw[0]) + column) * stride, (sigmoid(raw[1]) + row) * stride
    return corners(x, y, anchor[0] * math.exp(raw[2]), anchor[1] * math.exp(raw[3]))


def detection_layer(
    classes: list[Row], confidences: list[Row], boxes: list[list[Row]], objects: Sequence[Object], size: tuple[int, int]
) -> tuple[list[Row], list[Row], list[list[Row]]]:
    """Version 1, deltas of classes `[C][K]`, confidences `[C][n]` and boxes `[C][n][4]`, C = S^2 cells.

    No two objects share a cell. The scales of yolov1.cfg: coord 5, object 1, noobject .5, class 1; rescore, sqrt.
    """
    side, count = math.isqrt(len(classes)), len(confidences[0])
    class_steps = [[0.0] * len(row) for row in classes]
    box_steps = [[[0.0] * 4 for _ in row] for row in boxes]
    confidence_steps = [[0.5 * (0 - confidence) for confidence in row] for row in confidences]
    for box, label in objects:
        x, y, w, h = center_and_sides(box)
        x, y, w, h = x / size[1], y / size[0], w / size[1], h / size[0]
        column, row = cell_of(x, y, side, side, 1, 1)
        cell = row * side + column
        class_steps[cell] = [(k == label) - output for k, output in enumerate(classes[cell])]
        inside = (x * side - column, y * side - row)
        truth = (inside[0] / side, inside[1] / side, w, h)
        best, best_iou, best_rmse = -1, 0.0, 20.0
        for j in range(count):
            out_x, out_y, root_w, root_h = boxes[cell][j]
            out = (out_x / side, out_y / side, root_w**2, root_h**2)
            iou = box_iou(corners(*out), corners(*truth))
            rmse = math.sqrt(sum((a - b) ** 2 for a, b in zip(out, truth, strict=True)))
            if best_iou > 0 or iou > 0:
                if iou > best_iou:
                    best, best_iou = j, iou
            elif rmse < best_rmse:
                best, best_rmse = j, rmse
        confidence_steps[cell][best] = 1 * (best_iou - confidences[cell][best])
        wanted = (*inside, math.sqrt(w), math.sqrt(h))
        box_steps[cell][best] = [5 * (a - b) for a, b in zip(wanted, boxes[cell][best], strict=True)]
    return class_steps, confidence_steps, box_steps


def region_layer(raw: list[Row], level: Level, objects: Sequence[Object], images_seen: int) -> list[Row]:
    """Version 2, deltas of the raw outputs `[N][5 + K]`: those of x, y and objectness through the sigmoid.

    The scales of yolov2-voc.cfg: coord 1, object 5, noobject 1, class 1, thresh .6; rescore, bias_match.
    """
    width, height = level.columns * level.stride, level.rows * level.stride
    steps = [[0.0] * len(row) for row in raw]

    def step_to_box(index: int, x: float, y: float, log_w: float, log_h: float, scale: float) -> None:
        out = raw[index]
        for place, wanted in ((0, x), (1, y)):
            s = sigmoid(out[place])
            steps[index][place] = scale * (wanted - s) * s * (1 - s)
        for place, wanted in ((2, log_w), (3, log_h)):
            steps[index][place] = scale * (wanted - out[place])

    def step_to_objectness(index: int, wanted: float, scale: float) -> None:
        s = sigmoid(raw[index][4])
        steps[index][4] = scale * (wanted - s) * s * (1 - s)

    for row in range(level.rows):
        for column in range(level.columns):
            for n, anchor in enumerate(level.anchors):
                index = level.index(column, row, n)
                predicted = predicted_box(raw[index], column, row, anchor, level.stride)
                best_iou = max((box_iou(predicted, box) for box, _ in objects), default=0.0)
                step_to_objectness(index, 0, 1)
                if best_iou > 0.6:
                    steps[index][4] = 0
                if images_seen < 12_800:
                    step_to_box(index, 0.5, 0.5, 0, 0, 0.01)
    for box, label in objects:
        x, y, w, h = center_and_sides(box)
        column, row = cell_of(x, y, level.columns, level.rows, width, height)
        n = best_anchor(w, h, level.anchors)
        index, anchor = level.index(column, row, n), level.anchors[n]
        inside = (x / level.stride - column, y / level.stride - row)
        logs = (math.log(w / anchor[0]), math.log(h / anchor[1]))
        step_to_box(index, *inside, *logs, 1 * (2 - w * h / (width * height)))
        step_to_objectness(index, box_iou(predicted_box(raw[index], column, row, anchor, level.stride), box), 5)
        for k, probability in enumerate(softmax(raw[index][5:])):
            steps[index][5 + k] = 1 * ((k == label) - probability)
    return steps


def yolo_layers(
    raw: list[Row], levels: Sequence[Level], objects: Sequence[Object], ignore_threshold: float
) -> list[Row]:
    """Version 3, deltas of the raw outputs `[N][5 + K]` of all levels: target - sigmoid, handed to the logits."""
    width, height = levels[0].columns * levels[0].stride, levels[0].rows * levels[0].stride
    steps = [[0.0] * len(row) for row in raw]
    all_anchors = [anchor for level in levels for anchor in level.anchors]
    start, mask_start = 0, 0
    for level in levels:
        for row in range(level.rows):
            for column in range(level.columns):
                for n, anchor in enumerate(level.anchors):
                    index = start + level.index(column, row, n)
                    predicted = predicted_box(raw[index], column, row, anchor, level.stride)
                    best_iou = max((box_iou(predicted, box) for box, _ in objects), default=0.0)
                    steps[index][4] = 0 - sigmoid(raw[index][4])
                    if best_iou > ignore_threshold:
                        steps[index][4] = 0
        for box, label in objects:
            x, y, w, h = center_and_sides(box)
            column, row = cell_of(x, y, level.columns, level.rows, width, height)
            n = best_anchor(w, h, all_anchors) - mask_start
            if not 0 <= n < len(level.anchors):
                continue
            index, anchor = start + level.index(column, row, n), level.anchors[n]
            out, scale = raw[index], 2 - w * h / (width * height)
            steps[index][0] = scale * (x / level.stride - column - sigmoid(out[0]))
            steps[index][1] = scale * (y / level.stride - row - sigmoid(out[1]))
            steps[index][2] = scale * (math.log(w / anchor[0]) - out[2])
            steps[index][3] = scale * (math.log(h / anchor[1]) - out[3])
            steps[index][4] = 1 - sigmoid(out[4])
            if any(steps[index][5:]):  # an earlier object lies here: its classes stay
                steps[index][5 + label] = 1 - sigmoid(out[5 + label])
            else:
                for k, logit in enumerate(out[5:]):
                    steps[index][5 + k] = (k == label) - sigmoid(logit)
        start += level.columns * level.rows * len(level.anchors)
        mask_start += len(level.anchors)
    return steps


def central_differences(function: Callable[[Row], float], values: Row, eps: float = 1e-5) -> Row:
    """Gradient of the function by numeric differentiation, one value after the other."""
    slopes = []
    for i in range(len(values)):
        up, down = ([*values[:i], values[i] + step, *values[i + 1 :]] for step in (eps, -eps))
        slopes.append((function(up) - function(down)) / (2 * eps))
    return slopes


def ciou_step(pred: Row, truth: Row) -> Row:
    """What darknet's `dx_box_iou` answers for CIoU, the steps of x, y, w, h; boxes are these in parts of the image.

    Side by side, along x and then along y: `near` is left or top, `far` right or bottom.
    """
    near, far = ([pred[i] + sign * pred[2 + i] / 2 for i in (0, 1)] for sign in (-1, 1))
    truth_near, truth_far = ([truth[i] + sign * truth[2 + i] / 2 for i in (0, 1)] for sign in (-1, 1))
    shared = [min(far[i], truth_far[i]) - max(near[i], truth_near[i]) for i in (0, 1)]
    cover = [max(far[i], truth_far[i]) - min(near[i], truth_near[i]) for i in (0, 1)]
    inter = shared[0] * shared[1]
    union = pred[2] * pred[3] + truth[2] * truth[3] - inter
    diagonal = cover[0] ** 2 + cover[1] ** 2
    distance = (pred[0] - truth[0]) ** 2 + (pred[1] - truth[1]) ** 2
    turned = math.atan(truth[2] / truth[3]) - math.atan(pred[2] / pred[3])
    aspect = 4 / math.pi**2 * turned**2
    alpha = aspect / (1 - inter / union + aspect + 0.000001)
    step = [0.0] * 4
    for i in (0, 1):
        other = 1 - i
        d_inter_near = -shared[other] if near[i] > truth_near[i] else 0.0
        d_inter_far = shared[other] if far[i] < truth_far[i] else 0.0
        d_union_near = -pred[2 + other] - d_inter_near
        d_union_far = pred[2 + other] - d_inter_far
        at_near = (union * d_inter_near - inter * d_union_near) / union**2 if union > 0 else 0.0
        at_far = (union * d_inter_far - inter * d_union_far) / union**2 if union > 0 else 0.0
        d_cover = int(far[i] > truth_far[i]) - int(near[i] < truth_near[i])
        d_cover_side = 0.5 * int(far[i] > truth_far[i]) + 0.5 * int(near[i] < truth_near[i])
        if shared[0] > 0 and shared[1] > 0:
            step[i], step[2 + i] = at_near + at_far, at_far - at_near
        step[i] += (2 * (truth[i] - pred[i]) * diagonal - 2 * cover[i] * d_cover * distance) / diagonal**2
        step[2 + i] += 2 * cover[i] * d_cover_side * distance / diagonal**2
        step[2 + i] += alpha * 8 / math.pi**2 * turned * pred[3 - i] * (1 if i == 0 else -1)
    return step


@dataclass
class V4:
    """Numbers of yolov4.cfg; `anchors` are all of them, `first` the number of the first anchor of each level."""

    anchors: Sequence[tuple[float, float]]
    first: Sequence[int]
    scale_xy: Sequence[float]
    iou_threshold: float = 0.213
    ignore_threshold: float = 0.7
    box_weight: float = 0.07
    max_step: float = 5.0
    smoothing: float = 0.0


def v4_box(raw: Row, column: int, row: int, anchor: tuple[float, float], stride: int, scale: float) -> Box:
    x, y = (sigmoid(raw[i]) * scale - (scale - 1) / 2 for i in (0, 1))
    w, h = (anchor[i] * math.exp(raw[2 + i]) for i in (0, 1))
    return corners((x + column) * stride, (y + row) * stride, w, h)


def v4_learn(raw: Row, steps: Row, shares: Sequence[Row], label: int, config: V4) -> None:
    """Adds the steps of one object; `shares` are the predicted box and the object in parts of the image."""
    for i, step in enumerate(ciou_step(*shares)):
        moved = config.box_weight * step * (math.exp(raw[i]) if i > 1 else 1)
        steps[i] += min(max(moved, -config.max_step), config.max_step)
    steps[4] = 1 - sigmoid(raw[4])
    true, false = 1 - config.smoothing / 2, config.smoothing / 2
    if steps[5 + label]:  # an earlier object lies here: its classes stay
        steps[5 + label] = true - sigmoid(raw[5 + label])
    else:
        for k, logit in enumerate(raw[5:]):
            steps[5 + k] = (true if k == label else false) - sigmoid(logit)


def yolo_v4_layers(raw: list[Row], levels: Sequence[Level], objects: Sequence[Object], config: V4) -> list[Row]:
    """Version 4, deltas of the raw outputs `[N][5 + K]` of all levels."""
    size = levels[0].columns * levels[0].stride, levels[0].rows * levels[0].stride
    steps = [[0.0] * len(row) for row in raw]
    start = 0
    for level, scale, first in zip(levels, config.scale_xy, config.first, strict=True):
        end = start + level.columns * level.rows * len(level.anchors)
        for place in range(end - start):
            row, column = divmod(place // len(level.anchors), level.columns)
            out, anchor = raw[start + place], level.anchors[place % len(level.anchors)]
            predicted = v4_box(out, column, row, anchor, level.stride, scale)
            overlap = max((box_iou(predicted, box) for box, _ in objects), default=0.0)
            sure = max(map(sigmoid, out[5:])) > 0.25
            steps[start + place][4] = 0 if sure and overlap > config.ignore_threshold else 0 - sigmoid(out[4])
        for box, label in objects:
            x, y, w, h = center_and_sides(box)
            column, row = cell_of(x, y, level.columns, level.rows, *size)
            best = best_anchor(w, h, config.anchors)
            for n, anchor in enumerate(level.anchors):
                similar = box_iou(corners(0, 0, w, h), corners(0, 0, *anchor)) > config.iou_threshold
                if first + n == best or (similar and config.iou_threshold < 1):
                    index = start + level.index(column, row, n)
                    predicted = v4_box(raw[index], column, row, anchor, level.stride, scale)
                    pair = (center_and_sides(predicted), center_and_sides(box))
                    shares = [[value / side for value, side in zip(b, size * 2, strict=True)] for b in pair]
                    v4_learn(raw[index], steps[index], shares, label, config)
        for index in range(start, end if config.iou_threshold < 1 else start):
            classes = sum(step > 0 for step in steps[index][5:])
            if steps[index][4] != 0 and classes:
                steps[index][:4] = [step / classes for step in steps[index][:4]]
        start = end
    return steps
