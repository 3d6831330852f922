"""The mask branch, on cases small enough to count."""

from math import log
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from detkit.nn.heads.branch import BranchOutputs
from detkit.nn.heads.mask import MaskBranch, MaskConfig
from detkit.nn.heads.regions import RegionTargets
from detkit.nn.proposals.regions import Regions
from detkit.nn.selection import DetectionRows
from detkit.structures import MaskCrops, Objects, Target
from tests.reference.roi import roi_align

WINDOW = torch.tensor([[0.0, 0.0, 32.0, 24.0]])
BOX = (4.0, 4.0, 12.0, 12.0)
LEFT = np.zeros((8, 8), bool)
LEFT[:, :4] = True
NONE = np.zeros((0, 0), bool)


def make_branch(**fields: Any) -> MaskBranch:
    """Of two classes on one level of three channels at stride 4, with masks of 4 x 4 cells."""
    torch.manual_seed(0)
    config = MaskConfig(**{"output_size": 2, "channels": (4,), "deconv_channels": 4, **fields})
    return MaskBranch(config, 3, [4], 2)


def make_target(*crops: np.ndarray, ignore: tuple[bool, ...] | None = None) -> Target:
    """Objects in `BOX`, each with its mask in a window of the same place."""
    windows = [(4, 4, 12, 12) if crop.size else (0, 0, 0, 0) for crop in crops]
    return Target(
        Objects(
            torch.tensor([BOX] * len(crops)).view(-1, 4),
            torch.zeros(len(crops), dtype=torch.int64),
            torch.tensor(ignore or [False] * len(crops), dtype=torch.bool),
            masks=MaskCrops.of(crops, windows).map(torch.from_numpy),
        )
    )


def outputs_of(logits: Tensor, labels: list[int], objects: list[int], box: tuple[float, ...] = BOX) -> BranchOutputs:
    regions = Regions.from_list([torch.tensor([box] * len(labels)).view(-1, 4)])
    return BranchOutputs(regions, logits, torch.tensor(labels), torch.tensor(objects), WINDOW)


def loss_of(branch: MaskBranch, outputs: BranchOutputs, *targets: Target) -> float:
    (loss,) = branch.criterion(outputs, targets).values()
    return loss.item()


def test_the_loss_is_that_of_the_regions_class() -> None:
    """Binary targets: two columns of four are the object's. Where the logit of the class is log 3, the probability is
    3/4: -log(3/4) on the object and -log(1/4) beside it. The other class, however wrong, does not count."""
    logits = torch.full((1, 2, 4, 4), 100.0)
    logits[0, 1] = log(3)
    loss = loss_of(make_branch(target="binary"), outputs_of(logits, [1], [0]), make_target(LEFT))
    assert loss == pytest.approx(-(log(3 / 4) + log(1 / 4)) / 2)
    assert loss_of(make_branch(target="binary", loss_weight=0.5), outputs_of(logits, [1], [0]), make_target(LEFT)) == (
        pytest.approx(loss / 2)
    )


def test_targets_are_the_mask_in_the_cells_of_the_region() -> None:
    """Against the slow RoIAlign of the whole picture, for a region that is not the object's box. Soft ones are the part
    of samples on the object, binary ones whether that is a half, with pixels half a place further."""
    region, crop = (5.0, 3.0, 14.5, 11.0), np.random.default_rng(0).random((8, 8)) > 0.3
    picture = np.zeros((24, 32))
    picture[4:12, 4:12] = crop
    outputs = outputs_of(torch.zeros(1, 2, 4, 4), [0], [0], region)
    for target in ("soft", "binary"):
        expected = torch.tensor(roi_align(picture.tolist(), region, (4, 4), 1.0, 0, aligned=target == "binary"))
        if target == "binary":
            assert 0 < (expected < 0.5).sum() < 16
            expected = (expected >= 0.5).float()
        logits = outputs.logits.clone().requires_grad_()
        branch = make_branch(target=target)
        branch.criterion(outputs_of(logits, [0], [0], region), [make_target(crop)])["mask"].backward()
        # the gradient of the mean of cross-entropies at probabilities of one half
        torch.testing.assert_close(logits.grad[0, 0], (0.5 - expected) / 16, rtol=0, atol=1e-6)
        assert not logits.grad[0, 1].any()


