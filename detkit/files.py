"""Files that are written whole or not at all; a full disk is an error of one line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from detkit.config import UserError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises a UserError that names `path` if the system refuses to write it: no space left, read-only, ..."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        cause: BaseException | None = error  # torch's writer raises a RuntimeError of its own while it handles this one
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__context__
        if cause is None:
            raise
        raise UserError(f"{path}: cannot write: {cause.strerror or cause}") from error


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the place of `path` when the block ends.

    A reader sees the old file or the new one, whenever the writer is killed. Raises UserError as `writing` does, and
    the old file stays.
    """
    aside = path.with_name(f".{path.name}.writing")  # what a killed writer leaves is overwritten by the next
    try:
        with writing(path):
            with aside.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)
    finally:
        with suppress(OSError):
            aside.unlink()


def write_text(path: Path, text: str) -> None:
    """Writes or replaces a file of UTF-8 text. Raises UserError as `writing` does."""
    with replacing(path) as file:
        file.write(text.encode("utf-8"))
