"""What every head on feature levels is: a network, the losses of its outputs, and the way from them to detections.

Legend: B images, L levels, K classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Generic

from torch import Tensor, nn

from detkit.nn.outputs import OutputsT
from detkit.nn.selection import DetectionRows
from detkit.structures import Size, Target


class Head(nn.Module, ABC, Generic[OutputsT]):
    """Dense heads (SSD, YOLO) and heads that predict a set (DETR) have this one signature."""

    num_classes: int
    class_weights: Tensor | None  # [K]: factors on the loss of the class where each is the target; None: all are 1

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("class_weights", None, persistent=False)

    @abstractmethod
    def forward(self, features: list[Tensor], sizes: Tensor, canvas: Size) -> OutputsT:
        """
        features  L levels `[B, C_l, H_l, W_l]`, finest first
        sizes     int64 `[B, 2]`: (h, w) of each picture in input px
        canvas    (h, w) in input px of what the features were computed from
        """

    @abstractmethod
    def criterion(self, outputs: OutputsT, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Losses by name: scalars, already weighted; their sum is optimised."""

    @abstractmethod
    def detect(self, outputs: OutputsT, windows: Tensor) -> DetectionRows:
        """windows `[B, 4]` xyxy in input px: where each picture lies on its canvas."""

    @abstractmethod
    def class_rows(self, num_classes: int) -> dict[str, Tensor]:
        """Which rows of its weights belong to which class, had it `num_classes`; see `detkit.nn.heads.class_rows`."""
