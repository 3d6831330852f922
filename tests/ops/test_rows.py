"""Values of all images in one row to a fixed number of rows an image, against a slow loop."""

import pytest
import torch
from torch import Tensor

from detkit.ops.rows import ranks_in_groups, to_rows


def slow_ranks(groups: list[int]) -> list[int]:
    return [groups[:index].count(group) for index, group in enumerate(groups)]


def slow_rows(column: Tensor, images: list[int], num_images: int, limit: int) -> tuple[Tensor, list[int]]:
    rows, counts = torch.zeros(num_images, limit, *column.shape[1:], dtype=column.dtype), [0] * num_images
    for value, image in zip(column, images, strict=True):
        if counts[image] < limit:
            rows[image, counts[image]] = value
            counts[image] += 1
    return rows, counts


CASES = {
    "random": torch.randint(0, 4, (50,), generator=torch.Generator().manual_seed(0)),
    "descending": torch.tensor([3, 3, 2, 2, 2, 0]),
    "one group": torch.zeros(7, dtype=torch.int64),
    "one value": torch.tensor([2]),
    "empty": torch.zeros(0, dtype=torch.int64),
}
cases = pytest.mark.parametrize("groups", CASES.values(), ids=CASES)


@cases
def test_ranks_count_the_values_of_the_group_before(groups: Tensor) -> None:
    assert ranks_in_groups(groups, 4).tolist() == slow_ranks(groups.tolist())


@cases
@pytest.mark.parametrize("limit", [1, 3, 100])
def test_rows_hold_the_first_values_of_each_image_in_their_order(groups: Tensor, limit: int) -> None:
    generator = torch.Generator().manual_seed(1)
    boxes = torch.rand(len(groups), 4, generator=generator)
    scores = torch.randint(0, 3, (len(groups),), generator=generator).float()  # many are equal
    labels = torch.randint(0, 9, (len(groups),), generator=generator)
    rows, counts = to_rows([boxes, scores, labels], groups, num_images=4, limit=limit)
    for column, actual in zip((boxes, scores, labels), rows, strict=True):
        expected, expected_counts = slow_rows(column, groups.tolist(), 4, limit)
        assert torch.equal(actual, expected)
        assert actual.dtype == column.dtype
        assert counts.tolist() == expected_counts
