"""Results that other programs wrote, measured on ground truth without pictures."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detkit import cli
from detkit.config import UserError
from detkit.engine.foreign_results import Results, evaluate_results, load_results
from detkit.evaluation.coco import METRICS
from detkit.evaluation.report import detections_to_coco
from detkit.structures import Detections
from tests.cli_support import write_config
from tests.data.writers import coco_content, voc_object, write_picture, write_voc
from tests.evaluation.scenes import categories_of, random_scene

DOG, CAR = 18, 3  # the ids of `coco_content`
ENTRY = {"image_id": 7, "category_id": DOG, "bbox": [10, 5, 20, 10], "score": 0.5}


def write(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def load(tmp_path: Path, entries: object, truth: dict[str, Any] | None = None, **options: Any) -> Results:
    """The results `entries` on a COCO file of two images, 7 and 0, without pictures."""
    path = write(tmp_path / "truth.json", truth or coco_content())
    return load_results([write(tmp_path / "results.json", entries)], ground_truth=path, **options)


def on(results: Results, image_id: int | str) -> Detections:
    return results.store.detections[image_id]


def notes(results: Results) -> str:
    return "\n".join(results.notes)


def refusal(*arguments: Any, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        load(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


# ---- published numbers


def test_published_coco_results_score_as_pycocotools_says(shared_data: Path) -> None:
    folder = shared_data / "eval-refs" / "cocoapi_val2014_100"
    truth, found = folder / "instances_val2014_100.json", folder / "instances_val2014_fakebbox100_results.json"
    results = load_results([found], ground_truth=truth)
    coco = evaluate_results(results, ["coco"]).results["coco"]
    expected = json.loads((folder / "expected.json").read_text())["bbox"]
    assert {name: round(value, 6) for name, value in coco.metrics.items()} == expected
    assert coco.metrics == pytest.approx(by_pycocotools(truth, found), abs=1e-12)
    assert coco.score == pytest.approx(np.nanmean(list(coco.per_class.values())))
    assert results.store.paths is None


@pytest.mark.parametrize("detector", ["tiny_yolo_voc", "yolov3_darknet"])
def test_published_voc_results_score_as_py_faster_rcnn_says(shared_data: Path, detector: str) -> None:
    folder = shared_data / "eval-refs" / "voc07_dev500"
    evaluation = evaluate_results(load_results([folder / detector], ground_truth=folder), ["voc07", "voc10"])
    expected = json.loads((folder / "expected.json").read_text())["expected"][detector]
    for protocol, result in zip(("voc07_11point", "all_point"), evaluation.results.values(), strict=True):
        numbers = result.per_class | {"mean": result.score}
        assert numbers == pytest.approx(expected[protocol], rel=0, abs=1e-6)  # the file has six decimals


def by_pycocotools(truth: Path, results: Path) -> dict[str, float]:
    with contextlib.redirect_stdout(io.StringIO()):
        data = COCO(str(truth))
        measured = COCOeval(data, data.loadRes(str(results)), "bbox")
        measured.evaluate()
        measured.accumulate()
        measured.summarize()
    return dict(zip(METRICS, np.where(measured.stats < 0, np.nan, measured.stats).tolist(), strict=True))


@pytest.mark.parametrize("seed", range(3))
def test_random_results_score_as_in_pycocotools_and_come_back_as_they_are(seed: int, tmp_path: Path) -> None:
    """With crowds, tied scores, boxes over the border, and an id that no annotation uses."""
    images, detections = random_scene(np.random.default_rng(seed), range(30), 3)
    categories = categories_of(3)
    rows = [
        {
            "image_id": gt.image_id,
            "category_id": categories.ids[label],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": (x2 - x1) * (y2 - y1),
            "iscrowd": int(ignore),
        }
        for gt in images
        for (x1, y1, x2, y2), label, ignore in zip(
            gt.objects.boxes.tolist(), gt.objects.labels, gt.objects.ignore, strict=True
        )
    ]
    truth = {
        "images": [{"id": gt.image_id, "height": 90, "width": 100} for gt in images],
        "categories": [{"id": i, "name": name} for i, name in zip(categories.ids, categories.names, strict=True)],
        "annotations": [{"id": number, **row} for number, row in enumerate(rows, start=1)],
    }
    entries = detections_to_coco(dict(enumerate(detections)), categories)
    results = load(tmp_path, entries, truth)
    metrics = evaluate_results(results, ["coco"]).results["coco"].metrics
    expected = by_pycocotools(tmp_path / "truth.json", tmp_path / "results.json")
    assert metrics == pytest.approx(expected, abs=1e-12, nan_ok=True)
    assert detections_to_coco(results.store.detections, results.store.categories) == entries


# ---- COCO results


def test_boxes_and_objects_stay_as_they_are_written(tmp_path: Path) -> None:
    """Also over the border and with a side of 0, which pycocotools measures too."""
    annotations = [{"id": 1, "image_id": 7, "category_id": CAR, "bbox": [50, 30, 20, 0], "area": 12.5}]
    entries = [ENTRY | {"bbox": [-5, 1.5, 100, 0], "score": 0.25}, ENTRY | {"category_id": CAR}]
    results = load(tmp_path, entries, coco_content(annotations=annotations))
    (truth,) = (image.objects for image in results.store.ground_truth if image.image_id == 7)
    assert truth.boxes.tolist() == [[50, 30, 70, 30]]
    assert truth.area is not None
    assert truth.area.tolist() == [12.5]
    assert on(results, 7).boxes.tolist() == [[10, 5, 30, 15], [-5, 1.5, 95, 1.5]]  # best score first
    assert on(results, 7).labels.tolist() == [0, 1]
    assert results.store.categories.names == ("car", "dog")


def test_equal_scores_stay_in_the_order_of_the_file(tmp_path: Path) -> None:
    entries = [ENTRY | {"bbox": [number, 5, 20, 10]} for number in (3, 1, 2)]
    assert on(load(tmp_path, entries), 7).boxes[:, 0].tolist() == [3, 1, 2]


def test_crowds_are_ignored_and_areas_are_the_annotated_ones(tmp_path: Path) -> None:
    (truth,) = (image.objects for image in load(tmp_path, [ENTRY]).store.ground_truth if image.image_id == 7)
    assert truth.ignore.tolist() == [False, True, False]
    assert truth.area is not None
    assert truth.area.tolist() == [150.5, 99, 24]


def test_images_and_classes_without_a_detection_are_told(tmp_path: Path) -> None:
    results = load(tmp_path, [ENTRY])
    assert len(on(results, 0)) == 0
    assert "1 of 2 images have no detection in the results" in results.notes
    assert "no detection of 1 class that the data have: car" in results.notes


def test_no_detection_at_all(tmp_path: Path) -> None:
    results = load(tmp_path, [])
    assert "2 of 2 images have no detection in the results" in results.notes
    evaluation = evaluate_results(results, ["voc07", "voc10", "coco"])
    assert [result.score for result in evaluation.results.values()] == [0, 0, 0]


def test_entries_in_a_mapping_are_read(tmp_path: Path) -> None:
    results = load(tmp_path, {"annotations": [ENTRY], "info": {}})
    assert len(on(results, 7)) == 1
    assert "the entries under 'annotations' are read as detections" in notes(results)


@pytest.mark.parametrize(
    ("own", "file_name", "written"),
    [
        (42, "a.jpg", "42"),
        (42, "a.jpg", "000042"),
        (42, "000042.jpg", "000042.jpg"),
        (42, "x.jpg", "000042.jpg"),
        ("000042", "x.jpg", 42),
        (7, "cam1/b 1.png", "cam1/b 1.png"),
        (7, "cam1/b 1.png", "b 1"),
        (7, "COCO_val2014_000000000042.jpg", "C:\\data\\COCO_val2014_000000000042.jpg"),
    ],
)
def test_ids_that_agree_only_as_text_or_as_names(
    own: int | str, file_name: str, written: int | str, tmp_path: Path
) -> None:
    images = [
        {"id": own, "file_name": file_name, "width": 60, "height": 40},
        {"id": 1234, "file_name": "other.jpg", "width": 60, "height": 40},
    ]
    results = load(tmp_path, [ENTRY | {"image_id": written}], coco_content(images=images, annotations=[]))
    assert len(on(results, own)) == 1
    assert f"1 image matched by another spelling of the id: {written!r} is {own!r}" in notes(results)


def test_the_id_goes_before_the_name_and_that_before_a_number_and_a_name_of_two_is_no_match(tmp_path: Path) -> None:
    names = {42: "0043.jpg", 43: "42.jpg", 1: "a/x.jpg", 2: "b/x.jpg"}
    images = [{"id": i, "file_name": name, "width": 60, "height": 40} for i, name in names.items()]
    truth = coco_content(images=images, annotations=[])
    assert len(on(load(tmp_path, [ENTRY | {"image_id": 42}], truth), 42)) == 1
    assert len(on(load(tmp_path, [ENTRY | {"image_id": "0043"}], truth), 42)) == 1
    assert len(on(load(tmp_path, [ENTRY | {"image_id": "043"}], truth), 43)) == 1
    assert len(on(load(tmp_path, [ENTRY | {"image_id": "a/x.jpg"}], truth), 1)) == 1
    assert "the first is 'x.jpg'" in refusal(tmp_path, [ENTRY | {"image_id": "x.jpg"}], truth)


def test_images_that_the_data_lack(tmp_path: Path) -> None:
    entries = [ENTRY, *(ENTRY | {"image_id": number} for number in (8, 9, 8))]
    message = refusal(tmp_path, entries)
    assert "results.json: 2 of the 3 images with detections are not in" in message
    assert "the first is 8, while ids there are such as 7; name the ground truth that has them" in message


@pytest.mark.parametrize("written", ["dog", "Dog", "18", 18.0])
def test_classes_by_name_or_as_text(written: object, tmp_path: Path) -> None:
    results = load(tmp_path, [ENTRY | {"category_id": written}])
    assert on(results, 7).labels.tolist() == [1]


def test_classes_by_another_name(tmp_path: Path) -> None:
    categories = [{"id": 1, "name": "couch"}, {"id": 2, "name": "hound"}]
    truth = coco_content(categories=categories, annotations=[])
    entries = [ENTRY | {"category_id": "sofa"}, ENTRY | {"category_id": "dog"}]
    results = load(tmp_path, entries, truth, class_map={"dog": "hound"})
    assert on(results, 7).labels.tolist() == [0, 1]
    assert "classes under another name in the data: sofa is couch, dog is hound" in results.notes
    assert "1 detection of classes that the data lack left out: dog" in load(tmp_path, entries, truth).notes


def test_classes_that_the_data_lack_are_left_out_as_pycocotools_does(tmp_path: Path) -> None:
    entries = [ENTRY, *(ENTRY | {"category_id": number} for number in (90, 91, 90))]
    results = load(tmp_path, entries)
    assert len(on(results, 7)) == 1
    assert "3 detections of classes that the data lack left out: 90, 91" in results.notes
    message = refusal(tmp_path, entries[1:])
    assert "none of its classes (90, 91) is in" in message
    assert "whose classes are 3 car, 18 dog; say which is which" in message


def test_class_ids_that_count_from_0(tmp_path: Path) -> None:
    """They would score almost nothing, and some would fit a wrong class."""
    categories = [{"id": number, "name": name} for number, name in ((1, "cat"), (2, "dog"), (4, "cow"))]
    truth = coco_content(categories=categories, annotations=[])
    entries = [ENTRY | {"category_id": number} for number in (2, 0, 1)]
    message = refusal(tmp_path, entries, truth)
    assert "its class ids are 0 to 2" in message
    assert "1 to 4 without 0: if they number its 3 classes from 0, say --class-ids from-0; if they are the" in message
    results = load(tmp_path, entries, truth, class_ids="from-0")
    assert on(results, 7).labels.tolist() == [2, 0, 1]
    # A background class beside the data's own ids is only left out.
    results = load(tmp_path, [ENTRY | {"category_id": number} for number in (4, 0, 1)], truth)
    assert on(results, 7).labels.tolist() == [2, 0]


def test_class_ids_that_count_from_1(tmp_path: Path) -> None:
    categories = [{"id": number, "name": name} for number, name in enumerate(("cat", "dog", "cow"))]
    truth = coco_content(categories=categories, annotations=[])
    entries = [ENTRY | {"category_id": number} for number in (3, 1)]
    assert "without 3: if they number its 3 classes from 1, say --class-ids from-1" in refusal(tmp_path, entries, truth)
    assert on(load(tmp_path, entries, truth, class_ids="from-1"), 7).labels.tolist() == [2, 0]
    assert on(load(tmp_path, entries[1:], truth), 7).labels.tolist() == [1]


@pytest.mark.parametrize(("shift", "first"), [(-1, 0), (None, 1)])
def test_class_ids_of_data_with_gaps(shift: int | None, first: int, tmp_path: Path) -> None:
    """COCO's ids less one, and its classes numbered from 1: most fit a class, though a wrong one."""
    ids = [1, 2, 4, 7, 8]
    truth = coco_content(categories=[{"id": number, "name": f"c{number}"} for number in ids], annotations=[])
    used = [number + shift for number in ids] if shift else range(1, 6)
    message = refusal(tmp_path, [ENTRY | {"category_id": number} for number in used], truth)
    assert f"if they number its 5 classes from {first}, say --class-ids from-{first}; if they are the data's" in message


