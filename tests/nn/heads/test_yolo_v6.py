"""YOLOv6's head: its decoding, its losses in loops and by hand, and its detections."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from detkit.nn.heads.yolo_v6 import YOLOv6Head, YOLOv6HeadConfig, YOLOv6Outputs, YOLOv6SelectionConfig
from detkit.structures import ImageInfo, Target
from tests.nn.heads.support import detect, make_target
from tests.reference import iou as reference
from tests.reference.assign import atss, sides_from

SIZE = (32, 48)
INFO = ImageInfo(0, SIZE, SIZE, (1.0, 1.0))
LOST = -20.0  # logit of what is not there


def make_head(**fields: Any) -> YOLOv6Head:
    return YOLOv6Head(YOLOv6HeadConfig(**fields), [4, 6], [8, 16], 3).eval()


def fresh_outputs(head: YOLOv6Head, batch: int) -> YOLOv6Outputs:
    outputs: YOLOv6Outputs = head(
        [torch.randn(batch, 4, 4, 6), torch.randn(batch, 6, 2, 3)], torch.zeros(batch, 2), SIZE
    )
    return outputs


def random_outputs(head: YOLOv6Head, batch: int, seed: int = 0) -> YOLOv6Outputs:
    torch.manual_seed(seed)
    fresh = fresh_outputs(head, batch)
    sides, logits = torch.randn_like(fresh.sides) + 1, torch.randn_like(fresh.logits)
    return YOLOv6Outputs(sides, logits, fresh.points, fresh.strides)


def test_a_fresh_head_predicts_the_prior() -> None:
    """Scores of one in a hundred; boxes of one stride around each point, or of the mean of all bins."""
    outputs = fresh_outputs(make_head(), 1)
    torch.testing.assert_close(outputs.logits.sigmoid(), torch.full((1, 30, 3), 0.01))
    around = torch.cat([outputs.points - outputs.strides, outputs.points + outputs.strides], dim=1)
    torch.testing.assert_close(outputs.decoded()[0], around)
    outputs = fresh_outputs(make_head(reg_max=16), 1)
    wide = torch.cat([outputs.points - 8 * outputs.strides, outputs.points + 8 * outputs.strides], dim=1)
    torch.testing.assert_close(outputs.decoded()[0], wide)


def test_distances_count_from_the_middle_of_a_cell_in_strides() -> None:
    """Column 4 and row 1 of stride 8 are (36, 12); the last cell of stride 16 is (40, 24)."""
    outputs = random_outputs(make_head(), 1)
    outputs.sides[0, [6 + 4, -1]] = torch.tensor([1.0, 0.5, 2.0, 3.0])[:, None]
    torch.testing.assert_close(outputs.decoded()[0, 10], torch.tensor([28.0, 8.0, 52.0, 36.0]))
    torch.testing.assert_close(outputs.decoded()[0, -1], torch.tensor([24.0, 16.0, 72.0, 72.0]))


def test_a_distribution_is_its_mean() -> None:
    """Left: bin 2. Upper: bins 1 and 2, three to one. Right: bins 0 and 4. Lower: bin 0."""
    outputs = random_outputs(make_head(reg_max=4), 1)
    outputs.sides[0, 10] = LOST
    for side, column, logit in ((0, 2, 0.0), (1, 1, math.log(3)), (1, 2, 0.0), (2, 0, 0.0), (2, 4, 0.0), (3, 0, 0.0)):
        outputs.sides[0, 10, side, column] = logit
    expected = torch.tensor([36 - 2 * 8, 12 - 1.25 * 8, 36 + 2 * 8, 12.0])
    torch.testing.assert_close(outputs.decoded()[0, 10], expected, atol=1e-5, rtol=0)


def test_the_first_losses_by_hand() -> None:
    """One object of 16 px in a corner, the four cells of stride 8 in it with boxes of 16 px around their points: a
    shared square of 12 px, 144 of 368 px^2, within one of 20 px. All have the same score, so that all learn the IoU."""
    head = YOLOv6Head(YOLOv6HeadConfig(), [4], [8], 2).eval()
    outputs = head([torch.randn(1, 4, 4, 4)], torch.zeros(1, 2), (32, 32))
    losses = head.criterion(outputs, [make_target([(0, 0, 16, 16)], [1])])
    iou = 144 / 368
    giou = iou - (400 - 368) / 400
    assert losses["yolo_box"].item() == pytest.approx(2.5 * (1 - giou), rel=1e-4)
    positive = iou * -(iou * math.log(0.01) + (1 - iou) * math.log(0.99))
    background = 0.75 * 0.01**2 * -math.log(0.99)
    expected = (4 * positive + (32 - 4) * background) / (4 * iou)
    assert losses["yolo_class"].item() == pytest.approx(expected, rel=1e-4)
    assert set(losses) == {"yolo_class", "yolo_box"}


def losses_in_loops(head: YOLOv6Head, outputs: YOLOv6Outputs, targets: list[Target]) -> dict[str, float]:
    """The sums of the paper's section 2.3, prediction by prediction."""
    overlap = reference.generalized_box_iou if head.config.box_loss == "giou" else reference.scylla_box_iou
    classes = box = distribution = total = 0.0
    for i, (assignment, target) in enumerate(zip(head.assign(outputs, targets), targets, strict=True)):
        objects = target.not_ignored()
        for row, match in enumerate(assignment.index.tolist()):
            quality = float(assignment.quality[row])
            for label, logit in enumerate(outputs.logits[i, row].tolist()):
                score = 1 / (1 + math.exp(-logit))
                if match >= 0 and label == objects.labels[match]:
                    classes -= quality * (quality * math.log(score) + (1 - quality) * math.log(1 - score))
                else:
                    classes -= 0.75 * score**2 * math.log(1 - score)
            if match < 0:
                continue
            total += quality
            truth = tuple(objects.boxes[match].tolist())
            predicted = tuple(outputs.decoded()[i, row].tolist())
            box += quality * (1 - overlap(predicted, truth))  # type: ignore[arg-type]
            if head.config.reg_max is not None:
                point, stride = outputs.points[row].tolist(), float(outputs.strides[row])
                for side, distance in enumerate(sides_from(tuple(point), truth)):  # type: ignore[arg-type]
                    goal = min(max(distance / stride, 0), head.config.reg_max - 0.01)
                    logs = outputs.sides[i, row, side].log_softmax(dim=0).tolist()
                    below = int(goal)
                    share = goal - below
                    distribution -= quality * ((1 - share) * logs[below] + share * logs[below + 1]) / 4
    losses = {"yolo_class": classes, "yolo_box": 2.5 * box}
    if head.config.reg_max is not None:
        losses["yolo_distribution"] = 0.5 * distribution
    return {name: loss / max(1, total) for name, loss in losses.items()}


