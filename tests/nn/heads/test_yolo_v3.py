"""YOLOv3's head: darknet's steps, and cases small enough to count."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detkit.nn.heads.yolo import YOLOOutputs, YOLOSelectionConfig
from detkit.nn.heads.yolo_v3 import YOLOv3Head, YOLOv3HeadConfig
from detkit.structures import ImageInfo, Objects, Target
from tests.nn.heads.support import detect, make_target
from tests.reference import yolo as reference

NUM_CLASSES = 3
SIZE = (64, 96)
INFO = ImageInfo(0, SIZE, SIZE, (1.0, 1.0))
# strides 16 and 32: predictions 0-47 are 4 rows of 6 cells of 2 anchors, 48-53 are 2 rows of 3 cells of one
ANCHORS = (((8.0, 8.0), (16.0, 32.0)), ((64.0, 64.0),))


def make_head(anchors: Any = ANCHORS, **fields: Any) -> YOLOv3Head:
    strides = [16 * 2**level for level in range(len(anchors))]
    return YOLOv3Head(YOLOv3HeadConfig(anchors=anchors, **fields), [4] * len(anchors), strides, NUM_CLASSES).eval()


def make_outputs(
    head: YOLOv3Head, raw: Tensor | None = None, batch: int = 1, size: tuple[int, int] = SIZE
) -> YOLOOutputs:
    """Outputs of the head on the canvas with other numbers in them; zeros by default."""
    empty = head([torch.zeros(batch, 4, size[0] // s, size[1] // s) for s in head.strides], torch.zeros(batch, 2), size)
    values = torch.zeros_like(empty.raw) if raw is None else raw
    values = values.detach().clone().requires_grad_()
    return YOLOOutputs(values, empty.cells, empty.anchors, empty.strides)


def steps_of(head: YOLOv3Head, outputs: YOLOOutputs, targets: list[Target]) -> Tensor:
    """What gradient descent on the sum over the batch would add to the raw outputs."""
    loss = torch.stack(list(head.criterion(outputs, targets).values())).sum() * len(targets)
    return -torch.autograd.grad(loss, outputs.raw)[0]


def random_scene(generator: torch.Generator, count: int, size: tuple[int, int]) -> Target:
    """Objects of all scales; the last two have the box of the first, but for a pixel, and other labels."""
    canvas = torch.tensor([float(size[1]), float(size[0])])
    sides = torch.exp(-3.5 + 3 * torch.rand(count, 2, generator=generator)) * canvas
    corner = torch.rand(count, 2, generator=generator) * (canvas - sides)
    boxes = torch.cat([corner, corner + sides], dim=1)
    labels = torch.randint(NUM_CLASSES, (count,), generator=generator)
    if count > 2:
        boxes[-2:] = boxes[0] + torch.tensor([[0.0, 0.0, 0.25, 0.0], [0.0, 0.0, 0.0, 0.25]])
        labels[-2:] = (labels[0] + torch.tensor([1, 0])) % NUM_CLASSES
    return Target(Objects(boxes, labels))


def predict_well(outputs: YOLOOutputs, targets: list[Target]) -> None:
    """Lets every prediction of a cell of an object lie on it nearly: some are neither object nor background."""
    for i, target in enumerate(targets):
        for box in target.objects.boxes:
            centre, sides = (box[:2] + box[2:]) / 2, box[2:] - box[:2]
            with torch.no_grad():
                here = (outputs.cells == (centre / outputs.strides).long()).all(dim=1)
                inside = (centre / outputs.strides[here] - outputs.cells[here]).clamp(0.05, 0.95)
                exact = torch.cat([inside.logit(), (sides / outputs.anchors[here]).log()], dim=1)
                outputs.raw[i, here, :4] = exact + outputs.raw[i, here, :4] * 0.1


@pytest.mark.parametrize("ignore_threshold", [0.5, 0.7])
@pytest.mark.parametrize("seed", range(5))
def test_gradients_are_the_steps_of_darknets_yolo_layers(seed: int, ignore_threshold: float) -> None:
    generator, size = torch.Generator().manual_seed(seed), (96, 128)
    config = YOLOv3HeadConfig(ignore_threshold=ignore_threshold)
    head = YOLOv3Head(config, [4, 4, 4], [8, 16, 32], NUM_CLASSES).eval()
    targets = [random_scene(generator, count, size) for count in (0, 1, 14)]
    outputs = make_outputs(head, torch.randn(3, 3 * (16 * 12 + 8 * 6 + 4 * 3), 8, generator=generator), 3, size)
    predict_well(outputs, targets)
    steps = steps_of(head, outputs, targets)
    levels = [reference.Level(16 // 2**k, 12 // 2**k, 8 * 2**k, anchors) for k, anchors in enumerate(config.anchors)]
    neutral = 0
    for i, target in enumerate(targets):
        objects = list(zip(map(tuple, target.objects.boxes.tolist()), target.objects.labels.tolist(), strict=True))
        expected = reference.yolo_layers(outputs.raw[i].tolist(), levels, objects, ignore_threshold)
        neutral += sum(row[4] == 0 for row in expected)
        torch.testing.assert_close(steps[i], torch.tensor(expected), rtol=1e-5, atol=1e-5)
    assert neutral > 5


# centre (42, 24): 0.625 and 0.5 of the cell (column 2, row 1) of stride 16; of the shape of its second anchor
OBJECT = (35.0, 10.0, 49.0, 38.0)
POSITIVE = (1 * 6 + 2) * 2 + 1


def raw_of_one_object() -> Tensor:
    """Another prediction, of the coarse level, lies on the object well enough not to be background."""
    raw = torch.randn(1, 54, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    raw[0, 49, :4] = torch.tensor([-0.8, 1.1, math.log(14 / 64), math.log(28 / 64)])  # centre (41.9, 24.0)
    return raw


def formula(values: list[float]) -> dict[str, float]:
    """The loss of `OBJECT`, of class 1, with all assignments as they stand."""

    def cross_entropy(logit: float, target: float) -> float:
        p = reference.sigmoid(logit)
        return -target * math.log(p) - (1 - target) * math.log(1 - p)

    raw = [values[8 * i : 8 * i + 8] for i in range(54)]
    positive, weight = raw[POSITIVE], 2 - 14 * 28 / (64 * 96)
    return {
        "yolo_xy": weight * (cross_entropy(positive[0], 0.625) + cross_entropy(positive[1], 0.5)),
        "yolo_wh": weight * ((positive[2] - math.log(14 / 16)) ** 2 + (positive[3] - math.log(28 / 32)) ** 2) / 2,
        "yolo_object": sum(cross_entropy(raw[i][4], i == POSITIVE) for i in range(54) if i != 49),
        "yolo_class": sum(cross_entropy(positive[5 + k], k == 1) for k in range(3)),
    }


def test_losses_by_hand() -> None:
    head = make_head()
    losses = head.criterion(make_outputs(head, raw_of_one_object()), [make_target([OBJECT], [1])])
    expected = formula(raw_of_one_object().flatten().tolist())
    assert set(losses) == set(expected)
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(expected[name], rel=1e-5), name


def test_gradient_is_the_numeric_one_of_the_formula() -> None:
    head = make_head()
    steps = steps_of(head, make_outputs(head, raw_of_one_object()), [make_target([OBJECT], [1])])
    values = raw_of_one_object().flatten().tolist()
    expected = reference.central_differences(lambda values: sum(formula(values).values()), values)
    torch.testing.assert_close(-steps.flatten(), torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-6)


def test_losses_are_averaged_over_the_images() -> None:
    head, target = make_head(), make_target([OBJECT], [1])
    once = head.criterion(make_outputs(head, raw_of_one_object()), [target])
    twice = head.criterion(make_outputs(head, raw_of_one_object().repeat(2, 1, 1), 2), [target, target])
    for name, loss in twice.items():
        assert loss.item() == pytest.approx(once[name].item()), name


def positives(head: YOLOv3Head, *targets: Target) -> list[tuple[int, int]]:
    """(image, prediction) of those whose class logits take a step."""
    steps = steps_of(head, make_outputs(head, batch=len(targets)), list(targets))
    return [(i, n) for i, n in torch.nonzero(steps[..., 5:].any(dim=-1)).tolist()]


def test_the_anchor_of_the_most_similar_shape_names_the_level() -> None:
    head = make_head()
    centred = [(40 - w / 2, 40 - h / 2, 40 + w / 2, 40 + h / 2) for w, h in ((7, 9), (15, 40), (90, 50))]
    # cell (2, 2) of stride 16, cell (1, 1) of stride 32
    assert [positives(head, make_target([box])) for box in centred] == [[(0, 28)], [(0, 29)], [(0, 52)]]


def test_of_equally_similar_anchors_the_first_also_across_levels() -> None:
    square = make_target([(0.0, 0.0, 16.0, 16.0)])
    assert positives(make_head((((32, 16), (16, 32)), ((16, 32),))), square) == [(0, 0)]
    assert positives(make_head((((4, 4), (16, 32)), ((16, 32), (32, 16)))), square) == [(0, 1)]


def test_two_boxes_in_one_cell() -> None:
    head = make_head()
    small, tall = (35.0, 20.0, 43.0, 28.0), (32.0, 8.0, 48.0, 40.0)  # both centres in cell (2, 1)
    assert positives(head, make_target([small, tall])) == [(0, 16), (0, 17)]
    other = (34.0, 19.0, 41.0, 27.0)
    assert positives(head, make_target([small]), make_target([other])) == [(0, 16), (1, 16)]


def test_two_boxes_on_one_prediction() -> None:
    """The box of the last, the classes of both."""
    head, raw = make_head(), raw_of_one_object()
    first, last = (35.0, 20.0, 43.0, 28.0), (34.0, 19.0, 41.0, 27.0)
    both = steps_of(head, make_outputs(head, raw), [make_target([first, last], [2, 0])])[0, 16]
    alone = steps_of(head, make_outputs(head, raw), [make_target([last], [0])])[0, 16]
    assert torch.equal(both[:5], alone[:5])
    torch.testing.assert_close(both[5:], torch.tensor([1.0, 0.0, 1.0]) - raw[0, 16, 5:].sigmoid())
    swapped = steps_of(head, make_outputs(head, raw), [make_target([last, first], [0, 2])])[0, 16]
    assert not torch.equal(swapped[:4], both[:4])
    assert torch.equal(swapped[5:], both[5:])


@pytest.mark.parametrize(
    ("centre", "cell", "inside"),
    [
        ((32.0, 32.0), 14, (0.0, 0.0)),  # a corner of cells: right and below
        ((80.0, 8.0), 5, (0.0, 0.5)),
        ((31.0, 31.0), 7, (0.9375, 0.9375)),
        ((96.0, 64.0), 23, (1.0, 1.0)),  # the border of the picture: the last cell
        ((0.0, 64.0), 18, (0.0, 1.0)),
    ],
)
def test_cell_of_an_object(centre: tuple[float, float], cell: int, inside: tuple[float, float]) -> None:
    x, y = centre
    head = make_head()
    steps = steps_of(head, make_outputs(head), [make_target([(x - 4, y - 4, x + 4, y + 4)])])[0]
    assert torch.nonzero(steps[:, 5:].any(dim=-1))[:, 0].tolist() == [2 * cell]
    weight = 2 - 64 / (64 * 96)
    expected = [weight * (inside[0] - 0.5), weight * (inside[1] - 0.5), 0, 0, 0.5]
    assert steps[2 * cell, :5].tolist() == pytest.approx(expected)


def test_a_box_on_the_border_of_a_coarse_level() -> None:
    head = make_head()
    assert positives(head, make_target([(64.0, 32.0, 128.0, 96.0)])) == [(0, 53)]  # centre (96, 64)
    assert positives(head, make_target([(32.0, 0.0, 96.0, 64.0)])) == [(0, 53)]  # centre (64, 32): right and below


def test_a_good_prediction_is_neither_object_nor_background() -> None:
    # at raw 0 the coarse anchor of cell (1, 1) covers 16..80 x 16..80 px; the object is its middle half, and the
    # prediction that answers for it is one of the fine level: of two shapes with IoU 1/2 the first
    head = make_head((((8, 8), (32, 32)), ((64, 64),)))
    target = make_target([(32.0, 16.0, 64.0, 80.0)])
    for threshold, step in ((0.5, -0.5), (0.49, 0.0)):  # an IoU of exactly the threshold is background
        head.config = YOLOv3HeadConfig(anchors=head.config.anchors, ignore_threshold=threshold)
        steps = steps_of(head, make_outputs(head), [target])[0]
        assert steps[52, 4].item() == pytest.approx(step)
        assert steps[0, 4].item() == pytest.approx(-0.5)
        (positive,) = torch.nonzero(steps[:, 4] > 0)[:, 0].tolist()
        assert steps[positive, 4].item() == pytest.approx(0.5)  # its target is 1, not the IoU of 1/3


def test_the_prediction_that_answers_is_not_ignored() -> None:
    head = make_head()
    steps = steps_of(head, make_outputs(head), [make_target([(36.0, 36.0, 44.0, 44.0)])])[0]
    assert steps[28, 4].item() == pytest.approx(0.5)  # cell (2, 2): at raw 0 exactly this box


def test_an_image_without_objects() -> None:
    head = make_head()
    outputs = make_outputs(head, raw_of_one_object())
    losses = head.criterion(outputs, [make_target([])])
    assert losses["yolo_xy"] == losses["yolo_wh"] == losses["yolo_class"] == 0
    logits = outputs.raw[0, :, 4].detach()
    assert losses["yolo_object"].item() == pytest.approx(-torch.log(1 - logits.sigmoid()).sum().item(), rel=1e-5)
    steps = steps_of(head, outputs, [make_target([])])[0]
    torch.testing.assert_close(steps[:, 4], -logits.sigmoid(), rtol=1e-5, atol=1e-6)
    assert not steps[:, [0, 1, 2, 3, 5, 6, 7]].any()


def test_difficult_objects_are_no_targets() -> None:
    head, raw = make_head(), raw_of_one_object()
    small = (1.0, 1.0, 9.0, 9.0)
    actual = steps_of(head, make_outputs(head, raw), [make_target([OBJECT, small], [1, 2], [True, False])])
    assert torch.equal(actual, steps_of(head, make_outputs(head, raw), [make_target([small], [2])]))
    nothing = steps_of(head, make_outputs(head, raw), [make_target([OBJECT], [1], [True])])
    assert torch.equal(nothing, steps_of(head, make_outputs(head, raw), [make_target([])]))


def test_predictions_on_an_ignored_object_are_background_unless_configured() -> None:
    """At raw 0 the coarse anchor of cell (1, 1) predicts 16..80 x 16..80; three quarters of it are ignored."""
    target = make_target([(16.0, 32.0, 80.0, 80.0)], ignore=[True])
    for ignored_iof, step in ((None, -0.5), (0.76, -0.5), (0.75, 0.0)):
        head = make_head(ignored_iof=ignored_iof)
        steps = steps_of(head, make_outputs(head), [target])[0]
        assert steps[52, 4].item() == pytest.approx(step)
        assert steps[0, 4].item() == pytest.approx(-0.5)
        assert not steps[:, 5:].any()


def test_a_positive_on_an_ignored_object_stays_positive() -> None:
    target = make_target([OBJECT, (0.0, 0.0, 96.0, 64.0)], [1, 0], [False, True])
    steps = steps_of(make_head(ignored_iof=0.5), make_outputs(make_head()), [target])[0]
    expected = steps_of(make_head(), make_outputs(make_head()), [make_target([OBJECT], [1])])[0]
    assert torch.equal(steps[POSITIVE], expected[POSITIVE])
    assert POSITIVE in (rows := steps[:, 4].nonzero().squeeze(1).tolist())
    assert len(rows) == 1


def quiet(head: YOLOv3Head) -> Tensor:
    raw = make_outputs(head).raw.detach().clone()
    raw[..., 4] = -50
    return raw


def test_a_box_in_pixels_by_hand() -> None:
    head = make_head()
    raw = quiet(head)
    # cell (1, 1) of stride 32, anchor 64 x 64: centre ((1 + 3/4) 32, (1 + 1/4) 32), sides 64 / 4 and 64 * 3/4
    raw[0, 52] = torch.tensor([math.log(3), -math.log(3), math.log(0.25), math.log(0.75), 0.0, 9.0, -50.0, -50.0])
    (detections,) = detect(head, make_outputs(head, raw), INFO)
    torch.testing.assert_close(detections.boxes, torch.tensor([[48.0, 16.0, 64.0, 64.0]]))
    # a letterbox: a picture of 180 x 80 at half its size, 12 px below the top of the canvas
    placed = ImageInfo(0, (80, 180), (40, 90), (0.5, 0.5), (3, 12))
    (detections,) = detect(head, make_outputs(head, raw), placed)
    torch.testing.assert_close(detections.boxes, torch.tensor([[90.0, 8.0, 122.0, 80.0]]))  # y2 = 104 is clipped
    # cell (5, 0) of stride 16, second anchor 16 x 32
    raw = quiet(head)
    raw[0, 11] = torch.tensor([0.0, 0.0, 0.0, math.log(0.25), 0.0, 9.0, -50.0, -50.0])
    (detections,) = detect(head, make_outputs(head, raw), INFO)
    torch.testing.assert_close(detections.boxes, torch.tensor([[80.0, 4.0, 96.0, 12.0]]))


def test_scores_are_objectness_times_each_class() -> None:
    head = make_head()
    raw = quiet(head)
    raw[0, 9, 4:] = torch.tensor([math.log(4), math.log(3), 0.0, -math.log(9)])  # 4/5 of 3/4, 1/2 and 1/10
    (detections,) = detect(head, make_outputs(head, raw), INFO)
    assert detections.scores.tolist() == pytest.approx([0.6, 0.4, 0.08])
    assert detections.labels.tolist() == [0, 1, 2]
    assert (
        len(detect(make_head(selection=YOLOSelectionConfig(score_threshold=0.1)), make_outputs(head, raw), INFO)[0])
        == 2
    )
    assert (
        len(detect(make_head(selection=YOLOSelectionConfig(score_threshold=0.81)), make_outputs(head, raw), INFO)[0])
        == 0
    )
    assert (
        len(detect(make_head(selection=YOLOSelectionConfig(max_detections=1)), make_outputs(head, raw), INFO)[0]) == 1
    )


def test_suppression() -> None:
    raw = quiet(make_head())
    # cells (1, 1) and (2, 1) of stride 32: boxes of 64 px that lie 32 px apart, IoU 1/3; cut at 96 and 64 px: less
    raw[0, 52:54, 4:6] = torch.tensor([[2.0, 5.0], [1.0, 5.0]])
    cut = 32 * 48 / (64 * 48 + 48 * 48 - 32 * 48)  # 16..80 and 48..96 by 16..64
    for threshold, count in ((cut + 0.01, 2), (cut - 0.01, 1)):
        head = make_head(selection=YOLOSelectionConfig(nms_threshold=threshold, score_threshold=0.6))
        assert len(detect(head, make_outputs(head, raw), INFO)[0]) == count
    raw[0, 53, 5:7] = torch.tensor([-50.0, 5.0])  # another class
    head = make_head(selection=YOLOSelectionConfig(nms_threshold=0.1, score_threshold=0.6))
    assert detect(head, make_outputs(head, raw), INFO)[0].labels.tolist() == [0, 1]


def test_images_of_a_batch_have_their_own_detections() -> None:
    head = make_head()
    raw = quiet(head).repeat(2, 1, 1)
    raw[1, 9, 4:6] = 5.0
    both = detect(head, make_outputs(head, raw, 2), INFO, INFO)
    assert [len(detections) > 0 for detections in both] == [False, True]


def test_outputs_are_ordered_by_level_row_column_and_anchor() -> None:
    """A hot cell of one channel: the place of the response tells the cell, its anchor the place of the channel."""
    head = make_head()
    for conv in head.predict:
        nn.init.zeros_(conv.weight)
        nn.init.zeros_(conv.bias)
    with torch.no_grad():
        head.predict[0].weight[8 + 3, 0] = 1.0  # th of the second anchor
        head.predict[1].weight[7, 0] = 1.0  # the last class of the only anchor
    features = [torch.zeros(2, 4, 4, 6), torch.zeros(2, 4, 2, 3)]
    features[0][1, 0, 3, 1], features[1][0, 0, 1, 2] = 5.0, 7.0
    outputs = head(features, torch.tensor([SIZE] * 2), SIZE)
    assert torch.nonzero(outputs.raw).tolist() == [[0, 48 + 5, 7], [1, (3 * 6 + 1) * 2 + 1, 3]]
    assert outputs.cells[39].tolist() == [1, 3]
    assert outputs.cells[53].tolist() == [2, 1]
    assert outputs.anchors[38:40].tolist() == [[8, 8], [16, 32]]
    assert outputs.anchors[53].tolist() == [64, 64]
    assert (outputs.strides[47].item(), outputs.strides[48].item()) == (16, 32)


def test_a_fresh_head_expects_one_prediction_in_a_hundred() -> None:
    head = YOLOv3Head(YOLOv3HeadConfig(prior=0.01), [4, 4, 4], [8, 16, 32], NUM_CLASSES)
    bias = torch.stack([conv.bias.detach().view(3, 8) for conv in head.predict])
    torch.testing.assert_close(bias[..., 4].sigmoid(), torch.full((3, 3), 0.01))
    assert not bias[..., [0, 1, 2, 3, 5, 6, 7]].any()


def test_anchors_and_masks_are_those_of_the_cfg() -> None:
    # yolov3.cfg: mask 6,7,8 for stride 32, 3,4,5 for 16, 0,1,2 for 8
    cfg = "10,13,  16,30,  33,23,  30,61,  62,45,  59,119,  116,90,  156,198,  373,326"
    numbers = [float(number) for number in cfg.split(",")]
    pairs = list(zip(numbers[::2], numbers[1::2], strict=True))
    assert YOLOv3HeadConfig().anchors == tuple(
        tuple(pairs[i] for i in mask) for mask in ((0, 1, 2), (3, 4, 5), (6, 7, 8))
    )


@pytest.mark.parametrize(("side", "count"), [(416, 10_647), (608, 22_743)])  # the published counts
def test_number_of_predictions(side: int, count: int) -> None:
    head = YOLOv3Head(YOLOv3HeadConfig(), [4, 4, 4], [8, 16, 32], NUM_CLASSES)
    outputs = head(
        [torch.zeros(1, 4, side // stride, side // stride) for stride in (8, 16, 32)],
        torch.tensor([[side, side]]),
        (side, side),
    )
    assert outputs.raw.shape == (1, count, 8)
