"""Which format a folder of pictures and annotations has, and where its splits are."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detkit.config import ConfigError, UserError, parse_yaml
from detkit.data.coco import COCOConfig
from detkit.data.foreign import FORMATS, foreign_format
from detkit.data.pictures import IMAGE_SUFFIXES
from detkit.data.voc import VOCConfig
from detkit.data.yolo import YOLODataConfig
from detkit.data.yolo_description import read_description

TRAIN, VAL, TEST = ("train",), ("val", "valid", "validation", "dev"), ("test",)
MAX_JSON = 500  # MB; larger files are not opened to see what they are
VOC_LISTS = (("train", "val"), ("trainval", "test"), ("train", "test"), ("trainval", "val"), ("train", ""))


@dataclass(frozen=True, slots=True)
class Recognised:
    """The data of a folder as a configuration, and sentences about what was assumed.

    test      of VOC and COCO: the settings by which `train` is a further split for tests
    left_out  further annotation files, which are of none of these splits
    """

    data: VOCConfig | COCOConfig | YOLODataConfig
    assumed: Sequence[str]
    test: Mapping[str, Any] | None = None
    left_out: Sequence[str] = ()


def recognise(path: Path, only: str | None = None) -> Recognised:
    """The data of a folder or file, in any of the formats of a configuration or `only` in that one.

    Raises UserError where the folder has no format that detkit reads, naming one that `detkit convert` does.
    """
    if not path.exists():
        raise UserError(f"{path}: no such folder or file")
    for name, look in _FINDERS.items():
        if only in (None, name) and (found := look(path)):
            return found
    below = [folder for folder in _sorted(path, "*") if folder.is_dir()] if path.is_dir() else []
    inside = [found for folder in below for look in _FINDERS.values() if only is None and (found := look(folder))]
    if len(inside) == 1:  # such as the folder that holds a VOCdevkit
        return inside[0]
    if stray := next((problem for file in _json_files(path) if (problem := _without_pictures(file, path))), None):
        raise UserError(stray)
    if foreign := foreign_format(path):
        raise UserError(
            f"{path}: is in the format {foreign}; `detkit convert {path} FOLDER --to coco` makes a folder of it "
            "that is read directly"
        )
    raise UserError(
        f"{path}: neither VOC (XML files), COCO (JSON with images, annotations and categories) nor YOLO "
        f"(data.yaml, or obj.data) here or in the folders below, nor {', '.join(FORMATS)}, which detkit convert reads"
    )


def split_configs(found: Recognised) -> dict[str, VOCConfig | COCOConfig | YOLODataConfig]:
    """For each split that there is of `train`, `val` and `test`, a configuration that trains on it."""
    data, first = found.data, "train"
    changes: dict[str, dict[str, Any]] = {}
    match data:
        case VOCConfig() if data.val:
            changes[_split_word(data.val[0])] = {"train": data.val}
        case COCOConfig():
            if _named([data.train_annotations], TRAIN) is None:
                first = _split_word(data.train_annotations, "train")
            if data.val_annotations:
                name = _split_word(data.val_annotations)
                changes[name] = {"train_annotations": data.val_annotations, "train_images": data.val_images}
        case YOLODataConfig():
            keys = {"train": data.train, _split_word(data.val or "val"): data.val, "test": "test"}
            content = read_description(Path(data.root)).content
            return {s: data.model_copy(update={"train": key}) for s, key in keys.items() if content.get(key or "")}
    if found.test is not None:
        changes["test"] = dict(found.test)
    return {first: data, **{split: data.model_copy(update=change) for split, change in changes.items()}}


def _split_word(name: str, otherwise: str = "val") -> str:
    """`val` or `test`, whichever stands in the name of a file or list."""
    return next((words[0] for words in (VAL, TEST) if _named([name], words)), otherwise)


def _yolo(path: Path) -> Recognised | None:
    files = [path] if path.is_file() else [*_sorted(path, "*.yaml"), *_sorted(path, "*.yml"), *_sorted(path, "*.data")]
    for file in files:
        if file.suffix == ".data":
            return Recognised(YOLODataConfig(root=str(file)), [f"darknet's layout, described by {file}"])
        content = _yaml(file) if file.suffix in (".yaml", ".yml") else None
        if isinstance(content, dict) and "names" in content and ("train" in content or "val" in content):
            val = _first(content, VAL) or _first(content, TEST)
            assumed = [f"YOLO's layout, described by {file}", _describe_split("val", val)]
            return Recognised(YOLODataConfig(root=str(file), val=val or "val"), assumed)
    if path.is_dir() and any((path / name).is_file() for name in ("classes.txt", "obj.names")):
        return Recognised(YOLODataConfig(root=str(path)), ["YOLO's layout without a YAML file"])
    return None


def _yaml(file: Path) -> Any:
    try:
        return parse_yaml(file.read_text(encoding="utf-8-sig"), str(file))
    except (ConfigError, UnicodeDecodeError, OSError):
        return None


def _voc(path: Path) -> Recognised | None:
    if path.is_file():
        return None
    for root in (path, path.parent):
        devkits = [folder for folder in _sorted(root, "VOC*") if (folder / "Annotations").is_dir()]
        if root == path.parent:
            devkits = [folder for folder in devkits if folder == path]
        if devkits:
            return _devkit(root, devkits)
    if (path / "ImageSets").is_dir():  # one year without its folder
        return _devkit(path, [path])
    splits = {folder.name: folder for folder in _sorted(path, "*") if folder.is_dir() and _has_xml(folder)}
    train, val, test = _first(splits, TRAIN), _first(splits, VAL) or _first(splits, TEST), _first(splits, TEST)
    if train:
        config = VOCConfig(root=str(path), train=(train,), val=(val,) if val else (), classes="auto")
        assumed = [f"pictures with VOC's XML beside them, trained on {train}/", _describe_split("val", val)]
        return Recognised(config, assumed, {"train": (test,)} if test and test != val else None)
    if _has_xml(path):
        config = VOCConfig(root=str(path), train=(".",), val=(), classes="auto")
        return Recognised(config, ["one folder of pictures with VOC's XML beside them", _describe_split("val", None)])
    return None


def _devkit(root: Path, devkits: Sequence[Path]) -> Recognised:
    """PASCAL's layout. The first pair of lists that every year has; several years are trained on together."""
    main = "ImageSets/Main" if any((folder / "ImageSets" / "Main").is_dir() for folder in devkits) else "ImageSets"
    lists = [{file.stem for file in _sorted(folder / main, "*.txt")} for folder in devkits]
    shared = set.intersection(*lists)
    pair = next((p for p in VOC_LISTS if p[0] in shared and (not p[1] or p[1] in shared)), None)
    if pair is None:
        names = ", ".join(sorted(shared)) or "none"
        raise UserError(f"{root}: expected the lists train and val in {main} of {devkits[0].name}, found {names}")
    years = {folder.name: f"{folder.name.removeprefix('VOC')}_" if folder != root else "" for folder in devkits}
    train, val = (tuple(f"{year}{name}" for year in years.values() if name) for name in pair)
    test = tuple(f"{years[f.name]}test" for f, names in zip(devkits, lists, strict=True) if "test" in names)
    config = VOCConfig(root=str(root), train=train, val=val, classes="auto")
    assumed = [f"PASCAL VOC's layout, trained on {', '.join(train)}", _describe_split("val", ", ".join(val))]
    return Recognised(config, assumed, {"train": test} if test and "test" not in pair else None)


