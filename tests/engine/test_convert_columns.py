"""Masks and keypoints through `detkit convert`: from COCO to each format and back, and what the other tools read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pycocotools import mask as peer
from pycocotools.coco import COCO

from detkit.config import UserError
from detkit.data.dataset import ImageDataset
from detkit.engine.convert import convert
from detkit.engine.convert_source import read_source
from detkit.structures import EncodedMasks
from tests.data.writers import write_picture

HOLE = np.zeros((40, 60), np.uint8)
HOLE[20:36, 30:50] = 1
HOLE[24:30, 36:44] = 0
NAMES = ["nose", "left_eye", "right_eye"]


def square(x: float, y: float, side: float) -> list[float]:
    return [x, y, x + side, y, x + side, y + side, x, y + side]


FORMS: dict[str, tuple[Any, list[float]]] = {  # segmentation, bbox; apart from each other on 60 x 40
    "one polygon": ([[2.25, 3.5, 14, 3, 9.75, 12.5]], [2.25, 3, 11.75, 9.5]),
    "two parts": ([square(20, 2, 6), square(30, 4, 8)], [20, 2, 18, 10]),
    "parts that overlap": ([square(42, 2, 8), square(46, 6, 8)], [42, 2, 12, 12]),
    "run lengths with a hole": (
        {"size": [40, 60], "counts": peer.encode(np.asfortranarray(HOLE))["counts"].decode()},
        [30, 20, 20, 16],
    ),
    "only a box": ([], [5, 20, 10, 10]),
}


def coco_set(root: Path, keypoints: bool = False, **changes: Any) -> Path:
    write_picture(root / "train" / "a.png")
    annotations = []
    for number, (segmentation, box) in enumerate(FORMS.values(), start=1):
        row = {"id": number, "image_id": 1, "category_id": 1 + number % 2, "bbox": box, "area": 30, "iscrowd": 0}
        annotations.append({**row, "segmentation": segmentation})
    categories: list[dict[str, Any]] = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    if keypoints:
        categories[0] |= {"keypoints": NAMES, "skeleton": [[1, 2], [1, 3]]}
        annotations[1] |= {"keypoints": [20, 3, 2, 25, 7, 1, 0, 0, 0], "num_keypoints": 2}
        annotations[3] |= {"keypoints": [31, 21, 2, 40, 22, 2, 45, 23, 2], "num_keypoints": 3}
    images = [{"id": 1, "file_name": "a.png", "width": 60, "height": 40}]
    content = {"images": images, "annotations": annotations, "categories": categories, **changes}
    (root / "train.json").write_text(json.dumps(content))
    return root


def only(root: Path) -> ImageDataset:
    return read_source(root, None, "raise").splits["train"]


def masks_of(dataset: ImageDataset) -> EncodedMasks:
    masks = dataset.ground_truth(0).objects.masks
    assert isinstance(masks, EncodedMasks)
    return masks


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / max((one | other).sum(), 1))


@pytest.mark.parametrize("through", ["coco", "voc", "yolo"])
def test_masks_are_the_same_after_a_round_trip(tmp_path: Path, through: str) -> None:
    """To the pixel; what has only a box still has only a box."""
    convert(coco_set(tmp_path / "in"), tmp_path / "through", through)
    convert(tmp_path / "through", tmp_path / "back", "coco")
    before, after = masks_of(only(tmp_path / "in")), masks_of(only(tmp_path / "back"))
    np.testing.assert_array_equal(before.dense(), after.dense())
    assert before.kinds.astype(bool).tolist() == after.kinds.astype(bool).tolist() == [True] * 4 + [False]


def test_polygons_stay_polygons_in_coco(tmp_path: Path) -> None:
    convert(coco_set(tmp_path / "in", keypoints=True), tmp_path / "out", "coco")
    files = [json.loads((tmp_path / name / "train.json").read_text()) for name in ("in", "out")]
    for old, new in zip(*(content["annotations"] for content in files), strict=True):
        assert new["segmentation"] == old["segmentation"]
        assert {key: new.get(key) for key in ("keypoints", "num_keypoints")} == {
            key: old.get(key, [0] * 9 if key == "keypoints" else 0) if old["category_id"] == 1 else None
            for key in ("keypoints", "num_keypoints")
        }
    for old, new in zip(*(content["categories"] for content in files), strict=True):
        assert {key: new.get(key) for key in ("keypoints", "skeleton")} == {
            key: old.get(key) for key in ("keypoints", "skeleton")
        }


def test_a_polygon_of_yolo_is_the_ring_itself(tmp_path: Path) -> None:
    convert(coco_set(tmp_path / "in"), tmp_path / "out", "yolo")
    lines = (tmp_path / "out/labels/train/a.txt").read_text().splitlines()
    shares = np.array(lines[0].split()[1:], np.float64).reshape(-1, 2)
    np.testing.assert_allclose(shares * (60, 40), [[2.25, 3.5], [14, 3], [9.75, 12.5]], atol=1e-5)
    assert len(lines) == 5  # one line an object
    assert lines[4] == "1 0.16666667 0.62500000 0.16666667 0.25000000"


def test_a_box_that_is_not_around_its_mask_is_reported(tmp_path: Path) -> None:
    coco_set(tmp_path / "in")
    content = json.loads((tmp_path / "in/train.json").read_text())
    content["annotations"][0]["bbox"] = [2, 3, 30, 30]
    (tmp_path / "in/train.json").write_text(json.dumps(content))
    reported = "\n".join(convert(tmp_path / "in", tmp_path / "out", "yolo"))
    assert "  1 box that is not the one around its mask, of which YOLO has the mask" in reported


def test_keypoints_are_the_same_after_yolo(tmp_path: Path) -> None:
    lines = convert(coco_set(tmp_path / "in", keypoints=True), tmp_path / "out", "yolo")
    content = yaml.safe_load((tmp_path / "out/data.yaml").read_text())
    assert (content["kpt_shape"], content["flip_idx"]) == ([3, 3], [0, 2, 1])
    assert content["kpt_names"] == {0: NAMES, 1: NAMES}
    assert "  4 masks beside keypoints, of which YOLO has one" in lines
    assert "  1 skeleton, which YOLO cannot hold" in lines
    before, after = only(tmp_path / "in"), only(tmp_path / "out")
    assert before.objects.keypoints is not None
    assert after.objects.keypoints is not None
    np.testing.assert_allclose(after.objects.keypoints, before.objects.keypoints, atol=1e-4)
    assert before.objects.keypoints[1].tolist() == [[20.5, 3.5, 2], [25.5, 7.5, 1], [0, 0, 0]]
    known = after.categories.keypoints
    assert known is not None
    assert (known.names, known.flip_pairs) == (tuple(NAMES), ((1, 2),))
    convert(tmp_path / "out", tmp_path / "back", "coco")
    first = json.loads((tmp_path / "back/train.json").read_text())["annotations"][1]
    assert (first["keypoints"], first["num_keypoints"]) == ([20, 3, 2, 25, 7, 1, 0, 0, 0], 2)


def test_voc_says_that_it_has_no_keypoints(tmp_path: Path) -> None:
    lines = convert(coco_set(tmp_path / "in", keypoints=True), tmp_path / "out", "voc")
    assert "  2 objects with keypoints, which VOC cannot hold" in lines
    assert "<segmented>1</segmented>" in (tmp_path / "out/VOC2007/Annotations/a.xml").read_text()
    back = convert(tmp_path / "out", tmp_path / "back", "coco")
    assert "everything was carried over to coco" in back  # `segmented` says only that there are masks


def test_masks_that_overlap_are_reported_for_voc(tmp_path: Path) -> None:
    coco_set(tmp_path / "in")
    content = json.loads((tmp_path / "in/train.json").read_text())
    content["annotations"][4]["segmentation"] = [square(3, 4, 30)]
    (tmp_path / "in/train.json").write_text(json.dumps(content))
    lines = convert(tmp_path / "in", tmp_path / "out", "voc")
    assert "  1 mask that another one covers in part: VOC has one object a pixel" in lines
    before, after = (masks_of(only(tmp_path / name)) for name in ("in", "out"))
    np.testing.assert_array_equal(before.dense()[:4], after.dense()[:4])  # the smaller ones are whole


def test_an_object_that_voc_cannot_hold_moves_no_mask_to_another(tmp_path: Path) -> None:
    coco_set(tmp_path / "in")
    content = json.loads((tmp_path / "in/train.json").read_text())
    content["annotations"][0] |= {"bbox": [2, 3, 0.5, 9]}
    (tmp_path / "in/train.json").write_text(json.dumps(content))
    convert(tmp_path / "in", tmp_path / "out", "voc")
    before, after = (masks_of(only(tmp_path / name)) for name in ("in", "out"))
    np.testing.assert_array_equal(before.dense()[1:], after.dense())


def test_splits_with_different_keypoints_are_refused(tmp_path: Path) -> None:
    coco_set(tmp_path / "in", keypoints=True)
    content = json.loads((tmp_path / "in/train.json").read_text())
    content["categories"][0]["keypoints"] = NAMES[::-1]
    (tmp_path / "in/val.json").write_text(json.dumps(content))
    write_picture(tmp_path / "in/val/a.png")
    with pytest.raises(
        UserError, match="the splits differ in their keypoints, nose, left_eye, right_eye and right_eye"
    ):
        convert(tmp_path / "in", tmp_path / "out", "coco")


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # of pycocotools under numpy 2
@pytest.mark.parametrize("through", ["coco", "voc", "yolo"])
def test_real_masks_after_a_round_trip(shared_data: Path, tmp_path: Path, through: str) -> None:
    """pycocotools' pixels of the objects of COCO before and after; VOC gives a pixel of two objects to one, YOLO has no
    crowds."""
    before = COCO(shared_data / "coco-mini/annotations/instances_train2017.json")
    convert(shared_data / "coco-mini", tmp_path / "through", through)
    convert(tmp_path / "through", tmp_path / "back", "coco")
    after = COCO(tmp_path / "back/train.json")
    image_of = {Path(image["file_name"]).stem: image["id"] for image in after.imgs.values()}
    compared, same = 0, 0
    for image in before.imgs.values():
        rows = [row for row in before.imgToAnns[image["id"]] if through != "yolo" or not row["iscrowd"]]
        others = after.imgToAnns[image_of[Path(image["file_name"]).stem]]
        for old, new in zip(rows, others, strict=True):
            overlap = iou(before.annToMask(old).astype(bool), after.annToMask(new).astype(bool))
            compared += 1
            same += overlap >= (0.99 if through != "coco" else 1.0)
    assert compared > 200
    assert same >= (0.75 if through == "voc" else 1.0) * compared


def test_what_the_reader_leaves_out_is_not_carried_over(tmp_path: Path) -> None:
    """Keypoints of which classes have different lists, and polygons of two points."""
    categories = [{"id": 1, "name": "cat", "keypoints": NAMES}, {"id": 2, "name": "dog", "keypoints": NAMES[:2]}]
    coco_set(tmp_path / "in", categories=categories)
    content = json.loads((tmp_path / "in/train.json").read_text())
    content["annotations"][0]["segmentation"].append([1, 2, 3, 4])
    (tmp_path / "in/train.json").write_text(json.dumps(content))
    lines = convert(tmp_path / "in", tmp_path / "out", "coco")
    assert "  1 polygon of less than three points left out" in lines
    assert any(line.startswith("  2 classes whose keypoints are left out, as those of cat and dog") for line in lines)
    assert not any(line.startswith("everything was carried over") for line in lines)
