"""PASCAL VOC: one XML file an image, lists of ids in `ImageSets/Main`.

Legend: a split such as `2007_trainval` is `<year>_<list>`: `root/VOC2007/ImageSets/Main/trainval.txt`.
"""

from __future__ import annotations

import difflib
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from detkit.data.checks import Box, DataError, FilesConfig, RawImage, RawObject
from detkit.data.dataset import ImageDataset
from detkit.structures import Categories, Size

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
# xmin = xmax is one pixel wide in VOC's inclusive pixels, but nobody annotates one pixel: such a box is a stray click.
MIN_SIDE = 1.0 + 1e-6  # px; the excess covers the rounding of `xmin - 1` when corners are fractions


class VOCConfig(FilesConfig):
    """A VOC devkit, PASCAL's own or one in its layout.

    root       the devkit: the folder that holds VOC2007, VOC2012, ...
    train, val splits `<year>_<list>`, several at once; a list file's first column is the id, others are not read
    classes    null: the 20 of VOC; a list: these names in this order; `auto`: the names that occur in `train`, sorted
    difficult  training either ignores difficult objects, `ignore` (py-faster-rcnn), or learns them, `train` (Fast
               R-CNN, Detectron2). Evaluation always ignores them
    """

    name: Literal["voc"] = "voc"
    train: tuple[str, ...]
    val: tuple[str, ...]
    classes: tuple[str, ...] | Literal["auto"] | None = None  # type: ignore[assignment]
    difficult: Literal["ignore", "train"] = "ignore"


@dataclass(frozen=True, slots=True)
class _Object:
    """One <object> element.

    corners  as the file has them: inclusive, counted from 1
    box      xyxy, continuous
    """

    name: str
    difficult: bool
    corners: str
    box: Box
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class _Annotation:
    """One XML file and the picture that belongs to it."""

    image_id: str
    path: Path
    xml: Path
    size: Size | None
    objects: tuple[_Object, ...]
    problem: str | None = None


def read_voc(config: VOCConfig, split: Literal["train", "val"]) -> ImageDataset:
    """Reads the lists of `split`. Raises DataError naming the file and the fix."""
    lists = config.train if split == "train" else config.val
    annotations = _read_lists(config, split)
    class_names = _class_names(config, annotations if split == "train" else None)
    ignore_difficult = split == "val" or config.difficult == "ignore"
    return ImageDataset(
        [_raw_image(annotation, class_names, ignore_difficult) for annotation in annotations],
        name=f"voc {split} ({', '.join(lists)})",
        categories=Categories.of_names(class_names),
        on_bad_label=config.on_bad_label,
        decode=config.check_images,
        min_side=MIN_SIDE,
    )


def _raw_image(annotation: _Annotation, class_names: Sequence[str], ignore_difficult: bool) -> RawImage:
    objects = tuple(
        RawObject(
            f"object {number} ({item.name}, {item.corners})",
            class_names.index(item.name) if item.name in class_names else -1,
            item.box,
            item.problem or _class_fault(item.name, class_names),
            {"ignore": item.difficult and ignore_difficult},
        )
        for number, item in enumerate(annotation.objects, start=1)
    )
    path, where = str(annotation.path), str(annotation.xml)
    return RawImage(annotation.image_id, path, where, annotation.size, objects, annotation.problem)


def _class_names(config: VOCConfig, train: Sequence[_Annotation] | None) -> tuple[str, ...]:
    """The classes of both splits. `auto` takes those of the training lists, which are read here unless given."""
    if config.classes is None:
        return VOC_CLASSES
    if config.classes != "auto":
        if not config.classes or len(set(config.classes)) < len(config.classes):
            raise DataError(f"data.classes: expected different names, at least one, got {list(config.classes)}")
        return config.classes
    names = {item.name for annotation in train or _read_lists(config, "train") for item in annotation.objects}
    if not names:
        raise DataError(f"data.classes: auto: no object in {', '.join(config.train)}")
    return tuple(sorted(names))


def _class_fault(name: str, class_names: Sequence[str]) -> str | None:
    """The problem of a class name that is not known, with the nearest one that is; None for a known name."""
    if name in class_names:
        return None
    close = difflib.get_close_matches(name, class_names, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(class_names)}."
    return f"the class {name!r} is not known; {hint} Set data.classes to your own names, or to auto (those in train)"


