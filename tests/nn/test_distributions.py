"""Edges as distributions: the distances, boxes and targets by hand, against slow loops, and back again."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from detkit.nn.distributions import EdgeConfig, Edges, edge_distances, edge_distillation_loss

SMALL = EdgeConfig(steps=4)  # distances -4, -2, 0, 2, 4: a whole side is 4
CONFIGS = [EdgeConfig(), EdgeConfig(scale=8), EdgeConfig(steps=8, reach=0.3)]


def slow_distances(config: EdgeConfig) -> list[float]:
    """Equation 3 of arXiv 2410.13842 with a = reach * scale and c = scale: its three cases, one number at a time."""
    distances, last = [], config.steps
    a = config.reach * config.scale
    for n in range(last + 1):
        if n == 0:
            distances.append(-2 * a)
        elif n < last / 2:
            distances.append(1 - (a + 1) ** ((last - 2 * n) / (last - 2)))
        elif n < last:
            distances.append(-1 + (a + 1) ** ((-last + 2 * n) / (last - 2)))
        else:
            distances.append(2 * a)
    return distances


def test_the_distances_of_four_steps() -> None:
    assert edge_distances(SMALL).tolist() == [-4.0, -2.0, 0.0, 2.0, 4.0]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_the_distances_equal_the_formula(config: EdgeConfig) -> None:
    assert_close(edge_distances(config), torch.tensor(slow_distances(config)))


def test_boxes_by_hand() -> None:
    """Left and bottom edges move out by half a side, the top edge in by a half; the right one half stays, half moves
    by a whole side: together by a half."""
    reference = torch.tensor([0.5, 0.4, 0.2, 0.1])
    certain = 50.0
    logits = torch.zeros(4, 5)
    logits[0, 3] = logits[1, 1] = logits[3, 3] = certain
    logits[2, 2] = logits[2, 4] = certain
    # x from 0.4 - 0.1 to 0.6 + 0.1, y from 0.35 + 0.05 to 0.45 + 0.05
    assert_close(Edges(SMALL).boxes(reference, logits.flatten()), torch.tensor([0.5, 0.45, 0.4, 0.1]))


def test_equal_probabilities_leave_the_reference() -> None:
    references = torch.rand(3, 2, 4)
    assert_close(Edges(EdgeConfig()).boxes(references, torch.zeros(3, 2, 4 * 33)), references)


def test_targets_by_hand() -> None:
    """A side is 0.2: x1 moves out by 0.05, which is 1, y1 in by 0.025, -0.5, x2 out by 0.3, beyond 4, y2 in by 0.25,
    beyond -4 (the box ends above its middle)."""
    reference, box = torch.tensor([0.5, 0.5, 0.2, 0.2]), [0.35, 0.425, 0.9, 0.35]
    box = torch.tensor([(box[0] + box[2]) / 2, (box[1] + box[3]) / 2, box[2] - box[0], box[3] - box[1]])
    expected = torch.tensor([2.5, 1.75, 4.0, 0.0])
    targets = Edges(SMALL).targets(reference, box)
    assert_close(targets, expected, atol=1e-5, rtol=0)
    assert targets.max() < 4, "a place after it must exist"


def slow_targets(config: EdgeConfig, reference: list[float], box: list[float]) -> list[float]:
    """The place among the distances of each edge, by going through them from below."""
    distances = slow_distances(config)
    places = []
    for side, sign in ((0, -1), (1, -1), (0, 1), (1, 1)):
        edge = box[side] + sign * box[side + 2] / 2
        move = (sign * (edge - reference[side]) / reference[side + 2] - 0.5) * config.scale
        place = 0.0 if move <= distances[0] else float(config.steps)
        for n in range(config.steps):
            if distances[n] <= move < distances[n + 1]:
                place = n + (move - distances[n]) / (distances[n + 1] - distances[n])
        places.append(place)
    return places


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_targets_equal_the_slow_loop(config: EdgeConfig) -> None:
    generator = torch.Generator().manual_seed(0)
    references, boxes = (torch.rand(40, 4, generator=generator) * 0.5 + 0.1 for _ in range(2))
    expected = [slow_targets(config, a, b) for a, b in zip(references.tolist(), boxes.tolist(), strict=True)]
    assert_close(Edges(config).targets(references, boxes), torch.tensor(expected), atol=1e-4, rtol=0)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_boxes_of_the_targets_are_the_boxes(config: EdgeConfig) -> None:
    """Where they are within reach: two neighbouring distances, mixed as the target says, give the box back."""
    generator = torch.Generator().manual_seed(1)
    references = torch.rand(20, 4, generator=generator) * 0.3 + 0.2
    edges = Edges(config)
    boxes = edges.boxes(references, torch.randn(20, 4 * (config.steps + 1), generator=generator))
    targets = edges.targets(references, boxes)
    before = targets.long()
    probabilities = torch.zeros(20, 4, config.steps + 1)
    probabilities.scatter_(-1, before[..., None], (before + 1 - targets)[..., None])
    probabilities.scatter_(-1, before[..., None] + 1, (targets - before)[..., None])
    assert_close(edges.boxes(references, probabilities.log().flatten(1)), boxes, atol=1e-5, rtol=1e-5)


def slow_distillation(logits: list[float], teacher: list[float], temperature: float) -> float:
    def soft(values: list[float]) -> list[float]:
        weights = [math.exp(value / temperature) for value in values]
        return [weight / sum(weights) for weight in weights]

    return temperature**2 * sum(t * math.log(t / s) for t, s in zip(soft(teacher), soft(logits), strict=True))


def test_distillation_equals_its_formula_and_pulls_the_student_alone() -> None:
    torch.manual_seed(0)
    logits, teacher = (torch.randn(3, 4, 9, dtype=torch.float64, requires_grad=True) for _ in range(2))
    loss = edge_distillation_loss(logits, teacher, 5.0)
    pairs = zip(logits.reshape(12, 9).tolist(), teacher.reshape(12, 9).tolist(), strict=True)
    assert_close(loss.flatten(), torch.tensor([slow_distillation(a, b, 5.0) for a, b in pairs], dtype=torch.float64))
    loss.sum().backward()
    assert teacher.grad is None
    assert torch.autograd.gradcheck(lambda x: edge_distillation_loss(x, teacher.detach(), 5.0), logits)


def test_distillation_from_oneself_is_nothing() -> None:
    logits = torch.randn(5, 9, requires_grad=True)
    loss: Tensor = edge_distillation_loss(logits, logits, 5.0)
    loss.sum().backward()
    assert_close(loss, torch.zeros(5), atol=1e-5, rtol=0)
    assert logits.grad is not None
    assert_close(logits.grad, torch.zeros(5, 9), atol=1e-5, rtol=0)
