"""The sizes of pictures, and what the check found, stored from one start to the next.

CACHE/checks/FOLDER-HASH.json is for the pictures below one folder. It has for each path the number of bytes, the time
of change in ns, h, w and whether the picture was decoded. A picture that has changed is read again, and so is one with
a fault, which is not stored. A damaged file counts for nothing; where none can be written, nothing is stored.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import PIL
from tqdm import tqdm

from detkit.data.pictures import upright_size
from detkit.structures import Size

# Another Pillow may read other kinds of files.
_VERSION = f"1, Pillow {PIL.__version__}"

Entry = list[int]  # number of bytes, time of change, h, w, whether decoded


def cache_folder() -> Path | None:
    """Where detkit keeps what it can find out again: DETKIT_CACHE, or `detkit` in the user's folder for caches.

    None if there is no such folder. It may not exist yet.
    """
    chosen = os.environ.get("DETKIT_CACHE")
    if chosen:
        return Path(chosen)
    base = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    return base / "detkit" if base.is_absolute() else None


def picture_sizes(paths: Sequence[str], decode: bool, name: str) -> list[Size | str]:
    """`upright_size` of each picture. One that an earlier call found good, and that has not changed, is not opened.

    name  of the data set, in the progress bar
    """
    file = _cache_file(paths)
    entries = _load(file)
    # The time is taken before a picture is read, so that a change in between is seen at the next start.
    stamps = {path: _stamp(path) for path in paths}
    sizes: dict[str, Size | str] = {}
    for path, stamp in stamps.items():
        entry = entries.get(path)
        if entry is not None and entry[:2] == stamp and entry[4] >= decode:
            sizes[path] = (entry[2], entry[3])
    unknown = [path for path in stamps if path not in sizes]
    try:
        with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
            read = pool.map(partial(upright_size, decode=decode), unknown)
            progress = tqdm(zip(unknown, read, strict=True), f"checking {name}", len(unknown), delay=2, leave=False)
            sizes.update(progress)
    finally:  # what was read before an interruption need not be read again
        good = {path: size for path in unknown if isinstance(size := sizes.get(path), tuple)}
        if good:
            _save(file, entries | {path: [*stamps[path], *size, int(decode)] for path, size in good.items()})
    return [sizes[path] for path in paths]


def _cache_file(paths: Sequence[str]) -> Path | None:
    folder = cache_folder()
    try:
        root = os.path.commonpath([os.path.abspath(parent) for parent in set(map(os.path.dirname, paths))])
    except ValueError:  # no paths, or several drives
        return None
    digest = hashlib.sha256(os.fsencode(root)).hexdigest()[:16]
    return folder and folder / "checks" / f"{os.path.basename(root)}-{digest}.json"


def _stamp(path: str) -> list[int]:
    """Number of bytes and time of change; nothing, which equals no entry, if there is no such file."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return []
    return [status.st_size, status.st_mtime_ns]


def _load(file: Path | None) -> dict[str, Entry]:
    try:
        content = json.loads(file.read_bytes()) if file is not None else None
    except (OSError, ValueError):
        return {}
    if not isinstance(content, dict) or content.get("version") != _VERSION:
        return {}
    pictures = content.get("pictures")
    return pictures if isinstance(pictures, dict) and all(map(_is_entry, pictures.values())) else {}


def _is_entry(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 5 and all(type(number) is int for number in value)


def _save(file: Path | None, entries: Mapping[str, Entry]) -> None:
    """Writes the entries of the pictures that still exist, all at once or not at all."""
    if file is None:
        return
    content = {"version": _VERSION, "pictures": {path: e for path, e in entries.items() if os.path.exists(path)}}
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=file.parent)
        try:
            with open(handle, "w", encoding="ascii") as stream:
                stream.write(json.dumps(content, separators=(",", ":")))
            os.replace(temporary, file)
        except BaseException:
            os.unlink(temporary)
            raise
