"""AVA's files: the lists of boxes, actions and excluded frames, and frames as SlowFast extracts them."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detkit.data.ava import AVAConfig, read_actions, read_ava
from detkit.data.build import build_dataset
from detkit.data.checks import DataError, NoValidation
from detkit.structures import Clip
from tests.data.writers import write_picture

ACTIONS = """item {
  name: "bend/bow (at the waist)"
  id: 1
}
item {
  name: "sit"
  id: 11
}
"""
TRAIN = """-5KQ66BBWC4,0902,0.100,0.250,0.500,1.000,11,7
-5KQ66BBWC4,0902,0.100,0.250,0.500,1.000,1,7
-5KQ66BBWC4,0902,0.600,0.000,0.900,0.500,11,8
-5KQ66BBWC4,0903,0.100,0.250,0.500,1.000,80,7
-5KQ66BBWC4,0903,0.200,0.250,0.500,1.000,1,7
"""


def write_file(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def write_ava(root: Path, rows: str = TRAIN, excluded: str = "", split: str = "train") -> AVAConfig:
    """With frames of 40 x 60 (h, w) for seconds 902 and 903 of the video, its first frame at second 900."""
    write_file(root / "annotations" / f"ava_{split}_v2.2.csv", rows)
    write_file(root / "annotations" / f"ava_{split}_excluded_timestamps_v2.2.csv", excluded)
    write_file(root / "annotations" / "ava_action_list_v2.2_for_activitynet_2019.pbtxt", ACTIONS)
    for number in (59, 60, 61, 62, 63, 91, 92):
        write_picture(root / "frames" / "-5KQ66BBWC4" / f"-5KQ66BBWC4_{number:06d}.jpg", (40, 60), number)
    return AVAConfig(root=str(root))


def test_the_second_902_is_the_61st_frame(tmp_path: Path) -> None:
    """(902 - 900) * 30 = 60, counted from 0; files count from 1 (SlowFast, datasets/ava_helper.py and DATASET.md)."""
    dataset = read_ava(write_ava(tmp_path), "train")
    assert [dataset.image_id(index) for index in range(2)] == ["-5KQ66BBWC4/000060", "-5KQ66BBWC4/000090"]
    assert [Path(dataset.path(index)).name for index in range(2)] == [
        "-5KQ66BBWC4_000061.jpg",
        "-5KQ66BBWC4_000091.jpg",
    ]


def test_boxes_are_shares_and_each_action_is_an_object(tmp_path: Path) -> None:
    dataset = read_ava(write_ava(tmp_path), "train")
    assert dataset.categories.names == ("bend/bow (at the waist)", "sit")
    assert dataset.categories.ids == (1, 11)
    first, second = (dataset.ground_truth(index).objects for index in range(2))
    np.testing.assert_allclose(first.boxes, [[6, 10, 30, 40], [6, 10, 30, 40], [36, 0, 54, 20]], atol=1e-5)
    assert first.labels.tolist() == [1, 0, 1]
    np.testing.assert_allclose(second.boxes, [[12, 10, 30, 40]], atol=1e-5)
    assert second.labels.tolist() == [0]
    assert first.track_ids is None  # a box of a person each second is no tube
    assert "1 box with several actions, an object for each" in dataset.summary
    assert "1 object of actions that the list of actions lacks left out" in dataset.summary


def test_clips_have_the_frames_that_there_are(tmp_path: Path) -> None:
    """Of second 902 the file before and those behind; what was not extracted is stepped over."""
    sample = read_ava(write_ava(tmp_path), "train").load(0, clip=Clip(6, before=1))
    assert [round(float(frame.mean())) for frame in sample.image] == [60, 61, 62, 63, 91, 92]


def test_excluded_frames_are_left_out(tmp_path: Path) -> None:
    dataset = read_ava(write_ava(tmp_path, excluded="-5KQ66BBWC4,0903\nother,0902\n"), "train")
    assert [dataset.image_id(index) for index in range(len(dataset))] == ["-5KQ66BBWC4/000060"]
    assert "1 frame of the excluded timestamps left out" in dataset.summary
    config = AVAConfig(root=str(tmp_path), train_excluded=None)
    assert len(read_ava(config, "train")) == 2
    with pytest.raises(DataError, match="has no frame that is not excluded"):
        read_ava(write_ava(tmp_path, excluded="-5KQ66BBWC4,0903\n-5KQ66BBWC4,0902\n"), "train")


def test_the_validation_has_its_own_files(tmp_path: Path) -> None:
    write_ava(tmp_path, TRAIN.splitlines()[4] + "\n", split="val")
    config = write_ava(tmp_path)
    assert [len(read_ava(config, split)) for split in ("train", "val")] == [2, 1]
    assert isinstance(build_dataset(config, "val"), type(read_ava(config, "val")))
    with pytest.raises(NoValidation):
        read_ava(config.model_copy(update={"val": None}), "val")


def test_classes_and_merge_and_every(tmp_path: Path) -> None:
    config = write_ava(tmp_path)
    chosen = read_ava(config.model_copy(update={"classes": ("sit",)}), "train")
    assert [len(chosen.ground_truth(index).objects) for index in range(2)] == [2, 0]
    merged = read_ava(config.model_copy(update={"merge": {"do": ("sit", "bend/bow (at the waist)")}}), "train")
    assert merged.categories.names == ("do",)
    assert len(read_ava(config.model_copy(update={"train_every": 2}), "train")) == 1


DIALECTS = {
    "seven columns": "-5KQ66BBWC4,902,0.1,0.25,0.5,1.0,11\n",
    "numbers with a point": "-5KQ66BBWC4,902.0,0.1,0.25,0.5,1.0,11.0,7\n",
    "spaces, an empty line and a byte order mark": "\ufeff-5KQ66BBWC4, 902 , 0.1, 0.25, 0.5, 1.0, 11, 7\r\n\r\n",
    "a line again": "-5KQ66BBWC4,902,0.1,0.25,0.5,1.0,11,7\n" * 2,
    "a box without an action": "-5KQ66BBWC4,902,0.1,0.25,0.5,1.0,11,7\n-5KQ66BBWC4,902,0.2,0.2,0.5,1.0,,7\n",
}


@pytest.mark.parametrize("name", DIALECTS)
def test_other_forms_are_read(tmp_path: Path, name: str) -> None:
    dataset = read_ava(write_ava(tmp_path, DIALECTS[name]), "train")
    np.testing.assert_allclose(dataset.objects.boxes, [[6, 10, 30, 40]], atol=1e-5)
    assert ("1 line repeated" in dataset.summary) == (name == "a line again")
    assert ("1 box without an action left out" in dataset.summary) == (name == "a box without an action")


def test_frames_may_have_other_names(tmp_path: Path) -> None:
    config = write_ava(tmp_path)
    folder = tmp_path / "frames" / "-5KQ66BBWC4"
    for file in list(folder.iterdir()):
        file.rename(folder / f"img_{int(file.stem[-6:]):05d}.JPG")
    assert Path(read_ava(config, "train").path(0)).name == "img_00061.JPG"


def test_lists_of_actions(tmp_path: Path) -> None:
    """As AVA publishes that of all 80, in other words and on one line."""
    path = tmp_path / "actions.pbtxt"
    path.write_text(
        "label {\n  name: 'sit'\n  label_id: 11\n  label_type: PERSON_MOVEMENT\n}\nlabel{name:\"it's\" label_id:2}"
    )
    actions = read_actions(path)
    assert (actions.names, actions.ids) == (("sit", "it's"), (11, 2))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected blocks such as item"),
        ("sit 11", "expected blocks such as item"),
        ('item { name: "sit" }', r"expected `name` and `id` or `label_id`, found 'name: \"sit\"'"),
        ('item { name: "a" id: 1 } item { name: "b" id: 1 }', "the number 1 is there 2 times"),
        ('item { name: "a" id: 1 } item { name: "a" id: 2 }', "the name 'a' is there 2 times"),
    ],
)
def test_lists_that_are_none(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "actions.pbtxt").write_text(text)
    with pytest.raises(DataError, match=message):
        read_actions(tmp_path / "actions.pbtxt")


LINE = "-5KQ66BBWC4,0902,0.1,0.25,0.5,1.0,11,7\n"
MISTAKES: dict[str, tuple[Any, str]] = {
    "six values": (LINE + "a,902,0.1,0.2,0.3,0.4\n", r"ava_train_v2.2.csv:2: expected 7 or 8 values, found 6$"),
    "a header": (
        "video,second,x1,y1,x2,y2,action,person\n",
        r"csv:1: expected video, second from 900 to 1800, x1, y1, x2, y2",
    ),
    "no number": (
        "a,902,x,0.2,0.3,0.4,11,7\n",
        r"csv:1: expected video, second from 900 to 1800, .*; found a,902,x,0.2",
    ),
    "an action of text": ("a,902,0.1,0.2,0.3,0.4,sit,7\n", r"csv:1: expected video, second from 900 to 1800"),
    "half a second": ("a,902.5,0.1,0.2,0.3,0.4,11,7\n", r"csv:1: expected video, second from 900 to 1800"),
    "an early second": ("a,12,0.1,0.2,0.3,0.4,11,7\n", r"csv:1: expected video, second from 900 to 1800"),
    "a late second": (LINE.replace("902", "999999999"), r"csv:1: expected video, second from 900 to 1800"),
    "an infinite second": ("a,inf,0.1,0.2,0.3,0.4,11,7\n", r"csv:1: expected video, second from 900 to 1800"),
    "nan": (LINE.replace("0.25", "nan"), r"-5KQ66BBWC4, second 902: line 1 \(sit\): box x 6 to 30, y nan to 40 is not"),
    "pixels": (LINE.replace("0.5,", "300,"), r"second 902: line 1 \(sit\): box x 6 to 18000, y 10 to 40"),
    "empty box": (LINE.replace("0.5,", "0.1,"), r"second 902: line 1 \(sit\): box x 6 to 6"),
    "no frame": (LINE.replace("902", "904"), r"second 904: the picture .*_000121.jpg does not exist"),
    "no such video": (
        LINE.replace("-5K", "100%"),
        r"second 902: the picture .*/100%Q66BBWC4_000061.jpg does not exist",
    ),
    "nothing": ("", "has no frame that is not excluded"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named_in_one_line(tmp_path: Path, name: str) -> None:
    rows, message = MISTAKES[name]
    with pytest.raises(DataError, match=message) as caught:
        read_ava(write_ava(tmp_path, rows), "train")
    assert len(str(caught.value).splitlines()) <= 3


def test_files_that_are_not_there(tmp_path: Path) -> None:
    config = write_ava(tmp_path)
    for change in ({"train": "a.csv"}, {"train_excluded": "a.csv"}, {"actions": "a.csv"}):
        with pytest.raises(DataError, match=r"a.csv: .*cannot be read: .*No such file"):
            read_ava(config.model_copy(update=change), "train")
    write_file(tmp_path / "a.csv", "video,second\n")
    with pytest.raises(DataError, match=r"a.csv: expected video, second; found another value"):
        read_ava(config.model_copy(update={"train_excluded": "a.csv"}), "train")


def test_videos_that_cannot_be_had_any_more_are_dropped(tmp_path: Path) -> None:
    config = write_ava(tmp_path, TRAIN + "gone,0902,0.1,0.2,0.3,0.4,1,1\n")
    with pytest.raises(DataError, match=r"gone, second 902: the picture .* does not exist"):
        read_ava(config, "train")
    dataset = read_ava(config.model_copy(update={"on_bad_label": "drop_image"}), "train")
    assert len(dataset) == 2
    assert "1 image dropped" in dataset.summary


def test_frames_of_one_number_twice(tmp_path: Path) -> None:
    config = write_ava(tmp_path)
    folder = tmp_path / "frames" / "-5KQ66BBWC4"
    shutil.copy(folder / "-5KQ66BBWC4_000061.jpg", folder / "img_61.jpg")
    with pytest.raises(DataError, match=r"are the same frame; remove one$"):
        read_ava(config, "train")
    (folder / "img_61.jpg").rename(folder / "cover.jpg")
    with pytest.raises(DataError, match=r"cover.jpg: expected a name that ends in the number of the frame$"):
        read_ava(config, "train")