def test_an_object_of_which_only_the_box_is_known_has_no_mask_loss() -> None:
    logits = torch.zeros(2, 2, 4, 4)
    logits[1] = 50
    loss = loss_of(make_branch(), outputs_of(logits, [0, 0], [0, 1]), make_target(LEFT, NONE))
    assert loss == pytest.approx(log(2))


def test_objects_are_counted_without_the_ignored_ones() -> None:
    logits = torch.full((1, 2, 4, 4), 60.0)
    target = make_target(~LEFT & False, np.ones((8, 8), bool), ignore=(True, False))
    branch = make_branch(target="binary")
    assert loss_of(branch, outputs_of(logits, [0], [0]), target) == pytest.approx(0, abs=1e-6)


def test_regions_take_the_masks_of_their_own_image() -> None:
    regions = Regions.from_list([torch.tensor([BOX]), torch.tensor([BOX])])
    logits = torch.full((2, 2, 4, 4), 60.0)
    logits[1] = -60
    outputs = BranchOutputs(regions, logits, torch.tensor([0, 0]), torch.tensor([0, 0]), WINDOW.repeat(2, 1))
    targets = make_target(np.ones((8, 8), bool)), make_target(np.zeros((8, 8), bool))
    assert loss_of(make_branch(target="binary"), outputs, *targets) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("norm", ["none", "bn"])
def test_without_any_mask_the_loss_is_zero_and_all_weights_have_a_gradient(norm: str) -> None:
    branch = make_branch(norm=norm, channels=(4, 5)).train()
    statistics = {name: value.clone() for name, value in branch.named_buffers() if "running" in name}
    regions = Regions.from_list([torch.tensor([BOX])])
    nothing = RegionTargets(torch.tensor([0]), regions.boxes, torch.tensor([-1]))
    outputs = branch.outputs_of_objects([torch.randn(1, 3, 6, 8)], regions, nothing, WINDOW)
    assert outputs.logits.shape == (0, 2, 4, 4)
    loss = branch.criterion(outputs, [make_target(NONE)])["mask"]
    loss.backward()
    assert loss == 0
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in branch.parameters())
    assert all(torch.equal(dict(branch.named_buffers())[name], value) for name, value in statistics.items())


def test_it_learns_from_the_sampled_regions_that_are_objects() -> None:
    regions = Regions.from_list([torch.tensor([BOX, (0.0, 0, 6, 6), (8.0, 8, 20, 20)])])
    targets = RegionTargets(torch.tensor([2, 0, 1]), regions.boxes, torch.tensor([1, -1, 0]))
    outputs = make_branch().outputs_of_objects([torch.randn(1, 3, 6, 8)], regions, targets, WINDOW)
    assert outputs.labels.tolist() == [1, 0]
    assert outputs.objects.tolist() == [1, 0]
    assert torch.equal(outputs.regions.boxes, regions.boxes[[0, 2]])


def test_targets_without_masks_are_an_error() -> None:
    target = Target(Objects(torch.tensor([BOX]), torch.tensor([0])))
    with pytest.raises(ValueError, match="expected targets with masks: the data set has none, or they were not read"):
        make_branch().criterion(outputs_of(torch.zeros(1, 2, 4, 4), [0], [0]), [target])


@torch.no_grad()
def test_a_detection_gets_the_mask_of_its_label() -> None:
    """Rows beyond the count stay zero; each row is what the branch says of its box alone."""
    branch, features = make_branch().eval(), [torch.randn(2, 3, 6, 8)]
    boxes = torch.tensor([[BOX, (0.0, 0, 0, 0)], [(1.0, 1, 30, 20), (8.0, 2, 20, 22)]])
    labels = torch.tensor([[1, 0], [0, 1]])
    rows = DetectionRows(boxes, torch.ones(2, 2), labels, torch.tensor([1, 2]))
    masks = branch.detect(features, rows).masks
    assert masks is not None
    assert masks.shape == (2, 2, 4, 4)
    assert not masks[0, 1].any()
    for image, row in ((0, 0), (1, 0), (1, 1)):
        alone = branch([features[0][image : image + 1]], Regions.from_list([boxes[image, row][None]]))
        torch.testing.assert_close(masks[image, row], alone[0, labels[image, row]].sigmoid())


def test_rows_of_classes() -> None:
    assert {name: rows.tolist() for name, rows in make_branch().class_rows(3).items()} == {"classifier": [0, 1, 2]}
    assert len(make_branch().classifier.bias) == 2
