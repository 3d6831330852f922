"""Detections in the forms of other programs: numbers by hand, and supervision as the reader and the writer."""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from detkit.config import UserError
from detkit.structures import Categories, Detections, EncodedMasks, MaskCrops, Objects

CATEGORIES = Categories(("cat", "big dog"), (3, 17))
SIZE = (50, 80)  # (h, w)


def detections(**changes: Any) -> Detections:
    columns: dict[str, Any] = {
        "boxes": torch.tensor([[10, 5, 30, 45], [0.25, 0, 80, 50]], dtype=torch.float32),
        "labels": torch.tensor([1, 0]),
        "scores": torch.tensor([0.75, 0.5]),
    }
    return Detections(Objects(**{**columns, **changes}), CATEGORIES)


NONE = detections()[[]]
DENSE = np.arange(2 * 50 * 80).reshape(2, 50, 80) % 3 == 0


def encoded(masks: np.ndarray) -> EncodedMasks:
    height, width = masks.shape[1:]
    return MaskCrops.of(list(masks), [(0, 0, width, height)] * len(masks)).encode((height, width))


FULL = detections(
    masks=encoded(DENSE),
    track_ids=torch.tensor([4, -1]),
    area=torch.tensor([800.0, 3987.5]),
    ignore=torch.tensor([False, True]),
    keypoints=torch.arange(12, dtype=torch.float32).view(2, 2, 3),
    extra={"occlusion": torch.tensor([1, 2], dtype=torch.int16), "corners": torch.rand(2, 3, 2, dtype=torch.float64)},
)


# ---- COCO, YOLO, VOC by hand


def test_coco_has_the_ids_of_the_data_and_corner_and_sides() -> None:
    assert detections().to_coco("a.jpg") == [
        {"image_id": "a.jpg", "category_id": 17, "bbox": [10, 5, 20, 40], "score": 0.75},
        {"image_id": "a.jpg", "category_id": 3, "bbox": [0.25, 0, 79.75, 50], "score": 0.5},
    ]
    assert json.loads(json.dumps(detections().to_coco(1))) == detections().to_coco(1)
    assert NONE.to_coco(1) == []


def test_yolo_has_centre_and_sides_in_shares_of_the_picture() -> None:
    first, second = (line.split() for line in detections().to_yolo(SIZE))
    assert (first[0], second[0]) == ("1", "0")
    assert [float(share) for share in first[1:]] == [20 / 80, 25 / 50, 20 / 80, 40 / 50]
    assert [float(share) for share in second[1:]] == pytest.approx([40.125 / 80, 0.5, 79.75 / 80, 1], abs=1e-8)
    assert NONE.to_yolo(SIZE) == []


def test_voc_counts_pixels_from_1() -> None:
    """Devkit, section 4: the upper left pixel is (1, 1), and the lower right one of a box lies inside it."""
    root = ET.fromstring(detections().to_voc_xml("a.jpg", SIZE))
    assert root.findtext("filename") == "a.jpg"
    assert [root.findtext(f"size/{side}") for side in ("width", "height", "depth")] == ["80", "50", "3"]
    assert [item.text for item in root.iterfind("object/name")] == ["big dog", "cat"]
    corners = [
        [box.findtext(tag) for tag in ("xmin", "ymin", "xmax", "ymax")] for box in root.iterfind("object/bndbox")
    ]
    assert corners == [["11", "6", "30", "45"], ["1.25", "1", "80", "50"]]
    assert list(ET.fromstring(NONE.to_voc_xml("a.jpg", SIZE)).iterfind("object")) == []


# ---- masks and keypoints


def test_coco_has_masks_that_pycocotools_reads() -> None:
    mask = pytest.importorskip("pycocotools.mask")
    rows = FULL.to_coco(1)
    assert json.loads(json.dumps(rows)) == rows
    assert [row["segmentation"]["size"] for row in rows] == [[50, 80]] * 2
    assert np.array_equal([mask.decode(row["segmentation"]).astype(bool) for row in rows], DENSE)
    one = detections(masks=EncodedMasks.of([None, encoded(DENSE).decode(1)], [(50, 80)] * 2)).to_coco(1)
    assert ["segmentation" in row for row in one] == [False, True]


