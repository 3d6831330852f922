"""The keypoint branch, on cases small enough to count."""

from math import exp, log
from typing import Any

import pytest
import torch
from torch import Tensor

from detkit.nn.heads.branch import BranchOutputs
from detkit.nn.heads.keypoint import KeypointBranch, KeypointConfig
from detkit.nn.heads.regions import RegionTargets
from detkit.nn.proposals.regions import Regions
from detkit.nn.selection import DetectionRows
from detkit.structures import Objects, Target

WINDOW = torch.tensor([[0.0, 0.0, 32.0, 24.0]])
BOX = (4.0, 4.0, 12.0, 12.0)


def make_branch(**fields: Any) -> KeypointBranch:
    """Of two points on one level of three channels at stride 4, with heat maps of 4 x 4 cells."""
    torch.manual_seed(0)
    return KeypointBranch(KeypointConfig(**{"output_size": 1, "channels": (4,), **fields}), 3, [4], 2)


def make_target(*keypoints: list[list[float]], ignore: tuple[bool, ...] | None = None) -> Target:
    count = len(keypoints)
    flags = torch.tensor(ignore or [False] * count, dtype=torch.bool)
    points = torch.tensor(keypoints, dtype=torch.float32).view(count, -1, 3)
    labels = torch.zeros(count, dtype=torch.int64)
    return Target(Objects(torch.tensor([BOX] * count).view(-1, 4), labels, flags, keypoints=points))


def outputs_of(logits: Tensor, objects: list[int]) -> BranchOutputs:
    regions = Regions.from_list([torch.tensor([BOX] * len(objects)).view(-1, 4)])
    return BranchOutputs(regions, logits, torch.zeros(len(objects), dtype=torch.int64), torch.tensor(objects), WINDOW)


def test_the_loss_is_a_softmax_over_the_cells_of_each_visible_point() -> None:
    """Cells are of 2 px. The first point lies in row 0, column 3; the second is not labelled."""
    logits = torch.zeros(1, 2, 4, 4)
    logits[0, 0, 0, 3] = 2
    logits[0, 1, 1, 1] = 100
    target = make_target([[10.5, 5.0, 1], [7.0, 7.0, 0]])
    (loss,) = make_branch().criterion(outputs_of(logits, [0]), [target]).values()
    assert loss.item() == pytest.approx(log(exp(2) + 15) - 2)
    (half,) = make_branch(loss_weight=0.5).criterion(outputs_of(logits, [0]), [target]).values()
    assert half.item() == pytest.approx(loss.item() / 2)


def test_the_mean_is_over_the_points_of_all_regions_of_the_batch() -> None:
    """Four points count: those outside of their region do not. Three of four are uniform, one is certain."""
    regions = Regions.from_list([torch.tensor([BOX, BOX]), torch.tensor([BOX])])
    logits = torch.zeros(3, 2, 4, 4)
    logits[2, 0, 3, 0] = 100
    objects = torch.tensor([1, 0, 0])
    outputs = BranchOutputs(regions, logits, torch.zeros(3, dtype=torch.int64), objects, WINDOW.repeat(2, 1))
    first = make_target([[5, 5, 2], [20, 5, 2]], [[5, 5, 2], [7, 7, 1]])
    second = make_target([[5, 11.5, 2], [5, 5, 0]])
    (loss,) = make_branch().criterion(outputs, [first, second]).values()
    assert loss.item() == pytest.approx(3 * log(16) / 4)


def test_objects_are_counted_without_the_ignored_ones() -> None:
    logits = torch.zeros(1, 2, 4, 4)
    logits[0, :, 3, 3] = 100
    target = make_target([[5, 5, 2], [5, 5, 2]], [[11.9, 11.9, 2], [12.0, 12.0, 2]], ignore=(True, False))
    (loss,) = make_branch().criterion(outputs_of(logits, [0]), [target]).values()
    assert loss.item() == pytest.approx(0, abs=1e-6)


def test_without_any_point_the_loss_is_zero_and_all_weights_have_a_gradient() -> None:
    branch, regions = make_branch(), Regions.from_list([torch.tensor([BOX])])
    for labels, objects in (([0], [-1]), ([1], [0])):
        targets = RegionTargets(torch.tensor(labels), regions.boxes, torch.tensor(objects))
        outputs = branch.outputs_of_objects([torch.randn(1, 3, 6, 8)], regions, targets, WINDOW)
        branch.zero_grad()
        loss = branch.criterion(outputs, [make_target([[0, 0, 0], [0, 0, 0]])])["keypoint"]
        loss.backward()
        assert loss == 0
        assert all(parameter.grad is not None and not parameter.grad.any() for parameter in branch.parameters())


def test_targets_without_keypoints_are_an_error() -> None:
    target = Target(Objects(torch.tensor([BOX]), torch.tensor([0])))
    with pytest.raises(ValueError, match="expected targets with keypoints: the data set has none, or they were not"):
        make_branch().criterion(outputs_of(torch.zeros(1, 2, 4, 4), [0]), [target])


@torch.no_grad()
def test_a_detection_gets_the_heat_maps_of_its_box() -> None:
    branch, features = make_branch().eval(), [torch.randn(2, 3, 6, 8)]
    boxes = torch.tensor([[BOX, (0.0, 0, 0, 0)], [(1.0, 1, 30, 20), (8.0, 2, 20, 22)]])
    rows = DetectionRows(boxes, torch.ones(2, 2), torch.zeros(2, 2, dtype=torch.int64), torch.tensor([1, 2]))
    heatmaps = branch.detect(features, rows).heatmaps
    assert heatmaps is not None
    assert heatmaps.shape == (2, 2, 2, 4, 4)
    assert not heatmaps[0, 1].any()
    for image, row in ((0, 0), (1, 0), (1, 1)):
        alone = branch([features[0][image : image + 1]], Regions.from_list([boxes[image, row][None]]))
        torch.testing.assert_close(heatmaps[image, row], alone[0])