def test_boxes_in_another_form_are_told(tmp_path: Path) -> None:
    corners = [ENTRY | {"bbox": [20, 20, 50, 38]}, ENTRY | {"bbox": [30, 5, 58, 35]}]
    assert "COCO results have x, y, width, height" in notes(load(tmp_path, corners))
    assert "not in shares of the image" in notes(load(tmp_path, [ENTRY | {"bbox": [0.1, 0.2, 0.5, 0.4]}]))
    for bbox in ([50, 30, 20, 20], [10, 5, 20, 10]):  # over the border, and inside in both forms
        assert "COCO results have" not in notes(load(tmp_path, [ENTRY | {"bbox": bbox}]))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", ["is empty", "COCO results"]),
        ('[{"image_id": 7}, {"image_id": 7, "categ', ["is cut short", "character 40, after 1 whole entries", "again"]),
        ('[{"image_id": 7},', ["is cut short", "character 17, after 1 whole"]),
        ('[{"image_id": 7}', ["is cut short"]),
        ("[{image_id: 7}]\n", ["cannot be read as JSON", "line 1 column 3"]),
        ("[1, 2]", ["entry 0: expected image_id, category_id, bbox", "the number 1"]),
        ({"images": []}, ["expected COCO results, a list", "a mapping"]),
        ([ENTRY, ENTRY | {"bbox": [1, 2, 3]}], ["entry 1: expected 'bbox' [x, y, width, height], found [1, 2, 3]"]),
        ([ENTRY, ENTRY | {"bbox": [1, 2, 3, "x"]}], ["entry 1: expected numbers", "'x'"]),
        ([ENTRY, ENTRY | {"bbox": [1, 2, 3, 10**400]}], ["entry 1: expected numbers"]),
        ([ENTRY, {"image_id": 7, "category_id": 3, "segmentation": {}, "score": 1}], ["entry 1: expected 'bbox'"]),
        (
            [{"image_id": 7, "category_id": 3, "segmentation": {"counts": "a"}, "score": 1}],
            ["entry 0: segmentation: expected run lengths", "found size None"],
        ),
        ([{"image_id": 7, "category_id": 3, "bbox": [1, 2, 3, 4]}], ["has no 'score', as in a file of ground truth"]),
        ([ENTRY | {"image_id": None}], ["entry 0: expected 'image_id', an integer or a text, found None"]),
        ([ENTRY | {"category_id": 1.5}], ["entry 0: expected 'category_id'", "1.5"]),
        ([ENTRY, ENTRY | {"score": float("nan")}], ["entry 1: expected finite numbers", "the score nan; 1 of 2"]),
        ([ENTRY | {"bbox": [1, float("inf"), 3, 4]}], ["entry 0: expected finite numbers", "y inf to inf"]),
        ([ENTRY, ENTRY | {"bbox": [5, 6, -3, 4]}], ["entry 1: the box x 5 to 2, y 6 to 10 has a negative width"]),
        ([ENTRY, ENTRY | {"score": 87.5}], ["entry 1: expected a score in [0, 1], found 87.5; 1 of 2", "score / 100"]),
        ([ENTRY | {"score": -0.5}], ["expected a score in [0, 1], found -0.5", "1 / (1 + exp(-score))"]),
    ],
)
def test_coco_results_that_cannot_be_measured(content: object, words: Sequence[str], tmp_path: Path) -> None:
    message = refusal(tmp_path, content)
    assert message.startswith(f"{tmp_path / 'results.json'}: ")
    for word in words:
        assert word in message


