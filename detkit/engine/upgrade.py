"""Configurations and checkpoints of detkit 0.1 and 0.2 in the present form: old runs can be evaluated and resumed."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from detkit.config import UserError
from detkit.data.transforms import list_of_mapping
from detkit.structures import Categories

SELECTION = {
    "score_threshold": "score_threshold",
    "top_k_per_class": "top_k_per_class",
    "suppression": "suppression",
    "nms_threshold": "nms_threshold",
    "max_detections": "max_detections",
    "detections_per_image": "max_detections",
}
PRIORS = ("min_sizes", "max_sizes", "ratios", "steps", "clip_sides")


def upgrade_config(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with backbones addressed by level, thresholds beside the other fields (0.1) a learning rate for
    the backbone alone and augmentation as a mapping (0.2) -> the present form.

    One that has the present form already is returned as it is, and so is what no version wrote: the check of the
    configuration says what is wrong with it.
    """
    try:
        return _upgraded_config(tree)
    except (LookupError, TypeError, ValueError, AttributeError):
        return copy.deepcopy(dict(tree))


def _upgraded_config(tree: Mapping[str, Any]) -> dict[str, Any]:
    upgraded: dict[str, Any] = copy.deepcopy(dict(tree))
    _name_the_part(upgraded)
    if isinstance(upgraded.get("augment"), Mapping):
        upgraded["augment"] = list_of_mapping(upgraded["augment"])
    model = upgraded.get("model")
    if not isinstance(model, dict):
        return upgraded
    backbone = model.get("backbone")
    if isinstance(backbone, dict) and isinstance(backbone.get("levels"), list):
        _address_by_stride(backbone)
    for name in ("head", "roi"):
        if isinstance(model.get(name), dict):
            _nest(model[name], "selection", SELECTION)
    if model.get("name") == "ssd" and isinstance(model.get("head"), dict):
        _nest(model["head"], "priors", {name: name for name in PRIORS})
    return upgraded


def upgrade_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint with class names, counters among the weights and no count of images -> the present form.

    What no version wrote is returned as it is: `check_parts` says what is wrong with it.
    """
    try:
        return _upgraded_state(state)
    except (TypeError, ValueError, RuntimeError):
        return dict(state)


def _upgraded_state(state: Mapping[str, Any]) -> dict[str, Any]:
    upgraded = dict(state)
    if "class_names" in upgraded:
        upgraded["categories"] = Categories.of_names(upgraded.pop("class_names")).to_plain()
        images_seen = 0
        for weights in ("model", "trained"):
            if weights in upgraded:
                upgraded[weights] = dict(upgraded[weights])
                images_seen = int(upgraded[weights].pop("head.images_seen", 0))  # YOLOv2 counted them itself
        upgraded.setdefault("images_seen", images_seen)
        upgraded.setdefault("finished", True)  # the first runs had no stage after gradient descent
    return upgraded


def _name_the_part(tree: dict[str, Any]) -> None:
    """`backbone_lr_factor: 0.1` -> `lr_factors: {backbone: 0.1}`."""
    optimizer = (tree.get("train") or {}).get("optimizer")
    if isinstance(optimizer, dict) and "backbone_lr_factor" in optimizer:
        factor = optimizer.pop("backbone_lr_factor")
        optimizer["lr_factors"] = {"backbone": factor} if factor != 1 else {}


def _address_by_stride(backbone: dict[str, Any]) -> None:
    name, levels = str(backbone["name"]), backbone.pop("levels")
    strides = _strides_of_levels(name, dilation=bool(backbone.get("dilation")))
    backbone["strides"] = [strides[level] for level in levels]
    for stride in set(backbone["strides"]):
        here = [level for level in strides if strides[level] == stride]
        used = [level for level in levels if strides[level] == stride]
        if used != here[-len(used) :]:
            raise UserError(
                f"model.backbone.levels: {name} has several levels of stride {stride}, {here}, and strides name "
                f"the last ones, found {used}; build this detector in Python and load the weights under 'model'"
            )
    if name in ("mobilenet_v1", "yolov1") and backbone.get("frozen_stages"):
        backbone["frozen_stages"] -= 1  # these used to count one stage more than they froze


def _strides_of_levels(name: str, *, dilation: bool) -> dict[int, int]:
    """The stride of every level that the backbone had."""
    if name == "vgg16_ssd":
        return {4: 8, 6: 16}
    if name.startswith("vgg"):
        return {level: 2 ** (level - 1) for level in range(1, 6)}
    if name in ("alexnet", "caffenet"):
        return {1: 4, 2: 8, 3: 16, 4: 16, 5: 16}
    if name in ("mobilenet_v3_large", "mobilenet_v3_small"):
        return {0: 2, 1: 4, 2: 8, 3: 16, 4: 32, 5: 32}
    return {level: 2**level for level in range(7)} | ({5: 16} if dilation else {})


def _nest(section: dict[str, Any], name: str, keys: Mapping[str, str]) -> None:
    """Moves `keys` of a section, renamed, into a section of their own below it."""
    nested = {present: section.pop(old) for old, present in keys.items() if old in section}
    if nested:
        section[name] = {**nested, **section.get(name, {})}
