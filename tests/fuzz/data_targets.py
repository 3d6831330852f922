"""Readers of data sets, pictures and videos."""

from __future__ import annotations

import io
import re
import struct
import zlib
from pathlib import Path
from random import Random
from typing import Any, Literal
from xml.sax.saxutils import escape

import cv2
import numpy as np
from PIL import Image

from detkit.data import pictures
from detkit.data.clips import ClipsConfig, read_clips
from detkit.data.coco import COCOConfig, read_coco
from detkit.data.decoding import VideoReader
from detkit.data.voc import VOCConfig, read_voc
from detkit.data.yolo import YOLODataConfig, read_yolo
from tests.data.writers import coco_content, voc_object, write_picture
from tests.engine.prediction.films import write_film
from tests.fuzz.harness import Target
from tests.fuzz.trees import VALUES, as_json, as_yaml, from_trees

Policy = Literal["raise", "clip", "drop_box", "drop_image"]
POLICIES: tuple[Policy, ...] = ("raise", "clip", "drop_box", "drop_image")


def policy_of(path: Path) -> Policy:
    """One of the four, by the size of the file."""
    return POLICIES[path.stat().st_size % 4]


# ---- VOC

HEAD = "<filename>input.jpg</filename><size><width>60</width><height>40</height><depth>3</depth></size>"
POLYGON = "<polygon><x1>3</x1><y1>4</y1><x2>20</x2><y2>4</y2><x3>20</x3><y3>30</y3></polygon>"
ROTATED = "<robndbox><cx>30</cx><cy>20</cy><w>10</w><h>6</h><angle>0.3</angle></robndbox>"
PART = "<part><name>head</name><bndbox><xmin>5</xmin><ymin>5</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></part>"
VOC_WORDS = (
    *(
        b"annotation",
        b"object",
        b"name",
        b"bndbox",
        b"difficult",
        b"size",
        b"width",
        b"height",
        b"polygon",
        b"robndbox",
    ),
    *(b"xmin", b"ymin", b"xmax", b"ymax", b"x1", b"y1", b"part", b"point", b"cx", b"angle", b"filename", b"dog"),
    *(b"<!DOCTYPE a [<!ENTITY e 'x'>]>", b"&e;", b"&#0;", b"<![CDATA[", b"]]>", b"<!--", b"-->", b"<?xml ?>", b"/>"),
    *(b"encoding='utf-16'", b"encoding='gb2312'", b"encoding='idna'", b"encoding='unicode_escape'", b"xmlns='a'"),
    *(b"encoding='rot13'", b"encoding='zip'", b"encoding='undefined'", b"UTF-16", b"utf-7", b"hex", b"utf-8-sig"),
)


def voc_seeds() -> list[bytes]:
    boxes = voc_object("dog", (5, 5, 20, 20), 1) + voc_object("cat", ("1.5", "1", "30", "30"))
    bodies = [
        boxes,
        f"<object><name>dog</name>{POLYGON}</object><object><name>cat</name>{ROTATED}</object>",
        f"<object><name>dog</name>{PART}<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>",
    ]
    files = [f"<annotation>{HEAD}{body}</annotation>" for body in bodies]
    declared = '<?xml version="1.0" encoding="{}"?>\n{}'
    return [
        *(file.encode() for file in files),
        declared.format("gb2312", files[0].replace("dog", "狗")).encode("gb18030"),
        declared.format("utf-16", files[0]).encode("utf-16"),
        declared.format("utf-8", files[0].replace("dog", "chien é")).encode(),
        files[0].replace("<annotation>", '<a:annotation xmlns:a="urn:b">').replace("</ann", "</a:ann").encode(),
    ]


def change_text(rng: Random, _: bytes) -> bytes:
    """A well-formed file with other text in one or two of its elements, or without them."""
    data = rng.choice(voc_seeds()[:3]).decode()
    for _ in range(rng.choice((1, 2))):
        start, end = rng.choice([match.span(1) for match in re.finditer(">([^<]+)<", data)])
        text = str(rng.choice([*VALUES, -5, 7, 61, "dog", "1.0", " 12 "]))
        data = data[:start] + escape(re.sub("[^\n\t\x20-\ud7ff]", "", text)) + data[end:]
    return data.encode()


def voc_xml(folder: Path) -> Target:
    write_picture(folder / "input.jpg")

    def read(path: Path) -> object:
        config = VOCConfig(
            root=str(folder), train=(".",), classes="auto", on_bad_label=policy_of(path), check_images=False
        )
        return read_voc(config, "train").ground_truth(0)

    return Target("voc_xml", voc_seeds(), read, ".xml", VOC_WORDS, change_text)


# ---- COCO

COCO_WORDS = (
    *(b"images", b"annotations", b"categories", b"id", b"image_id", b"category_id", b"bbox", b"file_name", b"width"),
    *(b"height", b"segmentation", b"counts", b"size", b"iscrowd", b"ignore", b"area", b"keypoints", b"skeleton"),
    *(b"num_keypoints", b"name", b"supercategory", b"coco_url", b"a.jpg", b"b.jpg", b"../a.jpg", b"http://a/b.jpg"),
)


