"""The assignment of least cost, against brute force, and what a pair costs."""

from itertools import permutations

import pytest
import torch
from torch import Tensor

from detkit.nn.assign.hungarian import HungarianAssigner, Pairs, SetTargets, solve
from detkit.structures import Objects, Target


def least_cost(cost: Tensor) -> float:
    """The least total cost `[Q, M]` of min(Q, M) pairs, by trying all."""
    predictions, objects = cost.shape
    if predictions < objects:
        return least_cost(cost.T)
    columns = torch.arange(objects)
    return min(
        (cost[list(rows), columns].sum().item() for rows in permutations(range(predictions), objects)), default=0.0
    )


def pairs_in(pairs: Pairs, image: int) -> tuple[Tensor, Tensor]:
    """Predictions and objects `[L, P_b]` of one image."""
    keep = pairs.images == image
    return pairs.predictions[:, keep], pairs.objects[:, keep]


@pytest.mark.parametrize("predictions", [1, 2, 3, 5])
@pytest.mark.parametrize("objects", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("tied", [False, True])
def test_the_total_cost_is_the_least(predictions: int, objects: int, tied: bool) -> None:
    generator = torch.Generator().manual_seed(predictions * 10 + objects)
    for _ in range(10):
        cost = torch.randn(2, predictions, objects, generator=generator)
        if tied:
            cost = cost.round()
        pairs = solve([cost])
        count = min(predictions, objects)
        assert pairs.predictions.shape == pairs.objects.shape == (2, count)
        for layer in range(2):
            rows, columns = pairs.predictions[layer], pairs.objects[layer]
            assert len(set(rows.tolist())) == len(set(columns.tolist())) == count
            assert cost[layer, rows, columns].sum().item() == pytest.approx(least_cost(cost[layer]), abs=1e-5)


def test_a_greedy_choice_would_cost_more() -> None:
    pairs = solve([torch.tensor([[[1.0, 2.0], [2.0, 9.0]]])])
    assert pairs.predictions.tolist() == [[0, 1]]
    assert pairs.objects.tolist() == [[1, 0]]


def test_images_and_layers_together_equal_each_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    counts = [3, 0, 7, 1]
    costs = [torch.randn(4, 6, count, generator=generator) for count in counts]
    pairs = solve(costs)
    assert pairs.images.tolist() == [0] * 3 + [2] * 6 + [3]
    for image, cost in enumerate(costs):
        predictions, objects = pairs_in(pairs, image)
        for layer in range(4):
            alone = solve([cost[layer : layer + 1]])
            assert torch.equal(predictions[layer], alone.predictions[0])
            assert torch.equal(objects[layer], alone.objects[0] + sum(counts[:image]))


def test_images_without_objects_have_no_pairs() -> None:
    pairs = solve([torch.zeros(3, 5, 0), torch.zeros(3, 5, 0)])
    assert pairs.images.shape == (0,)
    assert pairs.predictions.shape == pairs.objects.shape == (3, 0)
    assert pairs.predictions.dtype == pairs.objects.dtype == pairs.images.dtype == torch.int64


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_cost_that_is_not_finite_is_the_last_choice(value: float) -> None:
    cost = torch.tensor([[[5.0, 1.0], [value, 3.0], [9.0, value]]])
    pairs = solve([cost])
    assert pairs.predictions.tolist() == [[0, 1]]
    assert pairs.objects.tolist() == [[0, 1]]
    assert len(solve([torch.full((1, 2, 2), value)]).images) == 2


def make_target(boxes: list[list[float]], labels: list[int], ignore: list[bool]) -> Target:
    return Target(Objects(torch.tensor(boxes).float().view(-1, 4), torch.tensor(labels), torch.tensor(ignore)))


TARGETS = [
    make_target([[20, 10, 60, 50], [0, 0, 100, 100], [100, 0, 200, 100]], [1, 0, 2], [False, True, False]),
    make_target([[5, 10, 25, 40]], [0], [False]),
]
SIDES = torch.tensor([[200.0, 100, 200, 100], [50, 50, 50, 50]])


def test_targets_are_parts_of_their_pictures_without_the_ignored() -> None:
    targets = SetTargets.of(TARGETS, SIDES)
    torch.testing.assert_close(
        targets.boxes, torch.tensor([[0.2, 0.3, 0.2, 0.4], [0.75, 0.5, 0.5, 1.0], [0.3, 0.5, 0.4, 0.6]])
    )
    assert targets.labels.tolist() == [1, 2, 0]
    assert targets.counts == [2, 1]
    twice, rows = targets.repeat(2)
    assert twice.labels.tolist() == [1, 2, 1, 2, 0, 0]
    assert torch.equal(twice.boxes, targets.boxes[[0, 1, 0, 1, 2, 2]])
    assert twice.counts == [4, 2]
    assert rows.tolist() == [0, 1, 0, 1, 2, 2]


def test_a_pair_costs_class_distance_and_overlap() -> None:
    """One image and one object (.2, .3, .2, .4); the second prediction lies .05 beside: GIoU .15 / .25."""
    boxes = torch.tensor([[[[0.2, 0.3, 0.2, 0.4], [0.25, 0.3, 0.2, 0.4]]]])
    logits = torch.tensor([[[[0.1, 0.2], [0.3, 0.7]]]])
    targets = SetTargets(boxes[0, 0, :1], torch.tensor([1]), [1])

    def matched(class_weight: float, l1_weight: float, giou_weight: float) -> int:
        assigner = HungarianAssigner(lambda logits, labels: -logits[:, :, labels], class_weight, l1_weight, giou_weight)
        return int(assigner.assign(logits, boxes, targets).predictions.item())

    assert matched(1.0, 0.0, 0.0) == 1
    assert matched(1.0, 11.0, 0.0) == 0  # .5 of a class against 11 x .05
    assert matched(1.0, 9.0, 0.0) == 1
    assert matched(1.0, 0.0, 1.3) == 0  # .5 of a class against 1.3 x .4
    assert matched(1.0, 0.0, 1.2) == 1
