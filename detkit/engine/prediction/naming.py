"""What a drawing is called: like its picture, below the folder that was given, and no two alike."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path, PurePath, PurePosixPath
from urllib.parse import urlsplit

from detkit.config import UserError

# Kinds that every Pillow can write in full colours; drawings of all others are PNG.
_DRAWN_AS_THEY_ARE = (".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".bmp", ".webp", ".tif", ".tiff")


def drawing_names(files: Sequence[tuple[Path, Path]], video_suffixes: Collection[str]) -> list[tuple[Path, str]]:
    """Every file once, with the name of its drawing: its path below its folder, with `/` between the parts.

    Where files of two folders would have one name, the names of all files of both begin with a part of the path of
    their folder: one/a.jpg and two/a.jpg. Raises UserError if names stay alike.

    files  (folder, file in it or below)
    """
    paths = {_absolute(path): (_absolute(folder), path) for folder, path in reversed(files)}
    paths = dict(reversed(paths.items()))  # in their order; of one that is there twice, the first
    drawings = _drawings(paths, video_suffixes)
    starts = {folder: folder for folder, _ in paths.values()}  # the folder that names are relative to, by the given one
    while True:
        names = {path: drawings[path].relative_to(starts[folder]).as_posix() for path, (folder, _) in paths.items()}
        if not (alike := _alike(names)):
            return [(path, names[key]) for key, (_, path) in paths.items()]
        before = dict(starts)
        for folder in {paths[path][0] for path in alike}:
            starts[folder] = starts[folder].parent
        if starts == before:
            first, second = alike[:2]
            raise UserError(
                f"{first} and {second} would both be drawn as {names[first]}; predict them into two folders"
            )


def stream_name(url: str, taken: Collection[str], picture_suffixes: Collection[str]) -> str:
    """The name of the film, or picture, of a URL: host and path, without user, password and query; or camera_N."""
    parts = urlsplit(url)
    path = PurePosixPath(parts.path if parts.netloc else url)
    suffix = _drawn_suffix(path, ()) if path.suffix.lower() in picture_suffixes else ".mp4"
    path = path.with_suffix("") if re.fullmatch(r"\.\w{2,4}", path.suffix) else path
    base = re.sub(r"[^\w.-]+", "_", f"{parts.netloc.rpartition('@')[2]}/{path}").strip("._") or "stream"
    numbered = (f"{base}{number}{suffix}" for number in ("", *(f"-{again}" for again in range(2, len(taken) + 3))))
    return next(name for name in numbered if name not in taken)


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))


def _drawings(paths: Iterable[Path], video_suffixes: Collection[str]) -> dict[Path, Path]:
    """Where the drawing of each file would lie beside it: a.png for a.gif, or a.gif.png if there is an a.png, too."""
    drawn = {path: path.with_suffix(_drawn_suffix(path, video_suffixes)) for path in paths}
    counts = Counter(drawn.values())
    return {
        path: drawing if counts[drawing] == 1 or drawing == path else path.with_name(path.name + drawing.suffix)
        for path, drawing in drawn.items()
    }


def _drawn_suffix(path: PurePath, video_suffixes: Collection[str]) -> str:
    suffix = path.suffix.lower()
    if suffix in video_suffixes:
        return path.suffix if suffix == ".mp4" else ".mp4"
    return path.suffix if suffix in _DRAWN_AS_THEY_ARE else ".png"


def _alike(names: dict[Path, str]) -> list[Path]:
    """The files whose name another one has, too; those of one name stand side by side."""
    by_name: dict[str, list[Path]] = defaultdict(list)
    for path, name in names.items():
        by_name[name].append(path)
    return [path for same in by_name.values() if len(same) > 1 for path in same]
