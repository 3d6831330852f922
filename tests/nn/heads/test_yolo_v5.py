"""YOLOv5's head: its decoding, its first biases, and its losses in loops."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from detkit.nn.heads.yolo import YOLOOutputs
from detkit.nn.heads.yolo_v5 import YOLOv5Head, YOLOv5HeadConfig
from detkit.ops.iou import complete_box_iou
from detkit.structures import Target
from tests.nn.heads.support import make_target

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


def losses_in_loops(head: YOLOv5Head, outputs: YOLOOutputs, targets: list[Target]) -> dict[str, Tensor]:
    """Level by level and pair by pair, with the weights of YOLOv5's settings."""
    sums = {"yolo_box": torch.zeros(()), "yolo_object": torch.zeros(()), "yolo_class": torch.zeros(())}
    boxes, batch = head.boxes(outputs), len(targets)
    for level, balance in zip(head.levels(outputs), (4.0, 1.0, 0.4), strict=True):
        box, kind = [], []
        certain = torch.zeros(batch, level.end - level.start)
        for i, target in enumerate(targets):
            predictions, objects = head.pairs(outputs, [level], i, target)
            for row, match in zip(predictions.tolist(), objects.tolist(), strict=True):
                ciou = complete_box_iou(boxes[i, row], target.not_ignored().boxes[match], paired=True)
                box.append(1 - ciou)
                certain[i, row - level.start] = max(float(ciou), float(certain[i, row - level.start]))
                label = F.one_hot(target.not_ignored().labels[match], head.num_classes).float()
                kind.append(F.binary_cross_entropy_with_logits(outputs.raw[i, row, 5:], label))
        predicted = outputs.raw[:, level.start : level.end, 4]
        sums["yolo_object"] += balance * F.binary_cross_entropy_with_logits(predicted, certain)
        if box:
            sums["yolo_box"] += 0.05 * torch.stack(box).mean()
            sums["yolo_class"] += 0.5 * torch.stack(kind).mean()
    return {name: loss * batch for name, loss in sums.items()}


@pytest.mark.parametrize("seed", range(3))
def test_losses_against_loops(seed: int) -> None:
    head = make_head()
    outputs = random_outputs(head, 2, seed)
    targets = [make_target([(2, 3, 20, 18), (10, 8, 44, 30), (3, 3, 21, 18)], [0, 2, 1]), make_target([(5, 5, 9, 12)])]
    torch.testing.assert_close(head.criterion(outputs, targets), losses_in_loops(head, outputs, targets))


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
