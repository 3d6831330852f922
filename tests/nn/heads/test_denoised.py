"""DINO's head: where its queries start, what they may see, what layers learn from, and the losses of all groups."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detkit.nn.assign.hungarian import SetTargets
from detkit.nn.deformable import Levels
from detkit.nn.denoising import noised_queries
from detkit.nn.heads.denoised import DenoisedOutputs, Queries
from detkit.nn.heads.dino import DINOHead, DINOHeadConfig
from detkit.nn.heads.set_head import DETROutputs, picture_sides
from detkit.structures import Size, Target
from tests.nn.heads.support import make_target

TRANSFORMER = {
    "width": 16,
    "heads": 4,
    "encoder_layers": 1,
    "decoder_layers": 3,
    "feedforward": 32,
    "points": 2,
}
DENOISING = {"queries": 4}
SIZES, CANVAS = torch.tensor([[64, 96], [48, 64]]), (64, 96)
TARGETS = [make_target([(10, 10, 40, 50), (50, 20, 90, 60)], [1, 2]), make_target([(8, 12, 40, 36)], [0])]
OTHERS = [make_target([(0, 0, 60, 60), (5, 30, 25, 50)], [0, 0]), make_target([(20, 10, 60, 46)], [2])]
EMPTY = [make_target([]), make_target([])]


def make_head(**fields: Any) -> DINOHead:
    torch.manual_seed(0)
    settings = {"transformer": TRANSFORMER, "num_queries": 6, "denoising": DENOISING, **fields}
    return DINOHead(DINOHeadConfig.model_validate(settings), [16, 16], 3)


def enliven(head: DINOHead) -> DINOHead:
    """Weights with which every prediction depends on all that it may depend on."""
    for name, parameter in head.named_parameters():
        if "norm" not in name and parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3)
    return head


def features(canvas: Size = CANVAS) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, 16, canvas[0] // stride, canvas[1] // stride, generator=generator) for stride in (8, 16)]


def run(head: DINOHead, targets: list[Target] | None) -> DenoisedOutputs:
    outputs: DenoisedOutputs = head(features(), SIZES, CANVAS, targets)
    return outputs


def test_sections_keep_their_other_defaults() -> None:
    config = make_head().config
    assert (config.transformer.dropout, config.denoising and config.denoising.box_noise) == (0.0, 0.4)
    assert DINOHeadConfig.model_validate({"transformer": {"points": 2}}).transformer.feedforward == 2048
    assert DINOHeadConfig.model_validate({"selection": {"score_threshold": 0.1}}).selection.max_detections == 300


def test_queries_start_at_the_likeliest_cells_with_a_content_of_their_own() -> None:
    """A fresh regressor moves nothing, so the first layer predicts the boxes of the cells: their sides are 0.05, or 0.1
    on the coarser level, or 1 at cells of the padding of the second picture, which are chosen if too few others are."""
    head = make_head().eval()
    seen: list[Tensor] = []
    head.decoder[0].register_forward_hook(lambda layer, inputs, output: seen.append(inputs[0]))
    outputs = run(head, None)
    memory = head.encode(features(), Levels.of(features(), SIZES, CANVAS))
    proposals = head.proposer.locate(head.proposer(memory, Levels.of(features(), SIZES, CANVAS)))
    best = proposals.logits.amax(dim=2).argsort(dim=1, descending=True)[:, :6]
    expected = proposals.anchors.sigmoid().take_along_dim(best[..., None], 1)
    torch.testing.assert_close(outputs.proposals.boxes[0], expected)
    torch.testing.assert_close(outputs.proposals.logits[0], proposals.logits.take_along_dim(best[..., None], 1))
    torch.testing.assert_close(outputs.boxes[0], expected.clamp(1e-3, 1 - 1e-3), atol=1e-6, rtol=0)
    assert {round(side, 4) for side in expected[..., 2:].flatten().tolist()} <= {0.05, 0.1, 1.0}
    torch.testing.assert_close(seen[0], head.queries.expand(2, 6, 16))


def test_fewer_cells_than_queries() -> None:
    head = make_head(num_queries=100).eval()
    assert head([torch.randn(1, 16, 4, 4), torch.randn(1, 16, 2, 2)], SIZES[:1], (64, 96)).boxes.shape == (3, 1, 20, 4)


def test_position_embeddings_are_of_y_x_w_h_on_the_canvas() -> None:
    """The second picture is 48 of 64 px high and 64 of 96 px wide: its boxes are 3/4 and 2/3 of that on the canvas."""
    head = make_head().eval()
    seen: list[Tensor] = []
    head.query_pos.register_forward_hook(lambda layer, inputs, output: seen.append(inputs[0]))
    x, y, w, h = run(head, None).proposals.boxes[0, 1].unbind(dim=-1)
    for number, share in enumerate([y * 3 / 4, x * 2 / 3, w * 2 / 3, h * 3 / 4]):
        torch.testing.assert_close(seen[0][1, :, 8 * number], (2 * math.pi * share).sin())
        torch.testing.assert_close(seen[0][1, :, 8 * number + 7], (2 * math.pi * share / 10000 ** (6 / 8)).cos())


def test_padding_changes_nothing_but_the_queries_position_embeddings() -> None:
    """Those are of the boxes on the canvas (see above)."""
    head, size = enliven(make_head()).eval(), torch.tensor([[64, 96]])
    nn.init.zeros_(head.query_pos.get_parameter("2.weight"))
    alone, padded = [level[:1] for level in features()], [level[:1] for level in features((96, 160))]
    for small, large in zip(alone, padded, strict=True):
        large[:, :, : small.shape[2], : small.shape[3]] = small
    with torch.no_grad():
        expected, outputs = head(alone, size, (64, 96)), head(padded, size, (96, 160))
    torch.testing.assert_close(outputs.boxes, expected.boxes, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(outputs.logits, expected.logits, atol=1e-4, rtol=1e-4)


def test_a_layer_learns_from_the_prediction_after_it_and_no_later_one() -> None:
    """The shared bias moves the box of a layer once, and once more the box of the layer before, from which it starts;
    the one before that comes without gradient."""
    head = make_head()
    outputs = run(head, None)
    for layer, times in enumerate([1, 2, 2]):
        boxes = outputs.boxes[layer]
        bias = head.regressor.get_parameter("4.bias")
        (gradient,) = torch.autograd.grad(boxes.sum(), bias, retain_graph=True)
        inside = (boxes > 2e-3) & (boxes < 1 - 2e-3)
        torch.testing.assert_close(gradient, (times * boxes * (1 - boxes) * inside).sum(dim=(0, 1)), atol=2e-3, rtol=0)


def decode(head: DINOHead, change: int | None) -> DETROutputs:
    """The predictions of all queries after the content of one of them changed."""
    levels, objects = Levels.of(features(), SIZES, CANVAS), SetTargets.of(TARGETS, picture_sides(SIZES))
    torch.manual_seed(2)
    assert head.config.denoising
    noised = noised_queries(head.config.denoising, objects, 3)
    count = noised.labels.shape[1] + 6
    content, anchors = torch.randn(2, count, 16), torch.randn(2, count, 4)
    if change is not None:
        content[:, change] += 1
    queries = Queries(content, anchors, noised.mask_with(6))
    with torch.no_grad():
        return head.decode(queries, head.encode(features(), levels), levels, picture_sides(SIZES))


@pytest.mark.parametrize("change", [0, 5, 8])
def test_a_change_of_one_query_reaches_those_that_may_see_it_and_no_others(change: int) -> None:
    """Two groups of four queries (two objects, two negatives), then six matching ones."""
    head = enliven(make_head())
    before, after = decode(head, None), decode(head, change)
    group = {0: range(4), 5: range(4, 8), 8: range(14)}[change]
    for query in range(14):
        same = before.logits[:, :, query].equal(after.logits[:, :, query])
        assert same == (query not in group), query


def test_the_matching_queries_do_not_see_the_objects() -> None:
    """Other objects, as many, and other noise: their predictions and the proposals stay equal to the bit."""
    head = enliven(make_head()).train()
    first, second = run(head, TARGETS), run(head, OTHERS)
    assert first.denoising is not None
    assert second.denoising is not None
    assert not first.denoising.logits.equal(second.denoising.logits)
    assert first.logits.equal(second.logits)
    assert first.boxes.equal(second.boxes)
    assert first.proposals.logits.equal(second.proposals.logits)
    torch.testing.assert_close(run(head, None).logits, first.logits, atol=1e-5, rtol=1e-5)


def test_losses_by_name() -> None:
    head = make_head()
    groups = ("detr", "detr_aux", "proposal", "denoising", "denoising_aux")
    names = {f"{group}_{loss}" for group in groups for loss in ("class", "l1", "giou")}
    assert head.criterion(run(head, TARGETS), TARGETS).keys() == names
    expected = {name for name in names if not name.startswith("denoising")}
    assert head.criterion(run(head, None), TARGETS).keys() == expected
    without = make_head(denoising=None)
    assert not hasattr(without, "label_embed")
    assert without.criterion(run(without, TARGETS), TARGETS).keys() == expected


def test_denoising_losses_by_hand() -> None:
    """Each is the sum over two groups of the objects' queries, divided by three objects times two groups. The logits of
    the class of an object are 2, all others -1; negatives and empty slots are no object."""
    head = make_head()
    outputs = run(head, TARGETS)
    assert outputs.denoising is not None
    assert outputs.noised is not None
    objects = SetTargets.of(TARGETS, outputs.sides)
    logits, boxes = torch.full((3, 2, 8, 3), -1.0), torch.full((3, 2, 8, 4), 0.5)
    for image, query, row in ((0, 0, 0), (0, 1, 1), (0, 4, 0), (0, 5, 1), (1, 0, 2), (1, 4, 2)):
        logits[:, image, query, objects.labels[row]] = 2.0
        boxes[:, image, query] = objects.boxes[row]
    boxes[2, 1, 4, 0] += 0.03  # of one query of the last layer, one coordinate
    denoising = replace(outputs.denoising, logits=logits, boxes=boxes)
    losses = head.criterion(replace(outputs, denoising=denoising), TARGETS)
    positive = 0.25 * _sigmoid(-2.0) ** 2 * -math.log(_sigmoid(2.0))
    negative = 0.75 * _sigmoid(-1.0) ** 2 * -math.log(_sigmoid(1.0))
    expected = (6 * positive + (2 * 8 * 3 - 6) * negative) / 6
    assert losses["denoising_class"].item() == pytest.approx(expected, rel=1e-5)
    assert losses["denoising_aux_class"].item() == pytest.approx(2 * expected, rel=1e-5)
    assert losses["denoising_l1"].item() == pytest.approx(5 * 0.03 / 6, rel=1e-4)
    assert losses["denoising_aux_l1"].item() == pytest.approx(0.0, abs=1e-6)
    assert losses["denoising_aux_giou"].item() == pytest.approx(0.0, abs=1e-5)


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize("targets", [TARGETS, EMPTY], ids=["objects", "none"])
def test_every_weight_has_a_gradient(targets: list[Target]) -> None:
    """Without any object too, or the processes of a distributed training would wait for it."""
    head = make_head().train()
    losses = head.criterion(run(head, targets), targets)
    assert all(loss.isfinite() for loss in losses.values())
    torch.stack(list(losses.values())).sum().backward()
    assert [name for name, parameter in head.named_parameters() if parameter.grad is None] == []


def test_ignored_objects_are_not_denoised() -> None:
    targets = [make_target([(10, 10, 40, 50), (50, 20, 90, 60)], [1, 2], ignore=[True, False]), TARGETS[1]]
    outputs = run(make_head(denoising={"queries": 4, "label_noise": 0}), targets)
    assert outputs.noised is not None
    assert outputs.noised.labels.tolist() == [[2] * 8, [0] * 8]


def test_classes_of_the_weights() -> None:
    head = make_head()
    assert {name: rows.tolist() for name, rows in head.class_rows(3).items()} == {
        "classifier": [0, 1, 2],
        "proposer.classifier": [0, 1, 2],
        "label_embed": [0, 1, 2, -3],
    }
