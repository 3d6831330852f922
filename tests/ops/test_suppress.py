"""The operator of exported programs against `detkit.ops.nms`, which has slow references of its own."""

import pytest
import torch
from torch import Tensor, nn

from detkit.ops.nms import nms
from detkit.ops.suppress import decomposed_suppress, suppress

INF = torch.inf
both = pytest.mark.parametrize("function", [suppress, decomposed_suppress])


def draw(groups: int, classes: int, boxes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Boxes `[G, N, 4]` and scores `[G, C, N]`, a third of which are no candidates; some scores are equal."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(groups, boxes, 2, generator=generator) * 30
    sides = torch.rand(groups, boxes, 2, generator=generator) * 30 + 1
    scores = (torch.rand(groups, classes, boxes, generator=generator) * 20).round() / 20
    absent = torch.rand(scores.shape, generator=generator) < 1 / 3
    return torch.cat([corners, corners + sides], dim=2), scores.masked_fill(absent, -INF)


@both
def test_by_hand(function: type) -> None:
    """Boxes 0 and 1 have an IoU of 80 / 120, box 2 meets none."""
    boxes = torch.tensor([[[0.0, 0, 10, 10], [2, 0, 12, 10], [50, 50, 60, 60]]])
    scores = torch.tensor([[[0.9, 0.8, 0.1], [0.7, 0.8, -INF], [-INF, 0.5, 0.5]]])
    remaining = function(boxes, scores, 0.5)
    assert remaining.tolist() == [[[True, False, True], [False, True, False], [False, True, True]]]
    assert function(boxes, scores, 0.7).tolist() == (scores > -INF).tolist()


@both
def test_an_overlap_equal_to_the_threshold_suppresses_nothing(function: type) -> None:
    boxes, scores = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 4]]]), torch.tensor([[[0.9, 0.8]]])
    assert function(boxes, scores, 0.4).tolist() == [[[True, True]]]


@both
@pytest.mark.parametrize("shape", [(2, 3, 40), (1, 1, 1), (3, 2, 0), (0, 2, 5)])
def test_each_class_of_each_group_on_its_own(function: type, shape: tuple[int, int, int]) -> None:
    boxes, scores = draw(*shape, seed=sum(shape))
    remaining = function(boxes, scores, 0.4)
    expected = torch.zeros_like(scores, dtype=torch.bool)
    for group in range(shape[0]):
        for label in range(shape[1]):
            candidates = torch.nonzero(scores[group, label] > -INF).squeeze(1)
            rows = nms(boxes[group, candidates], scores[group, label, candidates], 0.4)
            expected[group, label, candidates[rows]] = True
    assert torch.equal(remaining, expected)


class Suppression(nn.Module):
    def forward(self, boxes: Tensor, scores: Tensor) -> Tensor:
        result: Tensor = suppress(boxes, scores, 0.4)
        return result


def test_its_result_has_a_fixed_shape_in_a_program() -> None:
    program = torch.export.export(Suppression(), draw(2, 3, 20, seed=0), strict=False)
    (output,) = program.graph.output_node().args[0]
    assert list(output.meta["val"].shape) == [2, 3, 20]
    boxes, scores = draw(2, 3, 20, seed=1)
    assert torch.equal(program.module()(boxes, scores), suppress(boxes, scores, 0.4))


def test_a_decomposed_program_holds_no_operator_of_detkit() -> None:
    sides = {0: torch.export.Dim("groups"), 1: torch.export.Dim("boxes")}
    shapes = (sides, {0: sides[0], 2: sides[1]})
    program = torch.export.export(Suppression(), draw(2, 3, 20, seed=0), dynamic_shapes=shapes, strict=False)
    plain = program.run_decompositions({torch.ops.detkit.suppress.default: decomposed_suppress})
    assert not any("detkit" in str(node.target) for node in plain.graph.nodes)
    for shape in ((2, 3, 20), (4, 3, 50), (3, 3, 2)):
        boxes, scores = draw(*shape, seed=2)
        assert torch.equal(plain.module()(boxes, scores), suppress(boxes, scores, 0.4))
    none = torch.full_like(scores, -INF)
    assert not plain.module()(boxes, none).any()