def _read_lists(config: VOCConfig, split: Literal["train", "val"]) -> list[_Annotation]:
    """The annotations of all lists of a split; image ids carry the year where there are several years."""
    lists = config.train if split == "train" else config.val
    if not lists:
        raise DataError(f"data.{split}: expected at least one split such as 2007_trainval, got none")
    root = Path(config.root)
    if not root.is_dir():
        raise DataError(f"data.root: the folder {root} does not exist; see datasets/README.md for where the data goes")
    several_years = len({name.partition("_")[0] for name in lists}) > 1
    annotations = []
    for name in lists:
        year, _, list_name = name.partition("_")
        if not list_name:
            raise DataError(f"data.{split}: expected <year>_<list> such as 2007_trainval, got {name!r}")
        folder = root / f"VOC{year}"
        for stem in _read_list(root, folder, list_name):
            annotations.append(_read_annotation(folder, stem, f"{year}/{stem}" if several_years else stem))
    repeated = [image_id for image_id, count in Counter(a.image_id for a in annotations).items() if count > 1]
    if repeated:
        raise DataError(f"data.{split}: {', '.join(lists)} name {len(repeated)} ids twice, such as {repeated[0]}")
    return annotations


def _read_list(root: Path, folder: Path, name: str) -> list[str]:
    """The first column of a list: `id`, or `id 1` / `id -1` in PASCAL's lists of one class."""
    if not folder.is_dir():
        years = sorted(path.name for path in root.glob("VOC*") if path.is_dir())
        raise DataError(f"{folder} does not exist; {root} has {', '.join(years) or 'no folder VOC<year>'}")
    path = folder / "ImageSets" / "Main" / f"{name}.txt"
    if not path.is_file():
        known = sorted(other.stem for other in path.parent.glob("*.txt"))
        raise DataError(f"{path} does not exist; lists there: {', '.join(known) or 'none'}")
    try:
        stems = [line.split()[0] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text; save it as UTF-8") from error
    if not stems:
        raise DataError(f"{path} is empty: expected one image id a line")
    return stems


def _read_annotation(folder: Path, stem: str, image_id: str) -> _Annotation:
    xml = folder / "Annotations" / f"{stem}.xml"
    try:
        tree = ET.parse(xml).getroot()
    except FileNotFoundError:
        return _Annotation(image_id, _picture(folder, stem, ""), xml, None, (), "this annotation file does not exist")
    except (ET.ParseError, OSError, ValueError) as error:
        return _Annotation(image_id, _picture(folder, stem, ""), xml, None, (), f"is not well-formed XML: {error}")
    path = _picture(folder, stem, (tree.findtext("filename") or "").strip())
    return _Annotation(image_id, path, xml, _size(tree), tuple(map(_object, tree.findall("object"))))


def _picture(folder: Path, stem: str, filename: str) -> Path:
    """The file that <filename> names if it is there, else the id with a usual extension."""
    images = folder / "JPEGImages"
    names = ([filename] if filename else []) + [stem + suffix for suffix in (".jpg", ".jpeg", ".png", ".JPG")]
    return next((images / name for name in names if (images / name).is_file()), images / f"{stem}.jpg")


def _size(tree: ET.Element) -> Size | None:
    """(h, w); None if <size> is missing or 0 x 0, as some annotation tools write."""
    try:
        height, width = (int(float(tree.findtext(f"size/{tag}") or "0")) for tag in ("height", "width"))
    except ValueError:
        return None
    return (height, width) if height > 0 and width > 0 else None


def _object(element: ET.Element) -> _Object:
    """Tags are read by name, as tools write them in any order. <difficult> may be missing and means 0."""
    name = (element.findtext("name") or "").strip()
    difficult = (element.findtext("difficult") or "0").strip() not in ("0", "")
    texts = {tag: (element.findtext(f"bndbox/{tag}") or "").strip() for tag in ("xmin", "ymin", "xmax", "ymax")}
    corners = " ".join(f"{tag} {text or '?'}" for tag, text in texts.items())
    try:
        xmin, ymin, xmax, ymax = map(float, texts.values())
    except ValueError:
        return _Object(name, difficult, corners, (0.0, 0.0, 0.0, 0.0), "<bndbox> needs these four as numbers")
    # The pixel xmin (counted from 1) covers xmin - 1 to xmin, so only the upper left corner moves (Detectron2 does so).
    return _Object(name, difficult, corners, (xmin - 1, ymin - 1, xmax, ymax))
