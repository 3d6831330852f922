"""Deformable DETR's head: where queries look at first, what padding may change, what proposes, and what is refined."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from detkit.nn.deformable import DeformableAttention, DeformableTransformerConfig, Levels, moved
from detkit.nn.heads.deformable_detr import DeformableDETRHead, DeformableDETRHeadConfig
from detkit.nn.heads.set_head import ProposingOutputs
from detkit.structures import Objects, Size, Target

SMALL = DeformableTransformerConfig(
    width=16, heads=4, encoder_layers=2, decoder_layers=3, feedforward=32, dropout=0.0, points=2
)
STRIDES = (8, 16)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def make_head(**fields: Any) -> DeformableDETRHead:
    config = DeformableDETRHeadConfig(transformer=SMALL, num_queries=9, **fields)
    head = DeformableDETRHead(config, [16, 16], 3).eval()
    for name, parameter in head.named_parameters():
        if "norm" not in name and parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return head


def features(canvas: Size) -> list[Tensor]:
    return [torch.randn(1, 16, canvas[0] // stride, canvas[1] // stride) for stride in STRIDES]


@pytest.mark.parametrize("fields", [{}, {"refine": True}, {"refine": True, "two_stage": True}], ids=str)
def test_padding_changes_nothing(fields: dict[str, Any]) -> None:
    head, size = make_head(**fields), torch.tensor([[64, 96]])
    alone = features((64, 96))
    padded = features((96, 160))
    for small, large in zip(alone, padded, strict=True):
        large[:, :, : small.shape[2], : small.shape[3]] = small
    with torch.no_grad():
        expected: ProposingOutputs = head(alone, size, (64, 96))
        outputs: ProposingOutputs = head(padded, size, (96, 160))
    torch.testing.assert_close(outputs.boxes, expected.boxes, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(outputs.logits, expected.logits, atol=1e-4, rtol=1e-4)


def test_queries_first_look_around_them_one_step_farther_with_each_point() -> None:
    """Four heads look right, down, left and up: points at 1 and 2 cells in each of two levels."""
    attention = DeformableAttention(16, 4, [2, 2])
    offsets = attention.offsets.bias.detach().view(4, 4, 2)
    for head, (x, y) in enumerate([(1, 0), (0, 1), (-1, 0), (0, -1)]):
        expected = torch.tensor([[x, y], [2 * x, 2 * y]] * 2, dtype=torch.float32)
        torch.testing.assert_close(offsets[head], expected, atol=1e-6, rtol=0)


def test_cells_lie_in_parts_of_the_picture() -> None:
    """A picture of 32 x 64 on a canvas of 64 x 64, in cells of 16 px: the third row lies beyond it."""
    levels = Levels.of([torch.zeros(1, 1, 4, 4)], torch.tensor([[32, 64]]), (64, 64))
    assert levels.shares.tolist() == [[[1.0, 0.5]]]
    centers = levels.centers()[0].view(4, 4, 2)
    assert centers[0, 0].tolist() == [0.125, 0.25]
    assert centers[2, 3].tolist() == [0.875, 1.25]
    assert levels.padding[0].view(4, 4).any(dim=1).tolist() == [False, False, True, True]
    assert levels.on_canvas(torch.tensor([[[0.5, 0.5, 0.2, 0.2]]])).flatten().tolist() == pytest.approx(
        [0.5, 0.25, 0.2, 0.1]
    )


def test_a_move_is_added_before_the_sigmoid() -> None:
    box = torch.tensor([[[0.5, 0.2, 0.1, 0.3]]])
    torch.testing.assert_close(moved(box, torch.zeros(1, 1, 4)), box)
    point = moved(torch.tensor([[[0.5, 0.2]]]), torch.zeros(1, 1, 4))
    torch.testing.assert_close(point, torch.tensor([[[0.5, 0.2, 0.5, 0.5]]]))


def test_cells_near_the_border_propose_nothing() -> None:
    """The sides of the finest level's boxes are 0.6 of the picture's, those of the next are 1.2."""
    head = make_head(refine=True, two_stage=True, proposal_side=0.6)
    with torch.no_grad():
        outputs = head(features((64, 96)), torch.tensor([[64, 96]]), (64, 96))
    assert outputs.proposals is not None
    boxes = outputs.proposals.boxes[0, 0]
    assert (boxes[:96] < 1).all()
    assert (boxes[96:] == 1).all()  # twice 0.6 is more than the picture


def test_layers_learn_from_their_own_move_alone() -> None:
    head = make_head(refine=True)
    outputs = head(features((64, 96)), torch.tensor([[64, 96]]), (64, 96))
    outputs.boxes[2].sum().backward()
    assert head.regressors[0][-1].weight.grad.abs().sum() == 0  # type: ignore[index,union-attr]
    assert head.regressors[2][-1].weight.grad.abs().sum() > 0  # type: ignore[index,union-attr]


def test_for_proposals_every_object_is_of_the_first_class() -> None:
    head = make_head(refine=True, two_stage=True)
    outputs = head(features((64, 96)), torch.tensor([[64, 96]]), (64, 96))
    losses = [
        head.criterion(outputs, [Target(Objects(torch.tensor([[10.0, 10, 40, 40]]), torch.tensor([label])))])
        for label in (0, 2)
    ]
    assert losses[0]["proposal_class"] == losses[1]["proposal_class"]
    assert losses[0]["detr_class"] != losses[1]["detr_class"]


def test_proposals_need_refinement() -> None:
    with pytest.raises(ValidationError, match="two_stage: needs refine: true, found false"):
        DeformableDETRHeadConfig(two_stage=True)
