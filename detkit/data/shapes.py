"""The built-in data set: drawn from a seed, written once as a VOC devkit and as COCO, read like any other.

root/VOC2007/{JPEGImages,Annotations,SegmentationObject,ImageSets/Main/{train,val}.txt}
root/annotations/instances_{train,val}.json     the same objects; `difficult` is written as `iscrowd`

Masks are the visible pixels of an object. COCO has them as polygons along the borders of the pixels, or as run lengths
where there is a hole; and it has keypoints, which VOC cannot have.
"""

from __future__ import annotations

import contextlib
import json
import os
import xml.etree.ElementTree as ET
from collections.abc import Collection, Generator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import cv2
import numpy as np
from pydantic import Field
from tqdm import tqdm

from detkit.config import Config, PathText
from detkit.data.checks import Check, DataError, check_images
from detkit.data.coco import COCOConfig, read_coco
from detkit.data.coco_keypoints import write_keypoints
from detkit.data.coco_segmentation import DECIMALS, write_segmentation
from detkit.data.dataset import ImageDataset
from detkit.data.drawn_set import ensure_drawn
from detkit.data.shapes_drawing import CLASS_NAMES, KEYPOINT_NAMES, SKELETON, DrawnObject, draw_picture
from detkit.data.voc import VOCConfig, read_voc
from detkit.data.voc_segmentation import write_objects
from detkit.structures import COLUMNS, Column, MaskCrops, Size
from detkit.structures.mask_outlines import outlines

# Of the files: raise it when they change, so that old folders are drawn again. The pictures, boxes and masks
# of version 2 are those of version 3; its keypoints are other ones. Version 1 has neither masks nor keypoints.
VERSION = 3
FOLDER = "VOC2007"
SPLITS: tuple[Literal["train", "val"], ...] = ("train", "val")


class ShapesConfig(Config):
    """Circles, crosses, rectangles, rings, stars and triangles on cluttered backgrounds, about 320 x 240.

    root       folder to which the pictures are written, once
    format     the reader they pass through
    num_train  images to train on
    num_val    images to evaluate on
    seed       another seed draws another set
    """

    has_videos: ClassVar[bool] = False

    name: Literal["shapes"] = "shapes"
    root: PathText = "datasets/shapes"
    format: Literal["voc", "coco"] = "voc"
    num_train: int = Field(600, ge=1)
    num_val: int = Field(150, ge=1)
    seed: int = Field(0, ge=0)


def read_shapes(
    config: ShapesConfig,
    split: Literal["train", "val"],
    check: Check = check_images,
    columns: Collection[Column] = COLUMNS,
) -> ImageDataset:
    """Draws the set if there is none, or one of other settings, and reads `split`."""
    ensure_shapes(config)
    if config.format == "voc":
        voc = VOCConfig(root=config.root, train=("2007_train",), val=("2007_val",), classes=CLASS_NAMES)
        return read_voc(voc, split, check, columns)
    images = f"{FOLDER}/JPEGImages"
    coco = COCOConfig(
        root=config.root,
        train_images=images,
        train_annotations="annotations/instances_train.json",
        val_images=images,
        val_annotations="annotations/instances_val.json",
    )
    return read_coco(coco, split, check, columns)


def ensure_shapes(config: ShapesConfig) -> None:
    """Writes the set to `root` unless it is there; see `ensure_drawn`."""
    drawing = {"num_train": config.num_train, "num_val": config.num_val, "seed": config.seed}
    settings = {"generator": "detkit.data.shapes", "version": VERSION, **drawing}
    ensure_drawn(Path(config.root), settings, partial(_write, config=config))


