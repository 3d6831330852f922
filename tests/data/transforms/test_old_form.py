"""The list gives what the mapping of version 0.2 gave, to the bit, by a slow reference of its order of draws."""

from typing import Any

import numpy as np
import pytest

from detkit.data.transforms import Augment, list_of_mapping, open_augment, parse_augment
from detkit.structures import Objects, Sample
from tests.reference import augment_02

PRESETS: dict[str, dict[str, Any]] = {  # as they stood in the configurations of 0.2
    "flip": {"horizontal_flip": 0.5},
    "ssd": {
        "horizontal_flip": 0.5,
        "photometric": 0.5,
        "expand": 4.0,
        "iou_crop": True,
        "random_interpolation": True,
    },
    "yolov1": {"horizontal_flip": 0.5, "translate": 0.2, "hsv": [0.1, 1.5, 1.5]},
    "yolov3": {"horizontal_flip": 0.5, "jitter": 0.3, "hsv": [0.1, 1.5, 1.5]},
    "detr": {"horizontal_flip": 0.5, "resize_crop": 0.5},
}
OTHERS: list[dict[str, Any]] = [
    {"horizontal_flip": 0.0, "crop": 0.5, "translate": 0.3, "jitter": 0.2, "jitter_scale": [0.5, 1.0]},
    {"horizontal_flip": 1.0, "translate": 0.1, "jitter": 0.3},
    {"crop": 1.0, "jitter": 0.3},
    {"crop": 0.4},
    {"horizontal_flip": 0.5, "scale_jitter": [0.5, 2.0], "crop": 0.5, "photometric": 0.8},
    {
        "photometric": 1.0,
        "hsv": [0.2, 1.2, 2.0],
        "expand": 3.0,
        "iou_crop": True,
        "resize_crop": 0.3,
        "scale_jitter": [0.7, 1.4],
        "crop": 0.5,
        "translate": 0.2,
        "jitter": 0.3,
    },
]


def random_sample(size: tuple[int, int], count: int) -> Sample:
    rng = np.random.default_rng(count)
    corners = np.sort(rng.uniform(0, 1, (count, 2, 2)), axis=1) * (size[1] - 2, size[0] - 2)
    boxes = corners.reshape(-1, 4).astype(np.float32) + np.array([0, 0, 2, 2], np.float32)
    image = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
    return Sample(image, Objects(boxes, np.arange(count), rng.random(count) < 0.3), "id")


def assert_as_before(augment: Augment, settings: dict[str, Any]) -> None:
    for sample in (random_sample((24, 40), 6), random_sample((33, 20), 3), random_sample((15, 15), 0)):
        for seed in range(25):
            result = augment(sample, seed)
            objects = sample.objects
            expected = augment_02.augment(sample.image, objects.boxes, objects.ignore, seed, settings)
            np.testing.assert_array_equal(result.image, expected.image)
            np.testing.assert_array_equal(result.objects.boxes, expected.boxes)
            np.testing.assert_array_equal(result.objects.labels, expected.rows)
            np.testing.assert_array_equal(result.objects.ignore, expected.ignore)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_give_the_same_pixels_and_boxes(name: str) -> None:
    assert_as_before(Augment(parse_augment(name)), PRESETS[name])


@pytest.mark.parametrize("settings", [*PRESETS.values(), *OTHERS])
def test_any_mapping_has_a_list_that_gives_the_same(settings: dict[str, Any]) -> None:
    assert_as_before(Augment(parse_augment(list_of_mapping(settings))), settings)


def test_a_mapping_of_a_run_names_every_setting() -> None:
    """As a resolved configuration of 0.2 has it, null and 0 for what is off."""
    off = {"hsv": None, "iou_crop": False, "scale_jitter": None, "translate": 0.0, "jitter": 0.0, "expand": 1.0}
    assert list_of_mapping({**off, "horizontal_flip": 0.3}) == [{"name": "horizontal_flip", "probability": 0.3}]
    assert list_of_mapping({**off, "random_interpolation": True})[1:] == [{"name": "random_interpolation"}]


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        (
            {"horizontal_flip": 0.5, "jitter": 0.3},
            "augment: a list since 0.3, found a mapping; write [{name: horizontal_flip, probability: 0.5}, "
            "{name: jitter, probability: 1.0, max_change: 0.3, scale: [0.25, 2.0]}]",
        ),
        ({"mosaic": {"grid": 2}}, "write a preset, or entries such as [{name: horizontal_flip, probability: 0.5}, "),
        ({"hsv": [1]}, "write a preset, or entries such as "),
        ({"expand": "four"}, "write a preset, or entries such as "),
    ],
)
def test_a_mapping_in_a_file_of_ones_own_is_told_as_a_list(mapping: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="found a mapping") as caught:
        open_augment(mapping)
    assert message in str(caught.value)
