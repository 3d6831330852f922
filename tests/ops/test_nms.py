from fractions import Fraction

import pytest
import torch
import torchvision
from torch import Tensor
from torch.testing import assert_close

from detkit.ops.iou import distance_box_iou
from detkit.ops.nms import _moved_apart, class_aware_merge, class_aware_nms, diou_nms, nms, soft_nms
from tests.ops.cases import degenerate_boxes, grid_boxes, random_boxes
from tests.reference import nms as reference


def scores_of(boxes: Tensor, *, steps: int = 0, seed: int = 0) -> Tensor:
    """A random score for each box; with `steps` only that many different ones, so that many are equal."""
    scores = torch.rand(len(boxes), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (scores * steps).ceil() / steps if steps else scores


def labels_of(boxes: Tensor, count: int = 4) -> Tensor:
    return torch.randint(0, count, (len(boxes),), generator=torch.Generator().manual_seed(9))


CASES = {
    "random": (random_boxes(80), scores_of(random_boxes(80))),
    "tied scores": (random_boxes(80, seed=1), scores_of(random_boxes(80), steps=5)),
    "tied overlaps": (grid_boxes(80), scores_of(grid_boxes(80))),
    "all tied": (grid_boxes(80, seed=1), scores_of(grid_boxes(80), steps=3)),
    "degenerate": (degenerate_boxes(), scores_of(degenerate_boxes())),
    "one": (random_boxes(1), torch.ones(1, dtype=torch.float64)),
    "empty": (torch.zeros(0, 4, dtype=torch.float64), torch.zeros(0, dtype=torch.float64)),
}
cases = pytest.mark.parametrize("case", CASES)
thresholds = pytest.mark.parametrize(
    "threshold", [0.0, 0.25, 0.5, 1.0]
)  # exact in binary, so that IoU = threshold occurs


@cases
@thresholds
def test_nms_equals_the_definition(case: str, threshold: float) -> None:
    boxes, scores = CASES[case]
    assert nms(boxes, scores, threshold).tolist() == reference.nms(boxes.tolist(), scores.tolist(), threshold)


@cases
@thresholds
def test_class_aware_nms_equals_the_definition(case: str, threshold: float) -> None:
    boxes, scores = CASES[case]
    labels = labels_of(boxes)
    expected = reference.class_aware_nms(boxes.tolist(), scores.tolist(), labels.tolist(), threshold)
    assert class_aware_nms(boxes, scores, labels, threshold).tolist() == expected
    if len(boxes):
        moved = nms(_moved_apart(boxes, labels), scores, threshold)  # as on CUDA
        assert moved.tolist() == expected


@pytest.mark.parametrize("shift", [-1e4, 0.0, 1e4])
@pytest.mark.parametrize("scale", [1e-2, 1.0, 10.0])
def test_classes_never_mix_in_float32_whatever_the_coordinates(shift: float, scale: float) -> None:
    far = torch.tensor([[1e6, 1e6, 1e6 + 10, 1e6 + 10]])
    boxes = torch.cat(((random_boxes(300) * scale + shift).float(), far))
    scores, labels = scores_of(boxes).float(), labels_of(boxes, 80)
    alone = torch.cat([m[nms(boxes[m], scores[m], 0.4)] for m in ((labels == k).nonzero()[:, 0] for k in range(80))])
    assert class_aware_nms(boxes, scores, labels, 0.4).sort()[0].equal(alone.sort()[0])
    assert nms(_moved_apart(boxes, labels), scores, 0.4).sort()[0].equal(alone.sort()[0])


def test_the_same_box_in_every_class_is_kept_once_a_class() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10]]).repeat(6, 1)
    scores, labels = torch.tensor([0.1, 0.6, 0.3, 0.4, 0.5, 0.2]), torch.tensor([0, 0, 7, 7, 90, 90])
    assert nms(boxes, scores, 0.5).tolist() == [1]
    assert class_aware_nms(boxes, scores, labels, 0.5).tolist() == [1, 4, 3]


def test_an_overlap_equal_to_the_threshold_stays() -> None:
    boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 1]])
    assert nms(boxes, torch.tensor([1.0, 0.9]), 0.5).tolist() == [0, 1]
    assert nms(boxes, torch.tensor([1.0, 0.9]), 0.49).tolist() == [0]