def _write(root: Path, config: ShapesConfig) -> None:
    voc = root / FOLDER
    for folder in ("JPEGImages", "Annotations", "SegmentationObject", "ImageSets/Main"):
        (voc / folder).mkdir(parents=True)
    (root / "annotations").mkdir()
    for number, split in enumerate(SPLITS):
        count = config.num_train if split == "train" else config.num_val
        stems = [f"{split}_{index:05d}" for index in range(count)]
        (voc / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{stem}\n" for stem in stems))
        pictures = _draw_all(voc, stems, (config.seed, number), f"drawing {split}")
        coco: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": [], "categories": _categories()}
        with contextlib.closing(pictures):  # its threads end before the folder of a set that failed is removed
            for stem, (size, objects) in zip(stems, pictures, strict=True):
                _write_xml(voc / "Annotations" / f"{stem}.xml", stem, size, objects)
                _append_coco(coco, stem, size, objects)
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(coco))


def _draw_all(
    voc: Path, stems: list[str], key: tuple[int, int], title: str
) -> Generator[tuple[Size, list[DrawnObject]], None, None]:
    """Draws and saves the pictures in threads. Each has its own generator, so neither order nor number matters."""

    def draw(index: int) -> tuple[Size, list[DrawnObject]]:
        rng = np.random.default_rng([*key, index])
        image, objects = draw_picture(rng)
        size = (image.shape[0], image.shape[1])
        path = voc / "JPEGImages" / f"{stems[index]}.jpg"
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(84, 93))]
        content = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), quality)[1]
        try:
            path.write_bytes(content.tobytes())  # OpenCV ends the process over a name that is not UTF-8
            masks = MaskCrops.of([item.mask for item in objects], [item.box for item in objects])
            write_objects(voc / "SegmentationObject" / f"{stems[index]}.png", size, masks)
        except OSError as error:
            raise DataError(f"{path}: cannot write this picture: {error.strerror}") from error
        return size, objects

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from tqdm(pool.map(draw, range(len(stems))), title, len(stems), delay=2, leave=False)


def _write_xml(path: Path, stem: str, size: Size, objects: list[DrawnObject]) -> None:
    root = ET.Element("annotation")
    ET.SubElement(root, "filename").text = f"{stem}.jpg"
    shape = ET.SubElement(root, "size")
    for tag, value in zip(("width", "height", "depth"), (size[1], size[0], 3), strict=True):
        ET.SubElement(shape, tag).text = str(value)
    for item in objects:
        element = ET.SubElement(root, "object")
        ET.SubElement(element, "name").text = CLASS_NAMES[item.label]
        ET.SubElement(element, "difficult").text = str(int(item.difficult))
        corners = ET.SubElement(element, "bndbox")
        x1, y1, x2, y2 = item.box
        for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), (x1 + 1, y1 + 1, x2, y2), strict=True):
            ET.SubElement(corners, tag).text = str(value)  # inclusive pixels counted from 1
    ET.indent(root)
    ET.ElementTree(root).write(path)


def _categories() -> list[dict[str, Any]]:
    points = {"keypoints": list(KEYPOINT_NAMES), "skeleton": [[one + 1, other + 1] for one, other in SKELETON]}
    return [{"id": label + 1, "name": name, **points} for label, name in enumerate(CLASS_NAMES)]


def _append_coco(coco: dict[str, list[dict[str, Any]]], stem: str, size: Size, objects: list[DrawnObject]) -> None:
    image_id = len(coco["images"]) + 1
    coco["images"].append({"id": image_id, "file_name": f"{stem}.jpg", "width": size[1], "height": size[0]})
    for item in objects:
        x1, y1, x2, y2 = item.box
        coco["annotations"].append(
            {
                "id": len(coco["annotations"]) + 1,
                "image_id": image_id,
                "category_id": item.label + 1,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": item.area,
                "iscrowd": int(item.difficult),
                "segmentation": _segmentation(item, size),
                "keypoints": write_keypoints(item.keypoints, DECIMALS),
                "num_keypoints": len(item.keypoints),
            }
        )


def _segmentation(item: DrawnObject, size: Size) -> Any:
    polygons, has_hole = outlines(item.mask)
    if has_hole:
        return write_segmentation(MaskCrops.of([item.mask], [item.box]).encode(size).decode(0), size)
    return write_segmentation([polygon + item.box[:2] for polygon in polygons], size)