def _has_xml(folder: Path) -> bool:
    """Whether pictures lie there with XML that is not another tool's."""
    first = min(folder.glob("*.xml"), default=None)
    pictures = any(file.suffix.lower() in IMAGE_SUFFIXES for file in folder.iterdir())
    return first is not None and pictures and foreign_format(first) is None


def _coco(path: Path) -> Recognised | None:
    root = path if path.is_dir() else path.parent
    folders = {file: folder for file in _json_files(path) if (folder := _pictures_of(file, root)) is not None}
    if not folders:
        return None
    names = {file.relative_to(root).as_posix(): file for file in folders}
    train = _named(names, TRAIN) or next(iter(names))
    test = _named(names, TEST)
    val = _named(names, VAL) or test
    val = None if val == train else val
    relative = {name: folders[file].relative_to(root).as_posix() for name, file in names.items()}
    config = COCOConfig(
        root=str(root),
        train_annotations=train,
        train_images=relative[train],
        val_annotations=val,
        val_images=relative[val] if val else relative[train],
    )
    assumed = [f"COCO's format, trained on {train} with pictures in {relative[train]}", _describe_split("val", val)]
    further = test is not None and test not in (train, val)
    settings = {"train_annotations": test, "train_images": relative[test or train]} if further else None
    left_out = [name for name in names if name not in (train, val, test)]
    assumed += [f"left out: {', '.join(left_out)}"] if left_out else []
    return Recognised(config, assumed, settings, left_out)