def coco_trees() -> list[dict[str, Any]]:
    """With boxes alone, with masks of each form, and with keypoints."""
    masks = coco_content()
    uncompressed = {"size": [40, 60], "counts": [100, 50, 2250]}
    compressed = {"size": [40, 60], "counts": "e<:n00000000000000000000000000000000000000[U1"}
    forms = [[[10, 5, 30, 5, 30, 15]], uncompressed, compressed]
    for row, segmentation in zip(masks["annotations"], forms, strict=True):
        row["segmentation"] = segmentation
    points = coco_content()
    for category in points["categories"]:
        category |= {"keypoints": ["nose", "left_eye", "right_eye"], "skeleton": [[1, 2], [2, 3]]}
    for row in points["annotations"]:
        row |= {"keypoints": [12, 6, 2, 0, 0, 0, 14.5, 7.5, 1], "num_keypoints": 2}
    return [coco_content(), masks, points]


def coco(folder: Path) -> Target:
    for name in ("a", "b"):
        write_picture(folder / f"{name}.jpg")

    def read(path: Path) -> object:
        config = COCOConfig(
            root=str(folder), train_annotations=path.name, on_bad_label=policy_of(path), check_images=False
        )
        return read_coco(config, "train").ground_truth(0)

    trees = coco_trees()
    return Target("coco", list(map(as_json, trees)), read, ".json", COCO_WORDS, from_trees(trees, as_json, COCO_WORDS))


# ---- YOLO

LABELS = (
    b"0 0.5 0.5 0.25 0.5\n1 0.1 0.2 0.1 0.1\n",
    b"0 0.1 0.1 0.5 0.1 0.5 0.9\n1 0.2 0.2 0.4 0.2 0.4 0.6 0.1 0.7\n",
    b"1 0.5 0.5 0.25 0.5 0.9\n",
    b"0 0.5 0.5 0.2 0.2 0.4 0.4 2 0.6 0.6 1 0 0 0\n",
    b"0,0.5,0.5,0.25,0.5\r\n",
)
YOLO_WORDS = (b"0.5", b"1.0", b"2", b"0", b"1", b",", b";", b"#", b"0.5 0.5", b"1e-3", b"dog")


def yolo_folder(folder: Path) -> None:
    write_picture(folder / "input.jpg")


def yolo_labels(folder: Path) -> Target:
    yolo_folder(folder)
    (folder / "data.yaml").write_bytes(as_json({"train": ".", "names": ["dog", "cat"]}))

    def read(path: Path) -> object:
        config = YOLODataConfig(root=str(folder), on_bad_label=policy_of(path), check_images=False)
        return read_yolo(config, "train").ground_truth(0)

    return Target("yolo_labels", LABELS, read, ".txt", YOLO_WORDS)


DESCRIPTIONS: tuple[dict[str, Any], ...] = (
    {"path": ".", "train": ".", "val": ["."], "nc": 2, "names": ["dog", "cat"]},
    {"train": "list.txt", "names": {0: "dog", 1: "cat"}, "test": None},
    {
        "train": ".",
        "names": {"0": "dog", "1": "cat"},
        "kpt_shape": [3, 3],
        "flip_idx": [0, 2, 1],
        "kpt_names": {"0": ["a", "b", "c"]},
    },
)
DESCRIPTION_WORDS = (
    *(b"path", b"train", b"val", b"valid", b"test", b"names", b"nc", b"kpt_shape", b"flip_idx", b"kpt_names"),
    *(b"list.txt", b".", b"input.jpg", b"<<", b"&a", b"*a", b"!!python/name:os.system", b"!!binary", b"? ", b"- "),
    *(b"|", b">", b"%YAML 1.1", b"---", b"...", b"!!set", b"!!int", b"!!float", b"!!timestamp", b"!!omap", b"!!null"),
)


def yolo_yaml(folder: Path) -> Target:
    yolo_folder(folder)
    (folder / "input.txt").write_bytes(LABELS[0])
    (folder / "list.txt").write_text("./input.jpg\n")

    def read(path: Path) -> object:
        config = YOLODataConfig(root=str(path), on_bad_label="drop_box", check_images=False)
        return read_yolo(config, "train").categories

    seeds = [*map(as_yaml, DESCRIPTIONS), *map(as_json, DESCRIPTIONS), b"names: &a [dog, cat]\ntrain: .\nnc: 2\n"]
    repair = from_trees(DESCRIPTIONS, as_yaml, DESCRIPTION_WORDS)
    return Target("yolo_yaml", seeds, read, ".yaml", DESCRIPTION_WORDS, repair)


# ---- clips and videos