def test_coco_counts_keypoints_from_the_middle_of_the_first_pixel() -> None:
    points = torch.tensor([[[10.5, 20.25, 2], [0, 0, 0]], [[0.5, 0.5, 1], [79.1, 49.9, 2]]])
    first, second = (row["keypoints"] for row in detections(keypoints=points).to_coco(1))
    assert first == [10, 19.75, 2, 0, 0, 0]
    assert second == [0, 0, 1, 78.6, 49.4, 2]
    assert [type(value) for value in first[2::3]] == [int, int]


def test_yolo_has_keypoints_after_the_box() -> None:
    points = torch.tensor([[[20.0, 10, 2], [5, 5, 0]], [[80, 50, 1], [0, 25, 2]]])
    plain, lines = detections().to_yolo(SIZE), detections(keypoints=points, masks=encoded(DENSE)).to_yolo(SIZE)
    ends = [line.removeprefix(start).split() for line, start in zip(lines, plain, strict=True)]
    assert ends[0] == ["0.25000000", "0.20000000", "2", "0", "0", "0"]
    assert ends[1] == ["1.00000000", "1.00000000", "1", "0.00000000", "0.50000000", "2"]


def test_yolo_has_the_outline_of_a_mask_and_the_box_of_an_object_without_one() -> None:
    ring = np.array([[8.0, 5.0], [40.0, 5.0], [40.0, 25.0]])
    lines = detections(masks=EncodedMasks.of([[ring], None], [SIZE] * 2)).to_yolo(SIZE)
    assert lines[0].split() == ["1", *(f"{share:.8f}" for share in (0.1, 0.1, 0.5, 0.1, 0.5, 0.5))]
    assert lines[1] == detections().to_yolo(SIZE)[1]


# ---- supervision


@pytest.mark.parametrize("original", [detections(), FULL, NONE], ids=["plain", "full", "none"])
def test_to_supervision_and_back_loses_nothing(original: Detections) -> None:
    pytest.importorskip("supervision")
    back = Detections.from_supervision(original.to_supervision(), CATEGORIES)
    assert back.categories == CATEGORIES
    expected, actual = original.objects.columns(), back.objects.columns()
    assert list(actual) == list(expected)
    assert np.array_equal(*(masks.dense() if (masks := each.masks) else None for each in (original, back)))
    for name, column in expected.items():
        if name == "masks":
            continue
        assert actual[name].dtype == column.dtype, name
        assert torch.equal(actual[name], column), name


def test_supervision_has_everything_where_it_looks_for_it() -> None:
    sv = pytest.importorskip("supervision")
    converted = FULL.to_supervision()
    assert isinstance(converted, sv.Detections)
    assert converted.xyxy.tolist() == FULL.boxes.tolist()
    assert converted.confidence.tolist() == [0.75, 0.5]
    assert converted.class_id.tolist() == [1, 0]
    assert converted.tracker_id.tolist() == [4, -1]
    assert converted.data["class_name"].tolist() == converted["class_name"].tolist() == ["big dog", "cat"]
    assert converted.mask.dtype == np.bool_
    assert np.array_equal(converted.mask, DENSE)
    assert len(converted[converted.confidence > 0.6]) == 1
    assert NONE.to_supervision().is_empty()
    image = np.zeros((50, 80, 3), np.uint8)
    assert sv.BoxAnnotator().annotate(image.copy(), detections().to_supervision()).any()


def test_detections_that_supervision_made_are_sorted_and_float32() -> None:
    sv = pytest.importorskip("supervision")
    own = sv.Detections(
        xyxy=np.array([[0, 0, 1, 1], [1, 2, 3.5, 4]], np.float64),
        confidence=np.array([0.25, 0.5], np.float64),
        class_id=np.array([0, 1], np.int32),
    )
    converted = Detections.from_supervision(own, CATEGORIES)
    assert converted.boxes.tolist() == [[1, 2, 3.5, 4], [0, 0, 1, 1]]
    assert converted.class_names == ["big dog", "cat"]
    assert (converted.boxes.dtype, converted.labels.dtype) == (torch.float32, torch.int64)


