"""Videos in detkit's JSON format: what is read, and every mistake as one line."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detkit.data.checks import DataError, NoValidation
from detkit.data.clips import ClipsConfig, read_clips
from detkit.structures import Clip
from tests.data.video_sets import moved, numbers_in, read, track, write_clips, write_frames
from tests.data.writers import write_picture

BOX = (5.0, 6.0, 25.0, 30.0)
STREET: dict[str, Any] = {"name": "street", "frames": "street", "tracks": [track("run", [0, 1, 2], moved(BOX, 3))]}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """With a folder of three frames."""
    write_frames(tmp_path / "street", 3)
    return tmp_path


def test_frames_are_images_and_boxes_are_objects(root: Path) -> None:
    dataset = read(root, [STREET])
    assert [dataset.image_id(index) for index in range(3)] == ["street/000000", "street/000001", "street/000002"]
    for index in range(3):
        truth = dataset.ground_truth(index)
        assert truth.size == (40, 60)
        assert truth.objects.boxes.tolist() == [[5 + index, 6, 25 + index, 30]]
        assert truth.objects.labels.tolist() == [0]
        assert truth.objects.track_ids is not None
        assert truth.objects.track_ids.tolist() == [0]
        assert numbers_in(dataset.load(index).image[None]) == [index]
    assert dataset.summary.startswith(
        "clips train (train.json): 3 images, 3 objects of 2 classes and 0 ignored, 0 images without objects, "
        "frames of 1 video. Objects: run 3, jump 0."
    )


def test_tracks_are_numbered_by_place_or_id(root: Path) -> None:
    boxes = [BOX]
    numbered = [track("run", [0], boxes, id=7), track("jump", [0], boxes, id=-2)]
    for tracks, expected in (([track("run", [0], boxes), track("jump", [0], boxes)], [0, 1]), (numbered, [7, -2])):
        ids = read(root, [{**STREET, "tracks": tracks}]).ground_truth(0).objects.track_ids
        assert ids is not None
        assert ids.tolist() == expected


def test_frames_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number, name in enumerate(("a2.png", "a10.png", "a010.5.png", "b1.JPG")):
        write_picture(tmp_path / "v" / name, (40, 60), 20 + 10 * number)
    (tmp_path / "v" / "notes.txt").write_text("no picture")
    (tmp_path / "v" / "._a1.png").write_text("a hidden file of macOS")
    dataset = read(tmp_path, [{"name": "v", "frames": "v"}])
    assert [Path(dataset.path(index)).name for index in range(4)] == ["a2.png", "a010.5.png", "a10.png", "b1.JPG"]


def test_a_list_of_pictures_and_a_part_that_is_annotated(root: Path) -> None:
    names = [f"street/{number:06d}.png" for number in (2, 0, 1)]
    dataset = read(root, [{**STREET, "frames": names, "annotated": [2, 1, 1], "tracks": [track("run", [2], [BOX])]}])
    assert [dataset.image_id(index) for index in range(2)] == ["street/000001", "street/000002"]
    assert numbers_in(np.stack([dataset.load(index).image for index in range(2)])) == [0, 1]
    assert len(dataset) == 2


def test_paths_may_be_absolute_or_lead_upwards(root: Path, tmp_path: Path) -> None:
    inner = root / "annotations"
    for frames in ("../street", str(root / "street")):
        assert len(read(inner, [{**STREET, "frames": frames}])) == 3


@pytest.mark.parametrize("name", ["../../x", "/tmp/x", "a/b", "000001", "a/000003", "über 100%", "."])
def test_any_text_names_a_video(root: Path, name: str) -> None:
    dataset = read(root, [{**STREET, "name": name}, {**STREET, "name": "a"}])
    assert dataset.image_id(1) == f"{name}/000001"
    assert dataset.image_id(4) == "a/000001"
    assert dataset.ground_truth(1).objects.boxes.tolist() == [[6, 6, 26, 30]]


def test_a_video_without_objects_and_a_class_without_objects(root: Path) -> None:
    dataset = read(root, [{"name": "empty", "frames": "street"}])
    assert [len(dataset.ground_truth(index).objects) for index in range(3)] == [0, 0, 0]
    assert dataset.objects.track_ids is None


def test_validation_has_the_classes_of_training_by_name(root: Path) -> None:
    config = write_clips(root, [STREET])
    write_clips(root, [STREET], "val", classes=["jump", "run"])
    val = read_clips(config, "val")
    assert val.categories.names == ("run", "jump")
    assert val.objects.labels.tolist() == [0, 0, 0]
    (root / "train.json").unlink()  # only evaluated
    assert read_clips(config, "val").categories.names == ("jump", "run")


def test_a_training_file_with_other_mistakes_does_not_hinder_validation(root: Path) -> None:
    config = write_clips(root, [{"name": "gone"}])
    write_clips(root, [STREET], "val")
    assert len(read_clips(config, "val")) == 3


def test_without_validation(root: Path) -> None:
    write_clips(root, [STREET])
    with pytest.raises(NoValidation, match="there is no validation split"):
        read_clips(ClipsConfig(root=str(root), val=None), "val")


def test_classes_and_merge(root: Path) -> None:
    tracks = [track("run", [0], [BOX]), track("jump", [0, 1], [BOX, BOX])]
    chosen = read(root, [{**STREET, "tracks": tracks}], classes=("jump",))
    assert chosen.categories.names == ("jump",)
    assert chosen.objects.labels.tolist() == [0, 0]
    assert chosen.objects.track_ids is not None
    assert chosen.objects.track_ids.tolist() == [1, 1]
    assert "1 object of other classes left out (run 1)" in chosen.summary
    merged = read(root, [{**STREET, "tracks": tracks}], merge={"move": ("run", "jump")})
    assert merged.categories.names == ("move",)
    assert merged.objects.labels.tolist() == [0, 0, 0]


def test_only_every_nth_annotated_frame_is_trained_on(root: Path) -> None:
    """Counted among the annotated ones of each video, so that none is left without."""
    write_frames(root / "long", 7)
    long = {"name": "long", "frames": "long", "annotated": [1, 3, 5, 6]}
    videos = [STREET, long]
    config = write_clips(root, videos).model_copy(update={"train_every": 2})
    write_clips(root, videos, "val")
    train, val = read_clips(config, "train"), read_clips(config, "val")
    ids = [train.image_id(index) for index in range(len(train))]
    assert ids == ["street/000000", "street/000002", "long/000001", "long/000005"]
    assert "3 frames passed over (train_every)" in train.summary
    assert len(val) == 7
    assert "passed over" not in val.summary


MISTAKES: dict[str, tuple[Any, str]] = {
    "no such frame": (
        {"tracks": [track("run", [3], [BOX])]},
        "video street: has 3 frames, 0 to 2, and something is annotated in frame 3; is a frame missing, or are they",
    ),
    "no such annotated frame": ({"annotated": [0, 10**30], "tracks": []}, "is annotated in frame 1000000000000000000"),
    "not annotated": (
        {"annotated": [0, 1]},
        "video street: track 0 (run) is in frame 2, which `annotated` does not list",
    ),
    "frame below zero": ({"tracks": [track("run", [-1], [BOX])]}, "frames.0: should be greater than or equal to 0"),
    "unknown class": (
        {"tracks": [track("walk", [0], [BOX])]},
        "frame 0: track 0 (walk): class 'walk' is not among the classes run, jump",
    ),
    "a frame twice": ({"tracks": [track("run", [1, 1], [BOX, BOX])]}, "frames: frame 1 is there twice; expected once"),
    "two tracks of one id": (
        {"tracks": [track("run", [1], [BOX], id=4), track("jump", [1], [BOX], id=4)]},
        "street/000001: track 4 has two boxes in this frame; give them two tracks",
    ),
    "some ids": (
        {"tracks": [track("run", [1], [BOX], id=4), track("jump", [1], [BOX])]},
        "video 'street': expected an `id` in all of its tracks or in none",
    ),
    "large id": ({"tracks": [track("run", [1], [BOX], id=10**30)]}, "the column 'track_ids' is not an array of int64"),
    "too few boxes": (
        {"tracks": [track("run", [0, 1], [BOX])]},
        "boxes: expected 2, one for each of `frames`, found 1",
    ),
    "nan": (
        {"tracks": [track("run", [0], [(5, float("nan"), 9, 9)])]},
        "track 0 (run): box x 5 to 9, y nan to 9 is not",
    ),
    "infinite": ({"tracks": [track("run", [0], [(5, 5, float("inf"), 9)])]}, "track 0 (run): box x 5 to inf, y 5 to 9"),
    "outside": ({"tracks": [track("run", [0], [(5, 5, 90, 9)])]}, "frame 0: track 0 (run): box x 5 to 90, y 5 to 9"),
    "empty box": ({"tracks": [track("run", [0], [(5, 5, 5, 9)])]}, "track 0 (run): box x 5 to 5, y 5 to 9"),
    "a box of text": (
        {"tracks": [track("run", [0], [("a", 5, 9, 9)])]},
        "boxes.0.0: should be a valid number, found 'a'",
    ),
    "a box of three": ({"tracks": [{"class": "run", "frames": [0], "boxes": [[1, 2, 3]]}]}, "boxes.0.3: missing"),
    "no boxes": ({"tracks": [{"class": "run", "frames": [0]}]}, "tracks.0.boxes: missing"),
    "a number as class": ({"tracks": [track(3, [0], [BOX])]}, "tracks.0.class: should be a valid string, found 3"),
    "tracks as a mapping": ({"tracks": {"run": [0]}}, "videos.0.tracks: should be a valid"),
    "a half frame": ({"tracks": [track("run", [0.5], [BOX])]}, "frames.0: should be a valid integer"),
    "no frames": ({"frames": None}, "video 'street': expected either `frames` or `file`"),
    "frames and file": ({"file": "a.mp4"}, "video 'street': expected either `frames` or `file`"),
    "no name": ({"name": ""}, "videos.0.name: String should have at least 1 character"),
    "frames as a number": ({"frames": 3}, "videos.0.frames.str: should be a valid string, found 3"),
    "no pictures": ({"frames": []}, "video street: `frames` is an empty list; expected a picture of each frame"),
    "no folder": ({"frames": "gone"}, "/gone, cannot be read: No such file or directory"),
    "a file as folder": ({"frames": "train.json"}, "/train.json, cannot be read: Not a directory"),
    "a zero byte": ({"frames": "a\0b"}, "cannot be read: "),
    "a zero byte in a picture": ({"frames": ["a\0b"], "tracks": []}, "the picture "),
    "a missing picture": (
        {"frames": ["street/000000.png", "gone.png", "street/000002.png"]},
        "video street, frame 1: the picture",
    ),
    "a missing picture beside": (
        {"frames": ["street/000000.png", "gone.png"], "annotated": [0], "tracks": []},
        "video street: frame 1: the picture",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named_in_one_line(root: Path, name: str) -> None:
    changes, message = MISTAKES[name]
    with pytest.raises(DataError) as caught:
        read(root, [{**STREET, **changes}])
    lines = str(caught.value).splitlines()
    assert message in str(caught.value)
    assert len(lines) <= 3  # what is wrong with how much, the problem, and what the policies are


CONTENTS: dict[str, tuple[str | bytes, str]] = {
    "nothing": ("", "cannot be read as JSON"),
    "no JSON": ("{classes: [run]}", "cannot be read as JSON"),
    "cut short": ('{"classes": ["run"], "vid', "cannot be read as JSON"),
    "no text": (b"\xff\xfe\x00\x01\x02", "cannot be read as JSON"),
    "deep": ("[" * 100_000, "cannot be read as JSON"),
    "a list": ("[]", "expected a mapping with `classes` and `videos`, found list"),
    "COCO": ('{"images": [], "annotations": [], "categories": []}', "classes: missing"),
    "no class": ('{"classes": [], "videos": [{"name": "a", "frames": "street"}]}', "classes: expected at least one"),
    "no video": ('{"classes": ["run"], "videos": []}', "videos: expected at least one"),
    "a class twice": (
        '{"classes": ["run", "run"], "videos": [{"name": "a", "frames": "street"}]}',
        "classes: 'run' is there 2 times; expected once",
    ),
    "classes as text": ('{"classes": "run", "videos": []}', "classes: "),
    "half a character": ('{"classes": ["\\ud800"], "videos": []}', "is not UTF-8"),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_files_that_are_no_such_json(root: Path, name: str) -> None:
    content, message = CONTENTS[name]
    (root / "train.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message) as caught:
        read_clips(ClipsConfig(root=str(root)), "train")
    assert str(caught.value).startswith(str(root / "train.json"))


def test_a_byte_order_mark_is_no_mistake(root: Path) -> None:
    config = write_clips(root, [STREET])
    (root / "train.json").write_bytes(b"\xef\xbb\xbf" + (root / "train.json").read_bytes())
    assert len(read_clips(config, "train")) == 3


def test_a_missing_file_names_those_that_there_are(root: Path) -> None:
    (root / "training.json").write_text("{}")
    with pytest.raises(DataError, match=r"train.json does not exist; JSON files there: training.json$"):
        read_clips(ClipsConfig(root=str(root)), "train")


def test_a_video_named_twice(root: Path) -> None:
    with pytest.raises(DataError, match="videos: 'street' is there 2 times; expected once"):
        read(root, [STREET, STREET])


def test_of_many_mistakes_some_are_listed(root: Path) -> None:
    tracks = [track(f"run{number}", [0], [("a", "b", "c", "d")]) for number in range(30)]
    with pytest.raises(DataError) as caught:
        read(root, [{**STREET, "tracks": tracks}])
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("120 errors")
    assert len(lines) == 12
    assert lines[-1] == "  and 110 more"


def test_a_folder_without_pictures(root: Path) -> None:
    (root / "empty").mkdir()
    (root / "empty" / "readme.txt").write_text("none")
    with pytest.raises(DataError, match=r"the folder of its frames, .*/empty, has no picture$"):
        read(root, [{**STREET, "frames": "empty"}])


def test_frames_of_two_sizes(root: Path) -> None:
    write_picture(root / "street" / "000002.png", (30, 60))
    with pytest.raises(
        DataError, match=r"street/000000 has 60 x 40 and street/000002 has 60 x 30 \(w x h\); scale them"
    ):
        read(root, [STREET])


def test_videos_may_differ_in_size(root: Path) -> None:
    write_picture(root / "other" / "0.png", (30, 50))
    assert len(read(root, [STREET, {"name": "other", "frames": "other"}])) == 4


@pytest.mark.parametrize("policy", ["clip", "drop_box", "drop_image"])
def test_policies_settle_boxes(root: Path, policy: str) -> None:
    tracks = [track("run", [0, 1], [(5, 5, 90, 30), BOX])]
    dataset = read(root, [{**STREET, "tracks": tracks}], on_bad_label=policy)
    boxes = {
        dataset.image_id(index): dataset.ground_truth(index).objects.boxes.tolist() for index in range(len(dataset))
    }
    assert boxes["street/000001"] == [list(BOX)]
    assert boxes.get("street/000000") == {"clip": [[5, 5, 60, 30]], "drop_box": [], "drop_image": None}[policy]


def test_a_picture_that_is_not_there_drops_only_its_frame(root: Path) -> None:
    write_frames(root / "street", 5)
    names = [f"street/{number:06d}.png" for number in range(5)]
    shutil.move(root / names[1], root / "elsewhere.png")
    shutil.move(root / names[3], root / "elsewhere2.png")
    tracks = [track("run", [0, 1, 2], moved(BOX, 3))]
    dataset = read(
        root, [{**STREET, "frames": names, "annotated": [0, 1, 2], "tracks": tracks}], on_bad_label="drop_image"
    )
    assert [dataset.image_id(index) for index in range(len(dataset))] == ["street/000000", "street/000002"]
    assert "1 image dropped" in dataset.summary
    assert "1 frame without a picture stepped over" in dataset.summary
    assert numbers_in(dataset.load(0, clip=Clip(4)).image) == [0, 2, 4, 4]


def test_the_format_is_that_of_the_docstring(tmp_path: Path) -> None:
    from detkit.data import clips

    text = (clips.__doc__ or "").split("\n\n")[1]
    write_frames(tmp_path / "frames" / "street", 2)
    for number in range(2):
        write_picture(tmp_path / "frames" / "street" / f"{number:06d}.png", (100, 100))
    (tmp_path / "train.json").write_text(json.dumps(json.loads(text)))
    assert len(read_clips(ClipsConfig(root=str(tmp_path)), "train").objects) == 2
