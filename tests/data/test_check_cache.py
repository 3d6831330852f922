"""A picture that was found good is not opened again until it changes."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from detkit.data import check_cache
from detkit.data.check_cache import cache_folder, picture_sizes
from detkit.data.checks import RawImage
from detkit.data.dataset import ImageDataset
from detkit.structures import Categories, Size
from tests.data.writers import write_picture


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DETKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the pictures that were opened."""
    names: list[str] = []
    upright_size = check_cache.upright_size

    def counted(path: str, decode: bool) -> Size | str:
        names.append(Path(path).name)
        return upright_size(path, decode)

    monkeypatch.setattr(check_cache, "upright_size", counted)
    return names


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    for number in range(3):
        write_picture(tmp_path / "pictures" / f"{number}.png", (40, 60 + number))
    return [str(tmp_path / "pictures" / f"{number}.png") for number in range(3)]


def sizes(paths: Sequence[str], decode: bool = True) -> list[Size | str]:
    return picture_sizes(paths, decode, "pictures")


def test_the_second_start_opens_no_picture(paths: list[str], opened: list[str]) -> None:
    assert sizes(paths) == [(40, 60), (40, 61), (40, 62)]
    assert sorted(opened) == ["0.png", "1.png", "2.png"]
    assert sizes(paths) == [(40, 60), (40, 61), (40, 62)]
    assert sizes(paths, decode=False) == [(40, 60), (40, 61), (40, 62)]
    assert len(opened) == 3


def test_a_data_set_is_built_twice_and_checked_once(paths: list[str], opened: list[str]) -> None:
    images = [RawImage(path, path, path, None, []) for path in paths]
    for _ in range(2):
        dataset = ImageDataset(images, name="pictures", categories=Categories.of_names(["thing"]))
        assert dataset.ground_truth(2).size == (40, 62)
    assert len(opened) == 3


def test_a_changed_picture_is_checked_again(paths: list[str], opened: list[str]) -> None:
    sizes(paths)
    opened.clear()
    write_picture(Path(paths[1]), (20, 30))
    os.utime(paths[2], ns=(0, 0))  # another time alone, as of another picture with as many bytes
    assert sizes(paths) == [(40, 60), (20, 30), (40, 62)]
    assert sorted(opened) == ["1.png", "2.png"]


def test_other_content_of_the_same_time_is_checked_again(paths: list[str], opened: list[str]) -> None:
    sizes(paths)
    opened.clear()
    before = os.stat(paths[0])
    Path(paths[0]).write_bytes(Path(paths[0]).read_bytes()[:-30])
    os.utime(paths[0], ns=(before.st_atime_ns, before.st_mtime_ns))
    assert "cannot be decoded" in str(sizes(paths)[0])
    assert opened == ["0.png"]


def test_a_look_at_the_header_is_no_check(paths: list[str], opened: list[str]) -> None:
    sizes(paths, decode=False)
    sizes(paths, decode=True)
    assert len(opened) == 6
    sizes(paths, decode=True)
    assert len(opened) == 6


def test_a_fault_is_looked_for_every_time(paths: list[str], opened: list[str]) -> None:
    content = Path(paths[0]).read_bytes()
    Path(paths[0]).write_bytes(content[:40])
    missing = f"{paths[1]}.missing"
    for _ in range(2):
        opened.clear()
        first, second, third = sizes([paths[0], missing, paths[2]])
        assert "cannot be decoded" in str(first)
        assert second == f"the picture {missing} does not exist"
        assert third == (40, 62)
        assert {"0.png", "1.png.missing"} <= set(opened)
    assert len(opened) == 2
    Path(paths[0]).write_bytes(content)
    assert sizes(paths)[0] == (40, 60)


def test_a_picture_that_is_named_twice_is_opened_once(paths: list[str], opened: list[str]) -> None:
    assert sizes([paths[0], paths[1], paths[0]]) == [(40, 60), (40, 61), (40, 60)]
    assert len(opened) == 2


def test_splits_of_one_folder_do_not_forget_each_other(paths: list[str], opened: list[str]) -> None:
    sizes(paths[:2])
    sizes(paths[2:])
    sizes(paths[:2])
    assert len(opened) == 3


def test_pictures_that_are_gone_are_forgotten(paths: list[str], cache: Path) -> None:
    sizes(paths)
    os.unlink(paths[0])
    write_picture(Path(paths[1]), (20, 30))
    sizes(paths[1:])
    (file,) = cache.rglob("*.json")
    assert list(json.loads(file.read_text())["pictures"]) == paths[1:]
    assert [path.name for path in file.parent.iterdir()] == [file.name]  # and no temporary file is left


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "[1]",
        lambda text: text.replace('"version":"1', '"version":"0'),
        lambda text: text.replace("[", "[[1],"),
        lambda text: text.replace(",1]", "]"),
        lambda text: json.dumps({**json.loads(text), "pictures": [1]}),
    ],
)
def test_a_damaged_or_older_file_counts_for_nothing(
    damage: object, paths: list[str], cache: Path, opened: list[str]
) -> None:
    sizes(paths)
    (file,) = cache.rglob("*.json")
    file.write_text(damage(file.read_text()))  # type: ignore[operator]
    opened.clear()
    assert sizes(paths) == [(40, 60), (40, 61), (40, 62)]
    assert len(opened) == 3
    sizes(paths)
    assert len(opened) == 3


def test_without_a_place_to_write_nothing_is_stored_or_printed(
    paths: list[str], cache: Path, opened: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    cache.write_text("a file where the folder should be")
    for _ in range(2):
        assert sizes(paths) == [(40, 60), (40, 61), (40, 62)]
    assert len(opened) == 6
    assert capsys.readouterr() == ("", "")


def test_a_disk_that_is_full_leaves_the_old_file_and_no_other(
    paths: list[str], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(source: str, target: Path) -> None:
        raise OSError(28, "No space left on device")

    sizes(paths[:1])
    (file,) = cache.rglob("*.json")
    before = file.read_text()
    monkeypatch.setattr(os, "replace", no_space)
    assert sizes(paths) == [(40, 60), (40, 61), (40, 62)]
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    assert file.read_text() == before


def test_names_that_are_not_utf_8_are_stored_too(tmp_path: Path, opened: list[str]) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.png")
    try:
        path.touch()
    except OSError:
        pytest.skip("this file system refuses such a name")
    write_picture(tmp_path / "a.png")
    (tmp_path / "a.png").replace(path)
    assert sizes([str(path)]) == sizes([str(path)]) == [(40, 60)]
    assert len(opened) == 1


def test_what_was_checked_before_an_interruption_is_stored(paths: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(path: str, decode: bool) -> Size | str:
        if path == paths[1]:
            raise KeyboardInterrupt
        return (40, 60)

    monkeypatch.setattr(check_cache, "upright_size", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sizes(paths)
    assert sizes([paths[0]]) == [(40, 60)]
    monkeypatch.setattr(check_cache, "upright_size", lambda path, decode: "opened")
    assert sizes(paths)[:2] == [(40, 60), "opened"]


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETKIT_CACHE", "/there")
    assert cache_folder() == Path("/there")
    monkeypatch.delenv("DETKIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert cache_folder() == Path("/caches/detkit")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert cache_folder() == Path("/home/me/.cache/detkit")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as where nobody knows the home
    assert cache_folder() is None
