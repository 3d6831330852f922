"""The form of `augment` until version 0.2, a mapping whose order was fixed, as the list that does the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

DEFAULTS: dict[str, Any] = {
    "horizontal_flip": 0.5,
    "photometric": 0.0,
    "hsv": None,
    "expand": 1.0,
    "iou_crop": False,
    "resize_crop": 0.0,
    "scale_jitter": None,
    "crop": 0.0,
    "translate": 0.0,
    "jitter": 0.0,
    "jitter_scale": [0.25, 2.0],
    "random_interpolation": False,
}


def list_of_mapping(mapping: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The list that gives the same pictures and boxes for the same seeds, to the bit."""
    old = {**DEFAULTS, **mapping}
    entries: list[dict[str, Any]] = [{"name": "horizontal_flip", "probability": old["horizontal_flip"]}]
    if old["photometric"]:
        entries.append({"name": "photometric", "each_probability": old["photometric"]})
    if old["hsv"]:
        entries.append({"name": "hsv", **dict(zip(("hue", "saturation", "exposure"), old["hsv"], strict=True))})
    if old["expand"] > 1:
        entries.append({"name": "expand", "max_ratio": old["expand"]})
    if old["iou_crop"]:
        entries.append({"name": "iou_crop"})
    if old["resize_crop"]:
        entries.append({"name": "resize_crop", "probability": old["resize_crop"]})
    if old["scale_jitter"]:
        entries.append({"name": "scale_jitter", "scale": old["scale_jitter"]})
    entries += _last_windows(old)
    if old["random_interpolation"]:
        entries.append({"name": "random_interpolation"})
    return entries


def _last_windows(old: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Crop, translate and jitter: one number was drawn for the crop, on or off, and none for the two others."""
    entries: list[dict[str, Any]] = []
    if old["crop"]:
        entries.append({"name": "crop", "probability": old["crop"]})
    if old["translate"]:
        entries.append({"name": "translate", "probability": None if entries else 1.0, "max_part": old["translate"]})
    if old["jitter"]:
        sides = {"max_change": old["jitter"], "scale": old["jitter_scale"]}
        entries.append({"name": "jitter", "probability": None if entries else 1.0, **sides})
    return entries


def describe_list(mapping: Mapping[str, Any]) -> str:
    """What to write instead of a mapping."""
    try:
        if unknown := mapping.keys() - DEFAULTS.keys():
            raise ValueError(unknown)
        entries = list_of_mapping(mapping)
    except (TypeError, ValueError):  # no mapping of 0.2 either
        entries = [{"name": "horizontal_flip", "probability": 0.5}, {"name": "hsv"}]
        return f"write a preset, or entries such as {_as_yaml(entries)}"
    return f"write {_as_yaml(entries)}"


def _as_yaml(entries: list[dict[str, Any]]) -> str:
    return yaml.safe_dump(entries, default_flow_style=True, sort_keys=False, width=10**6).strip()
