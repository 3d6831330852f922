"""Real data sets, with the flaws they came with. Skipped where they are not (see conftest.py)."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path

import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detkit import cli
from detkit.data.build import build_dataset
from detkit.data.coco import COCOConfig
from detkit.data.voc import VOC_CLASSES, VOCConfig
from detkit.engine.evaluate import detection_store
from detkit.evaluation.build import build_evaluators
from detkit.evaluation.evaluator import summarise
from detkit.evaluation.report import detections_to_coco
from detkit.structures import Detections, Objects
from tests.cli_support import TINY, train_tiny, write_config

NAMES = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]


def voc(root: Path, *train: str, **changes: str) -> VOCConfig:
    return VOCConfig(root=str(root / "VOCdevkit"), train=train, val=("2007_val",), **changes)  # type: ignore[arg-type]


@pytest.mark.long
def test_coco_mini_trains_and_evaluates_without_a_warning(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Warnings of other packages are errors too."""
    root = shared_data / "coco-mini"
    # After one epoch no class of 80 is likely, so every detection counts.
    model = {**TINY["model"], "roi": {**TINY["model"]["roi"], "selection": {"score_threshold": 0.0}}}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = train_tiny(tmp_path, data={"name": "coco", "root": str(root)}, eval={"protocol": "coco"}, model=model)
        out = capsys.readouterr().out
        files = {name: tmp_path / f"{name}.json" for name in ("numbers", "detections")}
        options = ["--protocol", "coco", "--json", str(files["numbers"]), "--save-detections", str(files["detections"])]
        assert cli.evaluate([str(run), *options]) == 0
    assert "32 images, 217 objects of 80 classes and 2 ignored" in out
    assert "48 images, 357 objects of 80 classes and 5 ignored, 2 images without objects" in out
    numbers = json.loads(files["numbers"].read_text())["coco"]
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert [numbers[name] for name in NAMES] == [last[name] for name in NAMES]
    assert [numbers[name] for name in NAMES] == pytest.approx(by_pycocotools(root, files["detections"]), abs=1e-12)
    assert numbers["AR100"] > 0


def test_coco_mini_as_pycocotools_sees_it(shared_data: Path) -> None:
    """Classes, ids with gaps, boxes, areas, crowds, an image without objects and a gray one."""
    root = shared_data / "coco-mini"
    dataset = build_dataset(COCOConfig(root=str(root)), "val")
    reference = COCO(str(root / "annotations" / "instances_val2017.json"))
    ids = dataset.categories.ids
    assert len(dataset) == len(reference.getImgIds()) == 48
    assert ids == tuple(sorted(reference.getCatIds()))
    assert ids != tuple(range(1, 81))
    assert dataset.categories.names == tuple(category["name"] for category in reference.loadCats(list(ids)))
    num_empty, num_gray, num_crowds = 0, 0, 0
    for index in range(len(dataset)):
        ground_truth, sample = dataset.ground_truth(index), dataset.load(index)
        objects, rows = ground_truth.objects, reference.loadAnns(reference.getAnnIds(imgIds=ground_truth.image_id))
        assert objects.area is not None
        assert [ids[label] for label in objects.labels] == [row["category_id"] for row in rows]
        assert objects.ignore.tolist() == [bool(row["iscrowd"]) for row in rows]
        assert objects.area.tolist() == pytest.approx([row["area"] for row in rows])
        for box, row in zip(objects.boxes.tolist(), rows, strict=True):
            x, y, width, height = row["bbox"]
            assert box == pytest.approx([x, y, x + width, y + height], abs=1e-3)
        num_empty += not rows
        num_crowds += int(objects.ignore.sum())
        num_gray += bool((sample.image == sample.image[..., :1]).all())
    assert (num_empty, num_crowds) == (2, 5)
    assert num_gray >= 1


def test_perfect_detections_on_coco_mini_have_full_score(shared_data: Path, tmp_path: Path) -> None:
    """The objects themselves as detections, crowds left out: 1 wherever there is an object, in pycocotools too."""
    root = shared_data / "coco-mini"
    store = detection_store(build_dataset(COCOConfig(root=str(root)), "val"))
    for image in store.ground_truth:
        objects = image.objects.take(~image.objects.ignore).to_tensors()
        detected = Objects(boxes=objects.boxes, labels=objects.labels, scores=torch.ones(len(objects)))
        store.update(image.image_id, Detections(detected, store.categories))
    results = summarise(store, build_evaluators(["coco", "voc07"], store)).results
    assert results["coco"].metrics["AP"] == pytest.approx(1.0)
    assert results["voc07"].metrics["mAP"] == pytest.approx(1.0)
    with_objects = [name for name, ap in results["coco"].per_class.items() if not math.isnan(ap)]
    assert 30 < len(with_objects) < 80
    file = tmp_path / "perfect.json"
    file.write_text(json.dumps(detections_to_coco(store.detections, store.categories)))
    assert [results["coco"].metrics[name] for name in NAMES] == pytest.approx(by_pycocotools(root, file), abs=1e-12)