@pytest.mark.parametrize("fields", [{}, {"box_loss": "siou"}, {"reg_max": 2}])
@pytest.mark.parametrize("seed", range(2))
def test_losses_against_loops(seed: int, fields: dict[str, Any]) -> None:
    """With `reg_max` 2 some sides are farther than the last bin."""
    head = make_head(**fields)
    outputs = random_outputs(head, 2, seed)
    targets = [make_target([(2, 3, 20, 18), (10, 8, 44, 30), (3, 3, 21, 18)], [0, 2, 1]), make_target([])]
    expected = losses_in_loops(head, outputs, targets)
    actual = head.criterion(outputs, targets)
    assert {name: loss.item() for name, loss in actual.items()} == pytest.approx(expected, rel=1e-4)


def test_without_objects_only_the_classes_learn() -> None:
    head = make_head(reg_max=16)
    losses = head.criterion(random_outputs(head, 2), [make_target([]), make_target([])])
    assert losses["yolo_box"] == losses["yolo_distribution"] == 0
    assert losses["yolo_class"] > 0


def test_weights_of_classes() -> None:
    """Only the logit of the class where it is the target counts more."""
    head = make_head()
    outputs, targets = random_outputs(head, 1), [make_target([(2, 3, 20, 18)], [1])]
    plain = head.criterion(outputs, targets)
    (assignment,) = head.assign(outputs, targets)
    quality = assignment.quality[assignment.positive]
    own = F.binary_cross_entropy_with_logits(outputs.logits[0, assignment.positive, 1], quality, quality).item()
    own *= len(quality) / max(1.0, quality.sum().item())
    head.class_weights = torch.tensor([1.0, 3.0, 1.0])
    weighted = head.criterion(outputs, targets)
    assert weighted["yolo_class"].item() == pytest.approx(plain["yolo_class"].item() + 2 * own, rel=1e-5)
    torch.testing.assert_close(weighted["yolo_box"], plain["yolo_box"])


