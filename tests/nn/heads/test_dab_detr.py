"""DAB-DETR's anchors, denoising queries and proposals: where they lie, how layers move them, and their losses."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from detkit.nn.assign.hungarian import SetTargets
from detkit.nn.heads.dab_detr import (
    DABDecoder,
    DABDETRHead,
    DABDETRHeadConfig,
    DABOutputs,
    DABTransformerConfig,
    DNDenoisingConfig,
    ProposalConfig,
)
from detkit.nn.heads.denoised import Queries
from detkit.nn.heads.set_head import SigmoidClasses
from detkit.nn.losses import FocalLossConfig
from detkit.structures import Objects, Target
from tests.nn.heads.support import class_targets

SMALL = DABTransformerConfig(width=16, heads=4, encoder_layers=1, decoder_layers=2, feedforward=32, dropout=0.0)
SIZES, CANVAS = torch.tensor([[64, 96], [48, 64]]), (64, 96)
TARGETS = [
    Target(Objects(torch.tensor([[10.0, 10, 40, 50], [50, 20, 90, 60]]), torch.tensor([1, 2]))),
    Target(Objects(torch.tensor([[8.0, 12, 40, 36]]), torch.tensor([0]))),
]


def make_head(**changes: Any) -> DABDETRHead:
    torch.manual_seed(0)
    return DABDETRHead(DABDETRHeadConfig(transformer=SMALL, num_queries=6, **changes), in_channels=8, num_classes=3)


def run(dab: DABDETRHead) -> DABOutputs:
    features = torch.randn(2, 8, 4, 6, generator=torch.Generator().manual_seed(1))
    return dab([features], SIZES, CANVAS)


def test_focal_loss_and_cost_by_hand() -> None:
    """Probabilities .9 of the object's class, .2 and .1 of others: alpha .25, gamma 2."""
    classes = SigmoidClasses(3, FocalLossConfig())
    logits = torch.tensor([0.9, 0.2, 0.1]).logit().view(1, 1, 1, 3)
    one = torch.ones(1, 1, 1)
    positive = -0.25 * 0.1**2 * math.log(0.9)
    expected = positive - 0.75 * (0.2**2 * math.log(0.8) + 0.1**2 * math.log(0.9))
    loss = classes.loss(logits, class_targets(torch.tensor([[[0]]]), one, 2.0))
    assert loss.item() == pytest.approx(expected / 2, rel=1e-4)
    no_object = classes.loss(logits, class_targets(torch.tensor([[[3]]]), one)).item()
    assert no_object == pytest.approx(expected - positive - 0.75 * 0.9**2 * math.log(0.1), rel=1e-4)
    assert classes.loss(logits, class_targets(torch.tensor([[[3]]]), 0 * one)) == 0
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
    assert (boxes[1, padding.flatten()] == 1).all()
    # Fresh regressors move nothing: boxes lie at the centres of cells with sides of a quarter of the picture's.
    centers = torch.tensor([[(x + 0.5) / 4, (y + 0.5) / 3] for y in range(3) for x in range(4)])
    torch.testing.assert_close(boxes[1, ~padding.flatten(), :2], centers)
    torch.testing.assert_close(boxes[1, ~padding.flatten(), 2:], torch.full((12, 2), 0.25))
    scores = logits.amax(dim=2).masked_fill(torch.stack([torch.zeros(4, 6).bool(), padding]).flatten(1), -1e9)
    expected = boxes.take_along_dim(scores.topk(6).indices[..., None], 1)
    torch.testing.assert_close(outputs.boxes[-1], expected)  # the fresh decoder moves them no more


def test_padding_is_no_query_even_where_it_scores_more() -> None:
    dab = make_head(proposals=ProposalConfig()).eval()
    torch.nn.init.zeros_(dab.proposer.content.get_parameter("1.weight"))  # all cells, and padding, score the same
    assert (run(dab).boxes[-1, 1, :, 2:] < 0.5).all()


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
    for classifier in (dab.classifier, dab.proposer.classifier):
        torch.testing.assert_close(classifier(torch.zeros(16)).sigmoid(), torch.full((3,), prior))


@pytest.mark.parametrize(
    "options",
    [{}, {"proposals": ProposalConfig()}, {"denoising": DNDenoisingConfig()}],
    ids=["anchors", "proposals", "denoising"],
)
def test_every_weight_is_used(options: dict[str, Any]) -> None:
    dab = make_head(**options).train()
    features = torch.randn(2, 8, 4, 6, generator=torch.Generator().manual_seed(1))
    losses = dab.criterion(dab([features], SIZES, CANVAS, TARGETS), TARGETS)
    torch.stack(list(losses.values())).sum().backward()
    assert [name for name, parameter in dab.named_parameters() if parameter.grad is None] == []


