"""Built-in data sets: drawn from their settings, written once, and replaced when the settings change.

root/about.json  the settings; marks a folder that detkit drew and may replace
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from detkit.data.checks import DataError

ABOUT = "about.json"


def ensure_drawn(root: Path, settings: Mapping[str, Any], draw: Callable[[Path], None]) -> None:
    """Has `draw` write the set beside `root` and renames it, so that `root` is never half a set.

    A set that was drawn with other settings is replaced. Raises DataError if `root` holds anything else.

    settings  everything that the set depends on, with the name of its `generator`
    draw      writes the set into the folder that it is given, which does not exist yet
    """
    if _read_settings(root, settings["generator"]) == settings:
        return
    try:
        _replace(root, settings, draw)
    except OSError as error:
        raise DataError(f"data.root: cannot draw the built-in set in {root}: {error.strerror}") from error


def _replace(root: Path, settings: Mapping[str, Any], draw: Callable[[Path], None]) -> None:
    """Draws the set in a temporary folder and moves it to `root`."""
    generator = settings["generator"]
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as aside:
        drawn = Path(aside) / "new"
        draw(drawn)
        (drawn / ABOUT).write_text(json.dumps(settings, indent=2) + "\n")
        if _read_settings(root, generator) not in (None, settings):
            with contextlib.suppress(FileNotFoundError):  # another process has just moved it
                root.rename(Path(aside) / "old")
        try:
            drawn.rename(root)
        except OSError:
            if _read_settings(root, generator) != settings:  # otherwise another process was faster
                raise


def _read_settings(root: Path, generator: str) -> dict[str, Any] | None:
    """The settings of the set in `root`; None if there is nothing. Raises DataError if `generator` did not draw it."""
    try:
        about = json.loads((root / ABOUT).read_text(encoding="utf-8"))
        if about["generator"] == generator:
            return dict(about)
    except (OSError, ValueError, TypeError, KeyError):
        if not root.exists() or (root.is_dir() and not any(root.iterdir())):
            return None
    raise DataError(
        f"data.root: {root} exists and was not drawn by detkit (its {ABOUT} does not say so); nothing was changed. "
        "Give data.root another folder, or move this one away"
    )
