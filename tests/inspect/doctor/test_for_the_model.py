"""What the data lack for one detector: counts by hand, and as its own assigner has them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from detkit.detectors.build import build_detector
from detkit.engine.settings import RunConfig
from detkit.inspect.doctor.diagnose import diagnose
from detkit.inspect.doctor.findings import Finding
from detkit.inspect.doctor.matching import prediction_keys
from detkit.inspect.doctor.network_input import Shapes, network_view
from detkit.inspect.doctor.reading import read_splits
from detkit.nn.assign.grid import GridAnchorAssigner
from detkit.structures import Categories
from tests.inspect.doctor.drawn_sets import CAT, CLEAN, DOG, GOOD, Drawn, config_of, findings_of, write_set

YOLOV1: dict[str, Any] = {
    "name": "yolov1",
    "backbone": {"name": "resnet18", "weights": None, "norm": "bn", "frozen_stages": 0, "strides": [32]},
    "head": {"grid": 4, "hidden": "none", "output": "convolution"},
    "input": {"resize": {"name": "stretch", "size": 128}},
}
YOLOV3: dict[str, Any] = {
    "name": "yolov3",
    "backbone": {"name": "resnet18", "weights": None, "norm": "bn", "frozen_stages": 0, "strides": [16, 32]},
    "head": {"anchors": [[[30, 40], [40, 30]], [[60, 60], [100, 90]]]},
    "input": {"resize": {"name": "letterbox", "size": 128}},
}
DETR: dict[str, Any] = {
    "name": "detr",
    "backbone": {"name": "resnet18", "weights": None, "norm": "bn", "frozen_stages": 0, "strides": [16]},
    "head": {"name": "detr", "num_queries": 3, "transformer": {"width": 32, "heads": 4, "feedforward": 32}},
    "input": {"resize": {"name": "short_side", "size": 80, "max_size": 120}},
}
RT_DETR: dict[str, Any] = {
    "name": "rt_detr",
    "backbone": {"name": "resnet18", "weights": None, "norm": "bn", "frozen_stages": 0, "strides": [8, 16, 32]},
    "head": {"num_queries": 3},
    "input": {"resize": {"name": "stretch", "size": 128}},
}
FAST: dict[str, Any] = {
    "name": "fast_rcnn",
    "backbone": {"name": "resnet18", "weights": None, "norm": "bn", "frozen_stages": 0, "strides": [16]},
    "roi": {"hidden": [16], "dropout": 0.0},
    "proposals": {"name": "selective_search", "min_side": 20},
    "input": {"resize": {"name": "short_side", "size": 80, "max_size": 120}},
}
ROW = [(CAT, 8 + 30 * i, 30, 20, 20) for i in range(4)]


def counts(findings: dict[str, Finding]) -> dict[str, int]:
    return {code: finding.count for code, finding in findings.items()}


def test_an_object_that_no_anchor_meets(tmp_path: Path) -> None:
    """Anchors of 16 to 64 px and ratios of a half to two: none is as flat as 100 x 4."""
    findings = findings_of(tmp_path, [Drawn([*GOOD, (DOG, 10, 60, 100, 4)])])
    assert counts(findings) == {"anchor-none": 1}
    assert findings["anchor-none"].examples[0].text.startswith("dog, 100 x 4 px, best IoU 0.")


def test_an_object_smaller_than_a_stride(tmp_path: Path) -> None:
    """Of the two, only one is below 16 px in both sides; an anchor of 16 px meets either by more than .3."""
    findings = findings_of(tmp_path, [Drawn([*GOOD, (DOG, 60, 58, 12, 14), (CAT, 85, 58, 14, 18)])])
    assert counts(findings) == {"smaller-than-stride": 1}
    place = findings["smaller-than-stride"].examples[0]
    assert (place.box, place.text) == ((60, 58, 72, 72), "dog, 12 x 14 px, 12.0 x 14.0 px in the input")


def test_the_size_of_the_input_counts(tmp_path: Path) -> None:
    """At a fifth of the size every object of 30 x 40 and 40 x 30 is smaller than 16 px."""
    change = "model.input.resize={name: short_side, size: 16, max_size: 24}"
    findings = findings_of(tmp_path, [], [], change)
    finding = findings["smaller-than-stride"]
    assert (finding.severity, finding.count) == ("warning", 48)
    texts = {place.text for place in finding.examples}
    assert texts <= {"cat, 30 x 40 px, 6.0 x 8.0 px in the input", "dog, 40 x 30 px, 8.0 x 6.0 px in the input"}


def test_histograms_at_the_size_of_the_input(tmp_path: Path) -> None:
    data = write_set(tmp_path, [Drawn([(CAT, 10, 10, 30, 30), (DOG, 10, 10, 60, 15)])], [Drawn([(CAT, 0, 0, 20, 80)])])
    config = config_of(data, "model.input.resize={name: short_side, size: 40, max_size: 60}")  # half as large
    sides, aspects = diagnose(config).tables[1:3]
    assert {row[0]: list(row[1:]) for row in sides.rows if any(row[1:])} == {"8 to 16": [2, 0], "16 to 32": [0, 1]}
    expected = {"2:3 to 3:2": [1, 0], "4:1 and more": [1, 0], "1:4 to 1:3": [0, 1]}
    assert {row[0]: list(row[1:]) for row in aspects.rows if any(row[1:])} == expected


def test_the_recall_that_anchors_allow(tmp_path: Path) -> None:
    data = write_set(tmp_path, [Drawn([*GOOD, (DOG, 10, 60, 100, 4), (DOG, 4, 70, 100, 4)])], CLEAN)
    table = next(table for table in diagnose(config_of(data)).tables if "recall ceiling" in table.title)
    rows = {row[0]: list(row[1:]) for row in table.rows}
    assert rows["IoU 0.3"] == [0.5, 1.0]


def test_objects_that_share_a_cell_of_yolov1(tmp_path: Path) -> None:
    """The pictures of 120 x 80 are stretched to 128 x 128, so that a cell is 30 x 20 px: two in each of two cells."""
    boxes = [
        (CAT, 2, 2, 20, 14),
        (DOG, 4, 3, 20, 14),
        (CAT, 62, 42, 20, 14),
        (DOG, 64, 43, 20, 14),
        (CAT, 92, 2, 20, 14),
    ]
    findings = findings_of(tmp_path, [Drawn(boxes)], [], model=YOLOV1)
    assert findings["cell-shared"].count == 2
    assert (findings["cell-shared"].total, findings["cell-shared"].severity) == (53, "note")


def test_more_objects_than_cells_of_yolov1(tmp_path: Path) -> None:
    boxes = [(CAT, 7 * i, 10 * j, 6, 9) for i in range(9) for j in range(2)]  # 18 in 16 cells
    findings = findings_of(tmp_path, [Drawn(boxes)], [], model=YOLOV1)
    assert (findings["more-than-cells"].count, findings["more-than-cells"].total) == (1, 25)
    assert "2 more in all" in findings["more-than-cells"].message


def test_predictions_of_yolov3_are_those_of_its_assigner(tmp_path: Path) -> None:
    """Two objects of one shape in a cell share a prediction; of other shapes they do not."""
    rng = np.random.default_rng(0)
    boxes = [(CAT, *rng.uniform(0, 50, 2).round(), *rng.uniform(5, 30, 2).round()) for _ in range(60)]
    data = write_set(
        tmp_path, [Drawn(boxes), Drawn([(DOG, 20, 20, 20, 30), (DOG, 22, 21, 20, 30), (CAT, 15, 20, 40, 20)])], CLEAN
    )
    config = config_of(data, model=YOLOV3)
    split = read_splits(config.data)[0]
    shapes = Shapes(config, split.dataset.categories)
    view = network_view(split, shapes.image_input)
    keys = prediction_keys(config.model, shapes, view)  # type: ignore[arg-type]
    detector = build_detector(config.model, Categories.of_names(["cat", "dog"])).eval()
    outputs = detector.network(torch.zeros(1, 3, 128, 128), torch.tensor([[85, 128]]))
    assigner = GridAnchorAssigner(outputs.cells, outputs.anchors, outputs.strides, 0.5)
    for image in (0, 1):
        predictions = assigner.predictions_of(torch.from_numpy(view.boxes[view.images == image]))
        expected = np.unique(predictions.numpy(), return_inverse=True)[1]
        actual = np.unique(keys[view.images == image], axis=0, return_inverse=True)[1].reshape(-1)
        same = expected[:, None] == expected
        np.testing.assert_array_equal(actual[:, None] == actual, same)
    findings = {finding.code: finding for finding in diagnose(config).findings}
    lost = len(keys) - len(np.unique(keys, axis=0))
    assert findings["anchor-shared"].count == lost >= 1


def test_shapes_unlike_the_anchors_of_yolov3(tmp_path: Path) -> None:
    """A letterbox enlarges by 128 / 120. A box of 9 x 9 has IoU 92 / 1200 with the nearest anchor, 30 x 40."""
    findings = findings_of(tmp_path, [Drawn([*GOOD, (DOG, 60, 58, 9, 9)])], [], model=YOLOV3)
    assert counts(findings) == {"anchor-none": 1, "smaller-than-stride": 1}
    assert findings["anchor-none"].examples[0].text == "dog, 9 x 9 px, best IoU 0.08"


@pytest.mark.parametrize("model", [DETR, RT_DETR], ids=lambda model: model["name"])
def test_more_objects_than_queries(model: dict[str, Any], tmp_path: Path) -> None:
    findings = findings_of(tmp_path, [Drawn(ROW)], [Drawn(ROW[:3])], model=model)
    assert counts(findings) == {"more-than-queries": 1}
    assert findings["more-than-queries"].examples[0].text == "4 objects"


def test_more_objects_than_detections(tmp_path: Path) -> None:
    findings = findings_of(tmp_path, [], [Drawn(ROW)], "model.roi.selection.max_detections=3")
    assert counts(findings) == {"more-than-detections": 1}


def test_objects_too_small_for_selective_search(tmp_path: Path) -> None:
    """A box of 20 px a side around 12 x 16 has IoU .48 with it, around 13 x 16 .52."""
    findings = findings_of(tmp_path, [Drawn([*GOOD, (CAT, 60, 58, 12, 16), (DOG, 85, 58, 13, 16)])], [], model=FAST)
    assert counts(findings) == {"smaller-than-proposals": 1, "proposals-not-measured": 0}
    assert findings["smaller-than-proposals"].examples[0].box == (60, 58, 72, 74)


CROPS = "augment=[{name: large_scale_jitter, scale: [0.1, 0.1], size: 80}]"


def test_objects_that_the_augmentation_makes_too_small(tmp_path: Path) -> None:
    """At a tenth of two thirds of the size, boxes below 15 px become narrower than a pixel and are dropped."""
    findings = findings_of(tmp_path, [Drawn([*GOOD, (CAT, 60, 58, 14, 20), (DOG, 85, 58, 16, 20)])], [], CROPS)
    finding = findings["lost-in-augmentation"]
    assert (finding.count, finding.total) == (1, 28)
    assert finding.examples[0].box == (60, 58, 74, 78)


@pytest.mark.parametrize("augment", ["flip", "ssd", "yolov3", "detr", "yolox"])
def test_published_augmentations_lose_no_object_each_time(tmp_path: Path, augment: str) -> None:
    assert findings_of(tmp_path, [], [], f"augment={augment}") == {}


@pytest.mark.parametrize("model", [None, YOLOV1, YOLOV3, DETR, FAST], ids=lambda model: model["name"] if model else "-")
def test_pictures_without_any_object(tmp_path: Path, model: dict[str, Any] | None) -> None:
    data = write_set(tmp_path, [Drawn([]) for _ in range(3)], [Drawn([])])
    found = {finding.code for finding in diagnose(config_of(data, "augment=ssd", model=model)).findings}
    assert found - {"proposals-not-measured"} == {"image-without-objects", "class-without-objects"}


def test_every_packaged_detector_can_be_looked_at(tmp_path: Path) -> None:
    from detkit.engine.config_files import load_named

    data = write_set(tmp_path, CLEAN[:2], CLEAN[:2])
    for name in ("sliding_window", "rcnn", "fast_rcnn", "faster_rcnn", "ssd", "yolov1", "yolov2", "yolov3", "detr"):
        named = load_named(name)
        config: RunConfig = named.model_copy(update={"data": config_of(data).data})
        assert diagnose(config).tables, name
