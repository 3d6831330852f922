"""What people give to `detkit predict`: what is read, under which name, and what is left out and why."""

import os
from pathlib import Path

import pytest

from detkit.config import UserError
from detkit.engine.prediction.frames import Medium
from detkit.engine.prediction.media import find_media, without_password


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def named(*sources: str | Path, output: Path | None = None) -> dict[str, Path]:
    """The files by the names of their drawings."""
    return {medium.name: medium.path for medium in find_media([str(source) for source in sources], output)[0]}


def left_out(*sources: str | Path, output: Path | None = None) -> list[str]:
    return [f"{left.source}: {left.reason}" for left in find_media([str(source) for source in sources], output)[1]]


def test_folders_are_searched_all_the_way_down(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "deep/er/b.PNG", "deep/clip.avi", "single.bmp", "deep/phone.MOV", "deep/x.MP4")
    assert named(tmp_path) == {
        "a.jpg": tmp_path / "a.jpg",
        "deep/clip.mp4": tmp_path / "deep/clip.avi",
        "deep/er/b.PNG": tmp_path / "deep/er/b.PNG",
        "deep/phone.mp4": tmp_path / "deep/phone.MOV",
        "deep/x.MP4": tmp_path / "deep/x.MP4",
        "single.bmp": tmp_path / "single.bmp",
    }
    assert named(tmp_path / "deep/er/b.PNG", tmp_path / "a.jpg").keys() == {"b.PNG", "a.jpg"}


def test_drawings_are_of_a_kind_that_can_be_written(tmp_path: Path) -> None:
    touch(tmp_path, "a.GIF", "b.avif", "c.jfif", "d.jp2", "e.ppm", "f.j2k", "g.mpo", "h.jpe")
    assert set(named(tmp_path)) == {"a.png", "b.png", "c.jfif", "d.png", "e.png", "f.png", "g.png", "h.jpe"}


def test_a_folder_with_the_name_of_a_picture_is_a_folder(tmp_path: Path) -> None:
    touch(tmp_path, "folder.jpg/a.jpg", "empty.jpg/b/c.jpg")
    assert named(tmp_path).keys() == {"folder.jpg/a.jpg", "empty.jpg/b/c.jpg"}
    assert named(tmp_path / "folder.jpg").keys() == {"a.jpg"}


