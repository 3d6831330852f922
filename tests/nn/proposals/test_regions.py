"""Regions of a batch in one row, by hand."""

import pytest
import torch

from detkit.nn.proposals.regions import Regions

FIRST, SECOND, THIRD = [0.0, 0.0, 1.0, 1.0], [2.0, 2.0, 3.0, 3.0], [4.0, 4.0, 5.0, 5.0]


def test_a_list_becomes_one_row_and_a_list_again() -> None:
    parts = [torch.tensor([FIRST, SECOND]), torch.zeros(0, 4), torch.tensor([THIRD])]
    regions = Regions.from_list(parts)
    assert regions.boxes.tolist() == [FIRST, SECOND, THIRD]
    assert regions.images.tolist() == [0, 0, 2]
    assert regions.images.dtype == torch.int64
    assert regions.valid.tolist() == [True, True, True]
    for part, expected in zip(regions.to_list(3), parts, strict=True):
        assert torch.equal(part, expected)


def test_images_without_any_region() -> None:
    regions = Regions.from_list([torch.zeros(0, 4), torch.zeros(0, 4)])
    assert regions.rois().shape == (0, 5)
    assert [part.shape for part in regions.to_list(2)] == [(0, 4), (0, 4)]
    assert regions.compact().boxes.shape == (0, 4)


def test_rois_start_with_the_image() -> None:
    regions = Regions.from_list([torch.zeros(0, 4), torch.tensor([SECOND])])
    assert regions.rois().tolist() == [[1, *SECOND]]


def test_rows_that_only_fill_up_are_dropped_but_not_in_a_compiled_program(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.tensor([0, 0, 1])
    regions = Regions(torch.tensor([FIRST, SECOND, THIRD]), images, torch.tensor([True, False, True]))
    assert [part.tolist() for part in regions.to_list(2)] == [[FIRST], [THIRD]]
    compact = regions.compact()
    assert compact.boxes.tolist() == [FIRST, THIRD]
    assert compact.images.tolist() == [0, 1]
    assert compact.valid.tolist() == [True, True]
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert regions.compact() is regions
