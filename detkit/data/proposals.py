"""Proposals kept on disk: a folder for each way of making them, a file for each picture."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from detkit.data.checks import DataError

SETTINGS = "settings.json"


class ProposalFolder:
    """`ROOT/NAME-KEY`, where KEY is a hash of the settings; boxes float32 `[N, 4]` xyxy in original pixels.

    A file is named by where its picture lies below the folder of the data, as ids may repeat between splits, and by a
    hash of the picture. It is written aside and renamed: what is there is whole, and a search that was interrupted goes
    on.
    """

    def __init__(self, root: Path, data: Path, settings: Mapping[str, Any]) -> None:
        """Makes the folder if there is none. Raises DataError if it cannot be, or was made with other settings."""
        self.data = data
        text = json.dumps(settings, sort_keys=True)
        name = str(settings.get("name", "proposals"))
        self.folder = root / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        known = self.folder / SETTINGS
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not known.exists():
                known.write_text(text, encoding="utf-8")
            found = known.read_text(encoding="utf-8")
        except OSError as error:
            raise DataError(f"{self.folder}: cannot keep proposals: {error.strerror}; choose another folder") from error
        if found != text:
            raise DataError(f"{known}: proposals of other settings; expected {text}, found {found}; remove the folder")

    def path(self, picture: str) -> Path:
        """Raises DataError if the picture cannot be read."""
        # So a picture replaced under its name has no proposals yet. A date would tell it from the old one too, but also
        # a copy of the data from the original, and a search takes hours; a hash costs a twentieth of the decoding.
        try:
            content = hashlib.sha256(Path(picture).read_bytes()).hexdigest()[:8]
        except OSError as error:
            raise DataError(f"{picture}: cannot read this picture: {error.strerror}") from error
        return self.folder / f"{quote(os.path.relpath(picture, self.data), safe='')}-{content}.npy"

    def save(self, picture: str, boxes: np.ndarray) -> None:
        """Raises DataError if it cannot be written."""
        path = self.path(picture)
        aside = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            with aside.open("wb") as file:
                np.save(file, boxes)
            aside.replace(path)
        except OSError as error:  # numpy's own, on a full disk, has no strerror
            raise DataError(f"{path}: cannot keep these proposals: {error.strerror or error}") from error
        finally:
            aside.unlink(missing_ok=True)

    def load(self, picture: str) -> np.ndarray:
        """Raises DataError if the picture has none, or the file is not one of proposals."""
        path = self.path(picture)
        try:
            boxes = np.load(path, allow_pickle=False)
        except FileNotFoundError:
            raise DataError(
                f"{path}: no proposals for {picture}; those here are of another data set, or the picture has changed"
            ) from None
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{path}: cannot read these proposals: {error}; remove the file") from error
        if boxes.ndim != 2 or boxes.shape[1:] != (4,) or boxes.dtype != np.float32:
            found = f"{boxes.dtype} {list(boxes.shape)}"
            raise DataError(f"{path}: expected boxes float32 [N, 4], found {found}; remove the file")
        return np.asarray(boxes)
