"""D-FINE in its published sizes, its deployed form, its parts by hand, and its losses against slow loops."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.testing import assert_close

from detkit.detectors.d_fine import DFINEConfig, build_d_fine
from detkit.nn.assign.hungarian import Pairs, SetTargets
from detkit.nn.assign.union import union_of
from detkit.nn.blocks import ConvBlock
from detkit.nn.deformable import DeformableAttention, Levels
from detkit.nn.denoising import noised_queries
from detkit.nn.heads.d_fine import DFINEHead, DFINEHeadConfig, EdgeQuality, GatedDecoderLayer
from detkit.nn.heads.denoised import DenoisedOutputs
from detkit.nn.necks.elan_fusion import RepELAN, SeparateDown
from detkit.nn.reparam import RepConv, deploy
from detkit.ops.boxes import cxcywh_to_xyxy
from detkit.ops.iou import box_iou
from detkit.structures import Categories, Target
from tests.nn.heads.support import make_target
from tests.nn.test_reparam import with_statistics
from tests.reference.d_fine import as_rows, slow_distillation, slow_localization, slow_union

COCO = Categories.of_names([f"class {i}" for i in range(80)])
CONSTANTS = 2  # published checkpoints hold two numbers that are not trained, reach and scale of the distances
S = {
    "backbone": {"name": "timm", "model": "hgnetv2_b0"},
    "neck": {"expansion": 0.5, "depth": 0.34},
    "head": {"transformer": {"decoder_layers": 3}},
}
N = {
    "backbone": {"name": "timm", "model": "hgnetv2_b0", "strides": (16, 32)},
    "neck": {"width": 128, "feedforward": 512, "expansion": 0.34, "depth": 0.5},
    "head": {"transformer": {"width": 128, "feedforward": 512, "decoder_layers": 3, "points": (6, 6)}},
}
M = {
    "backbone": {"name": "timm", "model": "hgnetv2_b2"},
    "neck": {"depth": 0.67},
    "head": {"transformer": {"decoder_layers": 4}},
}
L: dict[str, Any] = {"backbone": {"name": "timm", "model": "hgnetv2_b4", "norm": "frozen_bn"}}
X = {
    "backbone": {"name": "timm", "model": "hgnetv2_b5", "norm": "frozen_bn"},
    "neck": {"width": 384, "feedforward": 2048},
    "head": {"edges": {"scale": 8}},
}


def num_parameters(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


@pytest.mark.parametrize(
    ("fields", "trained", "deployed"),
    [
        (N, 3_782_693, 3_753_799),
        (S, 10_321_877, 10_237_491),
        (M, 19_590_064, 19_248_189),
        (L, 31_244_152, 30_724_195),
        (X, 62_621_560, 61_601_635),
    ],
    ids=list("nsmlx"),
)
def test_published_parameter_counts(fields: dict[str, Any], trained: int, deployed: int) -> None:
    """The authors' deployed form has no norms in the neck but those of its first layers, and neither classifiers nor
    qualities of the layers before the last."""
    pytest.importorskip("timm")
    with torch.device("meta"):
        detector = build_d_fine(DFINEConfig.model_validate(fields), COCO)
        assert num_parameters(detector) + CONSTANTS == trained
        unused = num_parameters(*detector.head.classifiers[:-1], *detector.head.qualities[:-1])
        neck = deploy(detector.neck)
        folded = [m for m in neck.modules() if isinstance(m, ConvBlock) and m not in set(neck.project)]
        norms = num_parameters(*(module.norm for module in folded)) // 2  # a bias for a scale and a shift
        assert num_parameters(detector) + CONSTANTS - unused - norms == deployed


TRANSFORMER = {"width": 16, "heads": 4, "feedforward": 32, "decoder_layers": 3, "points": (2, 1)}
TARGETS = [make_target([(10, 10, 40, 50), (34, 20, 60, 60)], [1, 2]), make_target([(8, 12, 40, 36)], [0])]
EMPTY = [make_target([]), make_target([])]
SIZES, CANVAS = torch.tensor([[64, 64], [64, 64]]), (64, 64)


def make_head(**fields: Any) -> DFINEHead:
    torch.manual_seed(0)
    small = {"transformer": TRANSFORMER, "num_queries": 6, "denoising": {"queries": 4}, "edges": {"steps": 8}}
    return DFINEHead(DFINEHeadConfig.model_validate(small | fields), [16, 12], 3)


def enliven(head: DFINEHead) -> DFINEHead:
    """Weights with which every prediction depends on all that it may depend on."""
    for name, parameter in head.named_parameters():
        if "norm" not in name and parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3)
    return head


def features() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, channels, side, side, generator=generator) for channels, side in ((16, 8), (12, 4))]


def run(head: DFINEHead, targets: Any) -> DenoisedOutputs:
    torch.manual_seed(2)
    outputs: DenoisedOutputs = head(features(), SIZES, CANVAS, targets)
    return outputs


def test_a_fresh_head_predicts_the_boxes_of_the_cells_in_every_layer() -> None:
    """Its regressors and qualities are zero, so nothing moves and all distributions are flat."""
    outputs = run(make_head().train(), None)
    for layer in outputs.boxes:
        assert_close(layer, outputs.proposals.boxes[0], atol=1e-5, rtol=0)
    assert outputs.decoder.edges.abs().max() == 0
    assert_close(outputs.decoder.first_logits[0], outputs.logits[0])


def test_layers_add_up_their_moves_of_the_first_boxes() -> None:
    """Moves of one logit each by every layer: the same as the sum of the biases at once."""
    head = make_head().train()
    total = torch.zeros(4 * 9)
    for number, regressor in enumerate(head.regressors):
        regressor[-1].bias.data.normal_()
        total = total + regressor[-1].bias.detach()
        outputs = run(head, None)
        assert_close(outputs.decoder.edges[number], total.expand(2, 6, -1))
        assert_close(outputs.boxes[number], head.edges.boxes(outputs.decoder.first_boxes[0], total.expand(2, 6, -1)))


def test_what_has_a_gradient() -> None:
    """The boxes of the last layer: all regressors of edges, but not the first boxes, from which they start."""
    head = enliven(make_head()).train()
    outputs = run(head, None)
    parameters = [*(regressor[-1].bias for regressor in head.regressors), head.first_regressor[-1].bias]
    gradients = torch.autograd.grad(outputs.boxes[-1].sum(), parameters, allow_unused=True)
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in gradients[:-1])
    assert gradients[-1] is None


def test_the_quality_sees_the_four_largest_probabilities_of_each_edge_and_their_mean() -> None:
    quality, seen = EdgeQuality("relu"), []
    quality.mlp.register_forward_hook(lambda layer, inputs, output: seen.append(inputs[0]))
    probabilities = torch.tensor([0.02, 0.4, 0.08, 0.2, 0.3])
    quality(probabilities.log().repeat(4)[None, None])
    assert_close(seen[0][0, 0], torch.tensor([0.4, 0.3, 0.2, 0.08, 0.245]).repeat(4))


def test_gates_start_as_halves() -> None:
    layer = GatedDecoderLayer(make_head().config.transformer, 2)
    assert layer.gates(torch.randn(2, 5, 32)).sigmoid().unique().tolist() == [0.5]


def test_attention_without_projections_is_that_with_identities() -> None:
    torch.manual_seed(0)
    plain, full = DeformableAttention(8, 2, [2, 1], project=False), DeformableAttention(8, 2, [2, 1])
    for layer in (full.value, full.out):
        assert isinstance(layer, nn.Linear)
        layer.weight.data.copy_(torch.eye(8))
        layer.bias.data.zero_()
    assert num_parameters(full) - num_parameters(plain) == 2 * (8 * 8 + 8)
    levels = Levels.of([torch.zeros(1, 8, 4, 4), torch.zeros(1, 8, 2, 2)], torch.tensor([[32, 32]]), (32, 32))
    query, memory, positions = torch.randn(1, 3, 8), torch.randn(1, 20, 8), torch.rand(1, 3, 2, 4)
    assert_close(plain(query, positions, memory, levels), full(query, positions, memory, levels))


@pytest.mark.parametrize("block", [lambda: RepELAN(8, 4, 6, 2), lambda: SeparateDown(8, 4)])
def test_blocks_of_the_neck_are_the_same_deployed(block: Any) -> None:
    module, x = with_statistics(block()), torch.randn(2, 8, 6, 10)
    before = module(x)
    assert before.shape == ((2, 4, 3, 5) if isinstance(module, SeparateDown) else (2, 4, 6, 10))
    network = deploy(copy.deepcopy(module))
    assert not any(isinstance(layer, RepConv) for layer in network.modules())
    assert_close(network(x), before, atol=1e-5, rtol=1e-4)


def pairs_of(rows: list[tuple[int, int, int]], layers: int = 1) -> Pairs:
    images, predictions, objects = torch.tensor(rows, dtype=torch.int64).view(-1, 3).T
    return Pairs(images, predictions.expand(layers, -1), objects.expand(layers, -1))


def test_the_union_by_hand() -> None:
    """Image 0: query 3 answers for object 1 twice and for 0 once; query 5 once for 0. Image 1: query 3 for 2 and for 3
    once each, so for the first."""
    a, b = [(0, 3, 1), (0, 5, 0), (1, 3, 3)], [(0, 3, 0), (0, 4, 1), (1, 3, 2)]
    c = [(0, 3, 1), (0, 5, 0), (1, 7, 2)]
    union = union_of([pairs_of(a), pairs_of(b), pairs_of(c)])
    rows = as_rows(union.images, union.predictions[0], union.objects[0])
    assert rows == [(0, 3, 1), (0, 4, 1), (0, 5, 0), (1, 3, 2), (1, 7, 2)]


def test_the_union_equals_the_slow_one() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        matchings, rows = [], []
        for layers in (3, 1, 1):
            images = torch.arange(2).repeat_interleave(4)
            predictions = torch.stack([torch.randperm(6, generator=generator)[:4] for _ in range(2 * layers)])
            objects = torch.stack([torch.randperm(4, generator=generator) for _ in range(2 * layers)])
            predictions, objects = predictions.view(layers, 8), objects.view(layers, 8) + 4 * images
            matchings.append(Pairs(images, predictions, objects))
            rows += [as_rows(images, predictions[layer], objects[layer]) for layer in range(layers)]
        union = union_of(matchings)
        assert as_rows(union.images, union.predictions[0], union.objects[0]) == slow_union(rows)


def test_the_union_of_nothing() -> None:
    assert union_of([pairs_of([], 3), pairs_of([])]).predictions.shape == (1, 0)


def test_losses_of_boxes_and_edges_equal_slow_loops() -> None:
    head = enliven(make_head()).train()
    outputs = run(head, TARGETS)
    losses, objects = head.criterion(outputs, TARGETS), SetTargets.of(TARGETS, outputs.sides)
    own = [group for group in head.groups(outputs) if group.pairs is None]
    assert [group.name for group in own] == ["detr", "detr_first", "proposal"]
    rows = []
    for group in own:
        pairs = head.assigner.assign(group.logits, group.boxes, objects)
        rows += [as_rows(pairs.images, pairs.predictions[n], pairs.objects[n]) for n in range(len(group.boxes))]
    shared = slow_union(rows)
    assert len(shared) > len(objects.boxes), "more queries than objects answer: else no test of the union"
    assert outputs.noised is not None
    noised = outputs.noised.pairs(1)
    counts = {"detr": (shared, len(shared)), "denoising": (
        as_rows(noised.images, noised.predictions[0], noised.objects[0]), len(objects.boxes) * outputs.noised.groups
    )}  # fmt: skip
    for name, part in {"detr": outputs.decoder, "denoising": outputs.denoising}.items():
        pairs, count = counts[name]
        where = tuple(torch.tensor(pairs).T[:2])
        goals = objects.boxes[[row for _, _, row in pairs]]
        places = head.edges.targets(part.first_boxes[0][where], goals)
        expected = {"localization": [], "l1": [], "distillation": []}
        edges = part.edges.reshape(*part.boxes.shape, -1).detach()
        for layer in range(3):
            boxes = part.boxes[layer][where].detach()
            quality = box_iou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(goals), paired=True)
            expected["l1"].append(5 * float((boxes - goals).abs().sum()) / count)
            expected["localization"].append(0.15 * slow_localization(edges[layer], places, quality, pairs, count))
            expected["distillation"].append(
                1.5 * slow_distillation(edges[layer], edges[2], part.logits[2], quality, pairs, shared, 12)
            )
        assert losses[f"{name}_distillation"].item() == pytest.approx(sum(expected["distillation"]), rel=1e-4)
        for loss in ("l1", "localization"):
            assert losses[f"{name}_{loss}"].item() == pytest.approx(expected[loss][2], rel=1e-4)
            assert losses[f"{name}_aux_{loss}"].item() == pytest.approx(sum(expected[loss][:2]), rel=1e-4)


def test_classes_are_matched_in_each_layer_by_itself() -> None:
    head = enliven(make_head()).train()
    outputs = run(head, TARGETS)
    groups, objects = head.groups(outputs), SetTargets.of(TARGETS, outputs.sides)
    for group, matching in zip(groups, head.match(groups, objects), strict=True):
        if group.pairs is None:
            expected = head.assigner.assign(group.logits, group.boxes, objects)
            assert matching.classes.predictions.equal(expected.predictions)
            assert matching.class_count == len(objects.boxes)
            assert len(matching.boxes.images) == matching.box_count > len(objects.boxes)
        else:
            assert matching.boxes is matching.classes


@pytest.mark.parametrize("targets", [TARGETS, EMPTY], ids=["objects", "none"])
def test_every_weight_has_a_gradient(targets: list[Target]) -> None:
    """Without any object too, or the processes of a distributed training would wait for it."""
    head = make_head().train()
    losses = head.criterion(run(head, targets), targets)
    assert all(loss.isfinite() for loss in losses.values())
    torch.stack(list(losses.values())).sum().backward()
    assert [name for name, parameter in head.named_parameters() if parameter.grad is None] == []


def test_corners_that_noise_moves_past_each_other_change_places() -> None:
    """The same noise, with and without: the same middles, and the sides that were negative turned around."""
    config = make_head().config.denoising
    assert config is not None
    assert config.swap_corners
    objects = SetTargets(torch.tensor([[0.5, 0.5, 0.4, 0.3]]), torch.tensor([1]), [1])
    torch.manual_seed(0)
    swapped = noised_queries(config.model_copy(update={"queries": 50}), objects, 3).boxes
    torch.manual_seed(0)
    plain = noised_queries(config.model_copy(update={"queries": 50, "swap_corners": False}), objects, 3).boxes
    assert plain[..., 2:].min() < 0 <= swapped[..., 2:].min()
    assert_close(swapped, plain.abs())


def test_classes_of_the_weights() -> None:
    rows = make_head().class_rows(3)
    assert set(rows) == {"proposer.classifier", "label_embed", *(f"classifiers.{number}" for number in range(3))}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"input": {"resize": {"name": "letterbox", "size": 640}}}, "input.resize"),
        ({"head": {"transformer": {"points": (4, 4)}}}, "transformer.points"),
    ],
)
def test_parts_that_do_not_fit(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DFINEConfig.model_validate({"backbone": {"name": "resnet18", "strides": (8, 16, 32)}, **fields})
