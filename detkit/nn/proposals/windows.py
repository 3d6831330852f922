"""Sliding windows over an image pyramid: their boxes and their crops.

Legend: C channels, H x W pixels of the image, h x w of a level, N windows of a level, row by row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from detkit.config import Config


class PyramidConfig(Config):
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
        rows, columns = (torch.arange(count, device=self.image.device) * self.stride for count in self.grid)
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        corner = torch.stack([x, y], dim=-1).view(-1, 2).float()
        return torch.cat([corner, corner + self.window], dim=1) / corner.new_tensor(self.scale * 2)

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
    scale = max(config.largest_scale, config.window / min(height, width))
    levels = []
    while round(min(height, width) * scale) >= config.window:
        size = (round(height * scale), round(width * scale))
        resized = F.interpolate(image[None], size, mode="bilinear", antialias=True, align_corners=False)[0]
        levels.append(Level(resized, (size[1] / width, size[0] / height), config.window, stride))
        scale *= 2 ** (-1 / config.levels_per_octave)
    return levels


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
