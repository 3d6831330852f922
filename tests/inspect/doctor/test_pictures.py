"""Findings about picture files, each on files that were written so."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import ExifTags, Image

from detkit.inspect.doctor.diagnose import diagnose
from detkit.inspect.doctor.hashing import first_alike, hash_bits, thumbnail
from tests.inspect.doctor.drawn_sets import CLEAN, Drawn, config_of, findings_of, noise, write_set


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    return exif


GREY_16 = (np.arange(80 * 120).reshape(80, 120) * 6).astype(np.uint16)
KINDS = {
    "picture-grey": [Drawn(mode="L")],
    "picture-alpha": [Drawn(mode="RGBA")],
    "picture-cmyk": [Drawn(mode="CMYK", save={"format": "JPEG"})],
    "picture-turned": [Drawn([(1, 10, 10, 30, 40)], size=(80, 120), actual=(120, 80), save={"exif": turned()})],
}


@pytest.mark.parametrize("code", KINDS)
def test_a_kind_of_file_is_a_note(tmp_path: Path, code: str) -> None:
    findings = findings_of(tmp_path, [], KINDS[code])
    assert list(findings) == [code]
    assert (findings[code].severity, findings[code].count, findings[code].total) == ("note", 1, 25)
    assert findings[code].examples[0].path.endswith("val13.png")


def test_a_16_bit_picture_is_grey_too(tmp_path: Path) -> None:
    findings = findings_of(tmp_path, [Drawn(pixels=GREY_16, mode="as it is")])
    assert {code: finding.count for code, finding in findings.items()} == {"picture-grey": 1, "picture-16-bit": 1}


def moved(image: np.ndarray) -> np.ndarray:
    """As the next frame of a video: a pixel to the left, a little brighter, compressed again."""
    image = cv2.convertScaleAbs(np.roll(image, -1, axis=1), alpha=1.05, beta=3)
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 80])[1], cv2.IMREAD_COLOR)


def test_the_same_file_and_the_same_picture_across_splits(tmp_path: Path) -> None:
    first, second = noise(100), noise(101)
    findings = findings_of(
        tmp_path, [Drawn(pixels=first), Drawn(pixels=second)], [Drawn(pixels=first), Drawn(pixels=moved(second))]
    )
    assert list(findings) == ["same-file-across-splits", "near-duplicate-across-splits"]
    for code, train, val in (("same-file", "train13.png", "val13.png"), ("near-duplicate", "train14.png", "val14.png")):
        finding = findings[f"{code}-across-splits"]
        assert (finding.severity, finding.count, finding.total) == ("warning", 1, 14)
        assert finding.examples[0].path.endswith(val)
        assert finding.examples[0].text.endswith(train)


def test_a_picture_that_both_lists_name_is_the_same_file(tmp_path: Path) -> None:
    data = write_set(tmp_path, CLEAN, CLEAN)
    data |= {"val_images": data["train_images"], "val_annotations": data["train_annotations"]}
    findings = {finding.code: finding for finding in diagnose(config_of(data)).findings}
    assert list(findings) == ["same-file-across-splits"]
    assert findings["same-file-across-splits"].count == len(CLEAN)


def test_the_same_file_and_the_same_picture_in_a_split(tmp_path: Path) -> None:
    first, second = noise(100), noise(101)
    train = [
        Drawn(pixels=first),
        Drawn(pixels=first),
        Drawn(pixels=first),
        Drawn(pixels=second),
        Drawn(pixels=moved(second)),
    ]
    findings = findings_of(tmp_path, train)
    counts = {code: (finding.severity, finding.count, finding.total) for code, finding in findings.items()}
    assert counts == {"same-file-in-split": ("note", 2, 29), "near-duplicate-in-split": ("note", 1, 29)}


def test_another_object_on_the_same_floor_is_another_picture() -> None:
    """Light that falls off to the borders correlates by more than .9, whatever lies in the middle."""
    y, x = np.mgrid[-1:1:300j, -1:1:300j]
    floor = np.repeat((200 * np.exp(-(x**2 + y**2)))[..., None], 3, axis=2).astype(np.uint8)
    one, other = floor.copy(), floor.copy()
    cv2.circle(one, (110, 150), 20, (250, 20, 20), -1)
    cv2.line(other, (190, 110), (190, 230), (10, 10, 10), 6)
    thumbnails = np.stack([thumbnail(image) for image in (one, other, moved(one))])
    flat = thumbnails.reshape(3, -1).astype(float)
    assert np.corrcoef(flat)[0, 1] > 0.9
    assert first_alike(thumbnails).tolist() == [-1, -1, 0]


def test_the_first_alike_is_that_of_all_pairs() -> None:
    images = [noise(seed) for seed in range(600)]
    images += [moved(images[3]), moved(images[599]), images[3]]
    thumbnails = np.stack([thumbnail(image) for image in images])
    assert np.flatnonzero(first_alike(thumbnails) >= 0).tolist() == [600, 601, 602]
    assert first_alike(thumbnails)[600:].tolist() == [3, 599, 3]
    assert first_alike(thumbnails[600:], thumbnails[:600]).tolist() == [3, 599, 3]


def test_blank_pictures_are_like_no_other() -> None:
    assert first_alike(np.full((3, 32, 32), 200, np.uint8)).tolist() == [-1, -1, -1]


def test_no_pictures() -> None:
    nothing = np.zeros((0, 32, 32), np.uint8)
    assert first_alike(nothing).tolist() == []
    assert first_alike(nothing, np.zeros((2, 32, 32), np.uint8)).tolist() == []
    assert hash_bits(nothing).shape == (0, 64)
