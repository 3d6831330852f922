"""YOLOv2's head: darknet's steps, and cases small enough to count."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from detkit.nn.heads.yolo import YOLOOutputs, YOLOSelectionConfig
from detkit.nn.heads.yolo_v2 import VOC_ANCHORS, YOLOv2Head, YOLOv2HeadConfig
from detkit.structures import ImageInfo, Objects, Target
from tests.nn.heads.support import detect, make_target
from tests.reference import yolo as reference

NUM_CLASSES = 3
SIZE = (64, 96)  # 2 x 3 cells of 32 px
INFO = ImageInfo(0, SIZE, SIZE, (1.0, 1.0))
ANCHORS = ((0.5, 0.5), (1.0, 2.0))  # 16 x 16 and 32 x 64 px


def make_head(*, prior_scale: float = 0.0, anchors: Any = ANCHORS, **fields: Any) -> YOLOv2Head:
    """Without the pull to the anchors unless asked for."""
    config = YOLOv2HeadConfig(anchors=anchors, prior_scale=prior_scale, **fields)
    return YOLOv2Head(config, [4], [32], NUM_CLASSES).eval()


def make_outputs(
    head: YOLOv2Head, raw: Tensor | None = None, batch: int = 1, cells: tuple[int, int] = (2, 3)
) -> YOLOOutputs:
    """Outputs of the head on a canvas of so many rows and columns, with other numbers in them; zeros by default."""
    empty = head([torch.zeros(batch, 4, *cells)], torch.zeros(batch, 2), (cells[0] * 32, cells[1] * 32))
    values = torch.zeros_like(empty.raw) if raw is None else raw
    values = values.detach().clone().requires_grad_()
    return YOLOOutputs(values, empty.cells, empty.anchors, empty.strides)


def steps_of(head: YOLOv2Head, outputs: YOLOOutputs, targets: list[Target], images_seen: int = 0) -> Tensor:
    """What gradient descent on the sum over the batch would add to the raw outputs."""
    loss = torch.stack(list(head.criterion(outputs, targets, images_seen).values())).sum() * len(targets)
    return -torch.autograd.grad(loss, outputs.raw)[0]


def random_scene(generator: torch.Generator, count: int, cells: tuple[int, int]) -> Target:
    size = torch.tensor([cells[1] * 32.0, cells[0] * 32.0])
    sides = (0.05 + 0.6 * torch.rand(count, 2, generator=generator)) * size
    corner = torch.rand(count, 2, generator=generator) * (size - sides)
    labels = torch.randint(NUM_CLASSES, (count,), generator=generator)
    return Target(Objects(torch.cat([corner, corner + sides], dim=1), labels))


def predict_well(outputs: YOLOOutputs, targets: list[Target]) -> None:
    """Lets every prediction of the cell of an object lie on it nearly: some are neither object nor background."""
    for i, target in enumerate(targets):
        for box in target.objects.boxes:
            centre, sides = (box[:2] + box[2:]) / 2, box[2:] - box[:2]
            with torch.no_grad():
                here = (outputs.cells == (centre / 32).long()).all(dim=1)
                inside = (centre / 32 - outputs.cells[here]).clamp(0.05, 0.95)
                noise = outputs.raw[i, here, :4] * 0.1
                outputs.raw[i, here, :4] = noise + torch.cat(
                    [inside.logit(), (sides / outputs.anchors[here]).log()], dim=1
                )


@pytest.mark.parametrize("images_seen", [0, 12_799, 12_800])
@pytest.mark.parametrize("seed", range(4))
def test_gradients_are_the_steps_of_darknets_region_layer(seed: int, images_seen: int) -> None:
    generator, cells = torch.Generator().manual_seed(seed), (4, 5)
    head = YOLOv2Head(YOLOv2HeadConfig(), [4], [32], NUM_CLASSES).eval()
    targets = [random_scene(generator, count, cells) for count in (0, 1, 12)]
    outputs = make_outputs(head, torch.randn(3, 100, 8, generator=generator), 3, cells)
    predict_well(outputs, targets)
    steps = steps_of(head, outputs, targets, images_seen)
    level = reference.Level(5, 4, 32, [(w * 32, h * 32) for w, h in VOC_ANCHORS])
    neutral = 0
    for i, target in enumerate(targets):
        objects = list(zip(map(tuple, target.objects.boxes.tolist()), target.objects.labels.tolist(), strict=True))
        expected = reference.region_layer(outputs.raw[i].tolist(), level, objects, images_seen)
        neutral += sum(row[4] == 0 for row in expected)
        torch.testing.assert_close(steps[i], torch.tensor(expected), rtol=1e-5, atol=1e-5)
    assert neutral > 5


# centre (44, 40): 0.375 and 0.25 of the cell (column 1, row 1); of the shape of the second anchor; prediction 9
OBJECT = (30.0, 15.0, 58.0, 65.0)


def raw_of_one_object() -> Tensor:
    """Its prediction has a step to make, another prediction lies on it well enough not to be background."""
    raw = torch.randn(1, 12, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    raw[0, 9, :4] = torch.tensor([0.0, 0.0, 0.0, 0.0])
    raw[0, 8, :4] = torch.tensor([-0.5, -1.1, math.log(28 / 16), math.log(50 / 16)])
    return raw


def overlap_of_one_object() -> float:
    """The anchor in the middle of its cell, 32..64 x 16..80, with the object."""
    return (58 - 32) * (65 - 16) / (28 * 50 + 32 * 64 - (58 - 32) * (65 - 16))


def formula(values: list[float]) -> dict[str, float]:
    """The loss of `OBJECT` with all assignments as they stand."""
    raw = [values[8 * i : 8 * i + 8] for i in range(12)]
    sigmoid, positive = reference.sigmoid, raw[9]
    errors = (
        sigmoid(positive[0]) - 0.375,
        sigmoid(positive[1]) - 0.25,
        positive[2] - math.log(28 / 32),
        positive[3] - math.log(50 / 64),
    )
    pull = sum((sigmoid(t) - 0.5) ** 2 for row in raw if row is not positive for t in row[:2])
    pull += sum(t**2 for row in raw if row is not positive for t in row[2:4])
    return {
        "yolo_box": (2 - 28 * 50 / (64 * 96)) * sum(e**2 for e in errors) / 2,
        "yolo_object": 5 * (sigmoid(positive[4]) - overlap_of_one_object()) ** 2 / 2,
        "yolo_background": sum(sigmoid(raw[i][4]) ** 2 for i in range(12) if i not in (8, 9)) / 2,
        "yolo_class": -math.log(reference.softmax(positive[5:])[1]),
        "yolo_prior": 0.01 * pull / 2,
    }


def test_losses_by_hand() -> None:
    head = make_head(prior_scale=0.01)
    losses = head.criterion(make_outputs(head, raw_of_one_object()), [make_target([OBJECT], [1])])
    expected = formula(raw_of_one_object().flatten().tolist())
    assert set(losses) == set(expected)
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(expected[name], rel=1e-5), name


def test_gradient_is_the_numeric_one_of_the_formula() -> None:
    head = make_head(prior_scale=0.01)
    steps = steps_of(head, make_outputs(head, raw_of_one_object()), [make_target([OBJECT], [1])])
    values = raw_of_one_object().flatten().tolist()
    expected = reference.central_differences(lambda values: sum(formula(values).values()), values)
    torch.testing.assert_close(-steps.flatten(), torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-6)


def test_losses_are_averaged_over_the_images() -> None:
    head, target = make_head(prior_scale=0.01), make_target([OBJECT], [1])
    once = head.criterion(make_outputs(head, raw_of_one_object()), [target])
    twice = head.criterion(make_outputs(head, raw_of_one_object().repeat(2, 1, 1), 2), [target, target])
    for name, loss in twice.items():
        assert loss.item() == pytest.approx(once[name].item()), name


def test_scales_multiply_their_terms() -> None:
    target, scales = make_target([OBJECT], [1]), {"box": 2.0, "object": 3.0, "background": 5.0, "class": 7.0}
    head = make_head(**{f"{name}_scale": scale for name, scale in scales.items()})
    losses = head.criterion(make_outputs(head, raw_of_one_object()), [target])
    expected = formula(raw_of_one_object().flatten().tolist())
    published = {"box": 1.0, "object": 5.0, "background": 1.0, "class": 1.0}
    for name, scale in scales.items():
        assert losses[f"yolo_{name}"].item() == pytest.approx(
            scale / published[name] * expected[f"yolo_{name}"], rel=1e-5
        )


def positives(head: YOLOv2Head, *targets: Target) -> list[tuple[int, int]]:
    """(image, prediction) of those whose class logits take a step."""
    steps = steps_of(head, make_outputs(head, batch=len(targets)), list(targets))
    return [(i, n) for i, n in torch.nonzero(steps[..., 5:].any(dim=-1)).tolist()]


def test_two_boxes_in_one_cell() -> None:
    small, large = (40.0, 40.0, 56.0, 56.0), (32.0, 16.0, 64.0, 80.0)  # both centres in cell (1, 1)
    head = make_head()
    # of different shapes: each has its anchor
    assert positives(head, make_target([small, large])) == [(0, 8), (0, 9)]
    # of one shape: the last is learned, box and class
    other = (36.0, 36.0, 50.0, 50.0)
    steps = steps_of(head, make_outputs(head), [make_target([small, other], [1, 2])])[0]
    alone = steps_of(head, make_outputs(head), [make_target([other], [2])])[0]
    assert torch.equal(steps, alone)
    assert not torch.equal(steps, steps_of(head, make_outputs(head), [make_target([small], [1])])[0])
    # in two images: they do not meet
    assert positives(head, make_target([small]), make_target([other])) == [(0, 8), (1, 8)]


def test_of_equally_similar_anchors_the_first() -> None:
    head = make_head(anchors=((2.0, 1.0), (1.0, 2.0), (1.0, 2.0)))
    assert positives(head, make_target([(0.0, 0.0, 32.0, 32.0)])) == [(0, 0)]  # a square: IoU 1/2 with each
    assert positives(head, make_target([(0.0, 0.0, 24.0, 40.0)])) == [(0, 1)]


@pytest.mark.parametrize(
    ("centre", "cell", "inside"),
    [
        ((32.0, 32.0), 4, (0.0, 0.0)),  # a corner of cells: right and below
        ((64.0, 8.0), 2, (0.0, 0.25)),
        ((31.0, 31.0), 0, (0.96875, 0.96875)),
        ((96.0, 64.0), 5, (1.0, 1.0)),  # the border of the picture: the last cell
        ((0.0, 64.0), 3, (0.0, 1.0)),
    ],
)
def test_cell_of_an_object(centre: tuple[float, float], cell: int, inside: tuple[float, float]) -> None:
    x, y = centre
    head = make_head()
    steps = steps_of(head, make_outputs(head), [make_target([(x - 8, y - 8, x + 8, y + 8)])])[0]
    assert torch.nonzero(steps[:, 5:].any(dim=-1))[:, 0].tolist() == [2 * cell]
    # at raw 0: scale * (target - 1/2) / 4
    weight = 2 - 256 / (64 * 96)
    assert steps[2 * cell, :4].tolist() == pytest.approx(
        [weight * (inside[0] - 0.5) / 4, weight * (inside[1] - 0.5) / 4, 0, 0]
    )


def test_a_good_prediction_is_neither_object_nor_background() -> None:
    # two equal anchors: at raw 0 both predict 64 x 64 px around the middle of cell (0, 0); the object is half of that
    target = make_target([(-16.0, -16.0, 48.0, 16.0)])
    for threshold, step in ((0.5, -0.5 / 4), (0.49, 0.0)):  # an IoU of exactly the threshold is background
        head = make_head(background_threshold=threshold, anchors=((2.0, 2.0), (2.0, 2.0)))
        steps = steps_of(head, make_outputs(head), [target])[0]
        assert steps[1, 4].item() == pytest.approx(step)
        assert steps[0, 4].item() == pytest.approx(5 * (0.5 - 0.5) / 4)  # its own: IoU 1/2, score 1/2
        assert steps[2, 4].item() == pytest.approx(-0.5 / 4)


def test_the_target_of_the_objectness_has_no_gradient() -> None:
    head = make_head(box_scale=0)
    steps = steps_of(head, make_outputs(head, raw_of_one_object()), [make_target([OBJECT], [1])])
    assert not steps[..., :4].any()
    assert steps[0, 9, 4] != 0


def test_an_image_without_objects() -> None:
    head = make_head(prior_scale=0.01)
    outputs, target = make_outputs(head, raw_of_one_object()), make_target([])
    losses = head.criterion(outputs, [target])
    assert losses["yolo_box"] == losses["yolo_object"] == losses["yolo_class"] == 0
    scores = outputs.raw[0, :, 4].detach().sigmoid()
    assert losses["yolo_background"].item() == pytest.approx(scores.square().sum().item() / 2)
    steps = steps_of(head, outputs, [target])[0]
    torch.testing.assert_close(steps[:, 4], -scores * scores * (1 - scores), rtol=1e-5, atol=1e-6)
    assert steps[[0, *range(1, 9), 10, 11], :4].all()  # the pull; prediction 9 lies on its anchor
    assert not steps[:, 5:].any()
    alone = steps_of(make_head(), outputs, [target])[0]
    assert not alone[:, :4].any()


def test_difficult_objects_are_no_targets() -> None:
    head, raw = make_head(), raw_of_one_object()
    actual = steps_of(
        head, make_outputs(head, raw), [make_target([OBJECT, (1.0, 1.0, 20.0, 20.0)], [1, 2], [True, False])]
    )
    expected = steps_of(head, make_outputs(head, raw), [make_target([(1.0, 1.0, 20.0, 20.0)], [2])])
    assert torch.equal(actual, expected)
    nothing = steps_of(head, make_outputs(head, raw), [make_target([OBJECT], [1], [True])])
    assert torch.equal(nothing, steps_of(head, make_outputs(head, raw), [make_target([])]))


def test_predictions_on_an_ignored_object_are_background_unless_configured() -> None:
    """At raw 0 the second anchor of cell (1, 1) predicts 32..64 x 16..80; three quarters of it are ignored."""
    target = make_target([(32.0, 32.0, 64.0, 80.0)], ignore=[True])
    for ignored_iof, step in ((None, -0.5 / 4), (0.76, -0.5 / 4), (0.75, 0.0)):
        head = make_head(ignored_iof=ignored_iof)
        steps = steps_of(head, make_outputs(head), [target])[0]
        assert steps[9, 4].item() == pytest.approx(step)
        assert steps[0, 4].item() == pytest.approx(-0.5 / 4)
        assert not steps[:, 5:].any()


def test_a_positive_on_an_ignored_object_stays_positive() -> None:
    target = make_target([OBJECT, (0.0, 0.0, 96.0, 64.0)], [1, 0], [False, True])
    steps = steps_of(make_head(ignored_iof=0.5), make_outputs(make_head()), [target])[0]
    expected = steps_of(make_head(), make_outputs(make_head()), [make_target([OBJECT], [1])])[0]
    assert torch.equal(steps[9], expected[9])
    assert steps[:, 4].nonzero().squeeze(1).tolist() == [9]


def test_the_pull_ends_after_the_first_images() -> None:
    head, target = make_head(prior_scale=0.01, prior_images=4), make_target([OBJECT])
    for images_seen, pulled in ((0, True), (3, True), (4, False), (5, False)):
        losses = head.criterion(make_outputs(head, batch=2), [target, target], images_seen)
        assert ("yolo_prior" in losses) == pulled
    assert "images_seen" not in head.state_dict()


def test_the_pull_by_hand() -> None:
    head, raw = make_head(prior_scale=0.01), torch.zeros(1, 12, 8)
    raw[0, 3, :4] = torch.tensor([math.log(3), -math.log(3), 0.5, -2.0])  # sigmoid 3/4 and 1/4, slope 3/16
    steps = steps_of(head, make_outputs(head, raw), [make_target([OBJECT])])[0]
    expected = [-0.01 * 0.25 * 3 / 16, 0.01 * 0.25 * 3 / 16, -0.005, 0.02]
    assert steps[3, :4].tolist() == pytest.approx(expected)
    # not on the prediction of an object
    assert torch.equal(steps[9], steps_of(make_head(), make_outputs(head, raw), [make_target([OBJECT])])[0, 9])


def quiet(head: YOLOv2Head) -> Tensor:
    raw = make_outputs(head).raw.detach().clone()
    raw[..., 4] = -50
    return raw


def test_a_box_in_pixels_by_hand() -> None:
    head = make_head()
    raw = quiet(head)
    # cell (1, 1), second anchor 32 x 64: centre ((1 + 3/4) 32, (1 + 1/4) 32), sides 32 / 2 and 64 * 3/4
    raw[0, 9] = torch.tensor([math.log(3), -math.log(3), math.log(0.5), math.log(0.75), 0.0, 9.0, -50.0, -50.0])
    (detections,) = detect(head, make_outputs(head, raw), INFO)
    torch.testing.assert_close(detections.boxes, torch.tensor([[48.0, 16.0, 64.0, 64.0]]))
    # a letterbox: a picture of 180 x 80 at half its size, 12 px below the top of the canvas
    placed = ImageInfo(0, (80, 180), (40, 90), (0.5, 0.5), (3, 12))
    (detections,) = detect(head, make_outputs(head, raw), placed)
    torch.testing.assert_close(detections.boxes, torch.tensor([[90.0, 8.0, 122.0, 80.0]]))  # y2 = 104 is clipped


def test_scores_are_objectness_times_softmax() -> None:
    head = make_head()
    raw = quiet(head)
    raw[0, 9, 4:] = torch.tensor([math.log(4), math.log(6), math.log(3), math.log(1)])  # 4/5 of 6, 3 and 1 tenths
    (detections,) = detect(head, make_outputs(head, raw), INFO)
    assert detections.scores.tolist() == pytest.approx([0.48, 0.24, 0.08])
    assert detections.labels.tolist() == [0, 1, 2]
    assert (
        len(detect(make_head(selection=YOLOSelectionConfig(score_threshold=0.1)), make_outputs(head, raw), INFO)[0])
        == 2
    )
    assert (
        len(detect(make_head(selection=YOLOSelectionConfig(score_threshold=0.9)), make_outputs(head, raw), INFO)[0])
        == 0
    )


def test_anchors_are_those_of_the_cfg() -> None:
    cfg = "1.3221, 1.73145, 3.19275, 4.00944, 5.05587, 8.09892, 9.47112, 4.84053, 11.2364, 10.0071"  # yolov2-voc.cfg
    assert [side for anchor in YOLOv2HeadConfig().anchors for side in anchor] == [float(n) for n in cfg.split(",")]
    head = YOLOv2Head(YOLOv2HeadConfig(), [4], [32], NUM_CLASSES)
    assert head.get_buffer("anchors0")[0].tolist() == pytest.approx([1.3221 * 32, 1.73145 * 32])
    assert head([torch.zeros(1, 4, 13, 13)], torch.tensor([[416, 416]]), (416, 416)).raw.shape == (1, 845, 8)
