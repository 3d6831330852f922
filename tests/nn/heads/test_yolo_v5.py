"""YOLOv5's head: its decoding, its first biases, and its losses in loops and by hand."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from detkit.nn.heads.yolo import YOLOOutputs
from detkit.nn.heads.yolo_v5 import YOLOv5Head, YOLOv5HeadConfig
from detkit.structures import Target
from tests.nn.heads.support import make_target
from tests.reference.iou import complete_box_iou

SIZE = (32, 48)
ANCHORS = (((6.0, 8.0), (12.0, 10.0)), ((20.0, 24.0), (30.0, 20.0)), ((40.0, 30.0), (36.0, 44.0)))
STRIDES = (4, 8, 16)


def make_head(num_classes: int = 3, **fields: Any) -> YOLOv5Head:
    return YOLOv5Head(YOLOv5HeadConfig(anchors=ANCHORS, **fields), [4] * 3, STRIDES, num_classes).eval()


def random_outputs(head: YOLOv5Head, batch: int, seed: int = 0) -> YOLOOutputs:
    torch.manual_seed(seed)
    features = [torch.zeros(batch, 4, SIZE[0] // s, SIZE[1] // s) for s in STRIDES]
    outputs = head(features, torch.zeros(batch, 2), SIZE)
    return YOLOOutputs(torch.randn_like(outputs.raw), outputs.cells, outputs.anchors, outputs.strides)


def test_a_fresh_head_expects_eight_objects_on_640_px_and_every_class_rarely() -> None:
    head = make_head()
    outputs = head([torch.zeros(1, 4, SIZE[0] // s, SIZE[1] // s) for s in STRIDES], torch.zeros(1, 2), SIZE)
    for stride in STRIDES:
        of_level = outputs.raw[0][outputs.strides[:, 0] == stride]
        torch.testing.assert_close(of_level[:, 4].exp(), torch.full((len(of_level),), 8 / (640 / stride) ** 2))
        torch.testing.assert_close(of_level[:, 5:].exp(), torch.full((len(of_level), 3), 0.6 / 2.00001))


def test_boxes_reach_half_a_cell_beyond_and_four_times_the_anchor() -> None:
    head = make_head()
    outputs = random_outputs(head, 1)
    outputs.raw.zero_()
    row = 2 * (12 * 3 + 5)  # level 0, row 3, column 5, anchor 0
    torch.testing.assert_close(head.boxes(outputs)[0, row], torch.tensor([22.0 - 3, 14.0 - 4, 22.0 + 3, 14.0 + 4]))
    outputs.raw[0, row, :4] = torch.tensor([30.0, -30.0, 30.0, 0.0])
    x, y = (5 + 1.5) * 4, (3 - 0.5) * 4
    torch.testing.assert_close(head.boxes(outputs)[0, row], torch.tensor([x - 12, y - 4, x + 12, y + 4]))


def losses_in_loops(
    head: YOLOv5Head,
    outputs: YOLOOutputs,
    targets: list[Target],
    factors: Sequence[float] = (0.05, 1.0, 0.5),
) -> dict[str, Tensor]:
    """Level by level and pair by pair; the factors are those of YOLOv5's settings for box, objectness and class."""
    sums = {"yolo_box": torch.zeros(()), "yolo_object": torch.zeros(()), "yolo_class": torch.zeros(())}
    boxes, batch, levels = head.boxes(outputs), len(targets), head.levels(outputs)
    pairs = [
        [tuple(pair) for pair in torch.stack(head.pairs(outputs, levels, i, target), dim=1).tolist()]
        for i, target in enumerate(targets)
    ]
    for level, balance in zip(levels, (4.0, 1.0, 0.4), strict=True):
        box, kind = [], []
        certain = torch.zeros(batch, level.end - level.start)
        for i, target in enumerate(targets):
            objects = target.not_ignored()
            for row, match in pairs[i]:
                if not level.start <= row < level.end:
                    continue
                predicted, truth = (tuple(each.tolist()) for each in (boxes[i, row], objects.boxes[match]))
                ciou = complete_box_iou(predicted, truth)
                box.append(torch.tensor(1 - ciou))
                certain[i, row - level.start] = max(ciou, float(certain[i, row - level.start]))
                label = F.one_hot(objects.labels[match], head.num_classes).float()
                kind.append(F.binary_cross_entropy_with_logits(outputs.raw[i, row, 5:], label))
        logits = outputs.raw[:, level.start : level.end, 4]
        sums["yolo_object"] += balance * F.binary_cross_entropy_with_logits(logits, certain)
        if box:
            sums["yolo_box"] += torch.stack(box).mean()
            sums["yolo_class"] += torch.stack(kind).mean()
    return {name: loss * factor * batch for (name, loss), factor in zip(sums.items(), factors, strict=True)}


SCENE = [make_target([(2, 3, 20, 18), (10, 8, 44, 30), (3, 3, 21, 18)], [0, 2, 1]), make_target([(5, 5, 9, 12)])]


@pytest.mark.parametrize("seed", range(3))
def test_losses_against_loops(seed: int) -> None:
    head = make_head()
    outputs = random_outputs(head, 2, seed)
    expected = losses_in_loops(head, outputs, SCENE)
    torch.testing.assert_close(head.criterion(outputs, SCENE), expected, rtol=1e-5, atol=1e-6)


