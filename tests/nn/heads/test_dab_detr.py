"""Anchors and proposals: what they are, what is lost by them, and that padding is none."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from detkit.nn.heads.dab_detr import (
    NOTHING,
    DABDETRHead,
    DABDETRHeadConfig,
    DABDETROutputs,
    ProposalConfig,
)
from detkit.nn.heads.detr import batch_objects
from detkit.nn.transformer import TransformerConfig
from detkit.structures import Target

SMALL = TransformerConfig(width=16, heads=4, encoder_layers=1, decoder_layers=2, feedforward=32, dropout=0.0)
NAMES = ("cat", "dog", "cow")
SIZES, CANVAS = [(64, 96), (48, 64)], (64, 96)
TARGETS = [
    Target(
        torch.tensor([[10.0, 10, 40, 50], [50, 20, 90, 60]]), torch.tensor([1, 2]), torch.zeros(2, dtype=torch.bool)
    ),
    Target(torch.tensor([[8.0, 12, 40, 36]]), torch.tensor([0]), torch.zeros(1, dtype=torch.bool)),
]


def head(**changes: Any) -> DABDETRHead:
    torch.manual_seed(0)
    return DABDETRHead(DABDETRHeadConfig(transformer=SMALL, num_queries=6, **changes), 8, NAMES)


def run(dab: DABDETRHead) -> DABDETROutputs:
    features = torch.randn(2, 8, 4, 6, generator=torch.Generator().manual_seed(1))
    return dab(features, SIZES, CANVAS)


def test_focal_loss_and_cost_by_hand() -> None:
    """Probabilities .9 of a class that is there, .2 and .1 of others: alpha .25, gamma 2."""
    dab = head()
    logits = torch.tensor([0.9, 0.2, 0.1]).logit().view(1, 1, 1, 3)
    there = -0.25 * 0.1**2 * math.log(0.9)
    expected = there - 0.75 * (0.2**2 * math.log(0.8) + 0.1**2 * math.log(0.9))
    loss = dab.class_loss(logits, torch.tensor([[[0]]]), torch.tensor(2.0))
    assert loss.item() == pytest.approx(expected / 2, rel=1e-4)
    nothing = dab.class_loss(logits, torch.tensor([[[3]]]), torch.tensor(1.0)).item()
    assert nothing == pytest.approx(expected - there - 0.75 * 0.9**2 * math.log(0.1), rel=1e-4)
    cost = dab.class_cost(logits[0], torch.tensor([0, 1]))
    assert cost[0, 0, 0].item() == pytest.approx(2 * (there + 0.75 * 0.9**2 * math.log(0.1)), rel=1e-4)
    assert cost[0, 0, 1].item() == pytest.approx(
        2 * (-0.25 * 0.8**2 * math.log(0.2) + 0.75 * 0.2**2 * math.log(0.8)), rel=1e-4
    )


def test_proposals_are_the_likeliest_cells_and_never_padding() -> None:
    dab = head(proposals=ProposalConfig(side=0.25)).eval()
    outputs = run(dab)
    assert outputs.proposals is not None
    logits, boxes = outputs.proposals.logits[0], outputs.proposals.boxes[0]
    assert logits.shape == (2, 24, 3)
    padding = torch.ones(4, 6, dtype=torch.bool)
    padding[:3, :4] = False
    assert (logits[1, padding.flatten()] == NOTHING).all()
    assert (logits[1, ~padding.flatten()] > NOTHING).all()
    # fresh regressors move little: boxes lie at the centres of cells, counted within the image, with a quarter's sides
    centers = torch.tensor([[(x + 0.5) / 4, (y + 0.5) / 3] for y in range(3) for x in range(4)])
    torch.testing.assert_close(boxes[1, ~padding.flatten(), :2], centers, atol=0.02, rtol=0)
    torch.testing.assert_close(boxes[1, :, 2:], torch.full((24, 2), 0.25), atol=0.02, rtol=0)
    best = logits.amax(dim=2).topk(6).indices
    expected = boxes.take_along_dim(best[..., None], 1)
    torch.testing.assert_close(outputs.boxes[-1], expected, atol=0.05, rtol=0)  # and the decoder moves them little


def test_fewer_cells_than_queries() -> None:
    dab = head(proposals=ProposalConfig()).eval()
    outputs = dab(torch.randn(1, 8, 1, 2), [(30, 60)], (30, 60))
    assert outputs.boxes.shape == (2, 1, 2, 4)


@pytest.mark.parametrize("copies", [1, 2, 3])
def test_every_object_is_proposed_by_as_many_cells_as_there_are_copies(copies: int) -> None:
    """Two cells are exact: one or two copies find them, a third must take another."""
    dab = head(proposals=ProposalConfig(copies=copies))
    outputs = run(dab)
    assert outputs.proposals is not None
    objects = batch_objects(outputs.sides, TARGETS)
    boxes = outputs.proposals.boxes.clone()
    for place, cells in ((0, 0), (1, 2)):  # the objects of image 0
        boxes[0, 0, cells : cells + 2] = objects.boxes[place]
    boxes[0, 1, :2] = objects.boxes[2]
    loss = dab.criterion(replace(outputs, proposals=replace(outputs.proposals, boxes=boxes)), TARGETS)["proposal_l1"]
    assert (loss < 1e-6) == (copies <= 2)


def test_more_objects_than_cells() -> None:
    """The second image has 12 cells beside 12 of padding, and 20 objects of two copies each."""
    boxes = torch.tensor([[float(2 * i), 4, 2 * i + 20, 30] for i in range(20)])
    crowd = Target(boxes, torch.zeros(20, dtype=torch.int64), torch.zeros(20, dtype=torch.bool))
    dab = head(proposals=ProposalConfig(copies=2))
    losses = dab.criterion(run(dab), [TARGETS[0], crowd])
    assert all(loss < 20 for loss in losses.values())


def test_each_class_of_a_query_is_a_detection_of_its_own() -> None:
    scores = head().class_scores(torch.tensor([[[0.0, 2.0, -2.0]]]))
    torch.testing.assert_close(scores, torch.tensor([[[0.5, 0.8808, 0.1192]]]), atol=1e-4, rtol=0)


def test_a_class_is_rare_at_first() -> None:
    outputs = run(head())
    assert outputs.logits.sigmoid().mean() < 0.05


@pytest.mark.parametrize("proposals", [None, ProposalConfig()])
def test_every_weight_is_used(proposals: ProposalConfig | None) -> None:
    dab = head(proposals=proposals).train()
    torch.stack(list(dab.criterion(run(dab), TARGETS).values())).sum().backward()
    assert [name for name, parameter in dab.named_parameters() if parameter.grad is None] == []
