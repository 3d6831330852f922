"""Finds the pictures and the XML files of a split in PASCAL's layout and those of annotation tools.

Legend: an id is what a picture and its XML file are called, without a suffix; below a further folder, `folder/name`.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from detkit.data.checks import DataError
from detkit.data.pictures import IMAGE_SUFFIXES
from detkit.data.text_files import decode_text
from detkit.data.voc_xml import Annotation

LISTS = ("ImageSets/Main", "ImageSets")
MAX_NAMES = 10  # folders that a message lists


class VOCFolder:
    """The pictures and XML files of one folder, by id.

    They lie in the folders that PASCAL calls JPEGImages and Annotations, others `images` and `annotations`, or beside
    each other in `folder` itself.
    """

    def __init__(self, folder: Path, pictures: str = "") -> None:
        """`pictures` is their folder where there is none of the usual ones."""
        self.pictures = _subfolder(folder, ("jpegimages", "images")) or folder / pictures
        self.annotations = _subfolder(folder, ("annotations",)) or self.pictures
        self.segmentations = _subfolder(folder, ("segmentationobject",))
        self._files: dict[Path, dict[str, list[Path]]] = {}

    def pictures_of(self, image_id: str) -> list[Path]:
        """Usually one; several where they differ in their suffix."""
        return [p for p in self._named(self.pictures / image_id) if p.suffix.lower() in IMAGE_SUFFIXES]

    def xml_of(self, image_id: str) -> Path | None:
        return next((p for p in self._named(self.annotations / image_id) if p.suffix.lower() == ".xml"), None)

    def segmentation_of(self, image_id: str) -> Path | None:
        """The picture of its objects' masks, in the folder that PASCAL calls SegmentationObject."""
        files = self._named(self.segmentations / image_id) if self.segmentations else []
        return next((path for path in files if path.suffix.lower() == ".png"), None)

    def knows(self, image_id: str) -> bool:
        return bool(self.pictures_of(image_id)) or self.xml_of(image_id) is not None

    def ids(self) -> list[str]:
        """Those of every picture and every XML file that lies in the folder, sorted."""
        names = {*self._listing(self.pictures), *self._listing(self.annotations)}
        return sorted(name for name in names if self.knows(name))

    def _named(self, path: Path) -> list[Path]:
        return self._listing(path.parent).get(path.name, [])

    def _listing(self, folder: Path) -> dict[str, list[Path]]:
        """The files of a folder, which is read once, by their name without the suffix."""
        if folder not in self._files:
            files: defaultdict[str, list[Path]] = defaultdict(list)
            for name in sorted(_names(folder)):
                if not name.startswith("."):
                    files[os.path.splitext(name)[0]].append(folder / name)
            self._files[folder] = dict(files)
        return self._files[folder]


@dataclass(frozen=True, slots=True)
class VOCFile:
    """One entry of a split.

    name      the id, after the year or the folder where there are several
    image_id  the id in its folder
    xml       None if the picture has none
    """

    name: str
    image_id: str
    folder: VOCFolder
    xml: Path | None


def find_files(root: Path, splits: Sequence[str], setting: str) -> list[VOCFile]:
    """The entries of all `splits`, in the order of their lists. Raises DataError, beginning with `setting`."""
    if not splits:
        raise DataError(f"{setting}: expected at least one split such as 2007_trainval, got none")
    if not root.is_dir():
        raise DataError(f"data.root: the folder {root} does not exist; see datasets/README.md for where the data goes")
    found = [_find_split(root, split, setting) for split in splits]
    several = len({place for place, _, _ in found}) > 1
    files = []
    for split, (place, folder, ids) in zip(splits, found, strict=True):
        entries = [VOCFile(f"{place}/{i}" if several else i, i, folder, folder.xml_of(i)) for i in ids]
        if all(entry.xml is None for entry in entries):
            raise DataError(
                f"{setting}: {split}: none of its {len(ids)} pictures has an annotation file; expected such as "
                f"{folder.annotations / ids[0]}.xml, for pictures in {folder.pictures}"
            )
        files += entries
    return files


def _find_split(root: Path, split: str, setting: str) -> tuple[str, VOCFolder, list[str]]:
    """(year or folder, its files, the ids of the split)."""
    year, _, name = split.partition("_")
    devkit = root if root.name == f"VOC{year}" else root / f"VOC{year}"
    if name and os.path.isdir(devkit):  # unlike Path.is_dir, false for text that is no name of a file
        return year, *_read_list(devkit, name)
    if os.path.isdir(root / split):
        folder = VOCFolder(root / split)
        ids = folder.ids()
        if not any(map(folder.pictures_of, ids)):
            raise DataError(f"{setting}: {split}: no picture in {folder.pictures}; known: {', '.join(IMAGE_SUFFIXES)}")
        return split, folder, ids
    if any((root / lists).is_dir() for lists in LISTS):
        return "", *_read_list(root, split)
    folders = sorted(name for name in _names(root) if (root / name).is_dir())[:MAX_NAMES]
    there = f"{root} has {', '.join(folders) or 'no folder'}"
    if name:
        raise DataError(f"{setting}: {split}: {devkit} does not exist; {there}")
    raise DataError(
        f"{setting}: expected <year>_<list> such as 2007_trainval, or a folder of pictures with XML beside them, "
        f"got {split!r}; {there}"
    )


