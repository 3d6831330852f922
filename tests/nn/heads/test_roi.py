"""The region head, on cases small enough to count."""

from math import log
from typing import Any

import pytest
import torch
from torch import Tensor

from detkit.nn.heads.regions import RegionTargets, RoIOutputs
from detkit.nn.heads.roi import RoIConfig, RoIHead
from detkit.nn.proposals.regions import Regions
from detkit.nn.selection import SelectionConfig
from detkit.structures import Objects, Target

NAMES = ("cat", "dog")
PROPOSAL = (0.0, 0.0, 10.0, 10.0)
NO_REGIONS = Regions.from_list([torch.zeros(0, 4)])


def make_head(channels: int = 2, strides: tuple[int, ...] = (4,), **fields: Any) -> RoIHead:
    return RoIHead(RoIConfig(hidden=(8,), **fields), channels, strides, len(NAMES))


def make_target(boxes: list[tuple[float, ...]], labels: list[int], ignore: list[bool] | None = None) -> Target:
    flags = torch.tensor(ignore or [False] * len(boxes), dtype=torch.bool)
    return Target(Objects(torch.tensor(boxes).view(-1, 4), torch.tensor(labels, dtype=torch.int64), flags))


def test_losses_by_hand() -> None:
    proposals = torch.tensor([PROPOSAL, (50.0, 50.0, 60.0, 60.0)])
    targets = RegionTargets(torch.tensor([2, 0]), torch.tensor([(1.0, 0.0, 11.0, 10.0), (50.0, 50.0, 60.0, 60.0)]))
    deltas = torch.full((2, 3, 4), 9.0)
    deltas[0, 2] = 0  # the dog's; those of other classes and of background take no part
    logits = torch.tensor([[0.0, 0.0, log(2)], [0.0, 0.0, 0.0]])
    losses = make_head().criterion(RoIOutputs(Regions.from_list([proposals]), logits, deltas, targets))
    # the dog is a tenth of a width to the right, times 10: smooth L1 of 1 with beta 1/9
    assert losses["roi_box"].item() == pytest.approx((1 - 1 / 18) / 2)
    assert losses["roi_class"].item() == pytest.approx((log(2) + log(3)) / 2)
    assert set(losses) == {"roi_class", "roi_box"}


