"""Data sets that others annotated: what their README says is wrong with them is reported."""

from pathlib import Path

import pytest

from detkit.engine.config_files import load_named
from detkit.inspect.doctor.diagnose import diagnose
from detkit.inspect.doctor.findings import Finding

pytestmark = pytest.mark.long


def findings_of(name: str, *overrides: str) -> dict[str, Finding]:
    return {finding.code: finding for finding in diagnose(load_named(name, overrides)).findings}


def test_bccd_has_two_boxes_of_no_size(shared_data: Path) -> None:
    findings = findings_of("bccd/faster_rcnn", f"data.root={shared_data}/bccd/VOCdevkit")
    assert [code for code, finding in findings.items() if finding.severity == "error"] == ["box-empty"]
    places = findings["box-empty"].examples
    assert findings["box-empty"].count == 2
    assert {(Path(place.path).stem, place.split) for place in places} == {
        ("BloodImage_00343", "train"),
        ("BloodImage_00338", "val"),
    }
    assert all("RBC" in place.text for place in places)
    assert "box-twice" not in findings


def test_fod_is_of_videos_so_that_frames_are_in_both_splits(shared_data: Path) -> None:
    findings = findings_of("bccd/ssd", f"data.root={shared_data}/fod-a-mini/VOCdevkit", "data.classes=auto")
    finding = findings["near-duplicate-across-splits"]
    assert (finding.severity, finding.total) == ("warning", 155)
    assert finding.count >= 10
    assert not [code for code, finding in findings.items() if finding.severity == "error"]


def test_voc_is_sound(shared_data: Path) -> None:
    findings = findings_of("bccd/ssd", f"data.root={shared_data}/voc07-mini/VOCdevkit", "data.classes=null")
    assert not [code for code, finding in findings.items() if finding.severity == "error"]
    assert not [code for code in findings if code.startswith(("box", "near", "same"))]


def test_coco_has_pictures_without_objects_and_grey_ones(shared_data: Path) -> None:
    findings = findings_of("coco/yolov3", f"data.root={shared_data}/coco-mini")
    assert findings["image-without-objects"].count >= 1
    assert findings["picture-grey"].count >= 1
    assert not [code for code in findings if code.startswith(("box-", "near", "same"))]
