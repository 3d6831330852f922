"""What is checked before training, and what each policy does about it."""

import os
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from detkit.config import UserError
from detkit.data.checks import DataError, LabelPolicy, RawImage, RawObject, _check_image, check_images
from detkit.data.dataset import ImageDataset
from detkit.structures import Categories
from tests.data.writers import Box, make_dataset, write_picture

GOOD = (5.0, 5.0, 20.0, 25.0)


def dataset_of(
    path: Path, *boxes: Box, policy: LabelPolicy = "raise", size: tuple[int, int] | None = (40, 60), decode: bool = True
) -> ImageDataset:
    """Two images: the one under test with `boxes`, and a sound one without objects."""
    sound = path.with_name("sound.png")
    write_picture(sound)
    images = [
        RawImage(
            "tested", str(path), "tested.xml", size, [RawObject(f"object {n}", 0, b) for n, b in enumerate(boxes)]
        ),
        RawImage("sound", str(sound), "sound.xml", (40, 60), []),
    ]
    return ImageDataset(
        images, name="pair", categories=Categories.of_names(["a", "b"]), on_bad_label=policy, decode=decode
    )


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "tested.jpg"
    write_picture(path)
    return path


OUTSIDE = (30.0, 10.0, 75.0, 30.0)
EMPTY = [(5, 5, 5, 20), (5, 20, 15, 5), (float("nan"), 5, 20, 20), (5, 5, float("inf"), 20), (70, 5, 90, 20)]


@pytest.mark.parametrize("box", [OUTSIDE, *EMPTY, (-3, 5, 20, 20), (5, 5, 20, 42), (-1, 5, 0, 20)])
def test_bad_boxes_stop_by_default_and_are_named(picture: Path, box: Box) -> None:
    with pytest.raises(DataError, match=r"tested\.xml: object 1: box x") as raised:
        dataset_of(picture, GOOD, box)
    assert isinstance(raised.value, UserError)
    assert "1 problem\n" in str(raised.value)
    assert "drop_box" in str(raised.value)


def test_clip_cuts_boxes_to_the_image_and_drops_the_empty_ones(picture: Path) -> None:
    dataset = dataset_of(picture, GOOD, OUTSIDE, *EMPTY, policy="clip")
    np.testing.assert_array_equal(dataset.ground_truth(0).objects.boxes, [GOOD, (30, 10, 60, 30)])
    assert dataset.ground_truth(0).objects.area.tolist() == [300, 600]
    assert "1 box clipped" in dataset.summary
    assert "5 boxes dropped" in dataset.summary


def test_drop_box_keeps_the_other_objects(picture: Path) -> None:
    dataset = dataset_of(picture, GOOD, OUTSIDE, *EMPTY, policy="drop_box")
    np.testing.assert_array_equal(dataset.ground_truth(0).objects.boxes, [GOOD])
    assert "6 boxes dropped" in dataset.summary


def test_drop_image_removes_the_whole_image(picture: Path) -> None:
    dataset = dataset_of(picture, GOOD, (-1, 5, 20, 20), OUTSIDE, policy="drop_image")
    assert [dataset.image_id(i) for i in range(len(dataset))] == ["sound"]
    assert dataset.summary.endswith("1 image dropped. Objects: a 0, b 0.")


def test_one_pixel_over_the_border_is_tolerated_cut_and_counted(picture: Path) -> None:
    dataset = dataset_of(picture, (-1, -0.5, 60.75, 41))
    np.testing.assert_array_equal(dataset.ground_truth(0).objects.boxes, [(0, 0, 60, 40)])
    assert "1 box cut by at most 1 px" in dataset.summary


def test_sound_data_reports_nothing_dropped(picture: Path) -> None:
    summary = dataset_of(picture, GOOD).summary
    assert summary == (
        "pair: 2 images, 1 object of 2 classes and 0 ignored, 1 image without objects. Objects: a 1, b 0."
    )


def test_many_problems_are_counted_and_the_first_are_listed(picture: Path) -> None:
    with pytest.raises(DataError, match="25 problems") as raised:
        dataset_of(picture, *[OUTSIDE] * 25)
    assert str(raised.value).count("leaves the image") == 10
    assert "and 15 more" in str(raised.value)