def test_results_that_are_not_text(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_bytes(b"\x1f\x8b\x08\x00\xff\xff")
    with pytest.raises(UserError, match=r"results.json: is not text; expected COCO results"):
        load_results([tmp_path / "results.json"], ground_truth=tmp_path)


def test_text_as_other_systems_write_it(tmp_path: Path) -> None:
    truth = write(tmp_path / "truth.json", coco_content())
    (tmp_path / "results.json").write_text(json.dumps([ENTRY]), encoding="utf-16")
    assert len(on(load_results([tmp_path / "results.json"], ground_truth=truth), 7)) == 1


# ---- ground truth


def test_sizes_come_from_the_pictures_if_the_file_has_none(tmp_path: Path) -> None:
    images = [{"id": 7, "file_name": "a.jpg"}, {"id": 0, "file_name": "b.jpg", "width": 60, "height": 40}]
    truth = coco_content(images=images)
    message = refusal(tmp_path, [ENTRY], truth)
    assert "truth.json: image 7: has no size, as 1 of 2 images" in message
    assert "--images" in message
    for name in ("a.jpg", "b.jpg"):
        write_picture(tmp_path / "far" / "away" / name, (30, 50))
    results = load(tmp_path, [ENTRY], truth, images=tmp_path / "far" / "away")
    assert [image.size for image in results.store.ground_truth] == [(30, 50), (40, 60)]
    assert results.store.paths == tuple(str(tmp_path / "far" / "away" / name) for name in ("a.jpg", "b.jpg"))


def test_pictures_are_shown_where_all_are_at_hand(tmp_path: Path) -> None:
    write_picture(tmp_path / "images" / "a.jpg")
    results = load(tmp_path, [ENTRY])
    assert results.store.paths is None
    assert "no picture is shown, as 1 of 2 are not at hand" in notes(results)
    assert "--images: " in (message := refusal(tmp_path, [ENTRY], images=tmp_path / "images"))
    assert "lacks 1 of the 2 pictures, the first is b.jpg" in message
    assert "does not exist" in refusal(tmp_path, [ENTRY], images=tmp_path / "nowhere")
    write_picture(tmp_path / "images" / "b.jpg")
    assert load(tmp_path, [ENTRY]).store.paths == tuple(str(tmp_path / "images" / name) for name in ("a.jpg", "b.jpg"))


def test_ground_truth_that_cannot_be_measured(tmp_path: Path) -> None:
    annotations = [{"id": 5, "image_id": 7, "category_id": CAR, "bbox": [5, 5, -1, 2]}]
    message = refusal(tmp_path, [ENTRY], coco_content(annotations=annotations))
    assert "image 7: annotation 5: box x 5 to 4, y 5 to 7 is not a box; 1 fault like this" in message
    message = refusal(tmp_path, [ENTRY], {"annotations": [], "categories": []})
    assert "truth.json: expected a COCO file with a list of mappings under 'images'" in message
    results = write(tmp_path / "results.json", [ENTRY])
    with pytest.raises(UserError, match=r"expected a COCO file, or a folder with VOC's XML files .* found no XML file"):
        load_results([results], ground_truth=tmp_path)
    with pytest.raises(UserError, match=r"nowhere.json does not exist; JSON files there: results.json, truth.json"):
        load_results([results], ground_truth=tmp_path / "nowhere.json")


def test_results_on_the_data_of_a_configuration(tmp_path: Path) -> None:
    """Images and classes have the data's own ids, and the pictures are at hand."""
    config = write_config(tmp_path / "tiny.yaml")
    entry = {"image_id": "val_00000", "category_id": 1, "bbox": [1, 2, 3, 4], "score": 1}
    path = write(tmp_path / "results.json", [entry, entry | {"image_id": "val_00002.jpg", "category_id": "star"}])
    results = load_results([path], config=config, overrides=["eval.coco_backend=fast"])
    assert results.settings.coco_backend == "fast"
    assert results.store.paths is not None
    assert [Path(name).name for name in results.store.paths] == ["val_00000.jpg", "val_00001.jpg", "val_00002.jpg"]
    counts = {image_id: len(detections) for image_id, detections in results.store.detections.items()}
    assert counts == {"val_00000": 1, "val_00001": 0, "val_00002": 1}
    assert [results.store.categories.names[label] for label in on(results, "val_00002").labels] == ["star"]


# ---- VOC's files


@pytest.fixture
def devkit(tmp_path: Path) -> Path:
    """Three pictures; the list `val` has the first two. The dog of the second is difficult."""
    dog, hard = voc_object("dog", (11, 6, 30, 20)), voc_object("dog", (11, 6, 30, 20), difficult=1)
    images: dict[str, Sequence[str]] = {"000001": [dog], "000002": [hard], "000003": [dog]}
    folder = write_voc(tmp_path / "devkit", images, lists=["all"])
    write(folder / "ImageSets" / "Main" / "val.txt", "000001\n000002\n")
    return folder


def test_a_file_beside_the_results_of_a_folder_is_not_dropped_in_silence(devkit: Path, tmp_path: Path) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    for name in ("comp4_det_val_dog", "comp4_det_val_cat", "log", "notes"):
        write(folder / f"{name}.txt", "000001 0.5 11 6 30 20\n")
    notes = load_results([folder], ground_truth=devkit).notes
    assert "not read, as their names are not those of VOC's results: log.txt, notes.txt" in notes
    for name in ("log", "notes"):
        (folder / f"{name}.txt").unlink()
    assert not any("not read" in note for note in load_results([folder], ground_truth=devkit).notes)


@pytest.mark.parametrize("change", ["eval.batch_size=2", "eval.amp=bf16", "eval.protocol=coco"])
def test_settings_of_a_detector_have_no_effect_on_results(change: str, devkit: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "dog.txt", "000001 0.5 11 6 30 20\n")
    with pytest.raises(UserError, match=rf"--set {change.partition('=')[0]}: has no effect .*eval.max_detections"):
        load_results([path], ground_truth=devkit, overrides=[change])


def test_pixels_count_from_1_and_both_corners_are_inside(devkit: Path, tmp_path: Path) -> None:
    """The box of the file and of the annotation are the same, so they are one in detkit too."""
    path = write(tmp_path / "dog.txt", "000001 0.5 11 6 30 20\n\n000002 0.25 1 1.5 60 40\n000001 0.75 1 1 1 1\n")
    results = load_results([path], ground_truth=devkit)
    assert on(results, "000001").boxes.tolist() == [[0, 0, 1, 1], [10, 5, 30, 20]]
    assert on(results, "000002").boxes.tolist() == [[0, 0.5, 60, 40]]
    assert [gt.objects.boxes.tolist() for gt in results.store.ground_truth] == [[[10, 5, 30, 20]]] * 3
    assert [gt.objects.ignore.tolist() for gt in results.store.ground_truth] == [[False], [True], [False]]
    assert results.store.paths == tuple(str(devkit / "JPEGImages" / f"00000{number}.jpg") for number in (1, 2, 3))


@pytest.mark.parametrize("prefix", ["", "comp4_det_val_", "comp3_det_val_", "comp4_0aa2-b1_det_val_"])
def test_the_name_of_the_file_is_the_class(prefix: str, devkit: Path, tmp_path: Path) -> None:
    """And the list that it names is measured on, where there is one."""
    folder = tmp_path / "results"
    for name in ("dog", "pottedplant", "tv"):
        write(folder / f"{prefix}{name}.txt", "000001 0.5 11 6 30 20\n")
    assert len(load_results([folder], ground_truth=devkit, image_set="all").store.ground_truth) == 3
    for paths in ([folder], [folder / f"{prefix}*.txt"], sorted(folder.iterdir())):
        results = load_results(paths, ground_truth=devkit)
        names = [results.store.categories.names[label] for label in on(results, "000001").labels]
        assert names == ["dog", "pottedplant", "tvmonitor"]
        assert len(results.store.ground_truth) == (2 if prefix else 3)
        told = [note for note in results.notes if "measured on" in note]
        assert told == ["measured on the 2 images of the list val; another: --image-set"] * bool(prefix)
        assert "classes under another name in the data: tv is tvmonitor" in results.notes


def test_image_sets(devkit: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "comp4_det_test_dog.txt", "000001 0.5 11 6 30 20\n")
    own = write(tmp_path / "mine.txt", "000003\n000001\n")
    write(devkit / "few.txt", "000001\n")

    def ids(root: Path, image_set: str | None) -> list[int | str]:
        return [gt.image_id for gt in load_results([path], ground_truth=root, image_set=image_set).store.ground_truth]

    assert ids(devkit, None) == ids(devkit.parent, None) == ["000001", "000002", "000003"]
    assert ids(devkit, "val") == ids(devkit.parent, "2007_val") == ids(devkit.parent, "val") == ["000001", "000002"]
    assert ids(devkit, str(own)) == ["000003", "000001"]
    assert ids(devkit, "few.txt") == ["000001"]
    with pytest.raises(UserError, match=r"tset.txt does not exist; lists there: all, val"):
        ids(devkit, "tset")
    write_voc(devkit.parent, {"2012_1": []}, year="2012")
    with pytest.raises(UserError, match=r"expected one VOC folder, found VOC2007, VOC2012; name one"):
        ids(devkit.parent, None)
    assert ids(devkit.parent, "2007_val") == ["000001", "000002"]
    with pytest.raises(UserError, match=r"--image-set: .*truth.json is no VOC folder"):
        load(tmp_path, [ENTRY], image_set="val")


def test_voc_without_pictures_and_lists(devkit: Path, tmp_path: Path) -> None:
    (devkit / "Annotations").rename(tmp_path / "plain")
    path = write(tmp_path / "dog.txt", "000001.jpg 0.5 11 6 30 20\n")
    results = load_results([path], ground_truth=tmp_path / "plain")
    assert results.store.paths is None
    assert [image.size for image in results.store.ground_truth] == [(40, 60)] * 3
    assert len(on(results, "000001")) == 1
    with_pictures = load_results([path], ground_truth=tmp_path / "plain", images=devkit)
    assert with_pictures.store.paths is not None


def test_classes_are_those_that_occur_unless_all_are_of_voc(tmp_path: Path) -> None:
    folder = write_voc(tmp_path, {"a b": [voc_object("RBC", (1, 1, 9, 9)), voc_object("WBC", (5, 5, 30, 30))]})
    path = write(tmp_path / "comp4_det_test_WBC.txt", "a b 0.5 5 5 30 30\n")
    results = load_results([path], ground_truth=folder)
    assert results.store.categories.names == ("RBC", "WBC")
    assert on(results, "a b").labels.tolist() == [1]


def test_coco_results_on_voc_ground_truth(devkit: Path, tmp_path: Path) -> None:
    """VOC numbers no classes: they count from 1 in the order of their names."""
    entries = [{"image_id": 1, "category_id": 12, "bbox": [10, 5, 20, 15], "score": 0.5}]
    results = load_results([write(tmp_path / "results.json", entries)], ground_truth=devkit)
    assert [results.store.categories.names[label] for label in on(results, "000001").labels] == ["dog"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("000001 0.5 1 1 9\n", ["line 1: expected `image score x1 y1 x2 y2`", "may be cut short"]),
        ("000001 0.5 1 1 9 9\n\n000001 0.5 1 1 9 x\n000001 0.5 1 1 9 9", ["line 3: expected", "9 x'"]),
        ("000001 nan 1 1 9 9\n", ["line 1: expected finite numbers"]),
        ("\n000001 0.5 9 1 3 9\n", ["line 2: the box x 8 to 3, y 0 to 9 has a negative width"]),
        ("000001 98.5 1 1 9 9\n", ["line 1: expected a score in [0, 1], found 98.5"]),
        ("000009 0.5 1 1 9 9\n", ["1 of the 1 images with detections", "the first is '000009'"]),
    ],
)
def test_voc_files_that_cannot_be_measured(text: str, words: Sequence[str], devkit: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "dog.txt", text)
    with pytest.raises(UserError) as caught:
        load_results([path], ground_truth=devkit)
    for word in (str(path), *words):
        assert word in str(caught.value)


