"""The assignment of least cost, against brute force."""

from itertools import permutations

import pytest
import torch
from torch import Tensor

from detkit.nn.assign.hungarian import Pairs, match_hungarian


def brute_force(cost: Tensor) -> float:
    """The least total cost `[Q, M]` of min(Q, M) pairs, by trying all."""
    queries, objects = cost.shape
    if queries < objects:
        return brute_force(cost.T)
    columns = torch.arange(objects)
    return min((cost[list(rows), columns].sum().item() for rows in permutations(range(queries), objects)), default=0.0)


def of_image(pairs: Pairs, image: int) -> tuple[Tensor, Tensor]:
    """Queries and objects `[L, P_b]` of one image."""
    chosen = pairs.images == image
    return pairs.queries[:, chosen], pairs.objects[:, chosen]


@pytest.mark.parametrize("queries", [1, 2, 3, 5])
@pytest.mark.parametrize("objects", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("tied", [False, True])
def test_the_total_cost_is_the_least(queries: int, objects: int, tied: bool) -> None:
    generator = torch.Generator().manual_seed(queries * 10 + objects)
    for _ in range(10):
        cost = torch.randn(2, queries, objects, generator=generator)
        if tied:
            cost = cost.round()
        pairs = match_hungarian([cost])
        assert pairs.queries.shape == pairs.objects.shape == (2, min(queries, objects))
        for layer in range(2):
            chosen, wanted = pairs.queries[layer], pairs.objects[layer]
            assert len(set(chosen.tolist())) == len(set(wanted.tolist())) == min(queries, objects)
            assert cost[layer, chosen, wanted].sum().item() == pytest.approx(brute_force(cost[layer]), abs=1e-5)


def test_a_greedy_choice_would_be_dearer() -> None:
    pairs = match_hungarian([torch.tensor([[[1.0, 2.0], [2.0, 9.0]]])])
    assert pairs.queries.tolist() == [[0, 1]]
    assert pairs.objects.tolist() == [[1, 0]]


def test_images_and_layers_together_equal_each_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    counts = [3, 0, 7, 1]
    costs = [torch.randn(4, 6, count, generator=generator) for count in counts]
    pairs = match_hungarian(costs)
    assert pairs.images.tolist() == [0] * 3 + [2] * 6 + [3]
    for image, cost in enumerate(costs):
        queries, objects = of_image(pairs, image)
        for layer in range(4):
            alone = match_hungarian([cost[layer : layer + 1]])
            assert torch.equal(queries[layer], alone.queries[0])
            assert torch.equal(objects[layer], alone.objects[0] + sum(counts[:image]))


def test_images_without_objects_have_no_pairs() -> None:
    pairs = match_hungarian([torch.zeros(3, 5, 0), torch.zeros(3, 5, 0)])
    assert pairs.images.shape == (0,)
    assert pairs.queries.shape == pairs.objects.shape == (3, 0)
    assert pairs.queries.dtype == pairs.objects.dtype == pairs.images.dtype == torch.int64


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_cost_that_is_no_number_is_the_last_choice(value: float) -> None:
    cost = torch.tensor([[[5.0, 1.0], [value, 3.0], [9.0, value]]])
    pairs = match_hungarian([cost])
    assert pairs.queries.tolist() == [[0, 1]]
    assert pairs.objects.tolist() == [[0, 1]]
    assert len(match_hungarian([torch.full((1, 2, 2), value)]).images) == 2