@pytest.mark.parametrize("policy", ["raise", "clip", "drop_box"])
def test_missing_picture_is_an_error_unless_images_may_be_dropped(tmp_path: Path, policy: LabelPolicy) -> None:
    with pytest.raises(DataError, match=r"tested\.xml: the picture .*nowhere\.jpg does not exist"):
        dataset_of(tmp_path / "nowhere.jpg", GOOD, policy=policy)
    assert len(dataset_of(tmp_path / "nowhere.jpg", GOOD, policy="drop_image")) == 1


def test_truncated_jpeg_is_found_although_opencv_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "tested.jpg"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8))
    path.write_bytes(path.read_bytes()[:-600])
    assert cv2.imread(str(path)) is not None
    with pytest.raises(DataError, match=r"tested\.jpg cannot be decoded: .*truncated"):
        dataset_of(path, GOOD)
    assert len(dataset_of(path, GOOD, decode=False)) == 2  # only the header is read


def test_file_that_is_no_picture_is_found_without_decoding(tmp_path: Path) -> None:
    (tmp_path / "tested.jpg").write_text("not a picture")
    with pytest.raises(DataError, match=r"tested\.jpg cannot be decoded"):
        dataset_of(tmp_path / "tested.jpg", decode=False)


def test_size_that_disagrees_with_the_picture_is_named(picture: Path) -> None:
    with pytest.raises(DataError, match=r"says 61 x 40 \(w x h\).* is 60 x 40"):
        dataset_of(picture, size=(40, 61))


def test_dropping_every_image_is_an_error(tmp_path: Path) -> None:
    missing = RawImage("x", str(tmp_path / "x.jpg"), "x.xml", None, [])
    with pytest.raises(DataError, match="no image is left"):
        ImageDataset([missing], name="none", categories=Categories.of_names(["a"]), on_bad_label="drop_image")


def save_turned(path: Path, orientation: int) -> None:
    """A picture 60 wide and 40 high whose EXIF tag turns it; its stored upper left quarter is red."""
    stored = np.zeros((40, 60, 3), np.uint8)
    stored[:20, :30] = (255, 0, 0)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(path, quality=95, exif=exif)


