"""Tiny sets of other tools' formats, drawn by hand from their documentation. Each picture is 60 x 40 (w x h).

Each set has at least the class `cat` with the box (10, 5, 30, 15) on a picture `a.jpg`.
"""

from __future__ import annotations

import base64
import io
import json
import zlib
from pathlib import Path
from typing import Any

from PIL import Image

from tests.data.writers import write_picture


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def labelme_shape(label: str, points: list[list[float]], kind: str = "rectangle", **more: Any) -> dict[str, Any]:
    return {"label": label, "points": points, "group_id": None, "shape_type": kind, "flags": {}, **more}


def labelme(root: Path, shapes: list[dict[str, Any]] | None = None, picture: str = "a.jpg", **more: Any) -> Path:
    """https://github.com/wkentaro/labelme: a JSON beside each picture; the corners of a rectangle in any order."""
    write_picture(root / "a.jpg")
    shapes = shapes if shapes is not None else [labelme_shape("cat", [[30, 15], [10, 5]])]
    size = {"imageHeight": 40, "imageWidth": 60}
    content = {"version": "5.4.1", "flags": {}, "shapes": shapes, "imagePath": picture, "imageData": None, **size}
    return write_json(root / "a.json", {**content, **more}).parent


def labelme_xml_object(label: str, points: list[tuple[float, float]], more: str = "") -> str:
    marks = "".join(f"<pt><x>{x}</x><y>{y}</y></pt>" for x, y in points)
    return f"<object><name>{label}</name><deleted>0</deleted>{more}<polygon>{marks}</polygon></object>"


def labelme_xml(root: Path, objects: str | None = None) -> Path:
    """https://github.com/CSAILVision/LabelMeAnnotationTool: an XML file a picture; a box is one by its <type>."""
    write_picture(root / "a.jpg")
    corners = [(10, 5), (30, 5), (30, 15), (10, 15)]
    objects = objects or labelme_xml_object("cat", corners, "<type>bounding_box</type>")
    size = "<imagesize><nrows>40</nrows><ncols>60</ncols></imagesize>"
    (root / "a.xml").write_text(f"<annotation><filename>a.jpg</filename><folder/>{objects}{size}</annotation>")
    return root


CVAT_BOX = '<box label="cat" occluded="0" xtl="10.0" ytl="5.0" xbr="30.0" ybr="15.0" z_order="0"></box>'


def cvat(root: Path, shapes: str = CVAT_BOX, *, images: str = "", after: str = "") -> Path:
    """https://docs.cvat.ai/docs/manual/advanced/formats/format-cvat/: annotations.xml and images/."""
    write_picture(root / "images" / "a.jpg")
    labels = "".join(f"<label><name>{n}</name><type>any</type></label>" for n in ("dog", "cat"))
    root.joinpath("annotations.xml").write_text(
        '<?xml version="1.0" encoding="utf-8"?><annotations><version>1.1</version>'
        f"<meta><task><labels>{labels}</labels></task></meta>"
        f'<image id="0" name="a.jpg" width="60" height="40">{shapes}</image>{images}{after}</annotations>'
    )
    return root


def region(kind: str = "rectanglelabels", names: Any = ("cat",), **value: Any) -> dict[str, Any]:
    value = value or {"x": 10 / 0.6, "y": 5 / 0.4, "width": 20 / 0.6, "height": 10 / 0.4, "rotation": 0}
    value = {**value, kind: list(names)} if names else value
    entry = {"id": "r1", "type": kind, "from_name": "label", "to_name": "image", "image_rotation": 0, "value": value}
    return {**entry, "original_width": 60, "original_height": 40}


def label_studio(root: Path, *regions: dict[str, Any], image: str = "/data/upload/1/a.jpg", **task: Any) -> Path:
    """https://labelstud.io/guide/export.html: a list of tasks; regions are in percent."""
    write_picture(root / "images" / "a.jpg")
    annotations = [{"id": 1, "was_cancelled": False, "ground_truth": False, "result": list(regions or [region()])}]
    return write_json(
        root / "export.json", [{"id": 1, "data": {"image": image}, "annotations": annotations, **task}]
    ).parent


def supervisely(root: Path, *objects: dict[str, Any], dataset: str = "ds0", tags: tuple[str, ...] = ()) -> Path:
    """https://docs.supervisely.com: meta.json, and ann and img for each data set; the last pixel belongs to a box."""
    write_picture(root / dataset / "img" / "a.jpg")
    classes = [{"title": name, "shape": "rectangle", "color": "#0F8A12"} for name in ("dog", "cat")]
    write_json(root / "meta.json", {"classes": classes, "tags": [], "projectType": "images"})
    rectangle = {"classTitle": "cat", "geometryType": "rectangle", "points": {"exterior": [[10, 5], [29, 14]]}}
    content = {"size": {"height": 40, "width": 60}, "tags": [{"name": tag} for tag in tags]}
    write_json(root / dataset / "ann" / "a.jpg.json", {**content, "objects": list(objects or (rectangle,))})
    return root


def bitmap(width: int, height: int) -> str:
    """The mask of all pixels, as Supervisely packs it."""
    file = io.BytesIO()
    Image.new("1", (width, height), 1).save(file, "PNG")
    return base64.b64encode(zlib.compress(file.getvalue())).decode()


VIA_RECT = {"name": "rect", "x": 10, "y": 5, "width": 20, "height": 10}


def via(root: Path, *regions: dict[str, Any], project: bool = True) -> Path:
    """https://www.robots.ox.ac.uk/~vgg/software/via/: version 2, as a project or as annotations alone."""
    write_picture(root / "a.jpg")
    first = {"shape_attributes": VIA_RECT, "region_attributes": {"class": "cat"}}
    row = {"filename": "a.jpg", "size": 700, "regions": list(regions or (first,)), "file_attributes": {}}
    options = {"region": {"class": {"type": "dropdown", "options": {"dog": "", "cat": ""}}}, "file": {}}
    whole = {"_via_settings": {}, "_via_img_metadata": {"a.jpg700": row}, "_via_attributes": options}
    return write_json(root / "via.json", whole if project else {"a.jpg700": row}).parent


def createml(root: Path, name: str = "_annotations.createml.json", **coordinates: Any) -> Path:
    """https://developer.apple.com/documentation/createml: boxes by their centre."""
    write_picture(root / "a.jpg")
    box = {"label": "cat", "coordinates": coordinates or {"x": 20, "y": 10, "width": 20, "height": 10}}
    return write_json(root / name, [{"image": "a.jpg", "annotations": [box]}]).parent


def open_images(root: Path, *rows: str, split: str = "train", folder: str = "train") -> Path:
    """https://storage.googleapis.com/openimages/web/download_v7.html: a csv of boxes, and one of the classes."""
    write_picture(root / folder / "a.jpg")
    header = (
        "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"
    )
    first = f"a,xclick,/m/01yrx,1,{10 / 60},{30 / 60},{5 / 40},{15 / 40},0,0,0,0,0"
    (root / f"{split}-annotations-bbox.csv").write_text("\n".join([header, *(rows or (first,))]) + "\n")
    (root / "class-descriptions-boxable.csv").write_text("/m/0bt9lr,dog\n/m/01yrx,cat\n")
    return root


SETS = {
    "labelme": labelme,
    "labelme_xml": labelme_xml,
    "cvat": cvat,
    "label_studio": label_studio,
    "supervisely": supervisely,
    "via": via,
    "createml": createml,
    "open_images": open_images,
}
