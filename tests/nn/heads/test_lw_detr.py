"""LW-DETR's head: groups of queries that do not see each other, their losses, and boxes that scale those of cells."""

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from detkit.nn.heads.lw_detr import LWDETRHead, LWDETRHeadConfig, LWDETRTransformerConfig, scaled
from detkit.structures import Objects, Target

SMALL = LWDETRTransformerConfig(width=16, heads=2, cross_heads=4, decoder_layers=2, feedforward=32)
CANVAS, SIZES = (64, 96), torch.tensor([[64, 96], [64, 96]])
GROUPS = 3
NO_OBJECTS = Target(Objects(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)))
TARGETS = [
    Target(Objects(torch.tensor([[10.0, 10, 40, 40], [50, 5, 90, 60]]), torch.tensor([0, 2]))),
    Target(Objects(torch.tensor([[30.0, 20, 60, 50]]), torch.tensor([1]))),
]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def make_head(groups: int = GROUPS, **fields: Any) -> LWDETRHead:
    config = LWDETRHeadConfig(transformer=SMALL, num_queries=5, groups=groups, **fields)
    head = LWDETRHead(config, [16, 16], 3)
    for name, parameter in head.named_parameters():
        if "norm" not in name and parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return head


def features() -> list[Tensor]:
    return [torch.randn(2, 16, CANVAS[0] // s, CANVAS[1] // s) for s in (8, 32)]


def alone(head: LWDETRHead, group: int) -> LWDETRHead:
    """A head that has one group only."""
    single = make_head(1)
    state = {}
    for name, tensor in head.state_dict().items():
        if name in ("queries", "references"):
            state[name] = tensor[group : group + 1]
        elif not name.startswith("proposers."):
            state[name] = tensor
        elif name.startswith(f"proposers.{group}."):
            state[name.replace(f".{group}.", ".0.", 1)] = tensor
    single.load_state_dict(state)
    return single


def test_a_group_predicts_what_it_would_alone_and_only_the_first_one_is_tested() -> None:
    head, levels = make_head(), features()
    outputs = head(levels, SIZES, CANVAS)
    assert outputs.logits.shape == (2, 2, GROUPS * 5, 3)
    for group in range(GROUPS):
        expected = alone(head, group)(levels, SIZES, CANVAS)
        rows = slice(5 * group, 5 * group + 5)
        torch.testing.assert_close(outputs.logits[:, :, rows], expected.logits)
        torch.testing.assert_close(outputs.boxes[:, :, rows], expected.boxes)
        torch.testing.assert_close(outputs.proposals.boxes[group], expected.proposals.boxes[0])
    tested = head.eval()(levels, SIZES, CANVAS)
    torch.testing.assert_close(tested.logits, outputs.logits[:, :, :5])
    torch.testing.assert_close(tested.boxes, outputs.boxes[:, :, :5])


def test_losses_are_the_mean_of_those_of_each_group() -> None:
    """Each is divided by the number of objects, and each matches the objects for itself."""
    head, levels = make_head(), features()
    losses = head.criterion(head(levels, SIZES, CANVAS), TARGETS)
    singles = [alone(head, group) for group in range(GROUPS)]
    each = [single.criterion(single(levels, SIZES, CANVAS), TARGETS) for single in singles]
    assert set(losses) == {f"{part}_{loss}" for part in ("detr", "detr_aux", "proposal") for loss in LOSSES}
    for name, loss in losses.items():
        torch.testing.assert_close(loss, torch.stack([own[name] for own in each]).mean(), msg=name)


LOSSES = ("class", "l1", "giou")


def test_losses_without_objects_are_sums() -> None:
    head, levels = make_head(), features()
    outputs = head(levels, SIZES, CANVAS)
    losses = head.criterion(outputs, [NO_OBJECTS, NO_OBJECTS])
    p = outputs.logits[-1].sigmoid()
    torch.testing.assert_close(losses["detr_class"], -(p**2 * (1 - p).log()).sum())
    assert losses["detr_l1"] == losses["detr_giou"] == 0


def test_boxes_move_by_parts_of_their_sides() -> None:
    box = torch.tensor([0.5, 0.4, 0.2, 0.1])
    by = torch.tensor([1.0, -2.0, math.log(2), math.log(0.5)])
    torch.testing.assert_close(scaled(box, by), torch.tensor([0.7, 0.2, 0.4, 0.05]))


@torch.no_grad()
def test_before_training_proposals_are_the_squares_of_their_cells_and_predictions_are_those() -> None:
    """Of 2 x 60 cells the first and last columns lie too near to the border to propose anything: they have no sides."""
    head = LWDETRHead(LWDETRHeadConfig(transformer=SMALL, num_queries=120, groups=2), [16], 3)
    outputs = head([torch.randn(1, 16, 2, 60)], torch.tensor([[16, 480]]), (16, 480))
    boxes = outputs.proposals.boxes[0, 0]
    without = (boxes == 0).all(dim=1)
    assert without.sum() == 4
    assert boxes[~without, 2:].unique().tolist() == pytest.approx([0.05])
    assert sorted(set(boxes[~without, 1].tolist())) == pytest.approx([0.25, 0.75])
    for layer in outputs.boxes:
        torch.testing.assert_close(layer[:, :120], outputs.proposals.boxes[0])
    first, second = head.proposers
    for part in ("classifier", "regressor"):
        for own, other in zip(
            first.get_submodule(part).parameters(), second.get_submodule(part).parameters(), strict=True
        ):
            assert torch.equal(own, other)


def test_rows_of_classes_are_those_of_every_classifier() -> None:
    head = make_head()
    names = ["classifier", *(f"proposers.{group}.classifier" for group in range(GROUPS))]
    assert list(head.class_rows(3)) == names
    assert all(head.get_parameter(f"{name}.weight").shape == (3, 16) for name in names)


def test_heads_divide_the_width() -> None:
    with pytest.raises(ValidationError, match=r"width: expected a multiple of cross_heads \(16\), found 24"):
        LWDETRTransformerConfig(width=24, heads=4)
