"""DAB-DETR's anchors and proposals: where they lie, their losses, and that padding proposes nothing."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from detkit.nn.assign.hungarian import SetTargets
from detkit.nn.heads.dab_detr import (
    PADDING_LOGIT,
    DABDETRHead,
    DABDETRHeadConfig,
    ProposalConfig,
    ProposingOutputs,
    SigmoidClasses,
)
from detkit.nn.losses import FocalLossConfig
from detkit.nn.transformer import TransformerConfig
from detkit.structures import Objects, Target

SMALL = TransformerConfig(width=16, heads=4, encoder_layers=1, decoder_layers=2, feedforward=32, dropout=0.0)
SIZES, CANVAS = torch.tensor([[64, 96], [48, 64]]), (64, 96)
TARGETS = [
    Target(Objects(torch.tensor([[10.0, 10, 40, 50], [50, 20, 90, 60]]), torch.tensor([1, 2]))),
    Target(Objects(torch.tensor([[8.0, 12, 40, 36]]), torch.tensor([0]))),
]


def make_head(**changes: Any) -> DABDETRHead:
    torch.manual_seed(0)
    return DABDETRHead(DABDETRHeadConfig(transformer=SMALL, num_queries=6, **changes), in_channels=8, num_classes=3)


def run(dab: DABDETRHead) -> ProposingOutputs:
    features = torch.randn(2, 8, 4, 6, generator=torch.Generator().manual_seed(1))
    return dab([features], SIZES, CANVAS)


def test_focal_loss_and_cost_by_hand() -> None:
    """Probabilities .9 of the object's class, .2 and .1 of others: alpha .25, gamma 2."""
    classes = SigmoidClasses(3, FocalLossConfig())
    logits = torch.tensor([0.9, 0.2, 0.1]).logit().view(1, 1, 1, 3)
    weights, one = torch.ones(1, 1, 1), torch.tensor(1.0)
    positive = -0.25 * 0.1**2 * math.log(0.9)
    expected = positive - 0.75 * (0.2**2 * math.log(0.8) + 0.1**2 * math.log(0.9))
    loss = classes.loss(logits, torch.tensor([[[0]]]), weights, weights, torch.tensor(2.0))
    assert loss.item() == pytest.approx(expected / 2, rel=1e-4)
    no_object = classes.loss(logits, torch.tensor([[[3]]]), weights, weights, one).item()
    assert no_object == pytest.approx(expected - positive - 0.75 * 0.9**2 * math.log(0.1), rel=1e-4)
    assert classes.loss(logits, torch.tensor([[[3]]]), 0 * weights, weights, one) == 0
    cost = classes.cost(logits[0], torch.tensor([0, 1]))
    assert cost[0, 0, 0].item() == pytest.approx(positive + 0.75 * 0.9**2 * math.log(0.1), rel=1e-4)
    assert cost[0, 0, 1].item() == pytest.approx(
        -0.25 * 0.8**2 * math.log(0.2) + 0.75 * 0.2**2 * math.log(0.8), rel=1e-4
    )


def test_class_weight_and_focal_loss_are_settings() -> None:
    loss = make_head().criterion(run(make_head()), TARGETS)["detr_class"]
    twice = make_head(class_weight=2.0)
    torch.testing.assert_close(twice.criterion(run(twice), TARGETS)["detr_class"], 2 * loss)
    negatives_only = make_head(focal={"alpha": 0.0})
    outputs = run(negatives_only)
    before = negatives_only.criterion(outputs, TARGETS)["detr_class"]
    assert before != loss
    surer = replace(outputs, logits=outputs.logits - 2)  # positives cost nothing, negatives less than before
    assert negatives_only.criterion(surer, TARGETS)["detr_class"] < before


