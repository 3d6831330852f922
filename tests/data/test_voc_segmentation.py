"""VOC's SegmentationObject: the value of a pixel is the number of its object in the XML file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detkit.data.checks import DataError
from detkit.data.dataset import ImageDataset
from detkit.data.voc import VOCConfig, read_voc
from detkit.data.voc_segmentation import read_objects, write_objects
from detkit.structures import EncodedMasks, MaskCrops
from tests.data.writers import voc_object, write_voc


def pixels() -> np.ndarray:
    """Three objects on 60 x 40, of which the second has no pixel; the first has a border."""
    values = np.zeros((40, 60), np.uint8)
    values[4:21, 9:31] = 255
    values[5:20, 10:30] = 1
    values[22:30, 5:9] = 3
    values[22:24, 50:60] = 3
    return values


def write(root: Path, values: np.ndarray, mode: str = "P", name: str = "a") -> Path:
    """A devkit with the objects of two pictures, of which the first has a segmentation."""
    boxes = [voc_object("dog", (11, 6, 30, 20)), voc_object("cat", (1, 1, 9, 9)), voc_object("dog", (6, 23, 60, 30))]
    folder = write_voc(root, {"a": boxes, "b": boxes[:1]})
    (folder / "SegmentationObject").mkdir()
    picture = Image.fromarray(values)
    if mode == "P":
        picture.putpalette([index for number in range(256) for index in (number, 0, 255 - number)])
    picture.convert(mode).save(folder / "SegmentationObject" / f"{name}.png")
    return root


def read(root: Path, **changes: object) -> ImageDataset:
    return read_voc(VOCConfig(root=str(root), train=("2007_train",), classes="auto", **changes), "train")  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["P", "L"])
def test_a_value_is_the_number_of_an_object(tmp_path: Path, mode: str) -> None:
    dataset = read(write(tmp_path, pixels(), mode))
    masks = dataset.ground_truth(0).objects.masks
    assert isinstance(masks, EncodedMasks)
    np.testing.assert_array_equal(masks.bitmap(0), pixels() == 1)
    assert masks.decode(1) is None
    np.testing.assert_array_equal(masks.bitmap(2), pixels() == 3)
    other = dataset.ground_truth(1).objects.masks
    assert isinstance(other, EncodedMasks)
    assert other.decode(0) is None  # no file
    assert "2 objects with only a box, no mask" in dataset.summary


def test_a_class_that_is_left_out_takes_its_mask_along(tmp_path: Path) -> None:
    dataset = read_voc(VOCConfig(root=str(write(tmp_path, pixels())), train=("2007_train",), classes=("dog",)), "train")
    masks = dataset.ground_truth(0).objects.masks
    assert isinstance(masks, EncodedMasks)
    np.testing.assert_array_equal(masks.dense(), [pixels() == 1, pixels() == 3])


def test_values_of_no_object_are_counted(tmp_path: Path) -> None:
    values = pixels()
    values[0, 0] = 9
    assert "1 mask of SegmentationObject that is no object's left out" in read(write(tmp_path, values)).summary


def test_without_the_folder_and_without_asking_there_are_only_boxes(tmp_path: Path) -> None:
    config = VOCConfig(root=str(write(tmp_path, pixels()[:, :50])), train=("2007_train",), classes="auto")
    dataset = read_voc(config, "train", columns=("keypoints",))  # the file of another size is not opened
    assert dataset.objects.masks is None
    write_voc(tmp_path / "other", {"a": [voc_object("dog", (11, 6, 30, 20))]})
    assert read(tmp_path / "other").objects.masks is None


@pytest.mark.parametrize(
    ("mode", "width", "message"),
    [
        ("P", 50, r"a\.png: is 50 x 40 \(w x h\), but the annotation says 60 x 40"),
        ("RGB", 60, r"a\.png: expected a picture with a palette or in grey, whose values are the objects, found RGB"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, mode: str, width: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(write(tmp_path, pixels()[:, :width], mode))
    assert len(read(tmp_path, on_bad_label="drop_image")) == 1


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    write(tmp_path, pixels())
    path = tmp_path / "VOC2007" / "SegmentationObject" / "a.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match=r"a\.png: cannot be read"):
        read(tmp_path)


def test_of_two_masks_the_smaller_one_is_written_whole(tmp_path: Path) -> None:
    small, large = np.ones((4, 4), np.bool_), np.ones((10, 20), np.bool_)
    masks = MaskCrops.of([small, large, small[:0]], [(2, 2, 6, 6), (0, 0, 20, 10), (0, 0, 0, 0)])
    assert write_objects(tmp_path / "a.png", (12, 20), masks) == 1
    found = read_objects(tmp_path / "a.png", [1, 2, 3], (12, 20))
    assert found.masks[2] is None
    encoded = EncodedMasks.of(found.masks, [(12, 20)] * 3)
    assert encoded.bitmap(0).sum() == 16
    assert encoded.bitmap(1).sum() == 200 - 16
    # The first colours of PASCAL's development kit: black, maroon, green, olive.
    palette = Image.open(tmp_path / "a.png").getpalette()
    assert palette is not None
    assert palette[:12] == [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0]
