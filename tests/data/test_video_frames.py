"""Video files become folders of frames, once, and broken ones are refused."""

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from detkit.data import video_frames
from detkit.data.checks import DataError
from detkit.data.clips import ClipsConfig, read_clips
from detkit.data.pictures import read_picture
from detkit.data.video_frames import DONE, unpack_video
from tests.data.video_sets import read, track, write_clips
from tests.data.writers import write_picture
from tests.docs import ROOT
from tests.engine.prediction.films import bar_of, picture, write_film

SUFFIXES = {"a.mp4": "h264", "a.avi": "mpeg4", "a.mkv": "h264", "a.webm": "libvpx"}


def bars(paths: list[str]) -> list[int]:
    return [bar_of(read_picture(path)) for path in paths]


@pytest.mark.parametrize("name", SUFFIXES)
def test_every_frame_is_there_in_order(tmp_path: Path, name: str) -> None:
    paths = unpack_video(write_film(tmp_path / name, 12, codec=SUFFIXES[name]), tmp_path / "frames" / "a")
    assert [Path(path).name for path in paths] == [f"{number:06d}.jpg" for number in range(12)]
    assert bars(paths) == [number % 10 for number in range(12)]
    assert sorted(os.listdir(tmp_path / "frames")) == ["a"]  # nothing else is left
    difference = read_picture(paths[3]).astype(int) - picture(3)
    assert np.abs(difference).mean() < 5


def test_frames_have_their_numbers_whatever_their_times(tmp_path: Path) -> None:
    """A frame is counted once, however long it is shown."""
    path = write_film(tmp_path / "a.mp4", 5, times=[0, 0.04, 0.5, 0.54, 2.0])
    assert bars(unpack_video(path, tmp_path / "a")) == [0, 1, 2, 3, 4]


def test_a_video_of_a_phone_is_turned(tmp_path: Path) -> None:
    paths = unpack_video(write_film(tmp_path / "a.mp4", 2, rotation=90), tmp_path / "a")
    assert read_picture(paths[0]).shape == (96, 64, 3)


def test_a_gif_is_a_video(tmp_path: Path) -> None:
    frames = [Image.fromarray(picture(number)) for number in range(5)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=100)
    assert bars(unpack_video(tmp_path / "a.gif", tmp_path / "a")) == [0, 1, 2, 3, 4]


def test_what_is_unpacked_is_not_decoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_film(tmp_path / "a.mp4", 3)
    first = unpack_video(path, tmp_path / "a")
    monkeypatch.setattr(video_frames, "_decoded", lambda path: pytest.fail("it is decoded again"))
    assert unpack_video(path, tmp_path / "a") == first


def test_another_video_takes_the_place_of_the_first(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    unpack_video(write_film(tmp_path / "a.mp4", 7), folder)
    paths = unpack_video(write_film(tmp_path / "a.mp4", 3), folder)
    assert len(paths) == 3
    assert sorted(os.listdir(folder)) == ["000000.jpg", "000001.jpg", "000002.jpg", DONE]


@pytest.mark.parametrize("content", ["", "7", "a b\nc\n", "\n\n\n"])
def test_a_damaged_note_is_as_none(tmp_path: Path, content: str) -> None:
    path = write_film(tmp_path / "a.mp4", 3)
    unpack_video(path, tmp_path / "a")
    (tmp_path / "a" / DONE).write_text(content)
    assert len(unpack_video(path, tmp_path / "a")) == 3


def test_a_folder_with_anything_else_stays(tmp_path: Path) -> None:
    path = write_film(tmp_path / "a.mp4", 3)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.txt").write_text("important")
    (tmp_path / "b").write_text("a file")
    for name in "ab":
        with pytest.raises(
            DataError, match=rf"/{name} exists and does not hold the frames of .*a.mp4; nothing was changed"
        ):
            unpack_video(path, tmp_path / name)
    assert os.listdir(tmp_path / "a") == ["thesis.txt"]


def test_another_process_may_be_faster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, folder, rename = write_film(tmp_path / "a.mp4", 3), tmp_path / "a", Path.rename

    def late(source: Path, target: Path) -> Any:
        monkeypatch.setattr(Path, "rename", rename)
        unpack_video(path, folder)
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", late)
    assert len(unpack_video(path, folder)) == 3
    assert sorted(os.listdir(tmp_path)) == ["a", "a.mp4"]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"the frames of .*a.mp4 cannot be written: "):
        unpack_video(write_film(tmp_path / "a.mp4", 2), tmp_path / "file" / "a")


# What is no video, or half of one


def sound_only(path: Path) -> None:
    with av.open(str(path), "w") as music:
        track = music.add_stream("aac", rate=48_000)
        tone = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        tone.sample_rate = 48_000
        music.mux([*track.encode(tone), *track.encode(None)])


def cut(path: Path, share: float = 0.5, **options: Any) -> None:
    """A film of noise, of which the rest of the file is missing."""
    noise = [np.random.default_rng(number).integers(0, 256, (64, 96, 3)).astype(np.uint8) for number in range(20)]
    content = write_film(path, noise, **options).read_bytes()
    path.write_bytes(content[: round(share * len(content))])