def exact_nms(boxes: list[list[int]], threshold: str) -> list[int]:
    """Of boxes with whole corners, best first, in fractions: what is above the threshold goes, what equals it stays."""

    def iou(box1: list[int], box2: list[int]) -> Fraction:
        width, height = (max(0, min(box1[i + 2], box2[i + 2]) - max(box1[i], box2[i])) for i in (0, 1))
        areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (box1, box2)]
        return Fraction(width * height, sum(areas) - width * height)

    kept: list[int] = []
    for row, box in enumerate(boxes):
        if all(iou(boxes[k], box) <= Fraction(threshold) for k in kept):
            kept.append(row)
    return kept


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.float64])
@pytest.mark.parametrize("threshold", [f"0.{tenth}" for tenth in range(1, 10)])
def test_a_tie_with_the_threshold_is_decided_exactly(threshold: str, dtype: torch.dtype, device: str) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        corners = torch.randint(0, 8, (60, 2), generator=generator)
        boxes = torch.cat([corners, corners + torch.randint(1, 11, (60, 2), generator=generator)], dim=1)
        expected = exact_nms(boxes.tolist(), threshold)
        boxes, scores = boxes.to(device), torch.arange(60, 0, -1, device=device)
        labels = torch.zeros(60, dtype=torch.int64, device=device)
        assert nms(boxes.to(dtype), scores, float(threshold)).tolist() == expected
        assert class_aware_nms(boxes.to(dtype), scores, labels, float(threshold)).tolist() == expected
        assert nms(_moved_apart(boxes, labels + 3), scores, float(threshold)).tolist() == expected  # as on CUDA


def test_the_example_of_a_tie() -> None:
    boxes, scores = torch.tensor([[0.0, 0, 10, 10], [0, 0, 4, 10]]), torch.tensor([1.0, 0.9])
    assert nms(boxes, scores, 0.4).tolist() == [0, 1]
    assert nms(boxes, scores, 0.3999).tolist() == [0]


@cases
@thresholds
def test_diou_nms_equals_the_definition(case: str, threshold: float) -> None:
    boxes, scores = CASES[case]
    labels = labels_of(boxes)
    diou, expected = distance_box_iou(boxes, boxes), []
    for row in scores.argsort(descending=True, stable=True).tolist():
        if all(labels[k] != labels[row] or diou[k, row] <= threshold for k in expected):
            expected.append(row)
    assert diou_nms(boxes, scores, labels, threshold).tolist() == expected


def test_diou_spares_a_box_with_another_centre() -> None:
    boxes, labels = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5.5]]), torch.tensor([0, 0])
    scores = torch.tensor([0.9, 0.8])
    assert class_aware_nms(boxes, scores, labels, 0.53).tolist() == [0]
    assert diou_nms(boxes, scores, labels, 0.53).tolist() == [0, 1]  # 0.55 - 2.25^2 / 200


