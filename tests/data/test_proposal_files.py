"""Published proposals: COCO results and selective search's MATLAB files, on boxes counted by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from detkit.data.checks import DataError
from detkit.data.dataset import ImageDataset
from detkit.data.proposal_files import match_proposals, read_proposals
from detkit.data.voc import VOCConfig, read_voc
from tests.data.writers import make_dataset, write_voc


def write_json(path: Path, *entries: Any) -> str:
    path.write_text(json.dumps(list(entries)))
    return str(path)


def write_mat(path: Path, boxes: dict[Any, Any], *, row: bool = False) -> str:
    """Cells as MATLAB has them: a column, or a row."""
    names, cells = np.empty((len(boxes), 1), object), np.empty((len(boxes), 1), object)
    names[:, 0], cells[:, 0] = list(boxes), list(boxes.values())
    savemat(path, {"images": names.T if row else names, "boxes": cells.T if row else cells})
    return str(path)


def entry(image_id: Any, bbox: Any, score: Any = 0.5) -> dict[str, Any]:
    return {"image_id": image_id, "category_id": 3, "bbox": bbox, "score": score}


def voc(root: Path, *splits: str) -> ImageDataset:
    for split in splits or ("2007_train",):
        write_voc(root, {"000005": [], "000007": []}, year=split[:4])
    return read_voc(VOCConfig(root=str(root), train=splits or ("2007_train",), val=("2007_val",)), "train")


def test_coco_results_are_corners_best_first(tmp_path: Path) -> None:
    path = write_json(
        tmp_path / "a.json",
        entry(7, [10, 20.5, 30, 5], 0.2),
        entry(0, [1, 2, 3, 4]),
        entry(7, [0, 0, 60, 40], 0.9),
        entry(7, [1, 1, 2, 2], 0.9),
    )
    boxes_by_id = read_proposals([path])
    assert set(boxes_by_id) == {"7", "0"}
    assert boxes_by_id["7"].tolist() == [[0, 0, 60, 40], [1, 1, 3, 3], [10, 20.5, 40, 25.5]]
    assert boxes_by_id["0"].tolist() == [[1, 2, 4, 6]]
    assert boxes_by_id["7"].dtype == np.float32


@pytest.mark.parametrize("dtype", [np.float64, np.uint16])
@pytest.mark.parametrize("row", [True, False])
def test_matlab_boxes_begin_with_y_and_count_pixels_from_1(dtype: Any, row: bool, tmp_path: Path) -> None:
    """Pixels 1 to 40 down and 1 to 60 across are the whole of a picture of 60 x 40; 3 to 3 is one pixel wide."""
    boxes = np.array([[1, 1, 40, 60], [11, 3, 20, 3]], dtype)
    path = write_mat(tmp_path / "a.mat", {"000005": boxes, "000007": np.zeros((0, 0))}, row=row)
    boxes_by_id = read_proposals([path])
    assert boxes_by_id["000005"].tolist() == [[0, 0, 60, 40], [2, 10, 3, 20]]
    assert boxes_by_id["000007"].shape == (0, 4)
    assert {boxes.dtype for boxes in boxes_by_id.values()} == {np.dtype(np.float32)}


def test_matlab_ids_may_be_numbers(tmp_path: Path) -> None:
    boxes_by_id = read_proposals([write_mat(tmp_path / "a.mat", {12: np.ones((1, 4)), 345: np.ones((2, 4))})])
    assert {image_id: len(boxes) for image_id, boxes in boxes_by_id.items()} == {"12": 1, "345": 2}


def test_files_are_read_together_and_each_image_once(tmp_path: Path) -> None:
    one = write_mat(tmp_path / "one.mat", {"000005": np.ones((1, 4))})
    two = write_json(tmp_path / "two.json", entry("000007", [1, 2, 3, 4]))
    assert set(read_proposals([one, two])) == {"000005", "000007"}
    with pytest.raises(DataError, match=r"two.json: 1 images are in the files before it too, such as '000007'"):
        read_proposals([one, two, two])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "a.json: cannot be read as JSON: "),
        ("{}", "a.json: expected a list of COCO results, found dict"),
        ("[7]", r"entry 0: expected image_id, bbox \[x, y, width, height\] and score, found 7"),
        ('[{"image_id": 1.5, "bbox": [1, 2, 3, 4], "score": 1}]', "entry 0: expected image_id, .* found .*1.5"),
        ('[{"image_id": 1, "bbox": [1, 2, 3], "score": 1}]', "entry 0: expected "),
        ('[{"image_id": 1, "bbox": [1, 2, 3, NaN], "score": 1}]', "entry 0: expected .* found .*nan"),
        ('[{"image_id": 1, "bbox": [1, 2, 3, 4]}]', "entry 0: expected .* and score"),
    ],
)
def test_no_coco_results(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(DataError, match=message):
        read_proposals([str(tmp_path / "a.json")])


def test_no_matlab_file_of_proposals(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"

    def message() -> str:
        with pytest.raises(DataError) as refused:
            read_proposals([str(path)])
        return str(refused.value)

    assert "a.mat: cannot be read as a MATLAB file: " in message()
    for content in (b"", b"hello"):
        path.write_bytes(content)
        assert "a.mat: cannot be read as a MATLAB file: " in message()
    path.write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(100))
    assert "a.mat: a file of MATLAB 7.3" in message()
    savemat(path, {"boxes": np.ones((2, 4))})
    assert "a.mat: expected cells `images` and `boxes`, as many of each, found 0 and 8" in message()
    write_mat(path, {"000005": np.ones((2, 5))})
    assert "a.mat: image '000005': expected boxes [N, 4], found float64 [2, 5]" in message()
    write_mat(path, {"5": np.ones((2, 4)), 5: np.ones((2, 4))})
    assert "a.mat: image '5' is there twice" in message()


def test_another_kind_of_file() -> None:
    with pytest.raises(DataError, match=r"a.pkl: expected proposals as .json \(COCO results\) or .mat, found '.pkl'"):
        read_proposals(["a.pkl"])


def test_boxes_go_to_the_images_by_id(tmp_path: Path) -> None:
    boxes = {"000007": np.full((1, 4), 7, np.float32), "000005": np.array([[0, 0, 5, 5]], np.float32)}
    boxes["000007"][0, :2] = 0
    assert [image[0, 2] for image in match_proposals(voc(tmp_path), boxes, "a.mat")] == [5, 7]
    by_number = make_dataset(tmp_path / "numbers", [(40, 60)] * 2)
    numbered = {"1": boxes["000007"], "0": boxes["000005"]}
    assert [image[0, 2] for image in match_proposals(by_number, numbered, "a.json")] == [5, 7]


def test_ids_of_several_years_are_known_without_their_year(tmp_path: Path) -> None:
    dataset = voc(tmp_path, "2007_train", "2012_train")
    assert dataset.image_id(3) == "2012/000007"
    boxes = {"000005": np.zeros((0, 4), np.float32), "000007": np.zeros((0, 4), np.float32)}
    boxes["2012/000007"] = np.array([[0, 0, 9, 9]], np.float32)  # rather than 000007
    assert [len(image) for image in match_proposals(dataset, boxes, "a.json")] == [0, 0, 0, 1]


def test_files_of_another_data_set(tmp_path: Path) -> None:
    boxes = {"000009": np.zeros((0, 4), np.float32), "000005": np.zeros((0, 4), np.float32)}
    message = r"a.mat: no entry for 1 of 2 images of voc train \(2007_train\): '000007'; known are '000005', '000009'"
    with pytest.raises(DataError, match=message):
        match_proposals(voc(tmp_path), boxes, "a.mat")
    assert [len(image) for image in match_proposals(voc(tmp_path), boxes, "a.mat", allow_missing=True)] == [0, 0]
    del boxes["000005"]
    with pytest.raises(DataError, match=r"no entry for 2 of 2 images .*: '000005', '000007'; known are '000009'"):
        match_proposals(voc(tmp_path), boxes, "a.mat", allow_missing=True)


@pytest.mark.parametrize(
    ("box", "inside"),
    [
        ((0, 0, 60, 40), (0, 0, 60, 40)),
        ((-1, -0.5, 61, 41), (0, 0, 60, 40)),  # a pixel over the border is cut off
        ((10, 10, 61.5, 20), None),
        ((10, 10, 20, 42), None),
        ((-1.5, 10, 20, 20), None),
        ((10, -2, 20, 20), None),
        ((60, 10, 61, 20), None),  # nothing of it is in the picture
        ((10, 10, 10, 20), None),
        ((10, 20, 20, 10), None),
        ((float("nan"), 10, 20, 20), None),
    ],
)
def test_boxes_lie_in_the_picture(box: Any, inside: Any, tmp_path: Path) -> None:
    """60 x 40."""
    good = np.array([[0, 0, 5, 5]], np.float32)
    boxes = {"000005": good, "000007": np.concatenate([good, np.array([box], np.float32)])}
    if inside:
        assert match_proposals(voc(tmp_path), boxes, "a.mat")[1].tolist() == [[0, 0, 5, 5], [*inside]]
        return
    message = r"a.mat: 1 of 2 images of voc train .* image '000007', 60 x 40 \(w x h\), has \[.*\] .*another size\?"
    with pytest.raises(DataError, match=message):
        match_proposals(voc(tmp_path), boxes, "a.mat")
