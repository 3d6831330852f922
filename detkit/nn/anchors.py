"""Boxes and points that a network predicts from: anchors (the R-CNN family), priors (SSD), cells (YOLO).

Each is a module that holds what is the same in every cell as buffers, which move with the weights and are part of no
checkpoint, and lays it on the grids of the feature levels.

Legend: L levels, A boxes of all levels together, ordered by level, row, column and shape. All sizes are in input px.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from detkit.config import Config, UserError
from detkit.ops.anchors import cell_anchors, grid_anchors, prior_anchors
from detkit.structures import Size

MEMORY = 16  # grids that are cached, one for each size of input


Positive = Annotated[float, Field(gt=0)]


class AnchorConfig(Config):
    """Anchors of every cell, a list of sizes for each level. Defaults: torchvision's R50-FPN."""

    sizes: tuple[tuple[Positive, ...], ...] = ((32,), (64,), (128,), (256,), (512,))  # px, square root of the area
    octave_scales: tuple[Positive, ...] = Field((1.0,), min_length=1)  # each size times each of
    # them is a size; RetinaNet's are 1, 2^(1/3) and 2^(2/3)
    ratios: tuple[Positive, ...] = (0.5, 1.0, 2.0)  # h / w
    rounding: Literal["none", "corners", "sides"] = "corners"  # Detectron2, torchvision, py-faster-rcnn
    spacing: Literal["stride", "image"] = "image"  # input px between cells: the stride (Detectron2, py-faster-rcnn), or
    # padded image size // feature size (torchvision), which is smaller where a level rounds its size up
    offset: float = 0.0  # centre of a cell's anchors in strides; 0.5 for py-faster-rcnn in continuous pixels

    def all_sizes(self, level: int) -> tuple[float, ...]:
        """The sizes of a level, those of its octaves among them; with rounded corners, as torchvision, in whole px."""
        whole = self.rounding == "corners" and len(self.octave_scales) > 1
        scaled = [size * scale for size in self.sizes[level] for scale in self.octave_scales]
        return tuple(math.floor(size) if whole else size for size in scaled)


class BoxGrid(nn.Module, ABC):
    """`grid(feature_sizes, canvas)` -> float `[A, 4]` xyxy; nobody may write to it, because it is cached.

    feature_sizes  (h, w) in cells of each level
    canvas         (h, w) of the padded input
    """

    def __init__(self) -> None:
        super().__init__()
        self._grids: dict[tuple[object, ...], Tensor] = {}

    @abstractmethod
    def level(self, number: int, feature_size: Size, canvas: Size) -> Tensor:
        """The boxes of one level, `[H * W * shapes, 4]`."""

    def forward(self, feature_sizes: Sequence[Size], canvas: Size) -> Tensor:
        if torch.compiler.is_compiling():
            return self._boxes(feature_sizes, canvas)
        buffer = next(self.buffers())
        key = (*feature_sizes, canvas, buffer.device, buffer.dtype)
        if key not in self._grids:
            if len(self._grids) == MEMORY:
                del self._grids[next(iter(self._grids))]
            with torch.inference_mode(False):  # training may need the same grid after inference
                self._grids[key] = self._boxes(feature_sizes, canvas)
        return self._grids[key]

    def _boxes(self, feature_sizes: Sequence[Size], canvas: Size) -> Tensor:
        return torch.cat([self.level(number, size, canvas) for number, size in enumerate(feature_sizes)])


class AnchorGrid(BoxGrid):
    """Anchors of a dense head, such as the region proposal network. `per_cell` is their number in a cell."""

    def __init__(self, config: AnchorConfig, strides: Sequence[int]) -> None:
        super().__init__()
        if len(config.sizes) != len(strides):
            raise ValueError(f"anchors.sizes: expected {len(strides)} lists, one a level, got {len(config.sizes)}")
        counts = sorted({len(sizes) for sizes in config.sizes})
        if len(counts) != 1:
            raise ValueError(f"anchors.sizes: expected as many sizes on every level, got {counts}")
        self.config, self.strides = config, tuple(strides)
        self.per_cell = counts[0] * len(config.octave_scales) * len(config.ratios)
        for number in range(len(strides)):
            shapes = cell_anchors(config.all_sizes(number), config.ratios, rounding=config.rounding)
            self.register_buffer(f"shapes{number}", shapes, persistent=False)

    def level(self, number: int, feature_size: Size, canvas: Size) -> Tensor:
        spacing: float | tuple[float, float] = self.strides[number]
        if self.config.spacing == "image":
            spacing = (canvas[0] // feature_size[0], canvas[1] // feature_size[1])
        return grid_anchors(self.get_buffer(f"shapes{number}"), feature_size, spacing, offset=self.config.offset)


class PriorConfig(Config):
    """SSD's default boxes. Lists have one entry a level, finest first. Defaults: SSD300 on VOC."""

    at_test: ClassVar[tuple[str, ...]] = ("steps",)

    min_sizes: tuple[Positive, ...] = (30, 60, 111, 162, 213, 264)
    max_sizes: tuple[Positive | None, ...] = (60, 111, 162, 213, 264, 315)  # null: no second square
    ratios: tuple[tuple[Positive, ...], ...] = ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,))  # w/h, each with its inverse
    steps: tuple[Positive, ...] | None = (8, 16, 32, 64, 100, 300)  # input px between cells; null: input / map size
    clip_sides: bool = False  # no prior is larger than the input (torchvision)

    @model_validator(mode="after")
    def _one_entry_a_level(self) -> PriorConfig:
        levels = len(self.min_sizes)
        for name in ("max_sizes", "ratios", "steps"):
            entries = getattr(self, name)
            if entries is not None and len(entries) != levels:
                raise ValueError(f"{name}: expected {levels} entries, as min_sizes has, found {len(entries)}")
        return self


class PriorGrid(BoxGrid):
    """SSD's default boxes. `per_cell` is their number in a cell of each level."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        self.config = config
        levels = list(zip(config.min_sizes, config.max_sizes, config.ratios, strict=True))
        self.per_cell = [len(prior_anchors(*level)) for level in levels]
        for number, level in enumerate(levels):
            self.register_buffer(f"shapes{number}", prior_anchors(*level), persistent=False)

    def level(self, number: int, feature_size: Size, canvas: Size) -> Tensor:
        """Raises UserError for the steps of another size."""
        (height, width), config = feature_size, self.config
        step = (config.steps[number],) * 2 if config.steps else (canvas[0] / height, canvas[1] / width)
        if abs(height - canvas[0] / step[0]) >= 1 or abs(width - canvas[1] / step[1]) >= 1:
            raise UserError(
                f"head.priors.steps: {step[0]:g} px do not fit level {number}, of {height} x {width} cells, and an "
                f"input of {canvas[0]} x {canvas[1]} px; give the steps of this size, or null for input / map size"
            )
        shapes = self.get_buffer(f"shapes{number}")
        if config.clip_sides:
            shapes = shapes.clamp(-max(canvas) / 2, max(canvas) / 2)
        return grid_anchors(shapes, feature_size, step, offset=0.5)


def grid_cells(height: int, width: int, device: torch.device) -> Tensor:
    """int64 `[height * width, 2]`: column and row of every cell of a map, row by row."""
    rows, columns = (torch.arange(side, device=device) for side in (height, width))
    return torch.stack([columns.repeat(height), rows.repeat_interleave(width)], dim=1)
