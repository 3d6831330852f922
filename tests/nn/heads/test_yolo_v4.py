"""YOLOv4's head takes darknet's steps."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from detkit.nn.heads.yolo_v4 import V4_ANCHORS, YOLOv4Head, YOLOv4HeadConfig
from detkit.nn.losses import darknet_ciou_step
from tests.nn.heads.support import make_target
from tests.nn.heads.test_yolo_v3 import make_outputs, predict_well, random_scene, steps_of
from tests.reference import yolo as reference

TINY: dict[str, Any] = {  # yolov4-tiny.cfg: anchor 0 predicts nothing, and anchor 3 on both levels
    "anchors": (((23, 27), (37, 58), (81, 82)), ((81, 82), (135, 169), (344, 319))),
    "unused_anchors": ((10, 14),),
    "scale_xy": (1.05, 1.05),
    "iou_threshold": 1.0,
}


@pytest.mark.parametrize("seed", range(4))
def test_steps_of_boxes(seed: int) -> None:
    """Also of boxes apart, of one inside the other, and of one that is the object."""
    generator = torch.Generator().manual_seed(seed)
    boxes, targets = (
        torch.cat([torch.rand(40, 2, generator=generator), 0.05 + torch.rand(40, 2, generator=generator) * 0.6], dim=1)
        for _ in range(2)
    )
    targets[:5] = boxes[:5] * torch.tensor([1.0, 1.0, 0.5, 0.7])
    targets[5] = boxes[5]
    expected = [reference.ciou_step(box, target) for box, target in zip(boxes.tolist(), targets.tolist(), strict=True)]
    torch.testing.assert_close(darknet_ciou_step(boxes, targets), torch.tensor(expected), rtol=1e-4, atol=1e-5)


def test_a_step_of_a_square_by_hand() -> None:
    """A square of .2 that is .1 left of its object, as large: half of it is shared, and the IoU is 1 / 3.

    Its right side adds .2 to the intersection and as much to its own area, none to the union: .2 / .06. Its left side
    moves only the area. (0 x -.. + .02 x .2) / .06^2 = 1.111. The enclosing box is .3 x .2, and .1 apart: 2 x .1 / .13
    towards the object, and + 2 x .3 x .01 / .13^2 for its left side.
    """
    (step,) = darknet_ciou_step(torch.tensor([[0.4, 0.5, 0.2, 0.2]]), torch.tensor([[0.5, 0.5, 0.2, 0.2]]))
    x = 0.2 / 0.06 + 0.02 * 0.2 / 0.06**2 + 0.2 / 0.13 + 0.6 * 0.01 / 0.13**2
    w = 0.2 / 0.06 - 0.02 * 0.2 / 0.06**2 + 0.3 * 0.01 / 0.13**2
    torch.testing.assert_close(step[[0, 2]], torch.tensor([x, w]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fields", [{}, {"label_smoothing": 0.1}, {"max_step": 0.01}, {"ignore_threshold": 0.5}, TINY])
@pytest.mark.parametrize("seed", range(3))
def test_gradients_are_the_steps_of_darknets_yolo_layers(seed: int, fields: dict[str, Any]) -> None:
    generator, size = torch.Generator().manual_seed(seed), (96, 128)
    config = YOLOv4HeadConfig(**fields)
    strides = [8, 16, 32][-len(config.anchors) :]
    head = YOLOv4Head(config, [4] * len(strides), strides, 3).eval()
    targets = [random_scene(generator, count, size) for count in (0, 1, 14)]
    count = sum(3 * (96 // stride) * (128 // stride) for stride in strides)
    outputs = make_outputs(head, torch.randn(3, count, 8, generator=generator), 3, size)
    predict_well(outputs, targets)
    steps = steps_of(head, outputs, targets)
    levels = [
        reference.Level(128 // s, 96 // s, s, anchors) for s, anchors in zip(strides, config.anchors, strict=True)
    ]
    distinct = list(dict.fromkeys([*config.unused_anchors, *(anchor for level in config.anchors for anchor in level)]))
    rules = reference.V4(
        distinct,
        [distinct.index(level[0]) for level in config.anchors],
        config.scale_xy,
        config.iou_threshold,
        config.ignore_threshold,
        max_step=config.max_step or 0,
        smoothing=config.label_smoothing,
    )
    learned = 0
    for i, target in enumerate(targets):
        objects = list(zip(map(tuple, target.objects.boxes.tolist()), target.objects.labels.tolist(), strict=True))
        expected = reference.yolo_v4_layers(outputs.raw[i].tolist(), levels, objects, rules)
        learned += sum(any(row[:4]) for row in expected)
        torch.testing.assert_close(steps[i], torch.tensor(expected), rtol=1e-4, atol=1e-5)
    assert learned > 3


def test_the_value_for_boxes_is_that_of_ciou() -> None:
    head = YOLOv4Head(YOLOv4HeadConfig(), [4] * 3, [8, 16, 32], 3).eval()
    outputs = make_outputs(head, torch.zeros(1, 378, 8), 1, (64, 96))
    with torch.no_grad():
        predicted = head.boxes(outputs)[0]
    target = make_target([tuple(predicted[4].tolist())], [1])
    # The second anchor of the first cell is the object: it is the best, and those similar enough learn too.
    losses = head.criterion(outputs, [target])
    others = [reference_ciou(box, predicted[4].tolist()) for box in learners(head, outputs, target)]
    assert losses["yolo_box"].item() == pytest.approx(0.07 * sum(others), abs=1e-4)


def learners(head: YOLOv4Head, outputs: Any, target: Any) -> list[list[float]]:
    place = head._pairs(outputs, [target]).index
    return [head.boxes(outputs)[0][row].tolist() for row in place]


def reference_ciou(box: list[float], truth: list[float]) -> float:
    from detkit.ops.iou import complete_box_iou

    return 1 - complete_box_iou(torch.tensor(box), torch.tensor(truth), paired=True).item()


def test_scales_of_levels_reach_the_borders_of_cells() -> None:
    """Of stride 8 a centre can be a tenth of a cell beyond, of stride 32 a fortieth."""
    head = YOLOv4Head(YOLOv4HeadConfig(), [4] * 3, [8, 16, 32], 3).eval()
    outputs = make_outputs(head, torch.full((1, 378, 8), 40.0), 1, (64, 96))
    with torch.no_grad():
        outputs.raw[..., 2:4] = 0
        boxes = head.boxes(outputs)[0]
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    torch.testing.assert_close(centers[0], torch.tensor([8.8, 8.8]))
    torch.testing.assert_close(centers[-1], torch.tensor([96.8, 64.8]))


def test_a_scale_for_each_level() -> None:
    with pytest.raises(ValidationError, match="scale_xy: expected 3 numbers, one a level, found"):
        YOLOv4HeadConfig(scale_xy=(1.1,))
    assert len(V4_ANCHORS) == 3