def test_kinds_of_media(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.webm")
    media, _ = find_media([str(tmp_path), "camera:0", "1", "rtsp://x/y", "http://h/film.mp4"])
    assert [(medium.name, medium.kind) for medium in media] == [
        ("a.jpg", "picture"),
        ("b.mp4", "video"),
        ("camera_0.mp4", "stream"),
        ("camera_1.mp4", "stream"),
        ("x_y.mp4", "stream"),
        ("h_film.mp4", "stream"),
    ]


def test_a_bare_number_is_a_camera_only_if_there_is_no_such_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(touch(tmp_path, "0/a.jpg"))
    assert find_media(["0"])[0] == [Medium("0/a.jpg", "a.jpg", "picture")]
    assert find_media(["1"])[0] == [Medium("camera:1", "camera_1.mp4", "stream")]


def test_globs_are_expanded_and_named_as_below_their_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shell does not expand what is quoted, and that of Windows nothing at all."""
    touch(tmp_path, "photos/a.jpg", "photos/b.png", "photos/day/c.jpg", "photos/day/d/e.jpg", "photos/notes.txt")
    monkeypatch.chdir(tmp_path)
    assert named("photos/*.jpg").keys() == {"a.jpg"}
    assert named("photos/*").keys() == {"a.jpg", "b.png", "day/c.jpg", "day/d/e.jpg"}
    assert named("photos/**/*.jpg").keys() == {"a.jpg", "day/c.jpg", "day/d/e.jpg"}
    assert named("photos/**").keys() == {"a.jpg", "b.png", "day/c.jpg", "day/d/e.jpg"}
    assert named(tmp_path / "photos/*/?.jpg").keys() == {"day/c.jpg"}
    assert left_out("photos/*") == ["photos/*: other files: 1 .txt"]
    with pytest.raises(UserError, match=r"photos/\*.bmp: no file matches"):
        find_media(["photos/*.bmp"])


def test_a_name_with_brackets_is_a_name(tmp_path: Path) -> None:
    touch(tmp_path, "a[1].jpg", "[x]/b.jpg")
    assert named(tmp_path / "a[1].jpg", tmp_path / "[x]").keys() == {"a[1].jpg", "b.jpg"}


def test_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "set/a.jpg", "set/b.jpg", "here/c.jpg", "set/more/d.png")
    lines = [
        "\ufeff# a comment",
        "",
        "a.jpg",
        "  more/*.png  ",
        "here/c.jpg",
        "rtsp://cam/1",
        str(tmp_path / "set/b.jpg"),
    ]
    (tmp_path / "set/list.txt").write_text("\r\n".join(lines), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    media = named("set/list.txt")
    assert set(media) == {"a.jpg", "d.png", "c.jpg", "cam_1.mp4", "b.jpg"}
    assert media["a.jpg"] == Path("set/a.jpg")
    (tmp_path / "set/list.txt").write_text("a.jpg\nnowhere.jpg\n")
    with pytest.raises(
        UserError, match=r"^set/list.txt, line 2: nowhere.jpg: no such file or folder; a .txt is read as"
    ):
        find_media(["set/list.txt"])
    (tmp_path / "set/list.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"set/list.txt: expected a list of files in UTF-8"):
        find_media(["set/list.txt"])


def test_the_same_file_twice_is_one_medium(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "one/a.jpg", "one/b.jpg")
    monkeypatch.chdir(tmp_path)
    found = find_media(["one", "one/a.jpg", str(tmp_path / "one"), "one/../one/b.jpg", "rtsp://x", "rtsp://x"])[0]
    assert [medium.source for medium in found] == ["one/a.jpg", "one/b.jpg", "rtsp://x"]


def test_names_that_would_be_alike_begin_with_their_folder(tmp_path: Path) -> None:
    touch(tmp_path, "one/a.jpg", "two/a.jpg", "two/b.jpg", "three/c.jpg", "x/one/a.jpg")
    assert named(tmp_path / "one", tmp_path / "two", tmp_path / "three").keys() == {
        "one/a.jpg",
        "two/a.jpg",
        "two/b.jpg",
        "c.jpg",
    }
    assert named(tmp_path / "one/a.jpg", tmp_path / "x/one/a.jpg") == {
        f"{tmp_path.name}/one/a.jpg": tmp_path / "one/a.jpg",
        "x/one/a.jpg": tmp_path / "x/one/a.jpg",
    }


def test_a_drawing_of_another_kind_does_not_take_the_name_of_a_neighbour(tmp_path: Path) -> None:
    touch(tmp_path, "c.avi", "c.mp4", "d.gif", "d.png", "e.mov", "e.mkv")
    expected = {"c.avi.mp4", "c.mp4", "d.gif.png", "d.png", "e.mov.mp4", "e.mkv.mp4"}
    assert named(tmp_path).keys() == expected
    assert named(*sorted(tmp_path.iterdir())).keys() == expected
    touch(tmp_path, "c.avi.mp4")
    with pytest.raises(UserError, match=r"would both be drawn as .*c.avi.mp4; predict them into two folders"):
        find_media([str(tmp_path)])


def test_urls_without_their_secrets() -> None:
    url = "rtsp://user:secret@cam.local:554/live/1?token=abc"
    assert without_password(url) == "rtsp://cam.local:554/live/1"
    assert without_password("a@b?c.jpg") == "a@b?c.jpg"
    media = find_media([url, "rtsp://cam.local:554/live/1", "http://h/"])[0]
    assert [medium.name for medium in media] == ["cam.local_554_live_1.mp4", "cam.local_554_live_1-2.mp4", "h.mp4"]
    assert media[0].source == url
    media = find_media(["https://h/a/b.JPG?x=1", "https://h/c.gif"])[0]
    assert [(medium.name, medium.kind) for medium in media] == [("h_a_b.JPG", "stream"), ("h_c.png", "stream")]
    with pytest.raises(UserError, match=r"^http://\[: this is no URL"):
        find_media(["http://["])


def test_drawings_of_this_run_and_of_earlier_ones_are_not_predicted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "in/a.jpg", "in/drawn/a.jpg", "in/drawn/sub/b.jpg", "in/old/detections.json", "in/old/a.jpg")
    touch(tmp_path, "in/killed/detections.jsonl", "in/killed/a.jpg", "in/c/d.jpg")
    monkeypatch.chdir(tmp_path / "in")
    output = Path("drawn")
    for source in (Path(), tmp_path / "in", "*", "**", "**/*.jpg"):
        assert {path.name for path in named(source, output=output).values()} == {"a.jpg", "d.jpg"}
    assert set(named(tmp_path / "in", output=output)) == {"a.jpg", "c/d.jpg"}
    assert left_out(tmp_path / "in", output=output) == [
        f"{tmp_path / 'in'}: the output of this run: {tmp_path / 'in/drawn'}",
        f"{tmp_path / 'in'}: output of an earlier prediction, which is read if you name its folder: "
        f"2, the first is {tmp_path / 'in/killed'}",
    ]
    assert set(named("old", output=output)) == {"a.jpg"}


def test_the_output_of_this_run_that_the_shell_names_is_left_out(tmp_path: Path) -> None:
    """As of photos/* where photos/drawn is the output: nobody sees its name."""
    touch(tmp_path, "a.jpg", "drawn/a.jpg", "drawn/detections.json")
    assert named(tmp_path / "a.jpg", tmp_path / "drawn", output=tmp_path / "drawn").keys() == {"a.jpg"}


def test_what_is_left_out_is_counted_by_reason(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "._a.jpg", "._b.jpg", "__MACOSX/c.jpg", ".hidden.jpg", ".git/d.jpg", ".DS_Store")
    touch(tmp_path, "raw/x.CR2", "raw/y.cr2", "s.svg", "notes.txt", "a.xml", "b.xml", "README", "Thumbs.db")
    where = f"{tmp_path}: "
    assert named(tmp_path).keys() == {"a.jpg"}
    assert left_out(tmp_path) == [
        f"{where}folders that macOS adds to an archive: {tmp_path / '__MACOSX'}",
        f"{where}files named ._*, in which macOS stores attributes: 2, the first is {tmp_path / '._a.jpg'}",
        f"{where}.svg pictures, which are not read; convert them to PNG or JPEG: {tmp_path / 's.svg'}",
        f"{where}.cr2 pictures, which are not read; convert them to PNG or JPEG: 2, the first is {tmp_path}/raw/x.CR2",
        f"{where}other files: 1 .txt, 2 .xml, 1 without a suffix",
    ]


def test_heic_names_the_package_that_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suffixes = tuple(s for s in (".jpg", ".png", ".heic") if s != ".heic")
    monkeypatch.setattr("detkit.engine.prediction.folders.IMAGE_SUFFIXES", suffixes)
    touch(tmp_path, "a.jpg", "b.HEIC")
    assert left_out(tmp_path) == [
        f"{tmp_path}: .heic pictures, which are read after `pip install pillow-heif`: {tmp_path / 'b.HEIC'}"
    ]


def test_a_hidden_file_or_folder_that_is_named_is_read(tmp_path: Path) -> None:
    touch(tmp_path, "._a.jpg", ".hidden/b.jpg")
    assert named(tmp_path / "._a.jpg", tmp_path / ".hidden").keys() == {"._a.jpg", "b.jpg"}


def test_links(tmp_path: Path) -> None:
    """A link to a folder is followed, one that leads back is not; a dangling one is a picture that cannot be read."""
    touch(tmp_path, "in/a.jpg", "elsewhere/b.jpg")
    (tmp_path / "in/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in/back").symlink_to(tmp_path / "in")
    (tmp_path / "in/gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    assert named(tmp_path / "in").keys() == {"a.jpg", "gone.jpg", "link/b.jpg"}
    assert named(tmp_path / "in/gone.jpg").keys() == {"gone.jpg"}


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="the superuser may read everything")
def test_a_folder_that_may_not_be_read_is_left_out_with_a_word(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "secret/b.jpg")
    (tmp_path / "secret").chmod(0)
    try:
        assert left_out(tmp_path) == [
            f"{tmp_path}: folders that cannot be read (Permission denied): {tmp_path / 'secret'}"
        ]
    finally:
        (tmp_path / "secret").chmod(0o700)


def test_no_picture_and_no_file(tmp_path: Path) -> None:
    touch(tmp_path, "notes.md", "a.psd")
    with pytest.raises(
        UserError, match=r"no picture or video here; \.psd pictures.*; other files: 1 \.md; known: \.jpg, "
    ):
        find_media([str(tmp_path)])
    with pytest.raises(UserError, match=r"notes.md: no picture or video here"):
        find_media([str(tmp_path / "notes.md")])
    with pytest.raises(UserError, match=r"missing: no such file or folder"):
        find_media([str(tmp_path / "missing"), str(tmp_path)])