def by_pycocotools(root: Path, results: Path) -> list[float]:
    reference = COCO(str(root / "annotations" / "instances_val2017.json"))
    evaluation = COCOeval(reference, reference.loadRes(str(results)), "bbox")
    for step in (evaluation.evaluate, evaluation.accumulate, evaluation.summarize):
        step()
    numbers: list[float] = evaluation.stats.tolist()
    return numbers


@pytest.mark.parametrize(
    ("split", "flawed"),
    [("2007_train", ["BloodImage_00343"]), ("2007_trainval", ["BloodImage_00338", "BloodImage_00343"])],
)
def test_bccd_is_refused_and_its_flaws_named(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], split: str, flawed: list[str]
) -> None:
    root = str(shared_data / "bccd" / "VOCdevkit")
    data = {"name": "voc", "root": root, "train": [split], "val": ["2007_test"], "classes": "auto"}
    config = write_config(tmp_path / "bccd.yaml", data)
    assert cli.train([str(config), "--output", str(tmp_path / "run")]) == 2
    message = capsys.readouterr().err
    assert f"{len(flawed)} problem" in message
    assert message.count(".xml: ") == len(flawed)
    for name, where in (("BloodImage_00343", "181"), ("BloodImage_00338", "504")):
        assert (f"{name}.xml: object" in message) == (name in flawed)
        assert (f"(RBC, xmin {where} " in message) == (name in flawed)
    assert "drop_box" in message


def test_bccd_is_read_when_boxes_may_be_dropped(shared_data: Path) -> None:
    """The list `trainval` is train and val; each has one box of no size."""
    config = voc(shared_data / "bccd", "2007_trainval", classes="auto", on_bad_label="drop_box")
    train, val = build_dataset(config, "train"), build_dataset(config, "val")
    assert train.categories.names == val.categories.names == ("Platelets", "RBC", "WBC")
    assert (len(train), len(val)) == (292, 87)
    assert "2 boxes dropped" in train.summary
    assert "1 box dropped" in val.summary
    raw = sum(path.read_text().count("<object>") for path in annotation_files(shared_data / "bccd", "trainval"))
    assert sum(len(train.ground_truth(index).objects.boxes) for index in range(len(train))) == raw - 2


def test_fod_a_mini(shared_data: Path) -> None:
    """31 classes read from the files; boxes that touch the border by the pixel from which its tool counts."""
    config = voc(shared_data / "fod-a-mini", "2007_train", classes="auto")
    train, val = build_dataset(config, "train"), build_dataset(config, "val")
    assert len(train.categories.names) == 31
    assert train.categories.names == val.categories.names
    assert (len(train), len(val)) == (465, 155)
    raw = sum(path.read_text().count("<object>") for path in annotation_files(shared_data / "fod-a-mini", "train"))
    assert sum(len(train.ground_truth(index).objects.boxes) for index in range(len(train))) == raw
    assert train.load(0).image.shape == (300, 300, 3)


def test_voc07_mini(shared_data: Path) -> None:
    """VOC as PASCAL wrote it: difficult objects are ignored in evaluation, and in training only if asked."""
    config = voc(shared_data / "voc07-mini", "2007_train")
    train, val = build_dataset(config, "train"), build_dataset(config, "val")
    assert train.categories.names == val.categories.names == VOC_CLASSES
    assert (len(train), len(val)) == (100, 50)
    files = annotation_files(shared_data / "voc07-mini", "train")
    difficult = sum(path.read_text().count("<difficult>1</difficult>") for path in files)
    assert difficult > 0
    assert sum(int(train.ground_truth(index).objects.ignore.sum()) for index in range(len(train))) == difficult
    taught = build_dataset(config.model_copy(update={"difficult": "train"}), "train")
    assert not any(taught.ground_truth(index).objects.ignore.any() for index in range(len(taught)))
    assert "22 ignored" in val.summary


def annotation_files(root: Path, split: str) -> list[Path]:
    folder = root / "VOCdevkit" / "VOC2007"
    stems = (folder / "ImageSets" / "Main" / f"{split}.txt").read_text().split()
    return [folder / "Annotations" / f"{stem}.xml" for stem in stems]
