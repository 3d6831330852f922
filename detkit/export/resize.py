"""Pictures resized as a detector's input spec says, in tensors, by a program whose pictures have any size.

Legend: B pictures, all of H x W px, on a canvas of h x w px.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from detkit.nn.input import ImageInput, KeepConfig, LetterboxConfig, ShortSideConfig, StretchConfig


def resize_pictures(images: Tensor, image_input: ImageInput) -> tuple[Tensor, Tensor]:
    """uint8 `[B, 3, H, W]` -> float `[B, 3, h, w]` on their canvas, and int64 `[B, 2]`, their sizes.

    Bilinear without antialiasing, as OpenCV's, but not rounded to whole numbers: of two runtimes, whose last digits
    differ, one would round up what the other rounds down.
    """
    height, width = images.shape[2], images.shape[3]
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
            return images.float(), sizes_of(images, (height, width))
    sizes = sizes_of(images, size)
    corner = image_input.windows(sizes[:1])[0]
    down = _interpolation(canvas[0], size[0], height, corner[1])
    across = _interpolation(canvas[1], size[1], width, corner[0])
    return down @ images.float() @ across.T, sizes


def sizes_of(images: Tensor, size: Sequence[int]) -> Tensor:
    """int64 `[B, 2]`: the same (h, w) for each of B images."""
    return torch.stack([images.new_full((images.shape[0],), side, dtype=torch.int64) for side in size], dim=1)


def _interpolation(canvas: int, size: int, source: int, offset: Tensor) -> Tensor:
    """`[canvas, source]`: what each pixel of the canvas takes of each pixel of the picture, along one side.

    size    px that the picture has on the canvas, from `offset` on
    """
    scale = torch.full((), source, dtype=torch.float64) / torch.full((), size, dtype=torch.float64)
    pixels = torch.arange(canvas) - offset
    positions = ((pixels + 0.5) * scale - 0.5).clamp(min=0)
    positions = torch.minimum(positions, torch.full((), source - 1, dtype=torch.float64))
    weights = (1 - (positions[:, None] - torch.arange(source)).abs()).clamp(min=0)
    inside = (pixels >= 0) & (pixels < size)
    return torch.where(inside[:, None], weights, 0.0).float()
