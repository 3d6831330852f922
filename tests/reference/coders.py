"""R-CNN's regression targets of one box, appendix C of the paper."""

import math

from tests.reference.iou import Box

Deltas = tuple[float, float, float, float]


def encode(box: Box, anchor: Box, weights: Deltas, inclusive: bool) -> Deltas:
    w, h = box[2] - box[0] + inclusive, box[3] - box[1] + inclusive
    wa, ha = anchor[2] - anchor[0] + inclusive, anchor[3] - anchor[1] + inclusive
    dx = ((box[0] + w / 2) - (anchor[0] + wa / 2)) / wa
    dy = ((box[1] + h / 2) - (anchor[1] + ha / 2)) / ha
    return dx * weights[0], dy * weights[1], math.log(w / wa) * weights[2], math.log(h / ha) * weights[3]


def decode(deltas: Deltas, anchor: Box, weights: Deltas, clamp: float, inclusive: bool) -> Box:
    wa, ha = anchor[2] - anchor[0] + inclusive, anchor[3] - anchor[1] + inclusive
    x, y = deltas[0] / weights[0] * wa + anchor[0] + wa / 2, deltas[1] / weights[1] * ha + anchor[1] + ha / 2
    w, h = math.exp(min(deltas[2] / weights[2], clamp)) * wa, math.exp(min(deltas[3] / weights[3], clamp)) * ha
    return x - w / 2, y - h / 2, x + w / 2 - inclusive, y + h / 2 - inclusive
