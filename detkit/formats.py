"""The objects of one picture as other programs have them: COCO's results, YOLO's lines, VOC's XML, supervision.

Legend: N objects of the picture, P keypoints of each. Numbers are rounded here and nowhere else.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from detkit.config import UserError
from detkit.structures import Categories, Detections, EncodedMasks, ImageId, MaskCrops, Objects, Size

if TYPE_CHECKING:
    import supervision

YOLO_DECIMALS = 8  # of a share: 1e-4 px of a picture of 10,000
OUTLINE_ERROR = 0.8  # px, by which an outline may leave the border of its mask: more than the corners of a slope do
VOC_DECIMALS = 4  # of a px
VOC_MIN_SIDE = 1.0 + 1e-6  # px; the excess covers the rounding of `xmin - 1` when corners are fractions
CLASS_NAME = "class_name"  # supervision's name of that column
AS_DATA = ("ignore", "area", "keypoints")  # columns of ours that supervision has no field for


def to_xywh(boxes: np.ndarray) -> np.ndarray:
    """COCO boxes, float64 `[N, 4]`, from boxes `[N, 4]` xyxy, rounded to a thousandth of a pixel.

    float32 corners are hardly more precise than that, and rounding restores the two decimals of a COCO file: a width
    of 348.26 would otherwise become 348.2600097656, which may lie on the other side of a threshold.
    """
    corners = boxes.astype(np.float64)
    return np.round(np.hstack([corners[:, :2], corners[:, 2:] - corners[:, :2]]), 3)


def coco_results(
    image_id: ImageId, detections: Detections, categories: Categories | None = None
) -> list[dict[str, Any]]:
    """The entries of a COCO results file, with masks and keypoints where the detections have them.

    categories  with the ids of the classes; None: those of the detections
    """
    ids = (categories or detections.categories).ids
    columns = detections.labels, detections.scores
    rows = [
        {"image_id": image_id, "category_id": ids[label], "bbox": box, "score": score}
        for box, label, score in zip(
            to_xywh(detections.boxes.cpu().numpy()).tolist(), *(column.tolist() for column in columns), strict=True
        )
    ]
    for row, mask in zip(rows, coco_masks(detections.masks), strict=False):
        if mask is not None:
            row["segmentation"] = mask
    if detections.keypoints is not None:
        for row, keypoints in zip(rows, coco_keypoints(detections.keypoints.cpu().numpy()), strict=True):
            row["keypoints"] = keypoints
    return rows


def coco_masks(masks: EncodedMasks | None) -> list[dict[str, Any] | None]:
    """COCO's `{"size": [h, w], "counts": text}` of each, as JSON holds it; None where there is no mask."""
    rles = [masks.rle(index) for index in range(len(masks))] if masks is not None else []
    return [rle and {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")} for rle in rles]


def coco_keypoints(keypoints: np.ndarray) -> list[list[float]]:
    """COCO's x, y, visibility of the keypoints `[N, P, 3]` of each object, one after the other.

    COCO counts x and y from the middle of the first pixel. A keypoint that is not labelled is 0, 0, 0.
    """
    places = np.round(keypoints[..., :2].astype(np.float64) - 0.5, 3)
    rows = np.concatenate([places, keypoints[..., 2:].astype(np.float64)], axis=2) * (keypoints[..., 2:] > 0)
    return [
        [int(value) if place % 3 == 2 else value for place, value in enumerate(row.ravel().tolist())] for row in rows
    ]


def yolo_lines(objects: Objects[Any], size: Size) -> list[str]:
    """The lines of a label file of objects in a picture of (h, w) px.

    Where there are keypoints, each line has a box and them. Else an object with a mask is its outline, within
    `OUTLINE_ERROR` of the borders of its pixels.
    """
    from detkit.structures.mask_outlines import mask_outline  # with OpenCV, which the other formats do without

    masks = objects.masks if objects.keypoints is None and isinstance(objects.masks, EncodedMasks) else None
    points = [None] * len(objects) if objects.keypoints is None else objects.keypoints.tolist()
    return [
        yolo_line(label, box, size, keypoints, None if masks is None else mask_outline(masks, row, OUTLINE_ERROR))
        for row, (label, box, keypoints) in enumerate(
            zip(objects.labels.tolist(), objects.boxes.tolist(), points, strict=True)
        )
    ]


def yolo_line(
    label: int,
    box: Sequence[float],
    size: Size,
    keypoints: Sequence[Sequence[float]] | None = None,
    outline: np.ndarray | None = None,
) -> str:
    """The line of an object in a picture of (h, w) px, in its shares: `class x y width height`, or its outline.

    box        xyxy
    keypoints  x, y, visibility of each, which stand behind the box
    outline    float `[points, 2]`, x and y, in place of the box: `class x y x y ...`
    """
    height, width = size
    if outline is not None:
        return " ".join([str(label), *_shares((outline / (width, height)).ravel().tolist())])
    x1, y1, x2, y2 = box
    texts = _shares([(x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height])
    for x, y, visibility in keypoints or ():
        texts += [*(_shares([x / width, y / height]) if visibility > 0 else "00"), f"{visibility:.0f}"]
    return " ".join([str(label), *texts])


def _shares(numbers: Sequence[float]) -> list[str]:
    return [f"{number:.{YOLO_DECIMALS}f}" for number in numbers]


def voc_xml(name: str, size: Size, objects: Objects[Any], names: Sequence[str]) -> tuple[str, int]:
    """The annotation of the picture file `name` of (h, w) px, and how many objects are too small for VOC.

    Ignored objects are difficult. A corner that is no whole number is written with its decimals.
    """
    root, too_small = ET.Element("annotation"), 0
    _add(root, folder="JPEGImages", filename=name)
    _add(ET.SubElement(root, "size"), width=size[1], height=size[0], depth=3)
    _add(root, segmented=0)
    rows = zip(objects.boxes.tolist(), objects.labels.tolist(), objects.ignore.tolist(), strict=True)
    for (x1, y1, x2, y2), label, ignored in rows:
        # PASCAL's pixels are counted from 1 and inclusive: the pixel xmin covers xmin - 1 to xmin.
        corners = [round(value, VOC_DECIMALS) for value in (x1 + 1, y1 + 1, x2, y2)]
        if min(corners[2] - corners[0], corners[3] - corners[1]) + 1 <= VOC_MIN_SIDE:
            too_small += 1
            continue
        item = ET.SubElement(root, "object")
        _add(item, name=names[label], pose="Unspecified", truncated=0, difficult=int(ignored))
        texts = [f"{value:.{VOC_DECIMALS}f}".rstrip("0").rstrip(".") for value in corners]
        _add(ET.SubElement(item, "bndbox"), **dict(zip(("xmin", "ymin", "xmax", "ymax"), texts, strict=True)))
    ET.indent(root)
    return ET.tostring(root, encoding="unicode") + "\n", too_small


def _add(parent: ET.Element, **values: object) -> None:
    for tag, value in values.items():
        ET.SubElement(parent, tag).text = str(value)


def to_supervision(detections: Detections) -> supervision.Detections:
    """See `Detections.to_supervision`."""
    library, objects = _supervision(), detections.objects.to("cpu").to_arrays()
    columns = objects.columns()
    data = {name: columns[name] for name in (*AS_DATA, *objects.extra) if name in columns}
    if not objects.ignore.any():
        del data["ignore"]  # all detections of a detector count
    names = np.array(detections.class_names, dtype=np.str_)
    converted: supervision.Detections = library.Detections(
        xyxy=objects.boxes,
        mask=detections.masks.dense() if detections.masks is not None else None,
        confidence=objects.scores,
        class_id=objects.labels,
        tracker_id=objects.track_ids,
        data={CLASS_NAME: names, **data},
    )
    return converted


def from_supervision(detections: supervision.Detections, categories: Categories) -> Detections:
    """See `Detections.from_supervision`."""
    if len(detections) == 0:
        empty = Objects.empty().to_tensors()
        return Detections(Objects(empty.boxes, empty.labels, scores=torch.zeros(0)), categories)
    if detections.confidence is None or detections.class_id is None:
        raise UserError("supervision: expected detections with confidence and class_id, found None")
    columns: dict[str, Any] = {
        "boxes": np.asarray(detections.xyxy, np.float32),
        "labels": _labels(detections, categories),
        "scores": np.asarray(detections.confidence, np.float32),
    }
    if detections.mask is not None:
        columns["masks"] = _encoded(np.asarray(detections.mask, np.bool_))
    if detections.tracker_id is not None:
        columns["track_ids"] = np.asarray(detections.tracker_id, np.int64)
    columns |= _numbers(detections.data)
    best_first = np.argsort(-columns["scores"], kind="stable")
    return Detections(Objects.from_columns(columns).take(best_first).to_tensors(), categories)


def _encoded(masks: np.ndarray) -> EncodedMasks:
    """Of bool `[N, H, W]`."""
    count, height, width = masks.shape
    return MaskCrops.of(list(masks), [(0, 0, width, height)] * count).encode((height, width))


def _labels(detections: supervision.Detections, categories: Categories) -> np.ndarray:
    """int64 `[N]`: the classes by their names, where the detections have them."""
    ids, known = np.asarray(detections.class_id, np.int64).tolist(), categories.names
    if (names := detections.data.get(CLASS_NAME)) is None:
        if wrong := [label for label in ids if not 0 <= label < len(known)]:
            raise UserError(f"supervision: expected class_id in [0, {len(known)}), one a category, found {wrong[0]}")
        return np.array(ids, np.int64)
    if missing := sorted({str(name) for name in names} - set(known)):
        raise UserError(f"supervision: the categories have no class {missing[0]!r}; they are {', '.join(known[:8])}")
    # the name of a class that was never used may occur more than once
    agrees = [0 <= label < len(known) and known[label] == name for label, name in zip(ids, names, strict=True)]
    labels = [label if fits else known.index(name) for label, fits, name in zip(ids, agrees, names, strict=True)]
    return np.array(labels, np.int64)


def _numbers(data: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The columns of `data` but the names of the classes. Raises UserError for text, which no tensor holds."""
    columns = {name: np.asarray(values) for name, values in data.items() if name != CLASS_NAME}
    for name, values in columns.items():
        if values.dtype.kind not in "biuf":
            raise UserError(f"supervision: data[{name!r}] is {values.dtype}, not numbers; delete it first")
    return columns


def _supervision() -> Any:
    try:
        import supervision
    except ImportError as error:
        raise UserError('supervision is not installed; install it with: pip install "supervision>=0.30"') from error
    return supervision