def test_files_of_one_detector(devkit: Path, tmp_path: Path) -> None:
    folder = tmp_path / "results"
    write(folder / "comp4_det_val_dog.txt", "000001 0.5 11 6 30 20\n")
    write(folder / "readme.txt", "not a result")
    assert len(on(load_results([folder], ground_truth=devkit), "000001")) == 1
    write(folder / "comp3_det_val_dog.txt", "000001 0.5 11 6 30 20\n")
    with pytest.raises(UserError, match=r"files of one detector, found those of 2: comp3_det_val_, comp4_det_val_"):
        load_results([folder], ground_truth=devkit)
    results = write(tmp_path / "results.json", [ENTRY])
    with pytest.raises(UserError, match=r"expected one file of COCO results, .* found 2 files, among them .*.json"):
        load_results([results, folder / "readme.txt"], ground_truth=devkit)
    for path, words in ((tmp_path / "no*.txt", "no such file"), (devkit, "a .txt file of each class, found none")):
        with pytest.raises(UserError, match=words):
            load_results([path], ground_truth=devkit)


# ---- the command


def test_the_command_shows_all_protocols_and_turns_voc_files_into_coco_results(
    devkit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One object of two that count is detected: 6 of 11 recalls, half the area, 51 of 101 recalls."""
    folder = tmp_path / "results"
    write(folder / "comp4_det_all_dog.txt", "000001 0.5 11 6 30 20\n")
    numbers, again, coco = tmp_path / "numbers.json", tmp_path / "again.json", tmp_path / "out" / "coco.json"
    common = ["--ground-truth", str(devkit), "--set", "eval.coco_backend=fast"]
    options = [*common, "--json", str(numbers), "--save-detections", str(coco)]
    assert cli.evaluate(["--detections", str(folder), *options]) == 0
    out = capsys.readouterr().out
    assert "\ndog                2  0.5455  0.5000  0.5050\n" in out
    assert "measured on the 3 images of the list all" in out
    assert cli.evaluate(["--detections", str(coco), *common, "--json", str(again)]) == 0
    assert json.loads(numbers.read_text()) == json.loads(again.read_text())
    assert json.loads(numbers.read_text())["voc07"]["mAP"] == pytest.approx(6 / 11)


def test_the_command_takes_every_option_of_the_results(
    devkit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of two lists and two numberings, and with the pictures elsewhere."""
    annotations = (devkit / "Annotations").rename(tmp_path / "plain")
    names = write(tmp_path / "names.yaml", "hound: dog")
    entry = {"image_id": "000001", "bbox": [10, 5, 20, 15], "score": 0.5}
    few = write(tmp_path / "few.txt", "000001\n")
    common = ["--ground-truth", str(annotations), "--images", str(devkit), "--image-set", str(few)]
    for class_id, options in ((11, ["--class-ids", "from-0"]), ("hound", ["--class-map", str(names)])):
        results = write(tmp_path / "results.json", [entry | {"category_id": class_id}])
        assert cli.evaluate(["--detections", str(results), *common, *options, "--protocol", "voc10"]) == 0
        assert "\ndog                1  1.0000\n" in capsys.readouterr().out
    assert cli.evaluate(["--detections", str(results), *common[:-3], str(few), *common[-2:]]) == 2
    assert "--images: the folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "--detections", "a.json"], ["--detections reads results", "--save-detections FILE"]),
        (["--detections", "a.json", "--classes", "shared"], ["--classes shared do not go with it"]),
        (["--detections", "a.json"], ["expected one thing to measure on: --ground-truth", "or else --config"]),
        (["--detections", "a.json", "--ground-truth", "b", "--config", "ssd"], ["or else --config"]),
        (["--detections", "a.json", "--config", "ssd", "--image-set", "val"], ["or else --config"]),
        (["--detections", "a.json", "--ground-truth", "b", "--json", "a.json"], ["a.json: is read by this command"]),
        (["--detections", "a.json", "--ground-truth", "b", "--save-detections", "b"], ["b: is read by this command"]),
        (["run", "--json", "run/last.pt"], ["run/last.pt: is read by this command"]),
        (["--ground-truth", "b.json"], ["--ground-truth goes with --detections FILE"]),
        (["run", "--image-set", "val"], ["--image-set goes with --detections FILE"]),
        (["--detections", "a.json", "--ground-truth", "b", "--set", "data.root=c"], ["data: unknown key"]),
    ],
)
def test_options_that_do_not_go_together(
    arguments: Sequence[str], words: Sequence[str], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.json", [ENTRY])
    write(tmp_path / "run" / "last.pt", "a checkpoint")
    assert cli.evaluate(arguments) == 2
    message = capsys.readouterr().err
    for word in words:
        assert word in message