FAR_APART: Any = (((6.0, 8.0),), ((100.0, 100.0),), ((400.0, 400.0),))  # of which one at most fits a small object
QUARTER = -math.log(0.75)  # the cross-entropy of a probability of 3/4


def outputs_of_one_positive(head: YOLOv5Head) -> YOLOOutputs:
    """Zeros, which predict each anchor in the middle of its cell, but in column 5, row 3 of the fine level of the first
    of two images: objectness 3/4 and classes 3/4, 1/2 and 1/4."""
    outputs = random_outputs(head, 2)
    outputs.raw.zero_()
    outputs.raw[0, 3 * 12 + 5, 4:] = torch.tensor([math.log(3), math.log(3), 0.0, -math.log(3)])
    return outputs


def losses_of_one_positive(box: float, objectness: float, classes: float) -> dict[str, Tensor]:
    """By hand. An object of 12 x 16 px lies around the prediction of 6 x 8: of the same shape, CIoU is IoU, 1/4.

    The cross-entropy of the objectness 3/4 with 1/4 is -log(3/4) / 4 - 3 log(1/4) / 4, of all others log 2; the fine
    level has 2 x 96 predictions. That of the classes, the first of which is right, is the mean of two -log(3/4) and
    log 2.
    """
    certain = QUARTER / 4 + 3 * math.log(4) / 4
    levels = 4.0 * (191 * math.log(2) + certain) / 192 + 1.0 * math.log(2) + 0.4 * math.log(2)
    parts = {
        "yolo_box": box * (1 - 1 / 4),
        "yolo_object": objectness * levels,
        "yolo_class": classes * (2 * QUARTER + math.log(2)) / 3,
    }
    return {name: torch.tensor(2 * loss) for name, loss in parts.items()}  # two images


def test_losses_of_one_positive_by_hand() -> None:
    head = YOLOv5Head(YOLOv5HeadConfig(anchors=FAR_APART), [4] * 3, STRIDES, 3).eval()
    losses = head.criterion(outputs_of_one_positive(head), [make_target([(16, 6, 28, 22)], [0]), make_target([])])
    torch.testing.assert_close(losses, losses_of_one_positive(0.05, 1.0, 0.5))


def test_a_prediction_of_two_objects_is_as_certain_as_the_better_one() -> None:
    """Boxes and classes learn both. IoUs are 1 with the object of 6 x 8 and 1/4 with that of 12 x 16."""
    head = YOLOv5Head(YOLOv5HeadConfig(anchors=FAR_APART), [4] * 3, STRIDES, 3).eval()
    outputs = outputs_of_one_positive(head)
    losses = head.criterion(outputs, [make_target([(16, 6, 28, 22), (19, 10, 25, 18)], [0, 1]), make_target([])])
    torch.testing.assert_close(losses["yolo_box"], torch.tensor(2 * 0.05 * (3 / 4 + 0) / 2))
    fine = (191 * math.log(2) + QUARTER) / 192
    torch.testing.assert_close(losses["yolo_object"], torch.tensor(2 * (4 * fine + 1.4 * math.log(2))))
    second = (math.log(4) + math.log(2) + QUARTER) / 3  # the first class, of 3/4, is wrong
    expected = 2 * 0.5 * ((2 * QUARTER + math.log(2)) / 3 + second) / 2
    torch.testing.assert_close(losses["yolo_class"], torch.tensor(expected))


def test_without_objects_only_the_objectness_learns() -> None:
    head = make_head()
    losses = head.criterion(random_outputs(head, 2), [make_target([]), make_target([])])
    assert losses["yolo_box"] == losses["yolo_class"] == 0
    assert losses["yolo_object"] > 0


def test_one_class_has_no_class_loss() -> None:
    head = make_head(num_classes=1)
    assert head.criterion(random_outputs(head, 1), [make_target([(2, 3, 20, 18)])])["yolo_class"] == 0


def test_smooth_labels() -> None:
    """Of three classes with a smoothing of .2 the true one learns .9 and the others .1."""
    head = make_head(label_smoothing=0.2, class_weight=1.0)
    outputs, targets = random_outputs(head, 1), [make_target([(2, 3, 20, 18)], [1])]
    learned = torch.tensor([0.1, 0.9, 0.1])
    expected = 0.0
    for level in head.levels(outputs):
        predictions, _ = head.pairs(outputs, [level], 0, targets[0])
        if len(predictions):
            logits = outputs.raw[0, predictions, 5:]
            expected += F.binary_cross_entropy_with_logits(logits, learned.expand_as(logits))
    torch.testing.assert_close(head.criterion(outputs, targets)["yolo_class"], expected)


def test_background_inside_an_ignored_object_can_be_neutral() -> None:
    outputs = random_outputs(make_head(), 1)
    ignored = [make_target([(-300, -300, 400, 400)], ignore=[True])]
    assert make_head(ignored_iof=0.5).criterion(outputs, ignored)["yolo_object"] == 0
    assert make_head().criterion(outputs, ignored)["yolo_object"] > 0