def _read_list(devkit: Path, name: str) -> tuple[VOCFolder, list[str]]:
    folder = VOCFolder(devkit, "JPEGImages")
    paths = [devkit / lists / f"{name}.txt" for lists in LISTS]
    path = next(filter(os.path.isfile, paths), None)
    if path is None:
        known = sorted({other.stem for place in paths for other in place.parent.glob("*.txt")})
        raise DataError(f"{paths[0]} does not exist; lists there: {', '.join(known) or 'none'}")
    return folder, read_list(path, folder)


def read_list(path: Path, folder: VOCFolder) -> list[str]:
    """The ids in a list of the images of `folder`. Raises DataError if it is empty or cannot be read."""
    try:
        lines = [
            line.strip()
            for line in decode_text(path.read_bytes(), errors="surrogateescape").splitlines()
            if line.strip()
        ]
    except UnicodeDecodeError as error:  # half a letter of UTF-16
        raise DataError(f"{path} is cut short, or not UTF-16 text; save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"{path}: cannot read this list: {error.strerror}") from error
    if not lines:
        raise DataError(f"{path} is empty: expected one image id a line")
    ids = _ids(lines, folder, path)
    if any(not folder.knows(image_id) and not _is_utf_8(image_id) for image_id in ids):
        raise DataError(f"{path} is not UTF-8 text, and names pictures that are not there; save it as UTF-8")
    return ids


def _is_utf_8(text: str) -> bool:
    """False for a name from bytes of another encoding, which Python keeps as surrogates."""
    return not any("\udc80" <= letter <= "\udcff" for letter in text)


def _ids(lines: Sequence[str], folder: VOCFolder, path: Path) -> list[str]:
    """One id a line, or `id 1` and `id -1` in PASCAL's lists of one class: as ids may hold spaces, the files decide."""
    readings = [list(lines)]
    if all(len(line.split()) > 1 for line in lines):
        readings += [[line.rsplit(maxsplit=1)[0] for line in lines], [line.split()[0] for line in lines]]
    ids = [[_id(text, folder) for text in texts] for texts in readings]
    best = max(range(len(ids)), key=lambda reading: sum(map(folder.knows, ids[reading])))
    text_of: dict[str, str] = {}
    for image_id, text in zip(ids[best], readings[best], strict=True):
        if text_of.setdefault(image_id, text) != text:  # such as cam1/7.jpg and cam2/7.jpg, unpacked into one folder
            raise DataError(
                f"{path}: {text_of[image_id]} and {text} both lead to the picture {image_id}; each needs one of its own"
            )
    return ids[best]


def _id(text: str, folder: VOCFolder) -> str:
    """The id that a list means by a name, or by the path of a picture on this or another machine."""
    parts = [part for part in text.replace("\\", "/").split("/") if part not in ("", ".", "..")] or [text]
    tails = ["/".join(parts[start:]) for start in range(len(parts))]
    plain = [_without_suffix(tail) for tail in tails]
    return next(filter(folder.knows, (*tails, *plain)), plain[-1])


def _without_suffix(name: str) -> str:
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in (*IMAGE_SUFFIXES, ".xml") else name


def pair_pictures(
    files: Sequence[VOCFile], annotations: Sequence[Annotation | None]
) -> Iterator[tuple[VOCFile, Annotation, Path, str | None]]:
    """(entry, annotation, picture, note to count) of each entry; the picture may not exist.

    The id decides, as in PASCAL's files, because tools copy <filename>. Where there is no picture of that id, it is the
    one that <filename> names, if that belongs to no other XML file; then it is not once more a picture without XML.
    """
    named = [_named_picture(*entry) for entry in zip(files, annotations, strict=True)]
    claims = Counter(filter(None, named))
    for file, annotation, other in zip(files, annotations, named, strict=True):
        own = file.folder.pictures_of(file.image_id)
        missing = file.folder.pictures / f"{file.image_id}.jpg"
        if annotation is None:
            if not own:
                xml = file.folder.annotations / f"{file.image_id}.xml"
                problem = f"neither this picture nor its annotation file {xml} exists"
                yield file, Annotation(problem=problem), missing, None
            elif own[0] not in claims:
                yield file, Annotation(), own[0], "picture without XML read as background"
        elif own:
            yield file, annotation, *_own_picture(file, annotation, own)
        elif other and claims[other] == 1:
            yield file, annotation, other, "picture found by <filename> as none has the id"
        else:
            yield file, annotation, missing, None


def _own_picture(file: VOCFile, annotation: Annotation, own: Sequence[Path]) -> tuple[Path, str | None]:
    """(picture, note) of an id, for which there may be several pictures."""
    name = _base_name(annotation)
    path = next((path for path in own if path.name == name), own[0])
    if name and _without_suffix(name) != PurePath(file.image_id).name:
        return path, "annotation with another picture's <filename> paired by id"
    return path, "picture chosen among several of one id" if len(own) > 1 else None


def _named_picture(file: VOCFile, annotation: Annotation | None) -> Path | None:
    """The picture that <filename> names, if there is none of the entry's id, and no XML file of the picture's own."""
    if annotation is None or file.folder.pictures_of(file.image_id):
        return None
    name = _base_name(annotation)
    image_id = _without_suffix(name)
    if not name or file.folder.xml_of(image_id):
        return None
    pictures = file.folder.pictures_of(image_id)
    return next((path for path in pictures if path.name == name), pictures[0] if pictures else None)


def _base_name(annotation: Annotation) -> str:
    return annotation.filename.replace("\\", "/").rpartition("/")[2]


def _subfolder(folder: Path, names: Sequence[str]) -> Path | None:
    return next((folder / n for n in sorted(_names(folder)) if n.lower() in names and (folder / n).is_dir()), None)


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise DataError(f"{folder}: cannot be searched: {error.strerror}; correct its permissions") from error
