"""What YOLOv2 and YOLOv3 share: a 1x1 convolution a level that predicts, for every cell and anchor, a box, an
objectness and class scores; and the way from there to detections.

Legend: B images, L levels, A_l anchors of a cell of level l, N predictions of one image over all levels, ordered by
level (finest first), row, column and anchor; K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor, nn

from detkit.config import Config
from detkit.nn.heads.detections import select_detections
from detkit.ops.coders import GridCoder
from detkit.structures import Detections, ImageInfo, Size


class YOLOHeadConfig(Config):
    """What a detection needs. Defaults: darknet's `detector valid` and its NMS."""

    score_threshold: float = Field(0.005, ge=0, le=1)
    nms_threshold: float = Field(0.45, ge=0, le=1)
    max_detections: int = Field(300, ge=1)


@dataclass(frozen=True, eq=False)
class YOLOOutputs:
    """
    raw      `[B, N, 5 + K]`: tx, ty, tw, th, objectness logit, class logits
    cells    `[N, 2]` column and row
    anchors  `[N, 2]` width and height in input px
    strides  `[N, 1]` input px of a cell
    starts   first prediction of each level
    size     (h, w) of the canvas in input px
    """

    raw: Tensor
    cells: Tensor
    anchors: Tensor
    strides: Tensor
    starts: tuple[int, ...]
    size: Size


class YOLOHead(nn.Module):
    """The network and the decoding. The versions differ in class scores, assignment and loss."""

    def __init__(
        self,
        config: YOLOHeadConfig,
        anchors: Sequence[Sequence[tuple[float, float]]],
        in_channels: Sequence[int],
        strides: Sequence[int],
        class_names: Sequence[str],
    ) -> None:
        super().__init__()
        self.selection = config
        self.anchors = [torch.tensor(level, dtype=torch.float32) for level in anchors]
        self.strides = tuple(strides)
        self.class_names = tuple(class_names)
        self.coder = GridCoder()
        self.predict = nn.ModuleList(
            nn.Conv2d(channels, len(level) * (5 + len(class_names)), 1)
            for channels, level in zip(in_channels, anchors, strict=True)
        )
        for parameter in self.predict.parameters():
            nn.init.normal_(parameter, std=0.01) if parameter.ndim > 1 else nn.init.zeros_(parameter)

    def forward(self, features: list[Tensor], size: Size) -> YOLOOutputs:
        raw: list[Tensor] = []
        cells, anchors, strides, starts = [], [], [], []
        for level, conv, sides, stride in zip(features, self.predict, self.anchors, self.strides, strict=True):
            starts.append(sum(part.shape[1] for part in raw))
            predicted = conv(level).unflatten(1, (len(sides), -1))  # [B, A, 5 + K, H, W]
            raw.append(predicted.permute(0, 3, 4, 1, 2).flatten(1, 3))
            height, width = level.shape[-2:]
            cell = torch.cartesian_prod(*(torch.arange(side, device=level.device) for side in (height, width))).flip(1)
            cells.append(cell.repeat_interleave(len(sides), dim=0))
            anchors.append(sides.to(level).repeat(height * width, 1))
            strides.append(anchors[-1].new_full((len(anchors[-1]), 1), stride))
        return YOLOOutputs(
            torch.cat(raw, dim=1), torch.cat(cells), torch.cat(anchors), torch.cat(strides), tuple(starts), size
        )

    def boxes(self, outputs: YOLOOutputs) -> Tensor:
        """`[B, N, 4]` xyxy in input px."""
        return self.coder.decode(outputs.raw[..., :4], outputs.cells, outputs.anchors, outputs.strides)

    def class_scores(self, logits: Tensor) -> Tensor:
        """`[..., K]` class logits as probabilities."""
        raise NotImplementedError

    @torch.no_grad()
    def postprocess(self, outputs: YOLOOutputs, infos: Sequence[ImageInfo]) -> list[Detections]:
        found = []
        objectness = outputs.raw[..., 4].sigmoid()
        for i, info in enumerate(infos):
            likely = torch.nonzero(objectness[i] > self.selection.score_threshold).squeeze(1)
            raw = outputs.raw[i, likely]
            boxes = self.coder.decode(
                raw[:, :4], outputs.cells[likely], outputs.anchors[likely], outputs.strides[likely]
            )
            scores = objectness[i, likely, None] * self.class_scores(raw[:, 5:])
            found.append(
                select_detections(
                    boxes,
                    scores,
                    info,
                    self.class_names,
                    score_threshold=self.selection.score_threshold,
                    nms_threshold=self.selection.nms_threshold,
                    max_detections=self.selection.max_detections,
                )
            )
        return found
