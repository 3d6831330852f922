"""An object of one colour on black, whatever its place: after each change of a picture its box is where it is seen."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from detkit.data.transforms import Augment, parse_augment
from detkit.structures import Sample
from tests.data.transforms.samples import with_boxes

few = settings(max_examples=10, deadline=None, derandomize=True, database=None)
COLOUR = (200, 120, 255)
# name: (its settings, how many px the box may be off; changes of colours move nothing)
ENTRIES: dict[str, tuple[dict[str, Any], float]] = {
    "horizontal_flip": ({"probability": 1}, 0),
    "random_affine": ({"degrees": 0}, 1.5),
    "expand": ({"probability": 1, "max_ratio": 2}, 0),
    "iou_crop": ({}, 0),
    "resize_crop": ({"probability": 1}, 1.5),
    "crop": ({"probability": 1}, 1),
    "scale_jitter": ({}, 1.5),
    "translate": ({"probability": 1}, 1),
    "jitter": ({"scale": [0.5, 2]}, 1.5),
    "large_scale_jitter": ({"scale": [0.6, 1.6], "size": 120}, 1.5),
    "photometric": ({}, 0),
    "hsv": ({}, 0),
    "hsv_shift": ({}, 0),
}


@st.composite
def scenes(draw: st.DrawFn) -> Sample:
    """A rectangle of 24 px at least in a picture of at most 120."""
    height, width = draw(st.integers(60, 120)), draw(st.integers(60, 120))
    box_height, box_width = draw(st.integers(24, height - 8)), draw(st.integers(24, width - 8))
    x1, y1 = draw(st.integers(0, width - box_width)), draw(st.integers(0, height - box_height))
    image = np.zeros((height, width, 3), np.uint8)
    image[y1 : y1 + box_height, x1 : x1 + box_width] = COLOUR
    return with_boxes(image, (x1, y1, x1 + box_width, y1 + box_height))


def seen(image: np.ndarray) -> np.ndarray:
    """float `[4]` xyxy around the pixels of some colour: what fills the picture is grey."""
    rows, columns = np.nonzero(np.ptp(image.astype(int), axis=2) > 40)
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], np.float64)


@pytest.mark.parametrize("name", ENTRIES)
@few
@given(sample=scenes(), seed=st.integers(0, 10_000))
def test_the_box_is_where_the_object_is_seen(name: str, sample: Sample, seed: int) -> None:
    options, tolerance = ENTRIES[name]
    result = Augment(parse_augment([{"name": name, **options}]), epochs=10)(sample, seed)
    assume(len(result.objects) == 1)  # it may have been cut away
    height, width = result.image.shape[:2]
    (box,) = result.objects.boxes.astype(np.float64)
    assert (box >= 0).all()
    assert (box <= (width, height, width, height)).all()
    assert np.abs(box - seen(result.image)).max() <= tolerance + 1e-3
