"""Deformable attention beside the formula, point by point, and cases by hand."""

import math

import pytest
import torch
from torch import Tensor

from detkit.ops.deformable_attention import deformable_attention

SIZES = ((3, 5), (2, 2), (1, 4))
POINTS = (3, 1, 2)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def random_inputs() -> tuple[Tensor, Tensor, Tensor]:
    cells = sum(height * width for height, width in SIZES)
    values = torch.randn(2, cells, 4, 3, dtype=torch.float64)
    locations = torch.rand(2, 7, 4, sum(POINTS), 2, dtype=torch.float64) * 1.4 - 0.2  # some beyond the maps
    return values, locations, torch.randn(2, 7, 4, sum(POINTS), dtype=torch.float64).softmax(dim=-1)


def slow(values: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """Equation 3 of the paper."""
    batch, queries, heads, _, _ = locations.shape
    out = torch.zeros(batch, queries, heads, values.shape[-1], dtype=values.dtype)
    for b, q, m in torch.cartesian_prod(*(torch.arange(n) for n in (batch, queries, heads))).tolist():
        start = number = 0
        for (height, width), count in zip(SIZES, POINTS, strict=True):
            for _ in range(count):
                x, y = (locations[b, q, m, number] * torch.tensor([width, height]) - 0.5).tolist()
                for row in (math.floor(y), math.floor(y) + 1):
                    for column in (math.floor(x), math.floor(x) + 1):
                        if 0 <= row < height and 0 <= column < width:
                            near = (1 - abs(y - row)) * (1 - abs(x - column))
                            value = values[b, start + row * width + column, m]
                            out[b, q, m] += weights[b, q, m, number] * near * value
                number += 1
            start += height * width
    return out.flatten(2)


def test_it_is_the_formula() -> None:
    values, locations, weights = random_inputs()
    torch.testing.assert_close(
        deformable_attention(values, SIZES, locations, weights, POINTS), slow(values, locations, weights)
    )


def test_its_gradients() -> None:
    values, locations, weights = (tensor[:1].requires_grad_() for tensor in random_inputs())

    def attend(*tensors: Tensor) -> Tensor:
        values, locations, weights = tensors
        return deformable_attention(values, SIZES, locations, weights, POINTS)

    assert torch.autograd.gradcheck(attend, (values, locations, weights))


def test_a_point_in_the_middle_of_a_cell_takes_its_value_and_one_between_two_their_mean() -> None:
    values = torch.tensor([1.0, 2, 3, 4]).view(1, 4, 1, 1)
    locations = torch.tensor([[0.25, 0.75], [0.5, 0.25], [1.25, 0.25]]).view(1, 3, 1, 1, 2)
    out = deformable_attention(values, [(2, 2)], locations, torch.ones(1, 3, 1, 1), [1])
    assert out.flatten().tolist() == [3, 1.5, 0]  # the last lies beyond the map


def test_what_is_not_finite_spoils_the_result() -> None:
    """Then the loss is not finite either, and the training loop says so; a point far beyond the map takes nothing."""
    values = torch.ones(1, 4, 1, 1)
    locations = torch.tensor([[math.nan, 0.5], [math.inf, 0.5], [0.5, 0.5], [5.0, 0.5]]).view(1, 4, 1, 1, 2)
    weights = torch.tensor([1.0, 1, math.nan, 1]).view(1, 4, 1, 1)
    out = deformable_attention(values, [(2, 2)], locations, weights, [1]).flatten()
    assert out[:3].isnan().all()
    assert out[3] == 0


def test_tensors_of_different_precision() -> None:
    """As under autocast: values in bfloat16, positions in float32."""
    values, locations, weights = (tensor.float() for tensor in random_inputs())
    expected = deformable_attention(values, SIZES, locations, weights, POINTS)
    mixed = deformable_attention(values.bfloat16(), SIZES, locations.bfloat16(), weights.bfloat16(), POINTS)
    assert mixed.dtype == torch.bfloat16
    torch.testing.assert_close(mixed.float(), expected, atol=0.1, rtol=0.1)


def test_discrete_sampling_takes_one_cell_for_each_point() -> None:
    """That whose upper left corner is nearest; beyond a map, be it wide or high, one at its border."""
    values, locations, weights = random_inputs()
    expected = torch.zeros(2, 7, 4, 3, dtype=torch.float64)
    for b, q, m in torch.cartesian_prod(*(torch.arange(n) for n in (2, 7, 4))).tolist():
        start = number = 0
        for (height, width), count in zip(SIZES, POINTS, strict=True):
            for _ in range(count):
                x, y = locations[b, q, m, number].tolist()
                column = min(max(math.floor(x * width + 0.5), 0), width - 1)
                row = min(max(math.floor(y * height + 0.5), 0), height - 1)
                expected[b, q, m] += weights[b, q, m, number] * values[b, start + row * width + column, m]
                number += 1
            start += height * width
    actual = deformable_attention(values, SIZES, locations, weights, POINTS, "discrete")
    torch.testing.assert_close(actual, expected.flatten(2))
