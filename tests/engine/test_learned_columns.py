"""Which columns a run reads: what its detector learns, and what its augmentation looks at."""

import json
from pathlib import Path
from typing import Any

import pytest

from detkit.config import UserError
from detkit.engine.overfit import overfit
from detkit.engine.train import train_config, training_data
from tests.engine.masked_pictures import write_masked_pictures
from tests.engine.settings import make_config, read_metrics, write_pictures

NARROW = {  # branches that are quickly computed
    "faster_rcnn": [],
    "mask_rcnn": ["model.mask={channels: [8], deconv_channels: 8}"],
}
COPY_PASTE = "augment=[{name: copy_paste, scale: [1, 1]}]"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return write_masked_pictures(tmp_path_factory.mktemp("masked"), 4)


@pytest.mark.parametrize(
    ("changes", "in_training", "in_validation"),
    [
        ((), set(), set()),
        ((COPY_PASTE,), {"masks"}, set()),
        (("augment=simple_copy_paste",), {"masks"}, set()),
        (("model.name=mask_rcnn",), {"masks"}, {"masks"}),
        (("model.name=keypoint_rcnn",), {"keypoints"}, {"keypoints"}),
        (("model.name=keypoint_rcnn", COPY_PASTE), {"masks", "keypoints"}, {"keypoints"}),
    ],
)
def test_columns_that_are_read(data: dict[str, Any], changes: Any, in_training: Any, in_validation: Any) -> None:
    read = training_data(make_config(data, *changes))
    assert read.val is not None
    assert {"masks", "keypoints"} & read.train.objects.columns().keys() == in_training
    assert {"masks", "keypoints"} & read.val.objects.columns().keys() == in_validation
    assert set(read.columns) == in_validation


@pytest.mark.parametrize("name", ["faster_rcnn", "mask_rcnn"])
def test_a_run_with_copy_paste(data: dict[str, Any], tmp_path: Path, name: str) -> None:
    """Each detector learns what it has a branch for, from data that have masks for both."""
    changes = [f"model.name={name}", *NARROW[name], COPY_PASTE, "train.epochs=1", "data.val_annotations=null"]
    train_config(make_config(data, *changes), tmp_path)
    losses = read_metrics(tmp_path, "train")[-1]
    assert ("mask" in losses) == (name == "mask_rcnn")


def test_pictures_learned_by_heart_need_the_masks(data: dict[str, Any], tmp_path: Path) -> None:
    config = make_config(data, "model.name=mask_rcnn", *NARROW["mask_rcnn"])
    result = overfit(config, num_images=2, minutes=0.01)
    assert "mask" in result.losses
    with pytest.raises(UserError, match="mask_rcnn learns masks, but no object of"):
        overfit(make_config(write_pictures(tmp_path / "boxes", 2), "model.name=mask_rcnn"))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([["tip"], ["nose", "tail"]], "those of kite and dog differ: choose with data.classes"),
        ([None, None], "4 objects with keypoints left out, as its category names none"),
    ],
)
def test_why_there_are_no_keypoints(tmp_path: Path, names: list[Any], message: str) -> None:
    """The error says what the reader left out, not only that there are none."""
    data = write_masked_pictures(tmp_path, 4)
    path = tmp_path / "objects.json"
    content = json.loads(path.read_text())
    content["categories"] = [
        {"id": number, "name": name, "keypoints": points}
        for number, (name, points) in enumerate(zip(("kite", "dog"), names, strict=True), start=1)
    ]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="keypoint_rcnn learns keypoints, but no object of") as error:
        training_data(make_config(data, "model.name=keypoint_rcnn"))
    assert message in str(error.value)
