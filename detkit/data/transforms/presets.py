"""Named lists of `augment`, and how its short forms are written out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from detkit.config import Config
from detkit.data.transforms.old_form import describe_list

PresetName = Literal["flip", "ssd", "yolov1", "yolov3", "detr", "yolox", "simple_copy_paste"]
FLIP = {"name": "horizontal_flip"}
LAST_EPOCHS = {"until_epoch": -15}  # without mixing (YOLOX, section 2.2)
PRESETS: dict[str, list[dict[str, Any]]] = {
    "flip": [FLIP],
    "ssd": [
        FLIP,
        {"name": "photometric"},
        {"name": "expand"},
        {"name": "iou_crop"},
        {"name": "random_interpolation"},
    ],
    "yolov1": [FLIP, {"name": "hsv"}, {"name": "translate"}],
    "yolov3": [FLIP, {"name": "hsv"}, {"name": "jitter"}],
    "detr": [FLIP, {"name": "resize_crop"}],
    "yolox": [
        {"name": "mosaic", **LAST_EPOCHS},
        {"name": "random_affine", "scale": [0.1, 2.0], "size": 640, **LAST_EPOCHS},
        {"name": "mixup", **LAST_EPOCHS},
        {"name": "hsv_shift"},
        FLIP,
    ],
    "simple_copy_paste": [FLIP, {"name": "large_scale_jitter"}, {"name": "copy_paste"}],
}


class Preset(Config):
    """One of the named lists, in place of its entries."""

    name: PresetName


def open_augment(value: Any) -> Any:
    """`value` of the setting `augment` with its presets written out as entries, so that `--set` can reach into them.

    `ssd` is short for `[{name: ssd}]`. What is not understood stays, for the check of the configuration to name it.
    Raises ValueError for the mapping that `augment` was until version 0.2.
    """
    if isinstance(value, Mapping):
        raise ValueError(f"augment: a list since 0.3, found a mapping; {describe_list(value)}")
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list):
        return value
    entries: list[Any] = []
    for item in value:
        entry = {"name": item} if isinstance(item, str) else item
        known = isinstance(entry, dict) and entry.keys() == {"name"} and entry["name"] in list(PRESETS)
        entries += [dict(one) for one in PRESETS[entry["name"]]] if known else [entry]
    return entries
