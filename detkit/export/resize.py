"""Pictures resized as a detector's input spec says, in tensors, by a program whose pictures have any size.

Legend: B pictures, all of H x W px, on a canvas of h x w px.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from detkit.nn.input import ImageInput, KeepConfig, LetterboxConfig, ShortSideConfig, StretchConfig

ONE = 2**11  # a weight of 1 in fixed point


def resize_pictures(images: Tensor, image_input: ImageInput) -> tuple[Tensor, Tensor]:
    """uint8 `[B, 3, H, W]` -> float `[B, 3, h, w]` of whole numbers on their canvas, and int64 `[B, 2]`, their sizes.

    Bilinear without antialiasing, in the fixed point of OpenCV's `INTER_LINEAR`: weights are parts of 2^11, and each
    step cuts off as many bits. So all numbers but a few in ten thousand are those of the data path, and runtimes agree.
    """
    height, width = images.shape[2], images.shape[3]
    pixels = images.to(torch.float32, memory_format=torch.contiguous_format)  # a program takes no strides for granted
    rule, stride = image_input.resize, image_input.stride
    size: tuple[Any, ...]  # int, or the symbol of one
    canvas: tuple[Any, ...]
    longer, shorter = torch.sym_max(height, width), torch.sym_min(height, width)
    match rule:
        case StretchConfig():
            size = canvas = (rule.size, rule.size)
        case LetterboxConfig():
            size = tuple(torch.sym_max(side * rule.size // longer, 1) for side in (height, width))
            canvas = (rule.size, rule.size)
        case ShortSideConfig():
            # the rule's smaller scale gives the smaller side; a // b of (2a + b) // 2b rounds a / b to the nearest
            size = tuple(
                torch.sym_max(
                    torch.sym_min(
                        (2 * side * rule.size + shorter) // (2 * shorter),
                        (2 * side * rule.max_size + longer) // (2 * longer),
                    ),
                    1,
                )
                for side in (height, width)
            )
            canvas = tuple((side + stride - 1) // stride * stride for side in size)
        case KeepConfig():
            return pixels, sizes_of(images, (height, width))
    sizes = sizes_of(images, size)
    corner = image_input.windows(sizes[:1])[0]
    upper, lower = _weights(canvas[0], size[0], height, corner[1])
    left, right = _weights(canvas[1], size[1], width, corner[0])
    rows = (pixels @ ((left + right) / 2**4).T).floor()
    parts = (upper / 2**16 @ rows).floor() + (lower / 2**16 @ rows).floor()
    return ((parts + 2) / 2**2).floor(), sizes


def sizes_of(images: Tensor, size: Sequence[int]) -> Tensor:
    """int64 `[B, 2]`: the same (h, w) for each of B images."""
    return torch.stack([images.new_full((images.shape[0],), side, dtype=torch.int64) for side in size], dim=1)


def _weights(canvas: int, size: int, source: int, offset: Tensor) -> tuple[Tensor, Tensor]:
    """float32 `[canvas, source]` twice: how much each pixel of the canvas takes, in parts of `ONE`, of the last
    pixel of the picture that does not lie behind it, and of the next one, along one side.

    size    px that the picture has on the canvas, from `offset` on
    """
    pixels = torch.arange(canvas) - offset.long()
    # (pixel + 0.5) * source / size - 0.5 as a fraction, because some runtimes have no float64
    numerator, denominator = (2 * pixels + 1) * source - size, 2 * size
    before = torch.div(numerator, denominator, rounding_mode="floor")
    part = (numerator - before * denominator).float() / denominator
    part = torch.where((before >= 0) & (before < source - 1), part, 0.0)
    column = torch.minimum(before.clamp(min=0), torch.full_like(before, source - 1))[:, None]
    inside = ((pixels >= 0) & (pixels < size))[:, None]
    columns = torch.arange(source)
    first = torch.where(inside & (columns == column), ((1 - part) * ONE).round()[:, None], 0.0)
    second = torch.where(inside & (columns == column + 1), (part * ONE).round()[:, None], 0.0)
    return first, second
