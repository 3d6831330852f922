"""Reads the detections that other programs wrote: COCO results, and PASCAL VOC's files of one class each (`comp4`).

Legend: N detections.
"""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from detkit.config import UserError
from detkit.data.coco_annotations import coco_number
from detkit.data.coco_ids import Id, plain_id
from detkit.data.text_files import decode_text
from detkit.engine.results_columns import ResultColumns, entry_box, read_columns

ENTRY = "image_id, category_id, bbox [x, y, width, height] (or segmentation, or keypoints) and score"
LINE = "`image score x1 y1 x2 y2`"
ROUNDING = 1e-6  # that a score of 1 may lie above it
# comp4_det_test_car.txt; py-faster-rcnn also writes comp4_<uuid>_det_test_car.txt
_VOC_NAME = re.compile(r"(?P<detector>comp\d+.*_det_(?P<image_set>[^_]+)_)(?P<label>.+)")


@dataclass(frozen=True, eq=False)
class ResultRows:
    """The detections of one detector, in the order of its files.

    name       of the files, in messages
    images     `[N]`: the id of the image, or the name of its file
    classes    `[N]`: the id or the name of the class
    boxes      float64 `[N, 4]` xyxy in continuous pixels
    scores     float64 `[N]` in [0, 1]
    columns    masks and keypoints
    image_set  the list of images that VOC's files name themselves after; None if they do not
    notes      what was unusual, in sentences
    """

    name: str
    images: list[Id]
    classes: list[Id]
    boxes: np.ndarray
    scores: np.ndarray
    columns: ResultColumns = field(default_factory=ResultColumns)
    image_set: str | None = None
    notes: tuple[str, ...] = ()


def read_results(paths: Sequence[Path]) -> ResultRows:
    """Reads one COCO results file, or VOC's `.txt` files of one detector: each, their folder, or a pattern with `*`.

    Raises UserError naming the file, the place in it and the fix.
    """
    files = list(dict.fromkeys(file for path in paths for file in _files(path)))
    if all(file.suffix.lower() == ".txt" for file in files):
        rows = _read_voc(files)
        beside = [
            text.name for path in paths if path.is_dir() for text in sorted(path.glob("*.txt")) if text not in files
        ]
        left_out = [f"not read, as their names are not those of VOC's results: {', '.join(beside)}"] if beside else []
        return replace(rows, notes=(*rows.notes, *left_out))
    if len(files) > 1:
        raise UserError(
            f"--detections: expected one file of COCO results, or VOC's .txt files, one a class, found {len(files)} "
            f"files, among them {next(file for file in files if file.suffix.lower() != '.txt')}; measure one at a time"
        )
    return _read_coco(files[0])


def _files(path: Path) -> list[Path]:
    """The file itself, the results in a folder, or the files that a pattern names."""
    if path.is_file():
        return [path]
    if path.is_dir():
        texts = sorted(path.glob("*.txt"))
        texts = [text for text in texts if _VOC_NAME.fullmatch(text.stem)] or texts
        if not texts:
            raise UserError(f"{path}: expected VOC's results in this folder, a .txt file of each class, found none")
        return texts
    matches = sorted(map(Path, glob.glob(str(path))))
    if not matches:
        raise UserError(f"{path}: no such file; expected COCO results (.json), or VOC's .txt files or their folder")
    return matches


def _read_coco(path: Path) -> ResultRows:
    content = _read_json(path)
    notes: tuple[str, ...] = ()
    if isinstance(content, dict) and "annotations" in content:
        content = content["annotations"]
        notes = ("the entries under 'annotations' are read as detections; COCO results are a list without more",)
    if not isinstance(content, list):
        raise UserError(f"{path}: expected COCO results, a list of {ENTRY}, found {_kind(content)}")
    try:
        values = np.array([(*(entry_box(entry) or ()), entry["score"]) for entry in content], np.float64)
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
        values = np.zeros(0)
    images = [plain_id(_first(entry, "image_id", "file_name")) for entry in content]
    classes = [plain_id(_first(entry, "category_id", "category_name")) for entry in content]
    if (content and values.shape != (len(content), 5)) or None in images or None in classes:
        number, fault = next((number, fault) for number, fault in enumerate(map(_entry_fault, content)) if fault)
        raise UserError(f"{path}: entry {number}: {fault}")
    values = values.reshape(-1, 5)
    values[:, 2:4] += values[:, :2]

    def place(row: int) -> str:
        return f"{path}: entry {row}"

    boxes, scores = _checked(values, place)
    columns, unusual = read_columns(content, place)
    known = [i for i in images if i is not None], [c for c in classes if c is not None]
    return ResultRows(str(path), *known, boxes, scores, columns, None, (*notes, *unusual))


def _read_json(path: Path) -> Any:
    expected = f"expected COCO results, a JSON list of {ENTRY}"
    try:
        text = decode_text(path.read_bytes()).rstrip()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not text; {expected}") from error
    if not text:
        raise UserError(f"{path}: is empty; {expected}, or [] where nothing was detected")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        if error.pos >= len(text) or text[-1] not in "]}":
            raise UserError(
                f"{path}: is cut short: the text ends at character {len(text):,}, after {text.count('}'):,} whole "
                "entries; write or copy it again"
            ) from error
        raise UserError(f"{path}: cannot be read as JSON: {error}; {expected}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON: {error}; {expected}") from error


def _first(entry: Any, *keys: str) -> Any:
    """The value of the first of these keys that the entry has."""
    return next((entry[key] for key in keys if key in entry), None) if isinstance(entry, dict) else None