def test_denoising_queries_of_empty_slots_have_no_loss() -> None:
    """Five groups of two slots; the second image has one object and so five empty slots."""
    dab = make_head(denoising=DNDenoisingConfig()).train()
    features = torch.randn(2, 8, 4, 6, generator=torch.Generator().manual_seed(1))
    outputs = dab([features], SIZES, CANVAS, TARGETS)
    assert outputs.denoising is not None
    assert outputs.noised is not None
    assert outputs.logits.shape == (2, 2, 6, 3)
    assert outputs.denoising.logits.shape == (2, 2, 10, 3)
    outputs.denoising.logits.retain_grad()
    losses = dab.criterion(outputs, TARGETS)
    (losses["denoising_class"] + losses["denoising_aux_class"]).backward()
    assert outputs.denoising.logits.grad is not None
    trained = outputs.denoising.logits.grad.abs().sum(dim=(0, 3)) > 0
    assert torch.equal(trained, outputs.noised.labels < 3)
    assert trained.sum(dim=1).tolist() == [10, 5]


def test_queries_do_not_see_the_denoising_queries() -> None:
    """Their predictions are those of evaluation, where there are none."""
    dab = make_head(denoising=DNDenoisingConfig()).train()
    features = torch.randn(2, 8, 4, 6, generator=torch.Generator().manual_seed(1))
    with_them, without = dab([features], SIZES, CANVAS, TARGETS), dab([features], SIZES, CANVAS)
    assert without.denoising is None
    assert [group.name for group in dab.groups(without)] == ["detr"]
    torch.testing.assert_close(with_them.logits, without.logits)
    torch.testing.assert_close(with_them.boxes, without.boxes)


def make_decoder(layers: int) -> DABDecoder:
    torch.manual_seed(0)
    config = DABTransformerConfig(width=8, heads=2, decoder_layers=layers, feedforward=8)
    decoder = DABDecoder(config, 10000.0)
    torch.nn.init.normal_(decoder.regressor.get_parameter("4.bias"))
    return decoder


def decode(decoder: DABDecoder, anchors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    memory, pos_embed = (torch.randn(1, 5, 8, generator=generator) for _ in range(2))
    return decoder(Queries(torch.zeros(1, 3, 8), anchors, None), memory, pos_embed, None)


def test_attention_by_hand() -> None:
    """Sines of y and x with the wavelengths 1 and 100, four numbers each, times the reference sides over the box's.

    With a hidden state of zeros and biases of zero, the reference sides are one half.
    """
    decoder = make_decoder(layers=1)
    for name in ("0.bias", "2.bias"):
        torch.nn.init.zeros_(decoder.sides.get_parameter(name))
    x, y, width, height = 0.25, 0.6, 0.2, 0.8
    _, near = decoder.embed(torch.tensor([[[x, y, width, height]]]).logit(), torch.zeros(1, 1, 8))
    tau = 2 * math.pi
    expected = [
        wave(tau * number / temperature) * 0.5 / side
        for number, side in ((y, height), (x, width))
        for temperature in (1, 100)
        for wave in (math.sin, math.cos)
    ]
    torch.testing.assert_close(near.flatten(), torch.tensor(expected), atol=1e-5, rtol=0)


def test_a_layer_starts_where_the_layer_before_moved_the_anchors() -> None:
    """Fresh regressors read nothing and move every anchor by their bias, once more in every layer."""
    decoder = make_decoder(layers=2)
    anchors = torch.randn(1, 3, 4)
    _, boxes = decode(decoder, anchors)
    bias = decoder.regressor.get_parameter("4.bias")
    torch.testing.assert_close(boxes[0], (anchors + bias).sigmoid())
    torch.testing.assert_close(boxes[1], (anchors + 2 * bias).sigmoid())


@pytest.mark.parametrize(("layer", "moves", "starts"), [(0, 1, 1), (1, 2, 1), (2, 2, 0)])
def test_a_box_trains_the_move_of_its_layer_and_of_the_layer_before(layer: int, moves: int, starts: int) -> None:
    """As published. With regressors that read nothing, the gradients of a box before its sigmoid count the biases, and
    the anchors, that it is the sum of and that it trains."""
    decoder = make_decoder(layers=3)
    anchors = torch.zeros(1, 3, 4, requires_grad=True)
    _, boxes = decode(decoder, anchors)
    boxes[layer].logit().sum().backward()
    torch.testing.assert_close(decoder.regressor.get_parameter("4.bias").grad, torch.full((4,), 3.0 * moves))
    torch.testing.assert_close(anchors.grad, torch.full((1, 3, 4), float(starts)))


def test_anchors_near_the_border_are_moved_back() -> None:
    decoder = make_decoder(layers=1)
    torch.nn.init.zeros_(decoder.regressor.get_parameter("4.bias"))
    _, boxes = decode(decoder, torch.tensor([[[-math.inf, math.inf, 9.0, -9.0]] * 3]))
    torch.testing.assert_close(boxes[0, 0, 0], torch.tensor([0.001, 0.999, 0.999, 0.001]))
