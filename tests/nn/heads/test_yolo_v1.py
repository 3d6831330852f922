"""YOLOv1's head: darknet's steps, and cases small enough to count."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detkit.nn.heads.yolo_v1 import YOLOv1Head, YOLOv1HeadConfig, YOLOv1Outputs, YOLOv1SelectionConfig
from detkit.structures import ImageInfo, Objects, Target
from tests.nn.heads.support import Boxes, detect, make_target
from tests.reference import yolo as reference

NUM_CLASSES = 3
SIZE = (60, 90)  # with a grid of 3: cells of 30 x 20 px
CANVAS = torch.tensor([90.0, 60.0])
SIZES = torch.tensor([SIZE])
INFO = ImageInfo(0, SIZE, SIZE, (1.0, 1.0))


def make_head(grid: int = 3, **fields: Any) -> YOLOv1Head:
    return YOLOv1Head(YOLOv1HeadConfig(grid=grid, hidden="none", **fields), 1, (1, 1), NUM_CLASSES)


def make_outputs(batch: int = 1, grid: int = 3, count: int = 2, seed: int = 0) -> YOLOv1Outputs:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, grid**2, NUM_CLASSES), (batch, grid**2, count), (batch, grid**2, count, 4)]
    parts = [torch.randn(shape, generator=generator).mul(0.7).requires_grad_() for shape in shapes]
    return YOLOv1Outputs(*parts, CANVAS)


def steps_of(head: YOLOv1Head, outputs: YOLOv1Outputs, targets: list[Target]) -> list[Tensor]:
    """What gradient descent on the sum over the batch would add, at classes, confidences and boxes."""
    loss = torch.stack(list(head.criterion(outputs, targets).values())).sum() * len(targets)
    return [-grad for grad in torch.autograd.grad(loss, (outputs.classes, outputs.confidences, outputs.boxes))]


def random_scene(seed: int, count: int, grid: int) -> tuple[Boxes, list[int]]:
    """Up to `count` objects, no two in a cell."""
    generator = torch.Generator().manual_seed(seed)
    boxes, labels, taken = [], [], set()
    for _ in range(count):
        x, y, w, h = (torch.rand(4, generator=generator) * torch.tensor([1, 1, 0.6, 0.6])).tolist()
        if (int(x * grid), int(y * grid)) not in taken:
            taken.add((int(x * grid), int(y * grid)))
            boxes.append(((x - w / 2) * 90, (y - h / 2) * 60, (x + w / 2) * 90, (y + h / 2) * 60))
            labels.append(int(torch.randint(NUM_CLASSES, (1,), generator=generator)))
    return boxes, labels


@pytest.mark.parametrize("seed", range(10))
def test_gradients_are_the_steps_of_darknets_detection_layer(seed: int) -> None:
    scenes = [random_scene(10 * seed + count, count, 4) for count in (0, 1, 12)]
    targets = [make_target(*scene) for scene in scenes]
    outputs = make_outputs(batch=3, grid=4, count=3, seed=seed)
    steps = steps_of(make_head(4, boxes_per_cell=3), outputs, targets)
    for i, target in enumerate(targets):
        objects = list(zip(map(tuple, target.objects.boxes.tolist()), target.objects.labels.tolist(), strict=True))
        parts = [part[i].tolist() for part in (outputs.classes, outputs.confidences, outputs.boxes)]
        expected = reference.detection_layer(*parts, objects, SIZE)
        for step, darknet in zip(steps, expected, strict=True):
            torch.testing.assert_close(step[i], torch.tensor(darknet), rtol=1e-5, atol=1e-5)


def one_object(outputs: YOLOv1Outputs) -> tuple[YOLOv1Outputs, Target]:
    """Cell (1, 2): its second box is predicted a little beside the object, its first far away."""
    with torch.no_grad():
        outputs.boxes[0, 5, 0] = torch.tensor([9.0, 9.0, 0.1, 0.1])
        outputs.boxes[0, 5, 1] = torch.tensor([0.5, 0.5, 0.5, 0.5])
    # centre (72, 35): 0.4 and 0.75 of a cell; sides a fifth and a quarter of the picture
    return outputs, make_target([(63.0, 27.5, 81.0, 42.5)], [1])


def test_losses_by_hand() -> None:
    outputs, target = one_object(make_outputs())
    losses = make_head().criterion(outputs, [target])
    # predicted: centre (75, 30), sides 22.5 x 15 px. They share 63.75..81 x 27.5..37.5
    overlap = 17.25 * 10 / (18 * 15 + 22.5 * 15 - 17.25 * 10)
    classes, confidences = outputs.classes.detach(), outputs.confidences.detach()
    box = (0.5 - 0.4) ** 2 + (0.5 - 0.75) ** 2 + (0.5 - math.sqrt(0.2)) ** 2 + (0.5 - math.sqrt(0.25)) ** 2
    assert losses["yolo_box"].item() == pytest.approx(5 * box / 2)
    assert losses["yolo_object"].item() == pytest.approx((confidences[0, 5, 1].item() - overlap) ** 2 / 2, rel=1e-4)
    others = confidences.square().sum().item() - confidences[0, 5, 1].item() ** 2
    assert losses["yolo_background"].item() == pytest.approx(0.5 * others / 2)
    c = classes[0, 5].tolist()
    assert losses["yolo_class"].item() == pytest.approx((c[0] ** 2 + (c[1] - 1) ** 2 + c[2] ** 2) / 2)


def test_gradient_is_the_numeric_one_of_the_formula() -> None:
    outputs, target = one_object(make_outputs())
    overlap = 17.25 * 10 / (18 * 15 + 22.5 * 15 - 17.25 * 10)  # a constant of the loss
    target_box = (0.4, 0.75, math.sqrt(0.2), math.sqrt(0.25))

    def formula(values: list[float]) -> float:
        classes, confidences, boxes = values[:27], values[27:45], values[45:]
        box = sum((boxes[44 + k] - target_box[k]) ** 2 for k in range(4))  # the second box of cell 5
        background = sum(c**2 for i, c in enumerate(confidences) if i != 11)
        one_hot = sum((classes[15 + k] - (k == 1)) ** 2 for k in range(3))
        return (5 * box + (confidences[11] - overlap) ** 2 + 0.5 * background + one_hot) / 2

    parts = (outputs.classes, outputs.confidences, outputs.boxes)
    expected = reference.central_differences(formula, torch.cat([part.flatten() for part in parts]).tolist())
    actual = -torch.cat([step.flatten() for step in steps_of(make_head(), outputs, [target])])
    torch.testing.assert_close(actual, torch.tensor(expected), rtol=1e-5, atol=1e-6)


def test_losses_are_averaged_over_the_images() -> None:
    outputs, target = one_object(make_outputs())
    parts = (outputs.classes, outputs.confidences, outputs.boxes)
    twice = YOLOv1Outputs(*(torch.cat([part, part]) for part in parts), CANVAS)
    once = make_head().criterion(outputs, [target])
    for name, loss in make_head().criterion(twice, [target, target]).items():
        assert loss.item() == pytest.approx(once[name].item()), name


def test_scales_multiply_their_terms() -> None:
    outputs, target = one_object(make_outputs())
    once = make_head(box_scale=1, background_scale=1).criterion(outputs, [target])
    scales = {"box": 2.0, "object": 3.0, "background": 5.0, "class": 7.0}
    scaled = make_head(**{f"{name}_scale": scale for name, scale in scales.items()}).criterion(outputs, [target])
    for name, scale in scales.items():
        assert scaled[f"yolo_{name}"].item() == pytest.approx(scale * once[f"yolo_{name}"].item())


def test_of_two_boxes_in_a_cell_one_is_learned_by_chance() -> None:
    outputs, target = one_object(make_outputs())
    other = make_target([(60.0, 21.0, 66.0, 25.0)], [2])
    both = Target(Objects.cat([target.objects, other.objects]))
    alone = [torch.cat([s.flatten() for s in steps_of(make_head(), outputs, [t])]) for t in (target, other)]
    drawn = []
    for seed in range(40):
        torch.manual_seed(seed)
        steps = torch.cat([s.flatten() for s in steps_of(make_head(), outputs, [both])])
        drawn.append([torch.equal(steps, each) for each in alone])
        assert sum(drawn[-1]) == 1
    assert 8 < sum(first for first, _ in drawn) < 32  # 40 tosses of a coin


def test_boxes_in_one_cell_of_different_images_do_not_meet() -> None:
    outputs = make_outputs(batch=2)
    target = make_target([(63.0, 27.5, 81.0, 42.5)], [1])
    _, _, boxes = steps_of(make_head(), outputs, [target, target])
    assert [int(boxes[i].any(dim=-1).sum()) for i in range(2)] == [1, 1]


def responsible(predictions: Boxes, target: Target) -> list[bool]:
    """Which boxes of cell 5 take a step."""
    outputs = make_outputs(count=len(predictions))
    with torch.no_grad():
        outputs.boxes[0, 5] = torch.tensor(predictions)
    steps = steps_of(make_head(boxes_per_cell=len(predictions)), outputs, [target])[2][0]
    assert not steps[:5].any()
    assert not steps[6:].any()
    return steps[5].any(dim=-1).tolist()


def test_the_responsible_box() -> None:
    target = make_target([(63.0, 27.5, 81.0, 42.5)])  # 0.4, 0.75, roots of 0.2 and 0.25
    good, better = (0.4, 0.3, 0.45, 0.5), (0.4, 0.6, 0.45, 0.5)
    assert responsible([good, better], target) == [False, True]
    assert responsible([better, good], target) == [True, False]
    # of equal boxes the first
    assert responsible([good, better, better], target) == [False, True, False]
    # none overlaps: the nearest, in parts of the picture: 3 cells away right, 2 away below with almost the same shape
    right, below, farther = (3.4, 0.75, 0.45, 0.5), (0.4, 2.75, 0.45, 0.5), (0.4, 3.75, 0.45, 0.5)
    assert responsible([right, below, farther], target) == [False, True, False]
    assert responsible([below, below], target) == [True, False]
    # an overlapping box wins over one that is nearer: its centre is right, but without area
    assert responsible([(0.4, 0.75, 0.0, 0.0), (0.9, 1.2, 1.0, 1.0)], target) == [False, True]


def test_distance_is_that_of_sides_and_not_of_their_roots() -> None:
    target = make_target([(63.0, 27.5, 81.0, 42.5)])
    # far right, no overlap. Sides off by .2 against a centre off by .19; their roots are off by .45
    flat = (0.4 + 3 * 0.5, 0.75, 0.0, 0.5)
    moved = (0.4 + 3 * 0.535, 0.75, math.sqrt(0.2), 0.5)
    # squares: .25 + .04 = .29; .286
    assert responsible([flat, moved], target) == [False, True]
    moved = (0.4 + 3 * 0.545, 0.75, math.sqrt(0.2), 0.5)  # .297; by roots the flat one would be at .45
    assert responsible([flat, moved], target) == [True, False]


@pytest.mark.parametrize(
    ("centre", "cell", "inside"),
    [
        ((30.0, 20.0), 4, (0.0, 0.0)),  # a corner of cells: right and below
        ((30.0, 10.0), 1, (0.0, 0.5)),
        ((29.9, 19.9), 0, (0.996667, 0.995)),
        ((90.0, 60.0), 8, (1.0, 1.0)),  # the border of the picture: the last cell
        ((90.0, 0.0), 2, (1.0, 0.0)),
    ],
)
def test_cell_of_an_object(centre: tuple[float, float], cell: int, inside: tuple[float, float]) -> None:
    x, y = centre
    outputs = make_outputs()
    steps = steps_of(make_head(), outputs, [make_target([(x - 8, y - 6, x + 8, y + 6)])])[2][0]
    assert torch.nonzero(steps.any(dim=-1))[:, 0].tolist() == [cell]
    which = int(steps[cell].any(dim=-1).nonzero())
    learned = steps[cell, which] / 5 + outputs.boxes[0, cell, which].detach()
    sides = (math.sqrt(16 / 90), math.sqrt(12 / 60))
    torch.testing.assert_close(learned, torch.tensor([*inside, *sides]), rtol=1e-4, atol=1e-5)


def test_an_image_without_objects() -> None:
    outputs = make_outputs()
    losses = make_head().criterion(outputs, [make_target([])])
    assert losses["yolo_box"] == losses["yolo_object"] == losses["yolo_class"] == 0
    assert losses["yolo_background"].item() == pytest.approx(0.25 * outputs.confidences.square().sum().item())
    classes, confidences, boxes = steps_of(make_head(), outputs, [make_target([])])
    torch.testing.assert_close(confidences, -0.5 * outputs.confidences.detach())
    assert not classes.any()
    assert not boxes.any()


def test_difficult_objects_are_no_targets() -> None:
    outputs = make_outputs()
    boxes: Boxes = [(63.0, 27.5, 81.0, 42.5), (1.0, 1.0, 9.0, 9.0)]
    actual = steps_of(make_head(), outputs, [make_target(boxes, [1, 2], [True, False])])
    expected = steps_of(make_head(), outputs, [make_target(boxes[1:], [2])])
    for actual_steps, expected_steps in zip(actual, expected, strict=True):
        assert torch.equal(actual_steps, expected_steps)


def test_predictions_on_an_ignored_object_are_background_unless_configured() -> None:
    """Every box of cell 0 has a side of half of the canvas, 45 x 30 px, around (15, 10); the right half is ignored."""
    target = make_target([(15.0, -20.0, 90.0, 60.0)], ignore=[True])
    outputs = make_outputs()
    with torch.no_grad():
        outputs.boxes[0] = torch.tensor([-9.0, -9.0, 0.1, 0.1])  # far from the object
        outputs.boxes[0, 0] = torch.tensor([0.5, 0.5, 0.5**0.5, 0.5**0.5])
    for ignored_iof, neutral in ((None, False), (0.51, False), (0.49, True)):
        classes, confidences, boxes = steps_of(make_head(ignored_iof=ignored_iof), outputs, [target])
        assert (confidences[0] == 0).all(dim=1).tolist() == [neutral] + [False] * 8
        assert not classes.any()
        assert not boxes.any()


def quiet_outputs(count: int = 1) -> YOLOv1Outputs:
    """Nothing is detected."""
    return YOLOv1Outputs(torch.zeros(1, 9, 3), torch.zeros(1, 9, count), torch.full((1, 9, count, 4), 0.5), CANVAS)


def test_a_box_in_pixels_by_hand() -> None:
    outputs = quiet_outputs()
    outputs.confidences[0, 5], outputs.classes[0, 5, 2] = 0.5, 0.8
    outputs.boxes[0, 5, 0] = torch.tensor([0.5, 0.25, 0.5, -0.6])  # cell (row 1, column 2); a root may be negative
    (detections,) = detect(make_head(boxes_per_cell=1), outputs, INFO)
    # centre 2.5 * 30, 1.25 * 20; sides .25 * 90, .36 * 60
    torch.testing.assert_close(detections.boxes, torch.tensor([[63.75, 14.2, 86.25, 35.8]]))
    assert detections.scores.tolist() == pytest.approx([0.4])
    assert detections.labels.tolist() == [2]
    # the same in an image of twice the width and a quarter of the height that sits 6 px lower on the canvas
    placed = ImageInfo(0, (12, 180), (48, 90), (0.5, 4.0), (0, 6))
    (detections,) = detect(make_head(boxes_per_cell=1), outputs, placed)
    torch.testing.assert_close(detections.boxes, torch.tensor([[127.5, 2.05, 172.5, 7.45]]))


def test_scores_are_confidence_times_class() -> None:
    outputs = quiet_outputs(2)
    outputs.classes[0, 0] = torch.tensor([0.5, 0.25, -0.5])
    outputs.confidences[0, 0] = torch.tensor([0.8, 1.0])
    outputs.boxes[0, 0, 0, :2] = 0.0
    outputs.boxes[0, 0, 1, :2] = 3.0
    (detections,) = detect(make_head(), outputs, INFO)
    rows = zip(
        detections.scores.tolist(), detections.labels.tolist(), (detections.boxes[:, 0] > 0).tolist(), strict=True
    )
    assert [(round(score, 6), label, second) for score, label, second in rows] == [
        (0.5, 0, True),
        (0.4, 0, False),
        (0.25, 1, True),
        (0.2, 1, False),
    ]
    (detections,) = detect(make_head(selection=YOLOv1SelectionConfig(score_threshold=0.3)), outputs, INFO)
    assert len(detections) == 2
    outputs.confidences[0, 0] = torch.tensor([3.0, 0.0])  # linear outputs may exceed one, a score may not
    assert detect(make_head(), outputs, INFO)[0].scores.tolist() == pytest.approx([1.0, 0.75])


def test_suppression_is_for_each_class_alone() -> None:
    outputs = quiet_outputs(2)
    outputs.classes[0, 0, :2], outputs.confidences[0, 0] = torch.tensor([0.5, 0.25]), torch.tensor([0.8, 1.0])
    assert detect(make_head(), outputs, INFO)[0].labels.tolist() == [0, 1]


def test_the_outputs_lie_as_in_darknet() -> None:
    """All classes, cell by cell, then all confidences, then all boxes."""
    head = make_head(grid=2, boxes_per_cell=3)
    nn.init.zeros_(head.output.weight)
    head.output.bias = nn.Parameter(torch.arange(4 * (3 + 3 * 5), dtype=torch.float32))
    outputs = head([torch.zeros(1, 1, 1, 1)], SIZES, SIZE)
    assert outputs.classes[0].tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
    assert outputs.confidences[0].tolist() == [[12, 13, 14], [15, 16, 17], [18, 19, 20], [21, 22, 23]]
    assert outputs.boxes[0, 0].tolist() == [[24, 25, 26, 27], [28, 29, 30, 31], [32, 33, 34, 35]]
    assert outputs.boxes[0, 3, 2].tolist() == [68, 69, 70, 71]
    assert outputs.canvas.tolist() == [90, 60]


@pytest.mark.parametrize("hidden", ["connected", "local", "none"])
def test_the_last_level_is_read_as_a_whole(hidden: Any) -> None:
    torch.manual_seed(0)
    head = YOLOv1Head(YOLOv1HeadConfig(hidden=hidden), 4, (2, 3), NUM_CLASSES).eval()
    features = [torch.randn(2, 9, 4, 6), torch.randn(2, 4, 2, 3)]
    outputs = head(features, SIZES, SIZE)
    shapes = [tuple(part.shape) for part in (outputs.classes, outputs.confidences, outputs.boxes)]
    assert shapes == [(2, 49, 3), (2, 49, 2), (2, 49, 2, 4)]
    x = features[1]
    if hidden == "connected":
        x = nn.functional.leaky_relu(x.flatten(1) @ head.hidden[1].weight.T + head.hidden[1].bias, 0.1)
    elif hidden == "local":
        x = nn.functional.leaky_relu(head.hidden[0](x), 0.1)
        assert x.shape == (2, 256, 2, 3)
    expected = x.flatten(1) @ head.output.weight.T + head.output.bias
    torch.testing.assert_close(outputs.classes.flatten(1), expected[:, : 49 * 3], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outputs.boxes.flatten(1), expected[:, 49 * 5 :], rtol=1e-4, atol=1e-5)
    if hidden != "none":
        assert head.hidden[-1].p == 0.5
