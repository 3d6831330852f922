"""The pickles of UCF101-24 and JHMDB as the ACT detector has them: tubes become boxes, and no code of a file is run."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detkit.data.action_tubes import ActionTubesConfig, read_action_tubes
from detkit.data.build import build_dataset
from detkit.data.checks import DataError
from detkit.structures import Clip
from tests.data.video_sets import numbers_in, write_frames

TUBE = np.array([[1, 4, 5, 13, 24], [2, 5, 5, 14, 24], [3, 6, 5, 15, 24]], np.float32)
LATE = np.array([[3, 20, 0, 59, 39]], np.float32)


def content(**changes: Any) -> dict[str, Any]:
    """Two splits: `Run/v_1` of 3 frames and `jump/v_2` of 2, each once to train on."""
    return {
        "labels": ["Run", "Jump"],
        "train_videos": [["Run/v_1"], ["Jump/v_2"]],
        "test_videos": [["Jump/v_2"], ["Run/v_1"]],
        "nframes": {"Run/v_1": 3, "Jump/v_2": 2},
        "resolution": {"Run/v_1": (40, 60), "Jump/v_2": (40, 60)},
        "gttubes": {"Run/v_1": {0: [TUBE, LATE]}, "Jump/v_2": {1: [TUBE[:2]]}},
        **changes,
    }


def write_tubes(
    root: Path, *, frames: str = "Frames", pattern: str = "{:05d}.png", **changes: Any
) -> ActionTubesConfig:
    for name, count in (("Run/v_1", 3), ("Jump/v_2", 2)):
        write_frames(root / frames / name, count, pattern, first=1)
    (root / "UCF101v2-GT.pkl").write_bytes(pickle.dumps(content(**changes), protocol=2))
    return ActionTubesConfig(root=str(root))


@pytest.mark.parametrize(
    ("frames", "pattern"), [("Frames", "{:05d}.png"), ("rgb-images", "{:05d}.jpg"), ("Frames", "{:06d}.jpg")]
)
def test_tubes_become_boxes_of_every_frame(tmp_path: Path, frames: str, pattern: str) -> None:
    """Frames count from 1, and pixel x2 is inside: 4 to 13 are 10 columns, which continuous boxes write 4 to 14."""
    dataset = read_action_tubes(write_tubes(tmp_path, frames=frames, pattern=pattern), "train")
    assert [dataset.image_id(index) for index in range(3)] == [f"Run/v_1/{number:06d}" for number in range(3)]
    assert numbers_in(np.stack([dataset.load(index).image for index in range(3)])) == [0, 1, 2]
    objects = dataset.ground_truth(2).objects
    assert objects.boxes.tolist() == [[6, 5, 16, 25], [20, 0, 60, 40]]
    assert objects.labels.tolist() == [0, 0]
    assert objects.track_ids is not None
    assert objects.track_ids.tolist() == [0, 1]
    assert len(dataset.ground_truth(0).objects) == 1
    assert dataset.categories.names == ("Run", "Jump")
    assert dataset.summary.startswith("action_tubes train (UCF101v2-GT.pkl): 3 images, 4 objects of 2 classes")


def test_clips_of_tubes(tmp_path: Path) -> None:
    sample = read_action_tubes(write_tubes(tmp_path), "train").load(0, clip=Clip(3, tubes=True))
    assert numbers_in(sample.image) == [0, 1, 2]
    assert sample.objects.tubes is not None
    assert sample.objects.tubes.tolist() == [[[4, 5, 14, 25], [5, 5, 15, 25], [6, 5, 16, 25]]]


def test_splits_are_counted_from_1(tmp_path: Path) -> None:
    config = write_tubes(tmp_path)
    for number, train, test in ((1, "Run/v_1", "Jump/v_2"), (2, "Jump/v_2", "Run/v_1")):
        config = config.model_copy(update={"split": number})
        assert str(build_dataset(config, "train").image_id(0)) == f"{train}/000000"
        assert str(build_dataset(config, "val").image_id(0)) == f"{test}/000000"
    with pytest.raises(DataError, match=r"data.split: .*UCF101v2-GT.pkl has 2 splits, found 3$"):
        read_action_tubes(config.model_copy(update={"split": 3}), "train")


def test_a_frame_without_a_tube_is_an_image_without_objects(tmp_path: Path) -> None:
    dataset = read_action_tubes(write_tubes(tmp_path, gttubes={"Run/v_1": {0: [LATE]}}), "train")
    assert [len(dataset.ground_truth(index).objects) for index in range(3)] == [0, 0, 1]


def test_further_frames_on_disk_are_not_of_the_video(tmp_path: Path) -> None:
    config = write_tubes(tmp_path)
    write_frames(tmp_path / "Frames" / "Run/v_1", 5, "{:05d}.png", first=1)
    dataset = read_action_tubes(config, "train")
    assert len(dataset) == 3
    assert numbers_in(dataset.load(2, clip=Clip(2)).image) == [2, 2]


def python_2() -> bytes:
    """The content as Python 2 and its numpy wrote it: text and arrays are bytes, numbers scalars."""

    def text(value: str) -> bytes:
        return b"U" + bytes([len(value)]) + value.encode()

    def whole(value: int) -> bytes:
        return b"K" + bytes([value])

    def dtype(code: str) -> bytes:
        return (
            b"cnumpy\ndtype\n" + text(code) + b"K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        )

    def array(values: np.ndarray) -> bytes:
        raw = values.astype("<f4").tobytes()
        start = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        shape = whole(values.shape[0]) + whole(values.shape[1]) + b"\x86"
        return start + b"(K\x01" + shape + dtype("f4") + b"\x89U" + bytes([len(raw)]) + raw + b"tb"

    def scalar(value: int) -> bytes:
        raw = b"U\x08" + value.to_bytes(8, "little")
        return b"cnumpy.core.multiarray\nscalar\n" + dtype("i8") + raw + b"\x86R"

    def listed(*values: bytes) -> bytes:
        return b"](" + b"".join(values) + b"e"

    def mapping(*items: tuple[bytes, bytes]) -> bytes:
        return b"}(" + b"".join(key + value for key, value in items) + b"u"

    video = text("Run/v_1")
    return (
        b"\x80\x02"
        + mapping(
            (text("labels"), listed(text("Run"), text("Jump"))),
            (text("train_videos"), listed(listed(video))),
            (text("test_videos"), listed(listed())),
            (text("nframes"), mapping((video, scalar(3)))),
            (text("resolution"), mapping((video, whole(40) + whole(60) + b"\x86"))),
            (text("gttubes"), mapping((video, mapping((scalar(0), listed(array(TUBE), array(LATE))))))),
        )
        + b"."
    )


def test_a_pickle_of_python_2(tmp_path: Path) -> None:
    config = write_tubes(tmp_path)
    expected = read_action_tubes(config, "train")
    (tmp_path / "UCF101v2-GT.pkl").write_bytes(python_2())
    loaded = pickle.loads(python_2(), encoding="latin1")  # the standard library understands it alike
    np.testing.assert_array_equal(loaded["gttubes"]["Run/v_1"][0][0], TUBE)
    dataset = read_action_tubes(config, "train")
    np.testing.assert_array_equal(dataset.objects.boxes, expected.objects.boxes)
    np.testing.assert_array_equal(dataset.objects.track_ids, expected.objects.track_ids)


def test_nothing_of_a_hostile_file_is_run(tmp_path: Path) -> None:
    """By hand: a dict whose labels are the result of os.system."""
    config = write_tubes(tmp_path)
    command = f"touch {tmp_path / 'ran'}".encode()
    hostile = b"(dS'labels'\ncposix\nsystem\n(S'" + command + b"'\ntRs."
    (tmp_path / "UCF101v2-GT.pkl").write_bytes(hostile)
    with pytest.raises(
        DataError, match=r"UCF101v2-GT.pkl: holds 'posix.system', which is not data; .* ran nothing of it$"
    ):
        read_action_tubes(config, "train")
    assert not (tmp_path / "ran").exists()
    pickle.loads(hostile)
    assert (tmp_path / "ran").exists()  # it is hostile


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "no tubes": ({"gttubes": []}, "expected a dict with labels, .*; gttubes is not there or of another type$"),
    "no labels": ({"labels": []}, r"labels: expected different names, found \[\]$"),
    "a label twice": ({"labels": ["a", "a"]}, "labels: expected different names"),
    "no videos": ({"train_videos": [[]]}, "split 1: expected different names of videos"),
    "videos as text": ({"train_videos": ["Run/v_1"]}, "split 1: expected different names of videos, found Run/v_1$"),
    "a video twice": ({"train_videos": [["Run/v_1"] * 2]}, "split 1: expected different names of videos"),
    "an unknown video": ({"train_videos": [["x"]]}, "video x: expected nframes, a number"),
    "no frames": ({"nframes": {"Run/v_1": 0}}, "video Run/v_1: expected 1 to 1,000,000 in nframes, found 0"),
    "no resolution": ({"resolution": {}}, "video Run/v_1: expected nframes, a number"),
    "a resolution of one": ({"resolution": {"Run/v_1": (3,)}}, "video Run/v_1: expected nframes"),
    "another resolution": (
        {"resolution": {"Run/v_1": (30, 60)}},
        "video Run/v_1, frame 0: .*60 x 30.*60 x 40",
    ),
    "another label": ({"gttubes": {"Run/v_1": {2: [TUBE]}}}, "video Run/v_1: .*: label 2 of 2$"),
    "a tube of four": ({"gttubes": {"Run/v_1": {0: [TUBE[:, :4]]}}}, r"a tube of shape \[3, 4\]$"),
    "a tube of text": ({"gttubes": {"Run/v_1": {0: ["abc"]}}}, "video Run/v_1: expected nframes"),
    "frame 0": ({"gttubes": {"Run/v_1": {0: [TUBE - [1, 0, 0, 0, 0]]}}}, "a tube in frame 0$"),
    "half a frame": ({"gttubes": {"Run/v_1": {0: [np.add(TUBE, [0.5, 0, 0, 0, 0])]}}}, "a tube in frame 1.5$"),
    "frame nan": ({"gttubes": {"Run/v_1": {0: [TUBE * [np.nan, 1, 1, 1, 1]]}}}, "video Run/v_1: expected nframes"),
    "frame 4": (
        {"gttubes": {"Run/v_1": {0: [np.add(TUBE, [1, 0, 0, 0, 0])]}}},
        "has 3 frames, 0 to 2, and something is annotated",
    ),
    "nan": ({"gttubes": {"Run/v_1": {0: [TUBE * [1, np.nan, 1, 1, 1]]}}}, r"frame 0: tube 0 \(Run\): box x nan to 14"),
    "a frame twice": ({"gttubes": {"Run/v_1": {0: [TUBE[[0, 0]]]}}}, "Run/v_1/000000: track 0 has two boxes"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named_in_one_line(tmp_path: Path, name: str) -> None:
    changes, message = MISTAKES[name]
    with pytest.raises(DataError, match=message) as caught:
        read_action_tubes(write_tubes(tmp_path, **changes), "train")
    assert len(str(caught.value).splitlines()) <= 5  # of a label file: how many, each of three frames, the policies


def test_files_that_are_not_there(tmp_path: Path) -> None:
    config = write_tubes(tmp_path)
    (tmp_path / "JHMDB-GT.pkl").write_bytes(b"")
    with pytest.raises(
        DataError, match=r"expected one file \*-GT.pkl, found JHMDB-GT.pkl, UCF101v2-GT.pkl; name it in"
    ):
        read_action_tubes(config, "train")
    named = config.model_copy(update={"annotations": "UCF101v2-GT.pkl"})
    assert len(read_action_tubes(named, "train")) == 3
    with pytest.raises(DataError, match=r"JHMDB-GT.pkl: not a pickle of arrays"):
        read_action_tubes(config.model_copy(update={"annotations": "JHMDB-GT.pkl"}), "train")
    with pytest.raises(DataError, match=r"x.pkl: cannot read this file: No such file"):
        read_action_tubes(config.model_copy(update={"annotations": "x.pkl"}), "train")
    with pytest.raises(DataError, match=r"expected a folder pictures with the frames; name it in data.frames"):
        read_action_tubes(named.model_copy(update={"frames": "pictures"}), "train")
    (tmp_path / "Frames" / "Run" / "v_1" / "00002.png").unlink()
    with pytest.raises(DataError, match=r"video Run/v_1, frame 1: the picture .*/00002.jpg does not exist"):
        read_action_tubes(named, "train")
    assert len(read_action_tubes(named.model_copy(update={"on_bad_label": "drop_image"}), "train")) == 2