def test_predictions_on_ignored_objects_can_be_neutral() -> None:
    targets = [make_target([(0, 0, 48, 32)], ignore=[True])]
    for iof, factor in ((None, 1), (0.4, 0)):
        head = make_head(ignored_iof=iof)
        outputs = random_outputs(head, 1)
        outputs.sides.fill_(0.5)  # every box is its cell
        plain = make_head().criterion(outputs, [make_target([])])
        torch.testing.assert_close(head.criterion(outputs, targets)["yolo_class"], factor * plain["yolo_class"])


def test_atss_assigns_in_the_warm_up() -> None:
    """Squares of 5 strides around the points are compared; the class learns the IoU of the predicted box."""
    head, box = make_head(warmup_images=100), (3.0, 2.0, 38.0, 29.0)
    outputs = random_outputs(head, 1)
    target = [make_target([box])]
    (before,), (after,) = head.assign(outputs, target, 99), head.assign(outputs, target, 100)
    squares = torch.cat([outputs.points - 2.5 * outputs.strides, outputs.points + 2.5 * outputs.strides], dim=1)
    levels = [[tuple(square) for square in level.tolist()] for level in squares.split([24, 6])]
    expected = atss(levels, [box], 9)  # type: ignore[arg-type]
    assert before.index.tolist() == expected
    assert expected.count(0) > 1
    predicted = outputs.decoded()[0].tolist()
    overlaps = [reference.box_iou(tuple(predicted[row]), box) * (index == 0) for row, index in enumerate(expected)]  # type: ignore[arg-type]
    torch.testing.assert_close(before.quality, torch.tensor(overlaps))
    small = (9.0, 4.0, 31.0, 27.0)  # squares of 4 strides would give it two points
    (none,) = head.assign(outputs, [make_target([small])], 99)
    assert none.index.tolist() == atss(levels, [small], 9) == [-1] * 30  # type: ignore[arg-type]
    (plain,) = make_head().assign(outputs, target)
    assert after.index.tolist() == plain.index.tolist() != expected
    losses = [head.criterion(outputs, target, images_seen=count)["yolo_box"] for count in (99, 100)]
    assert losses[0] != losses[1]
    assert losses[1] == make_head().criterion(outputs, target)["yolo_box"]


def test_a_cell_may_be_several_classes() -> None:
    head = make_head(selection=YOLOv6SelectionConfig(score_threshold=0.1))
    outputs = random_outputs(head, 1)
    outputs.sides.fill_(0.5)
    outputs.logits.fill_(LOST)
    outputs.logits[0, 8] = torch.tensor([LOST, 0.0, math.log(3)])  # .5 and .75
    outputs.logits[0, 20, 0] = math.log(0.1)  # 1 / 11
    (detections,) = detect(head, outputs, INFO)
    assert detections.labels.tolist() == [2, 1]
    torch.testing.assert_close(detections.scores, torch.tensor([0.75, 0.5]))
    torch.testing.assert_close(detections.boxes, torch.tensor([[16.0, 8.0, 24.0, 16.0]] * 2))