CLIP_WORDS = (
    *(b"classes", b"videos", b"name", b"frames", b"file", b"annotated", b"tracks", b"class", b"boxes", b"id"),
    *(b"run", b"jump", b"frames/street", b"frames/street/0.jpg", b"other"),
)


def clip_trees() -> list[dict[str, Any]]:
    track = {"class": "run", "frames": [0, 1], "boxes": [[10, 5, 50, 30], [12, 5, 52, 30]], "id": 3}
    other = {"class": "jump", "frames": [2], "boxes": [[1.5, 2.5, 9, 9]], "id": 4}
    street = {"name": "street", "frames": "street", "tracks": [track, other]}
    listed = {"name": "road", "frames": ["street/0.jpg", "street/1.jpg"], "annotated": [0, 1], "tracks": [track]}
    return [
        {"classes": ["run", "jump"], "videos": [street]},
        {"classes": ["run", "jump", "sit"], "videos": [listed, street]},
    ]


def clips(folder: Path) -> Target:
    for number in range(3):
        write_picture(folder / "street" / f"{number}.jpg")

    def read(path: Path) -> object:
        config = ClipsConfig(
            root=str(folder), train=path.name, val=None, on_bad_label=policy_of(path), check_images=False
        )
        return read_clips(config, "train").ground_truth(0)

    trees = clip_trees()
    return Target("clips", list(map(as_json, trees)), read, ".json", CLIP_WORDS, from_trees(trees, as_json, CLIP_WORDS))


def videos(folder: Path) -> Target:
    films = [
        write_film(folder / "seed.mp4", 4),
        write_film(folder / "seed.avi", 4, codec="mjpeg", pixels="yuvj420p"),
        write_film(folder / "seed.mkv", 4, codec="mpeg4"),
    ]

    def read(path: Path) -> object:
        with VideoReader(path) as reader:
            return sum(frame.shape[0] for frame, _ in reader), reader.fault()

    return Target("videos", [film.read_bytes() for film in films], read, ".mp4")


# ---- pictures


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _encoded(image: np.ndarray, suffix: str, *parameters: int) -> bytes:
    return cv2.imencode(suffix, image, list(parameters))[1].tobytes()


def picture_seeds() -> list[bytes]:
    """Of 20 x 12 px, of every format and of the forms that are decoded in different ways."""
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (12, 20, 3)).astype(np.uint8)
    image = Image.fromarray(colours)
    grey, palette, alpha = image.convert("L"), image.convert("P"), image.convert("RGBA")
    deep = rng.integers(0, 2**16, (12, 20, 3)).astype(np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation
    others = [grey.convert("RGB"), image.rotate(180)]
    animated: dict[str, Any] = {"save_all": True, "append_images": others}
    seeds = [
        *(_saved(image, "JPEG", exif=exif), _saved(grey, "JPEG"), _saved(image.convert("CMYK"), "JPEG")),
        *(_saved(image, "JPEG", progressive=True), _saved(image, "MPO", **animated)),
        *(_saved(each, "PNG") for each in (image, grey, palette, alpha, image.convert("LA"), image.convert("1"))),
        *(_saved(image, "PNG", exif=exif), _saved(image, "PNG", **animated), _encoded(deep, ".png")),
        *(_saved(image, "BMP"), _saved(palette, "BMP"), _saved(palette, "GIF"), _saved(image, "GIF", **animated)),
        *(_saved(image, "WEBP"), _saved(alpha, "WEBP", lossless=True), _saved(image, "WEBP", **animated)),
        *(_saved(image, "TIFF", compression=kind) for kind in (None, "tiff_lzw", "jpeg", "tiff_deflate")),
        *(_saved(image, "TIFF", big_tiff=True), _saved(image.convert("F"), "TIFF"), _encoded(deep, ".tif")),
        *(_encoded(deep.astype(np.float32), ".tif"), _saved(image.convert("1"), "TIFF", compression="group4")),
        *(_saved(image, "AVIF"), _saved(image, "JPEG2000"), _saved(image, "JPEG2000", no_jp2=True)),
        *(_saved(each, "PPM") for each in (image, grey, image.convert("1"))),
        b"P3 2 1 255 1 2 3 4 5 6\n",
    ]
    return seeds


def right_checksums(_: Random, data: bytes) -> bytes:
    """Of the chunks of a PNG; others stay as they are."""
    if data[:4] != b"\x89PNG":
        return data
    parts, at = [data[:8]], 8
    while at + 8 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        body = data[at + 4 : at + 8 + length]
        parts += [data[at : at + 4], body, struct.pack(">I", zlib.crc32(body))]
        at += 12 + length
    return b"".join(parts)


def images(folder: Path) -> Target:
    def read(path: Path) -> object:
        pictures.upright_size(path, decode=False)
        pictures.count_pages(path)
        return pictures.read_picture(path, (2, 2) if path.stat().st_size % 2 else None).shape

    return Target("images", picture_seeds(), read, ".img", repair=right_checksums)
