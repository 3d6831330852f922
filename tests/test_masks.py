"""Masks keep their pixels, whatever form they have: polygons, run lengths, or pixels within windows."""

from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from detkit.structures import EncodedMasks, MaskCrops
from detkit.structures.masks import read_counts

SIZE = (7, 9)
SQUARE = np.array([(1, 2), (4, 2), (4, 5), (1, 5)], np.float64)
SMALL = np.array([(6.0, 0.0), (8.0, 0.0), (8.0, 1.0), (6.0, 1.0)])


def random_bitmaps(count: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """bool `[count, H, W]`; some reach all borders, one is full and one is empty."""
    bitmaps = np.random.default_rng(0).random((count, *size)) > 0.4
    bitmaps[0], bitmaps[1] = True, False
    return bitmaps


def crops_of(bitmaps: np.ndarray) -> MaskCrops[np.ndarray]:
    """In windows that are one pixel larger than the mask, where the picture allows it."""
    crops, windows = [], []
    for bitmap in bitmaps:
        rows, columns = np.nonzero(bitmap) if bitmap.any() else (np.zeros(1, int), np.zeros(1, int))
        x1, y1 = max(columns.min() - 1, 0), max(rows.min() - 1, 0)
        x2, y2 = min(columns.max() + 2, bitmap.shape[1]), min(rows.max() + 2, bitmap.shape[0])
        windows.append((x1, y1, x2, y2))
        crops.append(bitmap[y1:y2, x1:x2])
    return MaskCrops.of(crops, windows)


def coco_counts(bitmap: np.ndarray) -> bytes:
    counts: bytes = coco_mask.encode(np.asfortranarray(bitmap.astype(np.uint8)))["counts"]
    return counts


def test_polygons_cover_the_pixels_whose_middle_they_hold() -> None:
    masks = EncodedMasks.of([[SQUARE, SMALL]], [SIZE])
    expected = np.zeros(SIZE, bool)
    expected[2:5, 1:4] = True
    expected[0, 6:8] = True
    np.testing.assert_array_equal(masks.bitmap(0), expected)
    np.testing.assert_array_equal(masks.dense(), expected[None])


def test_polygons_and_run_lengths_come_back_as_they_were() -> None:
    counts = coco_counts(random_bitmaps(3)[2])
    masks = EncodedMasks.of([[SQUARE, SMALL + 0.1], None, counts], [SIZE] * 3)
    rings = masks.decode(0)
    assert isinstance(rings, list)
    np.testing.assert_array_equal(rings[0], SQUARE)
    np.testing.assert_array_equal(rings[1], SMALL + 0.1)
    assert masks.decode(1) is None
    assert masks.decode(2) == counts
    assert masks.rle(1) is None


@pytest.mark.parametrize("rows", [slice(1, 3), [2, 0, 2], np.array([True, False, True]), torch.tensor([1, 0])])
def test_rows_are_taken_alike_in_every_form(rows: Any) -> None:
    bitmaps = random_bitmaps(3)
    expected = bitmaps[np.arange(3)[np.asarray(rows) if isinstance(rows, torch.Tensor) else rows]]
    crops = crops_of(bitmaps)
    np.testing.assert_array_equal(crops[rows].dense(SIZE), expected)
    np.testing.assert_array_equal(crops.map(torch.from_numpy)[rows].dense(SIZE), expected)
    np.testing.assert_array_equal(crops.encode(SIZE)[rows].dense(), expected)


def test_no_row_and_no_mask() -> None:
    crops, encoded = crops_of(random_bitmaps(3)), EncodedMasks.of([[SQUARE], None], [SIZE] * 2)
    assert len(crops[[]]) == len(encoded[[]]) == len(EncodedMasks.of([], [])) == 0
    assert crops[[]].dense(SIZE).shape == (0, *SIZE)
    assert encoded.crops().sizes.tolist() == [[3, 3], [0, 0]]
    assert len(EncodedMasks.of([], []).crops().encode(SIZE)) == 0


def test_parts_are_joined() -> None:
    bitmaps = random_bitmaps(4)
    crops = crops_of(bitmaps)
    np.testing.assert_array_equal(MaskCrops.cat([crops[:1], crops[:0], crops[1:]]).dense(SIZE), bitmaps)
    encoded = crops.encode(SIZE)
    np.testing.assert_array_equal(EncodedMasks.cat([encoded[:1], encoded[:0], encoded[1:]]).dense(), bitmaps)


@pytest.mark.parametrize("size", [SIZE, (1, 5), (6, 1), (40, 30)])
def test_run_lengths_of_crops_are_those_of_pycocotools(size: tuple[int, int]) -> None:
    bitmaps = random_bitmaps(20, size)
    encoded = crops_of(bitmaps).encode(size)
    assert [encoded.decode(index) for index in range(20)] == [coco_counts(bitmap) for bitmap in bitmaps]
    np.testing.assert_array_equal(encoded.crops().dense(size), bitmaps)


def test_a_mask_of_no_pixel_is_not_an_unknown_one() -> None:
    encoded = MaskCrops.of([np.zeros((0, 0))], [(0, 0, 0, 0)]).encode(SIZE)
    assert encoded.rle(0) == {"size": list(SIZE), "counts": coco_counts(np.zeros(SIZE))}


@pytest.mark.parametrize("counts", [b"", b"\x00", b"P", b"o" * 14 + b"0", b"1~"])
def test_other_bytes_are_no_run_lengths(counts: bytes) -> None:
    with pytest.raises(ValueError, match="expected run lengths as COCO compresses them"):
        read_counts(counts)


def test_run_lengths_of_large_pictures_are_read() -> None:
    runs = [3, 100_000, 1, 2_000_000, 7, 1_900_000, 0, 40]
    packed = coco_mask.frPyObjects({"size": [1, sum(runs)], "counts": runs}, 1, sum(runs))
    assert read_counts(packed["counts"]).tolist() == runs