def test_equals_torchvision_on_many_boxes() -> None:
    boxes = random_boxes(2000, size=500).float()
    scores, labels = scores_of(boxes).float(), labels_of(boxes, 20)
    assert nms(boxes, scores, 0.7).equal(torchvision.ops.nms(boxes, scores, 0.7))
    expected = torchvision.ops.batched_nms(boxes, scores, labels, 0.5)
    assert class_aware_nms(boxes, scores, labels, 0.5).equal(expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_boxes_and_scores(dtype: torch.dtype) -> None:
    boxes = random_boxes(50, size=1000).to(dtype)
    scores, labels = scores_of(boxes).to(dtype), labels_of(boxes)
    assert nms(boxes, scores, 0.5).equal(nms(boxes.float(), scores.float(), 0.5))
    wide = class_aware_nms(boxes.float(), scores.float(), labels, 0.5)
    assert class_aware_nms(boxes, scores, labels, 0.5).equal(wide)
    assert class_aware_nms(boxes, scores.float(), labels, 0.5).equal(wide)


SOFT = {"iou_threshold": 0.25, "sigma": 0.5, "score_threshold": 0.1}


@cases
@pytest.mark.parametrize("method", ["linear", "gaussian"])
def test_soft_nms_equals_the_definition(case: str, method: str) -> None:
    boxes, scores = CASES[case]
    labels = labels_of(boxes)
    arguments = (boxes.tolist(), scores.tolist(), labels.tolist())
    expected = dict(zip(*reference.soft_nms(*arguments, method, *SOFT.values()), strict=True))
    keep, lowered = soft_nms(boxes, scores, labels, method=method, **SOFT)
    assert set(keep.tolist()) == set(expected)
    assert_close(lowered, torch.tensor([expected[i] for i in keep.tolist()], dtype=torch.float64))
    assert lowered.equal(lowered.sort(descending=True)[0])


def test_soft_nms_by_hand() -> None:
    """Twins: the second loses everything when linear, and keeps exp(-1 / sigma) when gaussian."""
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 4], [8, 8, 9, 9]])
    scores, labels = torch.tensor([0.5, 0.8, 0.6]), torch.tensor([1, 1, 1])
    keep, lowered = soft_nms(boxes, scores, labels, method="linear", **SOFT)
    assert keep.tolist() == [1, 2]
    assert lowered.tolist() == pytest.approx([0.8, 0.6])
    keep, lowered = soft_nms(boxes, scores, labels, method="gaussian", **SOFT | {"score_threshold": 0.05})
    assert keep.tolist() == [1, 2, 0]
    assert lowered.tolist() == pytest.approx([0.8, 0.6, 0.5 * 0.1353353])
    keep, _ = soft_nms(boxes, scores, torch.tensor([1, 2, 1]), method="linear", **SOFT)
    assert keep.tolist() == [1, 2, 0], "other labels are left alone"
    assert scores.tolist() == pytest.approx([0.5, 0.8, 0.6]), "the input is left alone"


@pytest.mark.parametrize("case", ["random", "one", "empty"])
@pytest.mark.parametrize("threshold", [0.1, 0.5])
def test_merging_equals_the_definition(case: str, threshold: float) -> None:
    boxes, scores = CASES[case]
    boxes, scores = boxes[:40], scores[:40]
    labels = labels_of(boxes, 2)
    expected = []
    for label in (0, 1):
        members = labels == label
        merged = reference.merge(boxes[members].tolist(), scores[members].tolist(), threshold)
        expected += [(*box, score, label) for box, score in merged]
    merged_boxes, merged_scores, merged_labels = class_aware_merge(boxes, scores, labels, threshold)
    rows = torch.cat([merged_boxes, merged_scores[:, None], merged_labels[:, None].double()], dim=1)
    assert_close(rows, torch.tensor(sorted(expected, key=lambda row: -row[4]), dtype=torch.float64).view(-1, 6))


def test_merging_by_hand() -> None:
    """The first three overlap by at least .6 of a box of 4 x 4; the last is far away; another label is left alone."""
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 4], [0, 1, 4, 5], [20, 20, 24, 24], [0, 0, 4, 4]])
    scores, labels = torch.tensor([0.5, 0.5, 0.8, 0.7, 0.6]), torch.tensor([1, 1, 1, 1, 0])
    merged_boxes, merged_scores, merged_labels = class_aware_merge(boxes, scores, labels, 0.5)
    assert_close(merged_boxes, torch.tensor([[0, 1 / 3, 4, 13 / 3], [20, 20, 24, 24], [0, 0, 4, 4]]))
    assert merged_scores.tolist() == pytest.approx([1 - 0.5 * 0.5 * 0.2, 0.7, 0.6])
    assert merged_labels.tolist() == [1, 1, 0]
    assert scores.tolist() == pytest.approx([0.5, 0.5, 0.8, 0.7, 0.6]), "the input is left alone"
    assert boxes[0].tolist() == [0, 0, 4, 4]


def test_wrong_arguments_are_named() -> None:
    boxes, scores = torch.zeros(3, 4), torch.zeros(2)
    with pytest.raises(ValueError, match=r"got boxes \[3, 4\], scores \[2\]"):
        nms(boxes, scores, 0.5)
    with pytest.raises(ValueError, match=r"scores \[3\], labels \[2\]"):
        class_aware_nms(boxes, torch.zeros(3), torch.zeros(2, dtype=torch.int64), 0.5)
    with pytest.raises(ValueError, match="expected 'linear' or 'gaussian', got 'cubic'"):
        soft_nms(boxes, torch.zeros(3), torch.zeros(3, dtype=torch.int64), method="cubic", **SOFT)
