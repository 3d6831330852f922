"""YOLOX's head: its decoding, its losses in loops, and its detections."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from detkit.nn.heads.yolox import YOLOXHead, YOLOXHeadConfig, YOLOXOutputs, YOLOXSelectionConfig
from detkit.structures import ImageInfo, Target
from tests.nn.heads.support import detect, make_target
from tests.reference.iou import box_iou

SIZE = (32, 48)
INFO = ImageInfo(0, SIZE, SIZE, (1.0, 1.0))
LOST = -20.0  # logit of what is not there


def make_head(**fields: Any) -> YOLOXHead:
    return YOLOXHead(YOLOXHeadConfig(channels=8, **fields), [4, 6], [8, 16], 3).eval()


def random_outputs(head: YOLOXHead, batch: int, seed: int = 0) -> YOLOXOutputs:
    torch.manual_seed(seed)
    features = [torch.randn(batch, 4, 4, 6), torch.randn(batch, 6, 2, 3)]
    outputs: YOLOXOutputs = head(features, torch.zeros(batch, 2), SIZE)
    boxes, objectness, logits = (torch.randn_like(t) for t in (outputs.boxes, outputs.objectness, outputs.logits))
    return YOLOXOutputs(boxes, objectness, logits, outputs.cells, outputs.strides)


def test_a_fresh_head_is_sure_of_nothing() -> None:
    head = make_head()
    outputs = head([torch.zeros(1, 4, 4, 6), torch.zeros(1, 6, 2, 3)], torch.zeros(1, 2), SIZE)
    assert outputs.logits.shape == (1, 30, 3)
    torch.testing.assert_close(outputs.objectness.sigmoid(), torch.full((1, 30), 0.01))
    torch.testing.assert_close(outputs.logits.sigmoid(), torch.full((1, 30, 3), 0.01))


def test_centres_count_from_the_corner_of_a_cell() -> None:
    """Of stride 8, column 4 and row 1: (4.5 x 8, 1.25 x 8), sides 2 x 8 and 8. Of stride 16: column 2, row 1."""
    head = make_head()
    outputs = random_outputs(head, 1)
    outputs.boxes.zero_()
    outputs.boxes[0, 6 + 4] = torch.tensor([0.5, 0.25, math.log(2), 0.0])
    decoded = outputs.decoded()[0]
    torch.testing.assert_close(decoded[10], torch.tensor([28.0, 6.0, 44.0, 14.0]))
    torch.testing.assert_close(decoded[-1], torch.tensor([24.0, 8.0, 40.0, 24.0]))


def losses_in_loops(head: YOLOXHead, outputs: YOLOXOutputs, targets: list[Target]) -> dict[str, Tensor]:
    """The sums of section 2.3 and of the authors' code, prediction by prediction."""
    box, object_loss, kind, absolute, count = (torch.zeros(()) for _ in range(5))
    for i, (assignment, target) in enumerate(zip(head.assign(outputs, targets), targets, strict=True)):
        objects = target.not_ignored()
        for row, match in enumerate(assignment.index.tolist()):
            logit = outputs.objectness[i, row]
            object_loss += F.binary_cross_entropy_with_logits(logit, torch.tensor(float(match >= 0)), reduction="sum")
            if match < 0:
                continue
            count += 1
            x1, y1, x2, y2 = objects.boxes[match].tolist()
            predicted = outputs.decoded()[i, row].tolist()
            overlap = box_iou(tuple(predicted), (x1, y1, x2, y2))
            box += 1 - overlap**2
            for label, value in enumerate(outputs.logits[i, row]):
                learned = torch.tensor(overlap if label == objects.labels[match] else 0.0)
                kind += F.binary_cross_entropy_with_logits(value, learned, reduction="sum")
            (column, line), stride = outputs.cells[row].tolist(), float(outputs.strides[row])
            raw = ((x1 + x2) / 2 / stride - column, (y1 + y2) / 2 / stride - line)
            sides = (math.log((x2 - x1) / stride), math.log((y2 - y1) / stride))
            absolute += sum(abs(a - float(b)) for a, b in zip((*raw, *sides), outputs.boxes[i, row], strict=True))
    losses = {"yolox_box": 5 * box, "yolox_object": object_loss, "yolox_class": kind, "yolox_l1": absolute}
    return {name: loss / max(1, int(count)) for name, loss in losses.items()}


@pytest.mark.parametrize("seed", range(3))
def test_losses_against_loops(seed: int) -> None:
    head = make_head(l1_after_images=100)
    outputs = random_outputs(head, 2, seed)
    targets = [make_target([(2, 3, 20, 18), (10, 8, 44, 30), (3, 3, 21, 18)], [0, 2, 1]), make_target([])]
    expected = losses_in_loops(head, outputs, targets)
    torch.testing.assert_close(head.criterion(outputs, targets, images_seen=100), expected)
    before = head.criterion(outputs, targets, images_seen=99)
    assert set(expected) - set(before) == {"yolox_l1"}


def test_without_objects_only_the_objectness_learns() -> None:
    head = make_head()
    losses = head.criterion(random_outputs(head, 2), [make_target([]), make_target([])])
    assert losses["yolox_box"] == losses["yolox_class"] == 0
    assert losses["yolox_object"] > 0


def test_weights_of_classes() -> None:
    head = make_head()
    outputs, targets = random_outputs(head, 1), [make_target([(2, 3, 20, 18)], [1])]
    plain = head.criterion(outputs, targets)
    head.class_weights = torch.tensor([1.0, 3.0, 1.0])
    weighted = head.criterion(outputs, targets)
    torch.testing.assert_close(weighted["yolox_class"], 3 * plain["yolox_class"])
    torch.testing.assert_close(weighted["yolox_object"], plain["yolox_object"])


def test_a_cell_is_one_detection_of_its_likeliest_class() -> None:
    head = make_head(selection=YOLOXSelectionConfig(score_threshold=0.1))
    outputs = random_outputs(head, 1)
    outputs.boxes.zero_()
    outputs.objectness.fill_(LOST)
    outputs.logits.fill_(LOST)
    outputs.objectness[0, 8] = outputs.objectness[0, 20] = 0.0
    outputs.logits[0, 8] = torch.tensor([LOST, math.log(4), math.log(3)])  # .8 and .75
    outputs.logits[0, 20] = torch.tensor([math.log(0.25), LOST, LOST])  # .2, times .5 is the threshold
    (detections,) = detect(head, outputs, INFO)
    assert detections.labels.tolist() == [1]
    torch.testing.assert_close(detections.scores, torch.tensor([0.4]))
    torch.testing.assert_close(detections.boxes, torch.tensor([[12.0, 4.0, 20.0, 12.0]]))