def _json_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return [*_sorted(path, "*.json"), *_sorted(path, "*/*.json"), *_sorted(path, "*/*/*.json")]


def _pictures_of(file: Path, root: Path) -> Path | None:
    """The folder of the pictures of a COCO file; None if it is none, or if its first picture is nowhere."""
    first = _first_picture(file)
    return next((folder for folder in _candidates(file, root) if (folder / first).is_file()), None) if first else None


def _without_pictures(file: Path, path: Path) -> str:
    """What to say of a COCO file whose pictures are not in `path`; empty for another file."""
    first, root = _first_picture(file), path if path.is_dir() else path.parent
    if first is None:
        return ""
    places = dict.fromkeys(str(folder) for folder in _candidates(file, root))
    return (
        f"{file}: is in COCO's format, but its first picture, {first}, is in none of {', '.join(places)}; put the "
        "pictures there, or write a configuration whose data.train_images names their folder"
    )


def _candidates(file: Path, root: Path) -> tuple[Path, ...]:
    """The folders where the pictures of a COCO file are looked for."""
    stem = file.stem.replace("instances_", "")
    return (file.parent, root / stem, root / "images" / stem, root / "images", file.parent / "images", root)


def _first_picture(file: Path) -> Path | None:
    """The path of the first picture of a COCO file, as it stands there; None if it is no such file."""
    if file.suffix != ".json" or file.stat().st_size > MAX_JSON * 2**20:
        return None
    try:
        content = json.loads(file.read_bytes())
        first = Path(str(content["images"][0]["file_name"]).replace("\\", "/"))
        boxes = content["annotations"]
        if not content["categories"] or (boxes and not {"bbox", "segmentation"} & boxes[0].keys()):
            return None
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError):
        return None
    return first


def _named(names: Sequence[str] | dict[str, Path], words: Sequence[str]) -> str | None:
    """The first name in which one of the words stands; `instances` before others, as keypoints lie beside them."""
    fitting = [name for name in names if any(word in name.lower() for word in words)]
    return next((name for name in fitting if "instances" in name), fitting[0] if fitting else None)


def _first(names: Any, words: Sequence[str]) -> str | None:
    return next((word for word in words if names.get(word)), None)


def _describe_split(split: str, found: str | None) -> str:
    return (
        f"{split}: {found}" if found else "no validation split: the run is not measured, and its last weights are kept"
    )


def _sorted(folder: Path, pattern: str) -> list[Path]:
    return sorted(folder.glob(pattern))


_FINDERS: dict[str, Callable[[Path], Recognised | None]] = {"yolo": _yolo, "voc": _voc, "coco": _coco}
OWN_FORMATS = tuple(_FINDERS)
