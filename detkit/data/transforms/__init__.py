"""Augmentation and resizing of one image with its objects. Everything random is a function of the seed passed in.

augment.py   the settings and the order of the changes
geometry.py  the primitives that move boxes and proposals with the picture: flip, window, resize
windows.py   the random windows of the published recipes
colour.py    changes of colour
"""

from detkit.data.transforms.augment import Augment, AugmentConfig
from detkit.data.transforms.geometry import move_boxes, resize_sample

__all__ = ["Augment", "AugmentConfig", "move_boxes", "resize_sample"]
