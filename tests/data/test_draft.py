"""JPEGs that are decoded smaller than they are, where the detector's input is much smaller still."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from detkit.data.checks import DataError, RawImage, RawObject
from detkit.data.dataset import ImageDataset
from detkit.data.loader import build_loader
from detkit.data.pictures import read_picture
from detkit.nn.input import ImageInput, InputConfig, StretchConfig
from detkit.structures import Categories, Size

BOX = (37.0, 10.0, 350.0, 290.5)


def write_photograph(path: Path, size: Size = (304, 400), orientation: int = 1) -> np.ndarray:
    """A smooth picture, in which a pixel is like those around it; returned as stored, without the losses."""
    noise = np.random.default_rng(0).integers(0, 256, (size[0] // 8, size[1] // 8, 3)).astype(np.uint8)
    image = cv2.resize(noise, size[::-1], interpolation=cv2.INTER_CUBIC)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(image).save(path, quality=95, subsampling=0, exif=exif)
    return image


def dataset_of(path: Path) -> ImageDataset:
    images = [RawImage("a", str(path), "a.xml", None, [RawObject("object 0", 0, BOX)])]
    return ImageDataset(images, name="photographs", categories=Categories.of_names(["thing"]))


@pytest.mark.parametrize(
    ("at_least", "size"),
    [
        (None, (304, 400)),
        ((304, 400), (304, 400)),
        ((153, 100), (304, 400)),  # a half has 152 rows
        ((152, 200), (152, 200)),
        ((76, 10), (76, 100)),
        ((38, 50), (38, 50)),
        ((38, 60), (76, 100)),
        ((1, 1), (38, 50)),  # an eighth is the least
    ],
)
def test_the_smallest_that_is_large_enough(at_least: Size | None, size: Size, tmp_path: Path) -> None:
    image = write_photograph(tmp_path / "a.jpg")
    read = read_picture(tmp_path / "a.jpg", at_least)
    assert read.shape == (*size, 3)
    expected = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(read.astype(int) - expected).mean() < 5


@pytest.mark.parametrize(("size", "factor"), [((304, 404), 4), ((302, 400), 2), ((303, 400), 1)])
def test_only_by_what_divides_the_sides(size: Size, factor: int, tmp_path: Path) -> None:
    write_photograph(tmp_path / "a.jpg", size)
    assert read_picture(tmp_path / "a.jpg", (1, 1)).shape == (size[0] // factor, size[1] // factor, 3)


def test_a_turned_jpeg_is_as_large_as_is_asked_for_when_it_is_upright(tmp_path: Path) -> None:
    image = write_photograph(tmp_path / "a.jpg", orientation=6)
    read = read_picture(tmp_path / "a.jpg", (200, 100))
    assert read.shape == (200, 152, 3)
    expected = cv2.resize(np.rot90(image, -1), (152, 200), interpolation=cv2.INTER_AREA)
    assert np.abs(read.astype(int) - expected).mean() < 5


def test_no_other_kind_is_decoded_smaller(tmp_path: Path) -> None:
    for name in ("a.png", "a.tif", "a.gif"):
        Image.new("RGB", (80, 64)).save(tmp_path / name)
        assert read_picture(tmp_path / name, (8, 8)).shape == (64, 80, 3)


def test_objects_and_proposals_come_along(tmp_path: Path) -> None:
    write_photograph(tmp_path / "a.jpg")
    dataset = dataset_of(tmp_path / "a.jpg")
    proposals = np.array([(0, 0, 400, 304), BOX], np.float32)
    sample = dataset.load(0, (70, 70), proposals)
    assert sample.image.shape == (76, 100, 3)
    np.testing.assert_allclose(sample.objects.boxes, [np.array(BOX) / 4], rtol=1e-6)
    np.testing.assert_allclose(sample.objects.area, 313 * 280.5 / 16, rtol=1e-6)
    assert sample.proposals is not None
    np.testing.assert_allclose(sample.proposals, [(0, 0, 100, 76), np.array(BOX) / 4], rtol=1e-6)
    whole = dataset.load(0, None, proposals)
    assert whole.image.shape == (304, 400, 3)
    np.testing.assert_array_equal(whole.proposals, proposals)


def test_a_picture_that_has_changed_is_still_named(tmp_path: Path) -> None:
    write_photograph(tmp_path / "a.jpg")
    dataset = dataset_of(tmp_path / "a.jpg")
    write_photograph(tmp_path / "a.jpg", (160, 400))
    with pytest.raises(DataError, match="expected 400 x 304"):
        dataset.load(0, (70, 70))


@pytest.mark.parametrize(("side", "smaller"), [(32, True), (200, False)])
def test_a_loader_gives_nearly_the_same_batch(side: int, smaller: bool, tmp_path: Path) -> None:
    write_photograph(tmp_path / "a.jpg")
    dataset = dataset_of(tmp_path / "a.jpg")
    spec = ImageInput(InputConfig(resize=StretchConfig(size=side)), stride=1)
    batches = [
        next(
            iter(
                build_loader(
                    dataset,
                    place=spec.place,
                    stride=spec.stride,
                    batch_size=1,
                    augment=None,
                    seed=0,
                    workers=0,
                    shuffle=True,
                    aspect_grouping=False,
                    with_targets=True,
                    draft=draft,
                )
            )
        )
        for draft in (False, True)
    ]
    boxes = [batch.targets[0].objects.boxes.numpy() for batch in batches]
    np.testing.assert_allclose(boxes[0], boxes[1], rtol=1e-5)
    difference = (batches[0].images.int() - batches[1].images.int()).abs()
    assert (difference.max() > 0) == smaller
    assert difference.float().mean() < 15