def test_losses_without_a_sample_are_zero() -> None:
    logits, deltas = torch.zeros(0, 3, requires_grad=True), torch.zeros(0, 3, 4, requires_grad=True)
    targets = RegionTargets(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
    losses = make_head().criterion(RoIOutputs(NO_REGIONS, logits, deltas, targets))
    assert losses["roi_class"] == losses["roi_box"] == 0


def test_no_loss_without_samples() -> None:
    outputs = RoIOutputs(NO_REGIONS, torch.zeros(0, 3), torch.zeros(0, 3, 4), None)
    with pytest.raises(ValueError, match="no sampled regions: the outputs were computed in evaluation mode"):
        make_head().criterion(outputs)


# IoU with PROPOSAL as the object: 0.8, 0.4, 0
CANDIDATES = torch.tensor([(0.0, 0.0, 10.0, 8.0), (0.0, 0.0, 10.0, 4.0), (50.0, 50.0, 60.0, 60.0)])


def sample(target: Target, **fields: Any) -> tuple[list[list[float]], list[int], list[list[float]]]:
    """The sampled boxes, their labels and their target boxes."""
    regions, targets = make_head(**fields).sample(Regions.from_list([CANDIDATES]), [target])
    assert regions.valid.all()
    return regions.boxes.tolist(), targets.labels.tolist(), targets.boxes.tolist()


def test_samples_are_proposals_and_objects_with_their_targets() -> None:
    boxes, labels, target_boxes = sample(make_target([PROPOSAL], [1]), positive_fraction=1.0)
    samples = dict(zip(map(tuple, boxes), zip(labels, map(tuple, target_boxes), strict=True), strict=True))
    cand = [tuple(c) for c in CANDIDATES.tolist()]
    assert samples == {
        cand[0]: (2, PROPOSAL),  # class 1 is output 2: output 0 is background
        PROPOSAL: (2, PROPOSAL),  # the object itself joins the proposals
        cand[1]: (0, cand[1]),
        cand[2]: (0, cand[2]),
    }


def test_samples_leave_out_what_is_below_the_background() -> None:
    boxes, labels, _ = sample(make_target([PROPOSAL], [0]), positive_fraction=1.0, bg_threshold=(0.1, 0.5))
    assert sorted(labels) == [0, 1, 1]
    assert CANDIDATES[2].tolist() not in boxes


def test_an_ignored_object_is_neither_proposal_nor_target() -> None:
    boxes, labels, _ = sample(make_target([PROPOSAL], [0], [True]))
    assert sorted(boxes) == sorted(CANDIDATES.tolist())
    assert labels == [0, 0, 0]


def test_regions_inside_an_ignored_object_are_neutral_if_asked() -> None:
    """The third candidate lies inside the crowd, the second inside a difficult object."""
    target = make_target([PROPOSAL, (0.0, 0.0, 10.0, 4.0), (45.0, 45.0, 60.0, 60.0)], [1, 0, 0], [False, True, True])

    def background(**fields: Any) -> list[list[float]]:
        boxes, labels, _ = sample(target, **fields)
        return sorted(box for box, label in zip(boxes, labels, strict=True) if label == 0)

    assert background() == sorted(CANDIDATES[1:].tolist()), "as published"
    assert background(ignored_iof=0.3) == []


def test_rows_that_only_fill_up_are_not_sampled() -> None:
    regions = Regions(CANDIDATES, torch.zeros(3, dtype=torch.int64), torch.tensor([True, False, False]))
    sampled, targets = make_head(positive_fraction=1.0).sample(regions, [make_target([PROPOSAL], [1])])
    assert sorted(sampled.boxes.tolist()) == sorted([CANDIDATES[0].tolist(), list(PROPOSAL)])
    assert targets.labels.tolist() == [2, 2]


def test_an_image_without_objects_gives_background() -> None:
    _, labels, _ = sample(make_target([], []))
    assert labels == [0, 0, 0]


@pytest.mark.parametrize(("count", "fraction", "expected"), [(2, 0.5, [0, 1]), (4, 0.25, [0, 0, 1]), (1, 1.0, [1])])
def test_as_many_samples_as_asked(count: int, fraction: float, expected: list[int]) -> None:
    _, labels, _ = sample(make_target([PROPOSAL], [0]), batch_size_per_image=count, positive_fraction=fraction)
    assert sorted(labels) == expected


def probabilities(*rows: tuple[float, float, float]) -> Tensor:
    """Logits whose softmax is this (background, cat, dog)."""
    return torch.tensor(rows).log()


def detect(
    boxes: list[tuple[float, ...]],
    logits: Tensor,
    deltas: Tensor | None = None,
    window: tuple[float, ...] = (0, 0, 100, 100),
    **selection: Any,
) -> list[tuple[str, float, list[float]]]:
    regions = Regions.from_list([torch.tensor(boxes).view(-1, 4)])
    deltas = torch.zeros(len(boxes), 3, 4) if deltas is None else deltas
    head = make_head(selection=SelectionConfig(**selection))
    rows = head.detect(RoIOutputs(regions, logits, deltas, None), torch.tensor([window], dtype=torch.float32))
    count = int(rows.counts)
    assert not rows.scores[0, count:].any()
    labels, scores, row_boxes = rows.labels[0, :count], rows.scores[0, :count], rows.boxes[0, :count]
    columns = zip(labels.tolist(), scores.tolist(), row_boxes.tolist(), strict=True)
    return [(NAMES[label], round(score, 6), box) for label, score, box in columns]


def test_detections_are_clipped_and_sorted() -> None:
    detections = detect(
        [(20.0, 20.0, 60.0, 60.0), (100.0, 80.0, 140.0, 200.0)],
        probabilities((0.1, 0.7, 0.2), (0.16, 0.03, 0.81)),
        window=(0, 0, 120, 100),
    )
    assert detections == [
        ("dog", 0.81, [100, 80, 120, 100]),
        ("cat", 0.7, [20, 20, 60, 60]),
        ("dog", 0.2, [20, 20, 60, 60]),
    ]  # 0.03 is below score_threshold


def test_each_class_has_its_own_deltas() -> None:
    deltas = torch.zeros(1, 3, 4)
    deltas[0, 1, 0] = 10.0  # the cat is one width further right: 10 / 10
    deltas[0, 2, 3] = 5 * log(2)  # the dog is twice as high: log 2 * 5
    detections = detect([(20.0, 20.0, 30.0, 30.0)], probabilities((0.1, 0.5, 0.4)), deltas)
    assert [(name, pytest.approx(box)) for name, _, box in detections] == [
        ("cat", [30, 20, 40, 30]),
        ("dog", [20, 15, 30, 35]),
    ]


def test_nms_is_within_a_class() -> None:
    boxes = [PROPOSAL, (0.0, 0.0, 10.0, 9.0)]
    logits = probabilities((0.1, 0.6, 0.3), (0.1, 0.5, 0.4))
    assert [(name, score) for name, score, _ in detect(boxes, logits)] == [("cat", 0.6), ("dog", 0.4)]
    assert len(detect(boxes, logits, nms_threshold=0.95)) == 4


def test_at_most_so_many_detections() -> None:
    boxes = [PROPOSAL, (50.0, 50.0, 60.0, 60.0)]
    logits = probabilities((0.1, 0.6, 0.3), (0.1, 0.5, 0.4))
    assert [score for _, score, _ in detect(boxes, logits, max_detections=3)] == [0.6, 0.5, 0.4]


def test_a_box_outside_the_image_is_no_detection() -> None:
    assert detect([(200.0, 200.0, 220.0, 220.0)], probabilities((0.1, 0.6, 0.3))) == []


def test_no_proposal_no_detection() -> None:
    assert detect([], torch.zeros(0, 3)) == []


def test_images_of_a_batch_keep_apart() -> None:
    boxes = [torch.tensor([PROPOSAL]), torch.zeros(0, 4), torch.tensor([(20.0, 20.0, 40.0, 40.0)])]
    logits = probabilities((0.1, 0.8, 0.1), (0.1, 0.1, 0.8))
    outputs = RoIOutputs(Regions.from_list(boxes), logits, torch.zeros(2, 3, 4), None)
    windows = torch.tensor([[0.0, 0, 100, 100]] * 2 + [[0.0, 0, 30, 100]])
    rows = make_head(selection=SelectionConfig(score_threshold=0.5)).detect(outputs, windows)
    assert rows.counts.tolist() == [1, 0, 1]
    assert rows.boxes[[0, 2], 0].tolist() == [list(PROPOSAL), [20, 20, 30, 40]]
    assert rows.labels[[0, 2], 0].tolist() == [0, 1]


def test_rows_that_only_fill_up_are_no_detections() -> None:
    """They would be detected otherwise: their box has an area and the threshold is 0."""
    boxes = torch.tensor([PROPOSAL, (50.0, 50.0, 60.0, 60.0)])
    regions = Regions(boxes, torch.zeros(2, dtype=torch.int64), torch.tensor([False, True]))
    logits = probabilities((0.1, 0.8, 0.1), (0.8, 0.1, 0.1))
    head = make_head(selection=SelectionConfig(score_threshold=0.0))
    rows = head.detect(RoIOutputs(regions, logits, torch.zeros(2, 3, 4), None), torch.tensor([[0.0, 0, 100, 100]]))
    assert rows.counts.tolist() == [2]
    assert rows.boxes[0, :2].tolist() == [[50, 50, 60, 60]] * 2


def test_pooling_without_any_proposal_still_reaches_the_features() -> None:
    features = torch.rand(1, 2, 8, 8, requires_grad=True)
    outputs = make_head()([features], NO_REGIONS)
    assert outputs.logits.shape == (0, 3)
    assert outputs.deltas.shape == (0, 3, 4)
    (outputs.logits.sum() + outputs.deltas.sum()).backward()
    assert features.grad is not None


def test_region_features_do_not_depend_on_the_other_proposals() -> None:
    torch.manual_seed(0)
    head = make_head(strides=(4, 8)).eval()
    features = [torch.randn(2, 2, 16, 16), torch.randn(2, 2, 8, 8), torch.randn(2, 2, 4, 4)]
    boxes = torch.tensor([(0.0, 0.0, 20.0, 20.0), (10.0, 5.0, 60.0, 64.0), (30.0, 30.0, 40.0, 50.0)])
    together = head(features, Regions.from_list([boxes, boxes.flip(0)]))
    alone = head([level[1:] for level in features], Regions.from_list([boxes[:1]]))
    torch.testing.assert_close(together.logits[-1:], alone.logits)
    torch.testing.assert_close(together.deltas[-1:], alone.deltas)


def test_roi_pool_takes_the_maximum_from_one_level() -> None:
    head = make_head(channels=1, strides=(4,), pool="pool", output_size=2)
    features = torch.arange(16.0).view(1, 1, 4, 4)
    pooled = head.pool([features], Regions.from_list([torch.tensor([(0.0, 0.0, 12.0, 12.0)])]))  # cells 0 to 3
    assert pooled.flatten().tolist() == [5, 7, 13, 15]
    with pytest.raises(ValueError, match="RoIPool reads one level, got 2"):
        make_head(strides=(4, 8), pool="pool")
