"""What files of our own formats hold besides objects and classes, counted: a conversion leaves it out and says so.

What a format that is written to cannot hold, such as keypoints in VOC, its writer counts.
"""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from detkit.data.text_files import decode_text
from detkit.data.yolo_files import label_path

CARRIED_OVER = {  # keys of COCO, tags of VOC
    "annotation": {
        *("id", "image_id", "category_id", "bbox", "area", "iscrowd", "ignore"),
        *("segmentation", "keypoints", "num_keypoints"),
    },
    "image": {"id", "file_name", "width", "height"},
    "category": {"id", "name", "keypoints", "skeleton"},
    "object": {"name", "bndbox", "difficult"},
    "picture": {"folder", "filename", "path", "size", "segmented", "object"},
}
NOTHING: tuple[Any, ...] = (None, "", "none", 0, "0", "Unspecified", "Unknown", [], {})
CONFIDENCE = "line with a confidence"


def beside_coco(path: Path) -> Counter[str]:
    """As `{"annotation with 'segmentation'": 3}`."""
    content: dict[str, Any] = json.loads(path.read_bytes())
    counts: Counter[str] = Counter()
    for table, noun in (("annotations", "annotation"), ("images", "image"), ("categories", "category")):
        for row in content.get(table) or ():
            keys = [key for key, value in row.items() if key not in CARRIED_OVER[noun] and value not in NOTHING]
            counts.update(f"{'class' if noun == 'category' else noun} with {key!r}" for key in keys)
    return counts


def beside_voc(paths: Iterable[Path]) -> Counter[str]:
    """As `{"object with <truncated>": 3}`."""
    counts: Counter[str] = Counter()
    for path in paths:
        try:
            root = ET.fromstring(path.read_bytes())
        except (OSError, ET.ParseError, ValueError):  # reported by the reader, or in an encoding that expat lacks
            continue
        for noun, elements in (("picture", [root]), ("object", root.findall("object"))):
            for element in elements:
                tags = {child.tag for child in element if len(child) or (child.text or "").strip() not in NOTHING}
                counts.update(f"{noun} with <{tag}>" for tag in sorted(tags - CARRIED_OVER[noun]))
    return counts


def beside_yolo(pictures: Iterable[str]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for picture in pictures:
        try:
            text = decode_text(label_path(Path(picture)).read_bytes())
        except (OSError, UnicodeDecodeError):  # no label file, or one that the reader has reported
            continue
        columns = [len(line.replace(",", " ").replace(";", " ").split()) for line in text.splitlines()]
        counts[CONFIDENCE] += sum(number == 6 for number in columns)
    return counts
