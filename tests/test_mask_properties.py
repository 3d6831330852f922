"""Run lengths of any mask: what pycocotools writes and reads, and the same pixels again."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pycocotools import mask as coco_mask

from detkit.structures import EncodedMasks, MaskCrops
from detkit.structures.masks import read_counts
from tests.test_masks import coco_counts

few = settings(max_examples=60, deadline=None, derandomize=True, database=None)
SIZES = st.tuples(st.integers(1, 40), st.integers(1, 40))
BITMAPS = SIZES.flatmap(lambda size: arrays.arrays(np.bool_, size))


@few
@given(bitmap=BITMAPS)
def test_encoding_is_pycocotools_and_comes_back(bitmap: np.ndarray) -> None:
    height, width = bitmap.shape
    encoded = MaskCrops.of([bitmap], [(0, 0, width, height)]).encode((height, width))
    expected = {"size": [height, width], "counts": coco_counts(bitmap)}
    assert encoded.rle(0) == expected
    assert (encoded.bitmap(0) == bitmap).all()
    assert (encoded.crops().dense((height, width))[0] == bitmap).all()
    assert int(encoded.bitmap(0).sum()) == int(coco_mask.area(expected))


@few
@given(bitmap=BITMAPS)
def test_runs_are_those_of_the_columns(bitmap: np.ndarray) -> None:
    """Background first, in turns; their sum is the picture."""
    runs = np.asarray(read_counts(coco_counts(bitmap)))
    assert runs.sum() == bitmap.size
    pixels = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    assert (pixels.reshape(bitmap.shape, order="F") == bitmap).all()


@few
@given(counts=st.binary(max_size=12))
def test_any_bytes_are_run_lengths_or_refused(counts: bytes) -> None:
    try:
        runs = read_counts(counts)
    except ValueError:
        return
    assert (runs >= 0).all()
    size = (1, int(runs.sum()))
    if 0 < size[1] < 10_000:
        mask = EncodedMasks.of([counts], [size]).bitmap(0)
        assert (mask == coco_mask.decode({"size": list(size), "counts": counts})).all()
