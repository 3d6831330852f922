"""Augmentation and resizing of one image with its objects. Everything random is a function of the seed passed in.

augment.py   the list of changes, and the pass through it; presets.py: lists by name
entry.py     what every change has: when it happens, and what it draws from
geometry.py  the primitives that move boxes, masks, keypoints and proposals with the picture: flip, window, warp, resize
masks.py     how masks move, each within a window of its own
affine.py    mirror and affine map; windows.py, scales.py: random windows and sizes of the published recipes
colour.py    changes of colour
mixing.py    mosaic and mixup; covering.py: copy-paste and cutout
old_form.py  the form of `augment` until version 0.2
"""

from detkit.data.transforms.augment import Augment, AugmentList, mixing, parse_augment, used_columns
from detkit.data.transforms.geometry import on_canvas, resize_sample
from detkit.data.transforms.old_form import list_of_mapping
from detkit.data.transforms.presets import open_augment

__all__ = [
    "Augment",
    "AugmentList",
    "list_of_mapping",
    "mixing",
    "on_canvas",
    "open_augment",
    "parse_augment",
    "resize_sample",
    "used_columns",
]
