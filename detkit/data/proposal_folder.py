"""Proposals on disk: one folder for each method and its settings, one file for each picture."""

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


def proposals_exist(root: Path, settings: Mapping[str, Any]) -> bool:
    """Whether a search with these settings has begun in `root`."""
    return (root / _folder_name(settings) / SETTINGS).exists()


def _folder_name(settings: Mapping[str, Any]) -> str:
    text = json.dumps(settings, sort_keys=True)
    return f"{settings.get('name', 'proposals')}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


class ProposalFolder:
    """The folder `ROOT/NAME-KEY`, where KEY is a hash of the settings. Boxes: float32 `[N, 4]` xyxy, original pixels.

    The name of a file is the path of its picture below the folder of the data, as ids may repeat between splits, and a
    hash of the picture. A file is written under another name and renamed, so it is always complete, and a search that
    was interrupted can go on.
    """

    def __init__(self, root: Path, data: Path, settings: Mapping[str, Any]) -> None:
        """Creates the folder if there is none. Raises DataError if that fails, or if its settings are not these."""
        self.data = data
        text = json.dumps(settings, sort_keys=True)
        self.folder = root / _folder_name(settings)
        path = self.folder / SETTINGS
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                path.write_text(text, encoding="utf-8")
            actual = path.read_text(encoding="utf-8")
        except OSError as error:
            raise DataError(f"{self.folder}: cannot keep proposals: {error.strerror}; set loader.proposals") from error
        if actual != text:
            raise DataError(f"{path}: proposals of other settings; expected {text}, found {actual}; remove the folder")

    def path(self, picture: str) -> Path:
        """The file of a picture's proposals, which may not exist. Raises DataError if the picture cannot be read."""
        # The hash tells a picture that was replaced under its name. A date would do so too, but it also differs in a
        # copy of the data, and a search takes hours. The hash costs a twentieth of the time of decoding.
        try:
            content = hashlib.sha256(Path(picture).read_bytes()).hexdigest()[:8]
        except FileNotFoundError as error:
            raise DataError(f"the picture {picture} does not exist") from error
        except OSError as error:
            raise DataError(f"the picture {picture} cannot be read: {error.strerror}") from error
        return self.folder / f"{quote(os.path.relpath(picture, self.data), safe='')}-{content}.npy"

    def save(self, picture: str, boxes: np.ndarray) -> None:
        """Writes the proposals of a picture. Raises DataError if that fails."""
        path = self.path(picture)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as file:
                np.save(file, boxes)
            temporary.replace(path)
        except OSError as error:  # numpy raises one without strerror on a full disk
            raise DataError(f"{path}: cannot keep these proposals: {error.strerror or error}") from error
        finally:
            temporary.unlink(missing_ok=True)

    def load(self, picture: str) -> np.ndarray:
        """The proposals of a picture. Raises DataError if there are none, or if the file does not hold proposals."""
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
            actual = f"{boxes.dtype} {list(boxes.shape)}"
            raise DataError(f"{path}: expected boxes float32 [N, 4], found {actual}; remove the file")
        return np.asarray(boxes)
