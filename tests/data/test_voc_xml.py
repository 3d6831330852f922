"""One XML file in the dialects of annotation tools: what is read, and what is no VOC. Boxes are worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from detkit.data.voc_xml import Annotation, read_annotation
from tests.data.writers import voc_object

Read = Callable[[str | bytes], Annotation]
BOX = (4, 5, 20, 30)  # xyxy of the corners 5, 6, 20, 30
BNDBOX = "<bndbox><xmin>5</xmin><ymin>6</ymin><xmax>20</xmax><ymax>30</ymax></bndbox>"
SECOND = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
DOG = f"<object><name>dog</name>{BNDBOX}</object>"


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def call(text: str | bytes) -> Annotation:
        path = tmp_path / "a.xml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return read_annotation(path)

    return call


def objects(inner: str) -> str:
    return f"<annotation><filename>a.jpg</filename>{inner}</annotation>"


# ---- the file


@pytest.mark.parametrize(
    ("name", "encoding"),
    [
        ("红绿灯", "gb2312"),
        ("红绿灯", "GBK"),
        ("红绿灯", "gb18030"),
        ("紅綠燈", "big5"),
        ("信号", "shift_jis"),
        ("信号", "euc-jp"),
        ("신호등", "euc-kr"),
        ("светофор", "windows-1251"),
        ("żółw", "windows-1250"),
        ("röd", "windows-1252"),
        ("röd", "iso-8859-1"),
        ("żółw", "iso-8859-2"),
        ("红绿灯", "utf-8"),
        ("红绿灯", "utf8"),
        ("红绿灯", "utf-8-sig"),
        ("红绿灯", "utf-16"),
        ("红绿灯", "utf-16-le"),
        ("红绿灯", "utf-16-be"),
    ],
)
def test_every_encoding_that_is_declared(read: Read, name: str, encoding: str) -> None:
    text = f'<?xml version="1.0" encoding="{encoding}"?>' + objects(DOG.replace("dog", name))
    annotation = read(text.encode(encoding))
    assert [item.name for item in annotation.objects] == [name]


def test_encodings_that_tools_declare_wrongly(read: Read) -> None:
    """Windows writes GBK as gb2312 (镕 is not in the latter), and .NET declares utf-16 in a file of UTF-8."""
    for declared, actual in (("gb2312", "gbk"), ("utf-16", "utf-8"), ("Shift_JIS", "cp932")):
        name = "①" if actual == "cp932" else "镕"
        text = f'<?xml version="1.0" encoding="{declared}" ?>' + objects(DOG.replace("dog", name))
        assert [item.name for item in read(text.encode(actual)).objects] == [name]


def test_text_that_is_not_in_its_encoding_is_a_problem(read: Read) -> None:
    content = objects(DOG.replace("dog", "röd")).encode("latin-1")
    assert "is not text in utf-8" in read(content).problem
    assert "unknown encoding: klingon" in read(b'<?xml version="1.0" encoding="klingon"?>' + content).problem


def test_a_blank_line_before_the_declaration(read: Read) -> None:
    assert len(read('\n <?xml version="1.0" encoding="utf-8"?>' + objects(DOG)).objects) == 1


@pytest.mark.parametrize(
    "text",
    [
        objects(DOG).replace("<annotation>", '<annotation xmlns="http://example.org/voc">'),
        objects(DOG)
        .replace("<", "<v:")
        .replace("<v:/", "</v:")
        .replace("<v:annotation>", '<v:annotation xmlns:v="urn:v">'),
        objects(DOG).replace("bndbox", "bndBox").replace("<annotation>", "<Annotation>").replace("/annot", "/Annot"),
        objects(f"<objects>{DOG}</objects>"),
    ],
    ids=["default namespace", "prefix", "capitals", "wrapped"],
)
def test_the_same_tags_in_another_dress(read: Read, text: str) -> None:
    annotation = read(text)
    assert [(item.name, item.box) for item in annotation.objects] == [("dog", BOX)]
    assert (annotation.filename, annotation.problem) == ("a.jpg", None)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<annotations><version>1.1</version><image name='a.jpg'/></annotations>", "CVAT's XML"),
        ("<annotations><track id='0'><box frame='0'/></track></annotations>", "CVAT's XML"),
        ("<annotations/>", "another format, <annotations>"),
        (f"<TrainingSet>{DOG}</TrainingSet>", "another format, <TrainingSet>"),
        ("<dataset><images><image file='a.jpg'/></images></dataset>", "another format, <dataset>"),
        ("<html><body/></html>", "another format, <html>"),
        (objects("<object><name>dog</name><polygon><pt><x>1</x><y>2</y></pt></polygon></object>"), "LabelMe's XML"),
        ("<annotation/>", "found none of them"),
        ("<annotation><item><label>dog</label></item></annotation>", "found none of them"),
        (objects(f"<dog>{BNDBOX}</dog>"), "<bndbox> that is in no <object>"),
    ],
)
def test_what_is_no_voc_is_a_problem_and_never_a_picture_without_objects(read: Read, text: str, words: str) -> None:
    annotation = read(text)
    assert annotation.objects == ()
    assert words in annotation.problem


@pytest.mark.parametrize("text", ["", "<annotation>", "no xml", "<annotation></anno>", "\0"])
def test_what_is_not_well_formed_is_a_problem(read: Read, text: str) -> None:
    assert "is not well-formed XML" in read(text).problem


def test_a_file_without_objects_is_a_picture_without_objects(read: Read) -> None:
    assert read("<annotation><size><width>6</width><height>4.0</height></size></annotation>") == Annotation("", (4, 6))
    for size in ("<width>0</width><height>0</height>", "<width>x</width>", "<width>inf</width><height>1</height>"):
        assert read(objects(f"<size>{size}</size>")).size is None


# ---- objects


@pytest.mark.parametrize(
    ("flag", "difficult"),
    [
        *((flag, False) for flag in ("0", "", " ", "0.0", "False", "no", "Unspecified")),
        *((flag, True) for flag in ("1", " 1 ", "1.0", "True", "YES")),
    ],
)
def test_difficult_as_tools_write_it(read: Read, flag: str, difficult: bool) -> None:
    (item,) = read(objects(voc_object("dog", (5, 6, 20, 30), flag))).objects
    assert (item.difficult, item.problem) == (difficult, None)


@pytest.mark.parametrize("flag", ["2", "-1", "maybe", "Occluded"])
def test_difficult_that_means_nothing_is_a_problem(read: Read, flag: str) -> None:
    (item,) = read(objects(voc_object("dog", (5, 6, 20, 30), flag))).objects
    assert item.problem == f"<difficult>{flag}</difficult>: expected 0 or 1"


def test_two_flags_that_differ_are_a_problem(read: Read) -> None:
    flags = "<difficult>0</difficult><difficult>1</difficult>"
    (item,) = read(objects(f"<object><name>dog</name>{flags}{BNDBOX}</object>")).objects
    assert item.problem == f"{flags}: expected 0 or 1"


@pytest.mark.parametrize(
    "names", ["", "<name></name>", "<name> </name>", "<name/>", "<name>dog</name><name>cat</name>"]
)
def test_an_object_needs_one_name(read: Read, names: str) -> None:
    (item,) = read(objects(f"<object>{names}{BNDBOX}</object>")).objects
    assert item.name == ""
    assert item.problem == f"expected one <name>, the class, found {'dog, cat' if 'dog' in names else 'none'}"


def test_every_box_of_an_object_is_an_object(read: Read) -> None:
    first, second = read(objects(DOG.replace("</object>", f"{SECOND}</object>"))).objects
    assert [(item.name, item.box) for item in (first, second)] == [("dog", BOX), ("dog", (0, 0, 9, 9))]
    assert (first.note, second.note) == (None, "box beside the first in one <object>")
    rotated = "<robndbox><cx>9</cx><cy>9</cy><w>4</w><h>2</h><angle>0</angle></robndbox>"
    assert len(read(objects(f"<object><name>dog</name>{rotated * 3}</object>")).objects) == 3


def test_corners_that_stand_twice_in_one_box_are_a_problem(read: Read) -> None:
    """Of two boxes in one <bndbox> the second would be lost."""
    (item,) = read(objects(DOG.replace("</bndbox>", "<xmin>40</xmin></bndbox>"))).objects
    assert "xmin 5 and 40 " in item.where
    assert item.problem == "<bndbox> needs each of these four once, as a number"


def test_parts_are_no_objects(read: Read) -> None:
    part = f"<part><name>head</name>{SECOND}</part>"
    assert [item.box for item in read(objects(DOG.replace("</object>", f"{part}</object>"))).objects] == [BOX]


@pytest.mark.parametrize(
    "polygon",
    [
        "<polygon><x1>5</x1><y1>12</y1><x2>20</x2><y2>6</y2><x3>7.5</x3><y3>30</y3></polygon>",
        "<polygon><point><x>5</x><y>12</y></point><point><x>20</x><y>6</y></point><point><x>8</x><y>30</y></point></polygon>",
        "<polygon><x1>5</x1><y1>6</y1><x2>9</x2><y2>6</y2><x3>9</x3><y3>9</y3></polygon>"
        "<polygon><x1>15</x1><y1>16</y1><x2>20</x2><y2>16</y2><x3>19</x3><y3>30</y3></polygon>",
    ],
    ids=["numbered", "points", "two parts of one object"],
)
def test_a_polygon_without_a_box_is_read_as_the_box_around_it(read: Read, polygon: str) -> None:
    """In the pixels of <bndbox>, as the tools that write both do."""
    (item,) = read(objects(f"<object><name>dog</name>{polygon}</object>")).objects
    assert (item.box, item.note, item.problem) == (BOX, "object read from a polygon", None)
    (item,) = read(objects(f"<object><name>dog</name>{polygon}{SECOND}</object>")).objects
    assert (item.box, item.note) == ((0, 0, 9, 9), None)


@pytest.mark.parametrize(
    "polygon",
    [
        "<x1>5</x1><y1>12</y1><x2>20</x2><y2>6</y2>",
        "<x1>5</x1><y1>12</y1><x2>20</x2><y2>6</y2><x3>7</x3>",
        "<x1>5</x1><y1>12</y1><x2>20</x2><y2>6</y2><x3>nan</x3><y3>1</y3>",
        "<x1>5</x1><y1>12</y1><x2>20</x2><y2>6</y2><x3>left</x3><y3>1</y3>",
        "",
    ],
)
def test_a_polygon_needs_three_points(read: Read, polygon: str) -> None:
    (item,) = read(objects(f"<object><name>dog</name><polygon>{polygon}</polygon></object>")).objects
    assert item.problem.startswith("<polygon> needs at least three points")


@pytest.mark.parametrize(
    ("angle", "box"),
    [
        (0, (20, 15, 40, 25)),
        (math.pi / 2, (25, 10, 35, 30)),
        (math.pi, (20, 15, 40, 25)),
        # Half of 20 cos 45 + 10 sin 45 is 10.6066.
        (math.pi / 4, (30 - 10.6066, 20 - 10.6066, 30 + 10.6066, 20 + 10.6066)),
    ],
)
def test_a_rotated_box_is_read_as_the_box_around_it(read: Read, angle: float, box: tuple[float, ...]) -> None:
    tags = f"<cx>30</cx><cy>20</cy><w>20</w><h>10</h><angle>{angle}</angle>"
    (item,) = read(objects(f"<object><name>dog</name><robndbox>{tags}</robndbox></object>")).objects
    assert item.box == pytest.approx(box, abs=1e-4)
    assert (item.note, item.problem) == ("object read from a rotated box", None)


@pytest.mark.parametrize("angle", ["", "<angle>left</angle>", "<angle>90</angle>"])
def test_a_rotated_box_needs_an_angle_in_radians(read: Read, angle: str) -> None:
    tags = f"<cx>30</cx><cy>20</cy><w>20</w><h>10</h>{angle}"
    (item,) = read(objects(f"<object><name>dog</name><robndbox>{tags}</robndbox></object>")).objects
    assert "the angle in radians" in item.problem