def damaged(path: Path) -> None:
    cut(path, 1, codec="mpeg4", container={"movflags": "faststart"})
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 3000] = bytes(3000)
    path.write_bytes(content)


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "empty": (lambda path: path.write_bytes(b""), "cannot be opened: "),
    "text": (lambda path: path.write_text("no video" * 100), "cannot be opened: "),
    "missing": (lambda path: None, "cannot be read: No such file or directory"),
    "a folder": (lambda path: path.mkdir(), "it is not an ordinary file"),
    "a pipe": (lambda path: os.mkfifo(path), "it is not an ordinary file"),
    "sound only": (sound_only, "there is no video in this file, only sound"),
    "without its end": (cut, "cannot be opened: .*is it cut short"),
    "cut behind its header": (
        lambda path: cut(path, container={"movflags": "faststart"}),
        r"it ends after [\d.]+ of 0.8 s; \d+ of 20 frames were read, so that the numbers of its frames are not certain",
    ),
    "damaged": (
        damaged,
        r"\d+ damaged packets?; .*so that the numbers of its frames are not certain; replace the file",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_whole_video_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    make, message = BAD[name]
    path = tmp_path / "bad.mp4"
    make(path)
    with pytest.raises(DataError, match=message) as caught:
        unpack_video(path, tmp_path / "frames" / "bad")
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    with contextlib.suppress(FileNotFoundError):
        assert os.listdir(tmp_path / "frames") == []


def test_a_zero_byte_in_the_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: "):
        unpack_video(tmp_path / "a\0b.mp4", tmp_path / "a")


# In the JSON format


def test_a_video_file_in_place_of_frames(tmp_path: Path) -> None:
    (tmp_path / "films").mkdir()
    write_film(tmp_path / "films" / "x.mp4", 4)
    video = {"name": "x", "file": "films/x.mp4", "tracks": [track("run", [3], [(5, 6, 25, 30)])]}
    dataset = read(tmp_path, [video])
    assert dataset.image_id(3) == "x/000003"
    assert bar_of(dataset.load(3).image) == 3
    assert dataset.ground_truth(3).objects.boxes.tolist() == [[5, 6, 25, 30]]
    assert Path(dataset.path(0)).parents[1] == tmp_path / "frames"
    elsewhere = read(tmp_path, [video], unpacked=str(tmp_path / "other"))
    assert Path(elsewhere.path(0)).parents[1] == tmp_path / "other"


def test_nothing_is_written_outside_the_folder_of_frames(tmp_path: Path) -> None:
    """Whatever the video is called, and wherever its file is."""
    root = tmp_path / "a" / "b" / "root"
    root.mkdir(parents=True)
    write_film(root.parent / "x.mp4", 2)
    before = set(tmp_path.rglob("*"))
    names = ["../x", "../../x", "/tmp/x", "..", ".", "a/b"]
    dataset = read(root, [{"name": name, "file": "../x.mp4"} for name in names])
    assert len(dataset) == 12
    new = {path for path in tmp_path.rglob("*") if path not in before} - {root / "train.json"}
    assert {path for path in new if path.parent == root} == {root / "frames"}
    assert all(root / "frames" in (path, *path.parents) for path in new)


def test_videos_of_one_name_in_both_splits_keep_their_frames(tmp_path: Path) -> None:
    for folder, count in (("one", 3), ("two", 5)):
        (tmp_path / folder).mkdir()
        write_film(tmp_path / folder / "x.mp4", count)
    config = write_clips(tmp_path, [{"name": "x", "file": "one/x.mp4"}])
    write_clips(tmp_path, [{"name": "x", "file": "two/x.mp4"}], "val")
    train, val = read_clips(config, "train"), read_clips(config, "val")
    assert [len(train), len(val)] == [3, 5]
    assert [bar_of(train.load(index).image) for index in range(3)] == [0, 1, 2]


def test_a_broken_video_names_itself(tmp_path: Path) -> None:
    (tmp_path / "x.mp4").write_text("no video")
    (tmp_path / "train.json").write_text(json.dumps({"classes": ["a"], "videos": [{"name": "x", "file": "x.mp4"}]}))
    with pytest.raises(DataError, match=rf"^{tmp_path}/x.mp4: this video cannot be opened: "):
        read_clips(ClipsConfig(root=str(tmp_path)), "train")


def test_the_example_of_the_docs(tmp_path: Path) -> None:
    """It is read as it stands there, and has the summary that stands there."""
    page = (ROOT / "docs/clips.md").read_text(encoding="utf-8")
    (tmp_path / "train.json").write_text(page.partition("```json\n")[2].partition("```")[0])
    for number in range(3):
        write_picture(tmp_path / "frames/street" / f"{number}.png", (100, 130))
    (tmp_path / "videos").mkdir()
    write_film(tmp_path / "videos/yard.mp4", 61)
    assert read_clips(ClipsConfig(root=str(tmp_path)), "train").summary in page