def test_classes_of_supervision_go_by_name_where_there_are_names() -> None:
    """A program whose ids are others, such as COCO's 0 to 79, still means the same classes."""
    sv = pytest.importorskip("supervision")
    own = sv.Detections(
        xyxy=np.ones((2, 4)),
        confidence=np.array([0.5, 0.25]),
        class_id=np.array([15, 1]),
        data={"class_name": np.array(["cat", "big dog"])},
    )
    assert Detections.from_supervision(own, CATEGORIES).labels.tolist() == [0, 1]
    repeated = Categories(("N/A", "cat", "N/A"), (0, 1, 2))
    own.data["class_name"], own.class_id = np.array(["N/A", "cat"]), np.array([2, 1])
    assert Detections.from_supervision(own, repeated).labels.tolist() == [2, 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"confidence": None}, "expected detections with confidence and class_id, found None"),
        ({"class_id": None}, "expected detections with confidence and class_id, found None"),
        ({"class_id": np.array([2])}, r"expected class_id in \[0, 2\), one a category, found 2"),
        ({"data": {"class_name": np.array(["cow"])}}, "the categories have no class 'cow'; they are cat, big dog"),
        ({"data": {"text": np.array(["x"])}}, r"data\['text'\] is <U1, not numbers; delete it first"),
    ],
)
def test_what_would_be_lost_is_refused(changes: dict[str, Any], message: str) -> None:
    sv = pytest.importorskip("supervision")
    fields = {"xyxy": np.ones((1, 4)), "confidence": np.ones(1), "class_id": np.zeros(1, np.int64), **changes}
    with pytest.raises(UserError, match=message):
        Detections.from_supervision(sv.Detections(**fields), CATEGORIES)


def test_without_supervision_the_message_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(UserError, match=r'supervision is not installed; .* pip install "supervision>=0.30"'):
        detections().to_supervision()


# ---- files that supervision reads


def boxes_of(dataset: Any) -> list[tuple[str, list[float]]]:
    ((_, _, annotations),) = list(dataset)
    names = [dataset.classes[label] for label in annotations.class_id]
    return sorted(zip(names, annotations.xyxy.tolist(), strict=True))


def test_supervision_reads_what_is_written(tmp_path: Path) -> None:
    """It takes YOLO's boxes as whole pixels and VOC's corners less 1, so the boxes here are whole pixels."""
    sv = pytest.importorskip("supervision")
    whole = detections(boxes=torch.tensor([[10, 5, 30, 45], [0, 0, 80, 50]], dtype=torch.float32))
    Image.new("RGB", SIZE[::-1]).save(tmp_path / "a.jpg")
    expected = [("big dog", [10, 5, 30, 45]), ("cat", [0, 0, 80, 50])]

    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/a.txt").write_text("\n".join(whole.to_yolo(SIZE)))
    (tmp_path / "data.yaml").write_text("names: [cat, big dog]\nnc: 2\n")
    folders = {"images_directory_path": str(tmp_path)}
    yolo = sv.DetectionDataset.from_yolo(
        **folders, annotations_directory_path=str(tmp_path / "labels"), data_yaml_path=str(tmp_path / "data.yaml")
    )
    for (name, box), (other, hand) in zip(boxes_of(yolo), expected, strict=True):
        assert name == other
        assert box == pytest.approx(hand, abs=1e-3)

    (tmp_path / "xml").mkdir()
    (tmp_path / "xml/a.xml").write_text(whole.to_voc_xml("a.jpg", SIZE))
    voc = sv.DetectionDataset.from_pascal_voc(**folders, annotations_directory_path=str(tmp_path / "xml"))
    assert boxes_of(voc) == [("big dog", [10, 5, 30, 45]), ("cat", [0, 0, 80, 50])]

    rows = [{**row, "id": number, "iscrowd": 0, "area": 1} for number, row in enumerate(whole.to_coco(1), start=1)]
    classes = [{"id": i, "name": n, "supercategory": ""} for i, n in zip((3, 17), ("cat", "big dog"), strict=True)]
    image = {"id": 1, "file_name": "a.jpg", "width": 80, "height": 50}
    content = {"images": [image], "annotations": rows, "categories": classes}
    (tmp_path / "coco.json").write_text(json.dumps(content))
    coco = sv.DetectionDataset.from_coco(**folders, annotations_path=str(tmp_path / "coco.json"))
    assert boxes_of(coco) == expected
