"""PASCAL VOC's XML, in the dialects that annotation tools write."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from detkit.data.checks import Box
from detkit.data.flags import parse_flag
from detkit.data.text_files import decode_text
from detkit.structures import Size

_DECLARED = re.compile(rb"""\s*<\?xml[^>]*?\bencoding\s*=\s*["']([\w.:-]+)""")
# Windows writes characters of the larger set under the name of the smaller one.
_LARGER_SET = {"gb2312": "gb18030", "gbk": "gb18030", "shift_jis": "cp932", "euc-kr": "cp949"}
_NO_BOX = (0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class VOCObject:
    """One box of an <object>.

    number     of the element, from 1
    where      its name in messages: number of the element, class, and corners as the file has them
    name       of the class; empty if there is none
    box        xyxy, continuous
    difficult  whether PASCAL leaves it out of the evaluation
    problem    why it cannot be read, with the fix
    note       what was unusual and is counted
    """

    number: int
    where: str
    name: str
    box: Box
    difficult: bool
    problem: str | None
    note: str | None


@dataclass(frozen=True, slots=True)
class Annotation:
    """One XML file.

    filename  the picture it names, which may be another tool's or another machine's
    size      (h, w); None if it is missing or 0 x 0, as some tools write
    problem   why it cannot be read, with the fix
    """

    filename: str = ""
    size: Size | None = None
    objects: tuple[VOCObject, ...] = ()
    problem: str | None = None


def read_annotation(path: Path) -> Annotation:
    """Reads one file, whatever its encoding and namespace. Whatever is wrong with it is in `problem`."""
    try:
        tree = ET.fromstring(_decode(path.read_bytes()))
    except OSError as error:
        return Annotation(problem=f"cannot be read: {error.strerror}")
    except UnicodeDecodeError as error:
        return Annotation(problem=f"is not text in {error.encoding}, the encoding it declares; save it as UTF-8")
    except (ET.ParseError, LookupError, ValueError) as error:
        return Annotation(problem=f"is not well-formed XML: {error}")
    root = tree.tag
    for element in tree.iter():
        element.tag = element.tag.rpartition("}")[2].lower()  # `{namespace}bndBox`
    if fault := _foreign(tree, root):
        return Annotation(problem=fault)
    objects = tuple(item for number, each in enumerate(tree.iter("object"), start=1) for item in _objects(each, number))
    return Annotation((tree.findtext("filename") or "").strip(), _size(tree), objects)


def _decode(content: bytes) -> str:
    """Decoded here because expat knows only a handful of encodings. What declares UTF-16 in single bytes is UTF-8."""
    if content[:2] in (b"<\0", b"\0<"):
        return content.decode("utf-16-le" if content[0] else "utf-16-be")
    declared = _DECLARED.match(content)
    name = declared[1].decode().lower() if declared else "utf-8"
    return decode_text(content, "utf-8" if name.startswith("utf-16") else _LARGER_SET.get(name, name)).lstrip()


def _foreign(tree: ET.Element, root: str) -> str | None:
    """What the file is if it is not PASCAL VOC's: otherwise its picture would be trained on as one without objects."""
    other = "which `detkit convert` may read"
    if tree.tag == "annotations" and (tree.find("image") is not None or tree.find("track") is not None):
        return f"is CVAT's XML, {other}; expected PASCAL VOC's <annotation>"
    if tree.tag != "annotation":
        return f"is XML of another format, <{root}>, {other}; expected PASCAL VOC's <annotation>"
    if tree.find(".//polygon/pt") is not None:
        return f"is LabelMe's XML, {other}; expected PASCAL VOC's <bndbox>"
    if all(tree.find(f".//{tag}") is None for tag in ("object", "size", "filename")):
        return "is XML of another format: expected PASCAL VOC's <object>, <size> or <filename>, found none of them"
    if tree.find(".//object") is None and tree.find(".//bndbox") is not None:
        return "has a <bndbox> that is in no <object>; expected PASCAL VOC's <object><name/><bndbox/></object>"
    return None


def _size(tree: ET.Element) -> Size | None:
    try:
        height, width = (int(float(tree.findtext(f"size/{tag}") or "0")) for tag in ("height", "width"))
    except (ValueError, OverflowError):
        return None
    return (height, width) if height > 0 and width > 0 else None


def _objects(element: ET.Element, number: int) -> Iterator[VOCObject]:
    """One for each box. Tags are read by name, as tools write them in any order; <difficult> may be missing."""
    names = list(dict.fromkeys((child.text or "").strip() for child in element.findall("name")))
    name = names[0] if len(names) == 1 else ""
    flags = {parse_flag(child.text) for child in element.findall("difficult")} or {False}
    difficult = flags.pop() if len(flags) == 1 else None
    fault = None
    if not name:
        fault = f"expected one <name>, the class, found {', '.join(filter(None, names)) or 'none'}"
    elif difficult is None:
        found = "".join(f"<difficult>{child.text or ''}</difficult>" for child in element.findall("difficult"))
        fault = f"{found}: expected 0 or 1"
    for corners, box, box_fault, note in _boxes(element):
        where = f"object {number} ({name or 'no name'}, {corners})"
        yield VOCObject(number, where, name, box, bool(difficult), fault or box_fault, note)


def _boxes(element: ET.Element) -> Iterator[tuple[str, Box, str | None, str | None]]:
    """(corners as the file has them, box, problem, note) of each box of an <object>; those of its <part>s are not."""
    upright, rotated, polygons = (element.findall(tag) for tag in ("bndbox", "robndbox", "polygon"))
    if polygons and not upright and not rotated:
        yield *_polygon(polygons), "object read from a polygon"
        return
    for index, each in enumerate(upright or rotated or [ET.Element("bndbox")]):
        read, note = (_corners, None) if upright or not rotated else (_rotated, "object read from a rotated box")
        yield *read(each), "box beside the first in one <object>" if index else note


def _numbers(element: ET.Element, *tags: str) -> tuple[str, list[float] | None]:
    """The tags with their text, for a message, and their values; None if one is missing, twice there or no number."""
    texts = {tag: [(child.text or "").strip() for child in element.findall(tag)] for tag in tags}
    where = " ".join(f"{tag} {' and '.join(filter(None, found)) or '?'}" for tag, found in texts.items())
    try:
        return where, [float(text) for (text,) in texts.values()]
    except ValueError:
        return where, None


def _corners(element: ET.Element) -> tuple[str, Box, str | None]:
    where, values = _numbers(element, "xmin", "ymin", "xmax", "ymax")
    if values is None:
        return where, _NO_BOX, "<bndbox> needs each of these four once, as a number"
    xmin, ymin, xmax, ymax = values
    # The pixel xmin (counted from 1) covers xmin - 1 to xmin, so only the upper left corner moves (Detectron2 does so).
    return where, (xmin - 1, ymin - 1, xmax, ymax), None


def _rotated(element: ET.Element) -> tuple[str, Box, str | None]:
    """The upright box around a rotated one of roLabelImg: continuous pixels, the angle in radians."""
    where, values = _numbers(element, "cx", "cy", "w", "h", "angle")
    if values is None or abs(values[-1]) > 2 * math.pi:
        return where, _NO_BOX, "<robndbox> needs each of these five once, as a number, and the angle in radians"
    cx, cy, width, height, angle = values
    cosine, sine = abs(math.cos(angle)), abs(math.sin(angle))
    dx, dy = (width * cosine + height * sine) / 2, (width * sine + height * cosine) / 2
    return where, (cx - dx, cy - dy, cx + dx, cy + dy), None


def _polygon(polygons: list[ET.Element]) -> tuple[str, Box, str | None]:
    """The box around all polygons of an object: <x1/><y1/>... or <point><x/><y/></point>..., in <bndbox>'s pixels."""
    children = [child for polygon in polygons for child in polygon.iter() if re.fullmatch(r"[xy]\d*", child.tag)]
    try:
        x, y = ([float(child.text or "") for child in children if child.tag[0] == axis] for axis in "xy")
    except ValueError:
        x = y = []
    if len(x) != len(y) or len(x) < 3 or not all(map(math.isfinite, (*x, *y))):
        return "a polygon", _NO_BOX, "<polygon> needs at least three points <x1/><y1/>, <x2/><y2/>, ... of numbers"
    where = f"a polygon, x {min(x):g} to {max(x):g}, y {min(y):g} to {max(y):g}"
    return where, (min(x) - 1, min(y) - 1, max(x), max(y)), None
