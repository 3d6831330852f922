"""Folders to write in, and the claim by which one process at a time has that of a run."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from detkit.config import UserError
from detkit.engine import distributed

LOCK = ".lock"
_claimed: set[Path] = set()  # by this process, or by the first of its group


def create_folder(folder: Path) -> None:
    """Makes a folder to write in. Raises UserError if that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot make this output folder: {error.strerror}; choose another") from error
    if not os.access(folder, os.W_OK):
        raise UserError(f"{folder}: this output folder is not writable; choose another")


@contextmanager
def claim_folder(folder: Path) -> Iterator[None]:
    """Makes `folder`, and keeps other processes from writing in it for the time of the block.

    A block inside another of the same folder, such as `train` below `detkit.train`, has the claim of that one. Of
    torchrun's processes the first has the claim. Raises UserError if another process has it.
    """
    if folder.resolve() in _claimed:
        yield
        return
    with _claim(lambda: _Claim(folder)):
        yield


@contextmanager
def claim_new_folder(candidates: Iterable[Path]) -> Iterator[Path]:
    """The first of `candidates` that does not exist yet, created and claimed for the time of the block."""
    with _claim(lambda: next(filter(None, map(_claim_if_new, candidates)))) as folder:
        yield folder


@contextmanager
def _claim(make: Callable[[], _Claim]) -> Iterator[Path]:
    claims: list[_Claim] = []

    def first() -> Path:
        claims.append(make())
        return claims[0].folder

    try:
        folder = distributed.of_first(first)
        _claimed.add(folder.resolve())
        try:
            yield folder
        finally:
            _claimed.discard(folder.resolve())
    finally:
        for claim in claims:
            claim.release()


def _claim_if_new(folder: Path) -> _Claim | None:
    try:
        return _Claim(folder, exist_ok=False)
    except FileExistsError:
        return None


class _Claim:
    """A folder with a locked file in it.

    The system takes the lock back when the process ends, however it ends. It is not inherited by the workers of a
    loader, which live a few seconds longer than a process that is killed.
    """

    def __init__(self, folder: Path, *, exist_ok: bool = True) -> None:
        """Raises UserError if another process has the folder, FileExistsError if it must not exist but does."""
        self.folder = folder
        self.created = [path for path in (folder, *folder.parents) if not path.exists()]
        create_folder(folder if exist_ok else folder.parent)
        try:
            folder.mkdir(exist_ok=exist_ok)
            self.file = _locked(folder / LOCK)
        except FileExistsError:
            raise
        except OSError as error:
            self._remove_empty()
            raise UserError(
                f"{folder}: cannot write in this output folder: {error.strerror}; choose another"
            ) from error

    def release(self) -> None:
        """Removes what was created for the claim, if nothing was written there."""
        (self.folder / LOCK).unlink(missing_ok=True)
        self._remove_empty()
        self.file.close()

    def _remove_empty(self) -> None:
        with suppress(OSError):  # something is in it, as there should be
            for folder in self.created:
                folder.rmdir()


def _locked(path: Path) -> IO[str]:
    """The file, open, with a lock that no other process has. Raises UserError if one has it."""
    while True:
        file = path.open("a")
        try:
            if not _lock(file):
                raise UserError(
                    f"{path.parent}: another process is writing in this folder; wait until it ends, or name another"
                )
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except FileNotFoundError:
            pass  # the one who had it has just removed it
        except BaseException:
            file.close()
            raise
        file.close()


def _lock(file: IO[str]) -> bool:
    """False if another process has the lock. Where the system has no locks, a note and True."""
    try:
        import fcntl

        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError) as error:
        if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        print(f"note: {file.name}: no locks here ({error}): start no second run in this folder", file=sys.stderr)
    return True