@pytest.mark.parametrize(("orientation", "row", "column"), [(1, 0, 0), (3, 1, 1), (6, 0, 1), (8, 1, 0)])
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, row: int, column: int) -> None:
    """Orientation 6 is seen after a quarter turn clockwise: the upper left quarter comes to the upper right."""
    path = tmp_path / "tested.jpg"
    save_turned(path, orientation)
    size = (60, 40) if orientation in (6, 8) else (40, 60)
    dataset = dataset_of(path, size=size)
    image = dataset.load(0).image
    assert image.shape[:2] == size == dataset.ground_truth(0).size
    centre = image[size[0] // 4 + row * size[0] // 2, size[1] // 4 + column * size[1] // 2]
    np.testing.assert_allclose(centre, (255, 0, 0), atol=12)


def test_annotation_made_on_the_unturned_picture_is_named(tmp_path: Path) -> None:
    save_turned(tmp_path / "tested.jpg", 6)
    with pytest.raises(DataError, match=r"the sides are swapped: is its EXIF orientation right\?"):
        dataset_of(tmp_path / "tested.jpg", size=(40, 60))


def test_channels_are_red_green_blue(tmp_path: Path) -> None:
    Image.new("RGB", (60, 40), (200, 100, 50)).save(tmp_path / "tested.png")
    assert dataset_of(tmp_path / "tested.png").load(0).image[0, 0].tolist() == [200, 100, 50]


def test_picture_that_changes_after_the_check_is_named_when_loaded(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, [(40, 60), (40, 60)])
    write_picture(tmp_path / "000.png", (20, 30))
    (tmp_path / "001.png").unlink()
    with pytest.raises(DataError, match=r"000\.png: expected 60 x 40 .* found 30 x 20"):
        dataset.load(0)
    with pytest.raises(DataError, match=r"001\.png does not exist \(it was in order when noise was checked\)"):
        dataset.load(1)


@pytest.mark.parametrize("policy", ["raise", "drop_image"])
@pytest.mark.parametrize("kind", ["turned", "floats", "deep", "latin"])
def test_what_passes_the_check_can_be_loaded(kind: str, policy: LabelPolicy, tmp_path: Path) -> None:
    """Pillow and OpenCV disagree on each of these; tests/data/test_pictures.py has many more."""
    path = tmp_path / ("tested.tif" if kind != "latin" else os.fsdecode(b"tested\xe9.jpg"))
    exif = Image.Exif()
    if kind == "turned":
        exif[0x0112] = 6
    picture = {
        "turned": Image.new("RGB", (40, 60), (9, 9, 9)),
        "floats": Image.new("F", (60, 40), 0.5),
        "deep": Image.fromarray(np.full((40, 60), 4000, np.uint16)),
        "latin": Image.new("RGB", (60, 40)),
    }[kind]
    picture.save(path, exif=exif)
    dataset = dataset_of(path, GOOD, policy=policy)
    assert len(dataset) == 2
    assert dataset.load(0).image.shape == (40, 60, 3)


def test_sound_images_are_those_that_a_look_at_each_object_leaves_alone(tmp_path: Path) -> None:
    """All boxes are compared at once; only images in which something is wrong or changes are looked at one by one."""
    rng = np.random.default_rng(0)
    edges = [-np.inf, np.nan, -1.5, -1, -0.0, 0, 3, 3.5, 39, 40, 40.5, 41, 59, 60, 61, 62]
    write_picture(tmp_path / "a.png", (40, 60))
    images = []
    for number in range(400):
        boxes = [GOOD, *rng.choice(edges, (int(rng.integers(3)), 4)).tolist()]
        objects = [RawObject("it", 0, tuple(box), None if rng.random() < 0.9 else "bad") for box in boxes]
        size = (40, 60) if rng.random() < 0.9 else (60, 40)
        problem = None if rng.random() < 0.9 else "bad"
        images.append(RawImage(number, str(tmp_path / "a.png"), "", size, objects, problem))
    expected = [_check_image(image, (40, 60), "drop_image", 0.5) for image in images]
    without_faults = [(image, changes) for image, changes, faults in expected if not faults]
    assert 50 < len(without_faults) < 350
    checked, counts = check_images(images, "slow", "drop_image", decode=True, min_side=0.5)
    assert checked == [image for image, _ in without_faults]
    assert counts == sum(
        (changes for _, changes in without_faults), Counter({"image dropped": len(images) - len(without_faults)})
    )


def test_ground_truth_is_a_copy(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, [(40, 60)])
    dataset.ground_truth(0).objects.boxes[:] = 0
    np.testing.assert_array_equal(dataset.ground_truth(0).objects.boxes, [(2, 3, 12, 13)])


@pytest.mark.parametrize("label", [-1, 2, 7])
def test_a_label_that_is_no_class_is_named(picture: Path, label: int) -> None:
    images = [
        RawImage("a", str(picture), "boxes.csv", None, [RawObject("object 3 (cat)", label, (1.0, 1.0, 9.0, 9.0))])
    ]
    with pytest.raises(
        DataError, match=rf"boxes.csv: a: object 3 \(cat\): expected a label of 0 to 1, .* found {label}"
    ):
        ImageDataset(images, name="labels", categories=Categories.of_names(["a", "b"]))


def test_rounding_at_the_border_is_no_cut(tmp_path: Path) -> None:
    """Shares of a picture, as YOLO writes them, are off by parts of a thousandth of a pixel."""
    path = tmp_path / "a.png"
    Image.new("RGB", (40, 30)).save(path)
    boxes = [(-4e-4, 0.0, 10.0, 30.0004), (-0.4, 0.0, 10.0, 10.0)]
    images = [
        RawImage("a", str(path), "a.txt", None, tuple(RawObject(f"line {n}", 0, box) for n, box in enumerate(boxes)))
    ]
    (checked,), counts = check_images(images, "rounded", "raise", decode=False)
    assert [item.box for item in checked.objects] == [(0.0, 0.0, 10.0, 30.0), (0.0, 0.0, 10.0, 10.0)]
    assert counts == {"box cut by at most 1 px": 1}
