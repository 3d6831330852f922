"""Sliding windows over an image pyramid: their boxes and their crops.

Legend: B images, C channels, H x W pixels of the image, h x w of a level, N windows of a level, row by row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from detkit.config import Config
from detkit.structures import Size


class PyramidConfig(Config):
    at_test: ClassVar[tuple[str, ...]] = ("largest_scale", "levels_per_octave")

    window: int = Field(32, ge=1)  # px, both sides
    largest_scale: float = Field(2.0, gt=0)  # of the finest level; the smallest objects are window / largest_scale px
    levels_per_octave: int = Field(2, ge=1)  # a level is smaller by 2^(1 / levels_per_octave) than the one before


@dataclass(frozen=True, eq=False)
class Level:
    """An image `[C, h, w]`, resized, under a window that moves by `stride` pixels.

    scale  (sx, sy): pixels of the level = pixels of the image * scale
    """

    image: Tensor
    scale: tuple[float, float]
    window: int
    stride: int

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of windows: floor((h - window) / stride) + 1 and the same of w."""
        height, width = self.image.shape[1:]
        return (height - self.window) // self.stride + 1, (width - self.window) // self.stride + 1

    def boxes(self) -> Tensor:
        """`[N, 4]` xyxy in pixels of the image."""
        boxes = _windows(self.grid, self.window, self.stride, self.image.device)
        return boxes / boxes.new_tensor(self.scale * 2)

    def crops(self, indices: Tensor) -> Tensor:
        """`[n, C, window, window]`: the crops of the windows of these indices `[n]`."""
        views = self.image.unfold(1, self.window, self.stride).unfold(2, self.window, self.stride)
        columns = self.grid[1]
        return views[:, indices // columns, indices % columns].transpose(0, 1)


def pyramid(image: Tensor, config: PyramidConfig, stride: int) -> list[Level]:
    """The levels of an image `[C, H, W]`, finest first, down to the last that holds a window.

    An image that holds none at `largest_scale` is enlarged until it does.
    """
    height, width = image.shape[1:]
    levels = []
    for scale in level_scales((height, width), config):
        size = (round(height * scale), round(width * scale))
        resized = F.interpolate(image[None], size, mode="bilinear", antialias=True, align_corners=False)[0]
        levels.append(Level(resized, (size[1] / width, size[0] / height), config.window, stride))
    return levels


def level_scales(size: Size, config: PyramidConfig) -> list[float]:
    """Of the levels of an image of `size`: the sides of a level are those of the image, times the scale, rounded."""
    shorter, scales = min(size), []
    scale = max(config.largest_scale, config.window / shorter)
    while round(shorter * scale) >= config.window:
        scales.append(scale)
        scale *= _step(config)
    return scales


def _step(config: PyramidConfig) -> float:
    return 2 ** (-1 / config.levels_per_octave)


def _windows(grid: tuple[int, int], window: int, stride: int, device: torch.device) -> Tensor:
    """float32 `[N, 4]` xyxy in pixels of the level."""
    rows, columns = (torch.arange(count, device=device) * stride for count in grid)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    corner = torch.stack([x, y], dim=-1).view(-1, 2).float()
    return torch.cat([corner, corner + window], dim=1)


def cut_windows(levels: list[Level], indices: Tensor) -> Tensor:
    """Crops `[n, C, window, window]` of the windows of these indices `[n]`, counted through all levels."""
    counts = [rows * columns for rows, columns in (level.grid for level in levels)]
    window = levels[0].window
    crops = levels[0].image.new_empty((len(indices), levels[0].image.shape[0], window, window))
    start = 0
    for level, count in zip(levels, counts, strict=True):
        on_level = (indices >= start) & (indices < start + count)
        crops[on_level] = level.crops(indices[on_level] - start)
        start += count
    return crops


@dataclass(frozen=True, eq=False)
class CanvasLevel:
    """A level of pictures of several sizes on canvases of one size, in an exported program.

    images  `[B, C, h, w]`, zero beyond each picture
    grid    rows and columns of windows
    boxes   `[B, N, 4]` xyxy in pixels of each picture
    valid   bool `[B, N]`: the window lies within the picture
    """

    images: Tensor
    grid: tuple[int, int]
    boxes: Tensor
    valid: Tensor


def canvas_pyramid(images: Tensor, sizes: Tensor, config: PyramidConfig, stride: int) -> list[CanvasLevel]:
    """`pyramid` of each picture, for an exported program, whose levels have one size whatever the pictures are.

    images  `[B, C, H, W]` with pictures of `sizes`, int64 `[B, 2]` (h, w), in the upper left corner
    Number and size of the levels are those of a picture of H x W. The valid windows of a picture are those of its own
    pyramid, in the same order, without those beyond the level. Only pictures that must be enlarged beyond
    `largest_scale` have such windows, and only if longer side / shorter side * window exceeds the finest level.
    A picture without pixels has no valid window.
    """
    height, width = images.shape[2:]
    sides = sizes.clamp(min=1)
    levels = []
    for scale, on_level in _sides_on_levels(sides, (height, width), config):
        h, w = round(height * scale), round(width * scale)
        grid = (h - config.window) // stride + 1, (w - config.window) // stride + 1
        windows = _windows(grid, config.window, stride, images.device)
        valid = (windows[:, 2:] <= on_level.flip(1)[:, None]).all(dim=2) & (sizes > 0).all(dim=1, keepdim=True)
        on_level = on_level.clamp(min=1)
        down = _antialiased(h, on_level[:, 0], height, sides[:, 0]).to(images.dtype)
        across = _antialiased(w, on_level[:, 1], width, sides[:, 1]).to(images.dtype)
        ratio = (on_level / sides).flip(1).repeat(1, 2)
        resized = down[:, None] @ images @ across[:, None].mT
        levels.append(CanvasLevel(resized, grid, windows / ratio[:, None], valid))
    return levels


def _sides_on_levels(sides: Tensor, canvas: Size, config: PyramidConfig) -> Iterator[tuple[float, Tensor]]:
    """Yields the scale of each level of a canvas and, int64 `[B, 2]`, what `sides` of pictures become on the level."""
    shorter = sides.amin(dim=1, keepdim=True)
    # Numbers are tensors here, because torch and its exporter to ONNX would take them as float32.
    step, window = (torch.tensor(x, dtype=torch.float64, device=sides.device) for x in (_step(config), config.window))
    enlarged_scale = window / shorter
    for scale in level_scales(canvas, config):
        # A table, because a runtime that computes in float32 would round some sides to another whole number.
        table = torch.tensor([round(side * scale) for side in range(max(canvas) + 1)], device=sides.device)
        enlarged = (sides * enlarged_scale).round().long()  # half to even, as Python's
        yield scale, torch.where(shorter * config.largest_scale < config.window, enlarged, table[sides])
        enlarged_scale = enlarged_scale * step


def _antialiased(level: int, on_level: Tensor, canvas: int, side: Tensor) -> Tensor:
    """`F.interpolate` with `antialias` along one side, where pictures of `side` px become `on_level` px, both `[B]`.

    Returns float32 `[B, level, canvas]`: what each pixel of a level takes of each pixel of the canvas. Zero beyond the
    picture.
    """
    scale = (side / on_level)[:, None]
    target, source = (torch.arange(count, device=side.device) for count in (level, canvas))
    center = (target + 0.5) * scale
    distance = (source + 0.5 - center[..., None]).abs() / scale.clamp(min=1)[..., None]
    inside = (target < on_level[:, None])[..., None] & (source < side[:, None])[:, None]
    weights = torch.where(inside, 1 - distance, 0.0).clamp(min=0)
    return weights / weights.sum(dim=2, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
