"""Pictures of every kind as uint8 RGB: the one place that decodes, for check, training, evaluation and prediction."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from PIL import ExifTags, Image

from detkit.config import UserError
from detkit.structures import Size

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


def read_picture(path: str | Path) -> np.ndarray:
    """uint8 `[H, W, 3]` RGB, upright whatever the file has. Raises UserError if it cannot be decoded."""
    try:
        image = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    except cv2.error as error:
        raise UserError(f"{path}: the picture cannot be decoded: {error}") from error
    if image is None:
        raise UserError(f"{path}: the picture cannot be read")
    return image


def upright_size(path: str, decode: bool) -> Size | str:
    """(h, w) of the picture with its EXIF orientation applied, or why the file cannot be read.

    Pillow decodes, because it reports a truncated file; OpenCV only fills the missing part with grey.
    """
    try:
        with Image.open(path) as picture:
            width, height = picture.size
            turned = picture.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
            if decode:
                picture.draft("RGB", (width // 8, height // 8))  # a JPEG is read in full and decoded at 1/8 of its size
                picture.load()
    except FileNotFoundError:
        return f"the picture {path} does not exist"
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, ...
        return f"the picture {path} cannot be decoded: {error}; replace the file"
    return (width, height) if turned else (height, width)
