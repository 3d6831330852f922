"""Every cell of the encoder's levels predicts an object; the likeliest ones are where the queries of a decoder start
(Deformable DETR, Zhu et al., arXiv 2010.04159, section 4.2).

Legend: B images, S cells of all levels together, Q queries, D width, K classes.
Anchors are cxcywh in parts of the picture's sides, before the sigmoid.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from detkit.nn.blocks import Activation
from detkit.nn.deformable import Levels
from detkit.nn.heads.set_head import classifier_with_prior
from detkit.nn.transformer import MLP, zero_output
from detkit.ops.boxes import at_least_float32

BORDER = 0.01  # cells whose starting box comes nearer to the border of the picture, or is larger, propose nothing


class Cells(NamedTuple):
    """
    logits     `[B, S, K]`
    content    `[B, S, D]`
    boxes      `[B, S, 4]`, where each starts
    proposing  bool `[B, S, 1]`, whether a cell does
    """

    logits: Tensor
    content: Tensor
    boxes: Tensor
    proposing: Tensor


class Proposals(NamedTuple):
    """
    logits   `[B, S, K]`
    anchors  at least float32 `[B, S, 4]`; infinite at cells that propose nothing
    content  `[B, S, D]`
    """

    logits: Tensor
    anchors: Tensor
    content: Tensor


CellsT = TypeVar("CellsT", Cells, Proposals)


def best_of(cells: CellsT, scores: Tensor, count: int) -> CellsT:
    """The `count` cells of the highest scores `[B, S]`, highest first; all of them if there are fewer."""
    chosen = scores.detach().topk(min(count, scores.shape[1]), dim=1).indices[..., None]
    # `take_along_dim` would do without `expand`, but an export with it is of one batch size only.
    return type(cells)(*(part.gather(1, chosen.expand(-1, -1, part.shape[2])) for part in cells))


class CellProposer(nn.Module):
    """The box of a cell starts as a square on its middle: `side` of the picture's sides on the finest level, twice as
    large on each coarser one."""

    def __init__(self, width: int, num_classes: int, class_prior: float, side: float, act: Activation = "relu") -> None:
        super().__init__()
        self.side = side
        self.content = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width))
        self.classifier = classifier_with_prior(width, num_classes, class_prior)
        self.regressor = zero_output(MLP(width, width, width, 4, act=act))

    def forward(self, memory: Tensor, levels: Levels) -> Cells:
        """memory `[B, S, D]`"""
        boxes = self.starting_boxes(levels)
        proposing = ((boxes > BORDER) & (boxes < 1 - BORDER)).all(dim=-1, keepdim=True) & ~levels.padding[..., None]
        content = self.content(torch.where(proposing, memory, 0.0))
        return Cells(self.classifier(content), content, boxes, proposing)

    def locate(self, cells: Cells) -> Proposals:
        """With the boxes that these cells predict."""
        anchors = self.anchors(cells.boxes, cells.proposing, at_least_float32(self.regressor(cells.content)))
        return Proposals(cells.logits, anchors, cells.content)

    def likeliest(self, memory: Tensor, levels: Levels, count: int) -> Proposals:
        """The `count` cells whose likeliest class scores highest; the boxes of others are not computed."""
        cells = self.forward(memory, levels)
        return self.locate(best_of(cells, cells.logits.amax(dim=-1), count))

    def anchors(self, boxes: Tensor, proposing: Tensor, move: Tensor) -> Tensor:
        """`[B, S, 4]`, from the starting boxes; proposing bool `[B, S, 1]`: whether a cell does."""
        return boxes.logit().masked_fill(~proposing, float("inf")) + move

    def starting_boxes(self, levels: Levels) -> Tensor:
        """`[B, S, 4]` cxcywh"""
        centers = levels.centers()
        counts = [height * width for height, width in levels.sizes]
        sides = torch.cat([centers.new_full((count,), self.side * 2.0**level) for level, count in enumerate(counts)])
        return torch.cat([centers, sides[:, None].expand(*centers.shape)], dim=-1)
