"""Files that take images of one size: which pictures fit, and how they are filled up."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from detkit.config import UserError
from detkit.export.metadata import Pictures
from detkit.structures import Size


def fits(size: Size, canvas: Size | None, pictures: Pictures) -> bool:
    """Whether images of `size` (h, w) can be given to a file that takes those of `canvas`; None: it takes any.

    A file that resizes its pictures itself would resize what fills them up too, so they must be of that very size.
    """
    if canvas is None or pictures == "resize":
        return canvas in (None, size)
    return size[0] <= canvas[0] and size[1] <= canvas[1]


def on_canvas(images: Tensor, canvas: Size | None, pictures: Pictures) -> Tensor:
    """uint8 `[B, 3, h, w]` or clips `[B, 3, T, h, w]`, filled up on the right and below.

    Raises UserError if they do not fit.
    """
    height, width = images.shape[-2:]
    if not fits((height, width), canvas, pictures):
        assert canvas is not None
        limit = "of" if pictures == "resize" else "of at most"
        raise UserError(
            f"a picture is {height} x {width} px (h x w), but the file takes those {limit} {canvas[0]} x {canvas[1]}; "
            f"export the detector with --size {height}x{width}"
        )
    return images if canvas is None else F.pad(images, (0, canvas[1] - width, 0, canvas[0] - height))