def test_proposals_are_the_likeliest_cells_and_never_padding() -> None:
    dab = make_head(proposals=ProposalConfig(side=0.25)).eval()
    outputs = run(dab)
    assert outputs.proposals is not None
    logits, boxes = outputs.proposals.logits[0], outputs.proposals.boxes[0]
    assert logits.shape == (2, 24, 3)
    padding = torch.ones(4, 6, dtype=torch.bool)
    padding[:3, :4] = False
    assert (logits[1, padding.flatten()] == PADDING_LOGIT).all()
    assert (logits[1, ~padding.flatten()] > PADDING_LOGIT).all()
    # Fresh regressors move little: boxes lie at the centres of cells, in parts of the picture, with sides of a quarter.
    centers = torch.tensor([[(x + 0.5) / 4, (y + 0.5) / 3] for y in range(3) for x in range(4)])
    torch.testing.assert_close(boxes[1, ~padding.flatten(), :2], centers, atol=0.02, rtol=0)
    torch.testing.assert_close(boxes[1, :, 2:], torch.full((24, 2), 0.25), atol=0.02, rtol=0)
    best = logits.amax(dim=2).topk(6).indices
    expected = boxes.take_along_dim(best[..., None], 1)
    torch.testing.assert_close(
        outputs.boxes[-1], expected, atol=0.05, rtol=0
    )  # the fresh decoder moves them little too


def test_fewer_cells_than_queries() -> None:
    dab = make_head(proposals=ProposalConfig()).eval()
    outputs = dab([torch.randn(1, 8, 1, 2)], torch.tensor([[30, 60]]), (30, 60))
    assert outputs.boxes.shape == (2, 1, 2, 4)


@pytest.mark.parametrize("copies", [1, 2, 3])
def test_every_object_is_proposed_by_as_many_cells_as_there_are_copies(copies: int) -> None:
    """Two cells are exact: one or two copies are matched with them, a third with another cell."""
    dab = make_head(proposals=ProposalConfig(copies=copies))
    outputs = run(dab)
    assert outputs.proposals is not None
    objects = SetTargets.of(TARGETS, outputs.sides)
    boxes = outputs.proposals.boxes.clone()
    for index, cell in ((0, 0), (1, 2)):  # the objects of image 0
        boxes[0, 0, cell : cell + 2] = objects.boxes[index]
    boxes[0, 1, :2] = objects.boxes[2]
    loss = dab.criterion(replace(outputs, proposals=replace(outputs.proposals, boxes=boxes)), TARGETS)["proposal_l1"]
    assert (loss < 1e-6) == (copies <= 2)


def test_more_objects_than_cells() -> None:
    """The second image has 12 cells beside 12 of padding, and 20 objects of two copies each."""
    boxes = torch.tensor([[float(2 * i), 4, 2 * i + 20, 30] for i in range(20)])
    crowd = Target(Objects(boxes, torch.zeros(20, dtype=torch.int64)))
    dab = make_head(proposals=ProposalConfig(copies=2))
    losses = dab.criterion(run(dab), [TARGETS[0], crowd])
    assert all(loss < 20 for loss in losses.values())


def test_each_class_of_a_query_is_a_detection_of_its_own() -> None:
    scores = make_head().classes.scores(torch.tensor([[[0.0, 2.0, -2.0]]]))
    torch.testing.assert_close(scores, torch.tensor([[[0.5, 0.8808, 0.1192]]]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("prior", [0.01, 0.3])
def test_a_class_has_its_prior_probability_at_first(prior: float) -> None:
    dab = make_head(class_prior=prior, proposals=ProposalConfig())
    assert dab.proposer is not None
    for classifier in (dab.classifier, dab.proposer.classifier):
        torch.testing.assert_close(classifier(torch.zeros(16)).sigmoid(), torch.full((3,), prior))


@pytest.mark.parametrize("proposals", [None, ProposalConfig()])
def test_every_weight_is_used(proposals: ProposalConfig | None) -> None:
    dab = make_head(proposals=proposals).train()
    torch.stack(list(dab.criterion(run(dab), TARGETS).values())).sum().backward()
    assert [name for name, parameter in dab.named_parameters() if parameter.grad is None] == []