def _entry_fault(entry: Any) -> str | None:
    """What an entry of COCO results lacks, with the fix; None if nothing."""
    if not isinstance(entry, dict):
        return f"expected {ENTRY}, found {_kind(entry)}"
    other = next((key for key in ("segmentation", "keypoints") if entry.get(key)), None)
    try:
        bbox: Any = entry_box(entry)
    except (KeyError, TypeError, ValueError):
        return f"expected numbers in {other!r}, found {_shown(entry[str(other)])}"
    if bbox is None:
        bbox = entry.get("bbox")
    if not isinstance(bbox, list | tuple) or len(bbox) != 4 or any(isinstance(v, list) or v is None for v in bbox):
        return f"expected 'bbox' [x, y, width, height], found {_shown(bbox)}"
    if "score" not in entry:
        return "has no 'score', as in a file of ground truth; expected detections with a score in [0, 1]"
    for key, other_key in (("image_id", "file_name"), ("category_id", "category_name")):
        value = _first(entry, key, other_key)
        if plain_id(value) is None:
            return f"expected {key!r}, an integer or a text, found {_shown(value)}"
    bad = [value for value in (*bbox, entry["score"]) if not _is_number(value)]
    return f"expected numbers in 'bbox' and 'score', found {_shown(bad[0])}" if bad else None


def _is_number(value: Any) -> bool:
    """Whether it is one, or a text that is; one that is not finite has a message of its own."""
    return isinstance(value, float) or coco_number(value) is not None


def _read_voc(files: Sequence[Path]) -> ResultRows:
    """Lines of pixels counted from 1, both corners inside, as PASCAL's devkit reads them."""
    names = [_VOC_NAME.fullmatch(file.stem) for file in files]
    detectors = {name["detector"] if name else str(file.parent) for name, file in zip(names, files, strict=True)}
    if len(detectors) > 1:
        raise UserError(
            f"--detections: expected the files of one detector, found those of {len(detectors)}: "
            f"{', '.join(sorted(detectors))}; measure one at a time"
        )
    images: list[Id] = []
    classes: list[Id] = []
    parts = []
    for name, file in zip(names, files, strict=True):
        file_images, values = _read_voc_file(file)
        images += file_images
        classes += [name["label"] if name else file.stem] * len(file_images)
        parts.append(values)
    values = np.concatenate(parts)
    where = str(files[0]) if len(files) == 1 else f"{files[0].parent} ({len(files)} files)"
    image_set = names[0]["image_set"] if names[0] else None
    return ResultRows(where, images, classes, values[:, :4], values[:, 4], image_set=image_set)


def _read_voc_file(path: Path) -> tuple[list[str], np.ndarray]:
    """The image of each line, and float64 `[N, 5]` xyxy in continuous pixels and score."""
    try:
        text = decode_text(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not text; expected lines {LINE}") from error
    lines = [(number, line) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    rows = [line.rsplit(maxsplit=5) for _, line in lines]  # from the right, as names of images may have spaces
    try:
        values = np.array([row[1:] for row in rows], np.float64).reshape(-1, 5)
    except ValueError as error:
        short = next(i for i, row in enumerate(rows) if len(row) != 6 or None in map(coco_number, row[1:]))
        end = "; the file may be cut short: write or copy it again" if short == len(rows) - 1 else ""
        raise UserError(
            f"{path}: line {lines[short][0]}: expected {LINE}, found {_shown(lines[short][1])}{end}"
        ) from error
    values = values[:, [1, 2, 3, 4, 0]] - [1, 1, 0, 0, 0]  # the pixel x1, counted from 1, covers x1 - 1 to x1
    boxes, scores = _checked(values, lambda row: f"{path}: line {lines[row][0]}")
    return [row[0].strip() for row in rows], np.column_stack([boxes, scores])


def _checked(values: np.ndarray, place: Callable[[int], str]) -> tuple[np.ndarray, np.ndarray]:
    """Boxes `[N, 4]` and scores `[N]` of `[N, 5]`, if they can be measured. `place` names a row in a message."""
    boxes, scores = values[:, :4], values[:, 4]
    if len(rows := np.flatnonzero(~np.isfinite(values).all(axis=1))):
        raise UserError(
            f"{place(rows[0])}: expected finite numbers, found the box {_corners(boxes[rows[0]])} and the score "
            f"{scores[rows[0]]:g}; {len(rows)} of {len(values)} detections are like this: leave them out of the file"
        )
    if len(rows := np.flatnonzero((boxes[:, 2:] < boxes[:, :2]).any(axis=1))):
        raise UserError(
            f"{place(rows[0])}: the box {_corners(boxes[rows[0]])} has a negative width or height; {len(rows)} of "
            f"{len(values)} detections are like this: leave them out of the file, or write their sides in order"
        )
    if len(rows := np.flatnonzero((scores < 0) | (scores > 1 + ROUNDING))):
        raise UserError(
            f"{place(rows[0])}: expected a score in [0, 1], found {scores[rows[0]]:g}; {len(rows)} of {len(values)} "
            "detections are like this: write score / 100 if they are per cent, or 1 / (1 + exp(-score)) if they have "
            "no bounds, which changes no AP"
        )
    return boxes, scores.clip(0, 1)


def _corners(box: np.ndarray) -> str:
    x1, y1, x2, y2 = box
    return f"x {x1:g} to {x2:g}, y {y1:g} to {y2:g}"


def _kind(value: Any) -> str:
    names = {dict: "a mapping", list: "a list", str: "a text", type(None): "nothing"}
    return names.get(type(value), f"the number {value}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
