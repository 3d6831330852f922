"""Edges of boxes as distributions (D-FINE; Peng et al., arXiv 2410.13842, section 4): how far each edge of a reference
box moves is a mean over unevenly spaced distances, and layers refine the distribution.

Legend: R + 1 distances, R is `config.steps`. Boxes are cxcywh in parts of the picture's sides; edges are in the order
left, top, right, bottom. A distance of `config.scale` is as long as the side of the reference box, and positive
outward; the edges of the reference box itself are at 0.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from detkit.config import Config
from detkit.ops.boxes import at_least_float32, cxcywh_to_xyxy, xyxy_to_cxcywh


class EdgeConfig(Config):
    """Defaults: D-FINE's."""

    steps: int = Field(32, ge=4, multiple_of=2)  # distances, less one ("reg_max")
    reach: float = Field(0.5, gt=0)  # distance before the last, in sides of the reference box ("up")
    scale: float = Field(4.0, gt=0)  # the larger, the closer the distances near 0 lie together ("reg_scale")


def edge_distances(config: EdgeConfig) -> Tensor:
    """float32 `[R + 1]`, ascending: the weighting function W(n) (equation 3), which is symmetric about 0.

    From the middle outward the distances grow as b^i - 1 to `reach * scale`; the last ones are twice as far.
    """
    farthest, half = config.reach * config.scale, config.steps // 2
    base = (farthest + 1) ** (1 / (half - 1))
    outward = [base**i - 1 for i in range(1, half)] + [2 * farthest]
    return torch.tensor([-distance for distance in reversed(outward)] + [0.0] + outward)


class Edges(nn.Module):
    """Logits of distributions -> boxes, and the way back for targets."""

    distances: Tensor

    def __init__(self, config: EdgeConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("distances", edge_distances(config), persistent=False)

    def boxes(self, references: Tensor, logits: Tensor) -> Tensor:
        """Boxes `[..., 4]` from references `[..., 4]` and logits `[..., 4 * (R + 1)]` (equations 1 and 2)."""
        probabilities = at_least_float32(logits).reshape(*references.shape, -1).softmax(dim=-1)
        moves = (probabilities * self.distances).sum(dim=-1)
        middle, sides = references[..., :2], references[..., 2:]
        outward = (0.5 + moves / self.config.scale) * torch.cat([sides, sides], dim=-1)
        return xyxy_to_cxcywh(torch.cat([middle - outward[..., :2], middle + outward[..., 2:]], dim=-1))

    def targets(self, references: Tensor, boxes: Tensor) -> Tensor:
        """float `[..., 4]` in [0, R): where the edges of boxes `[..., 4]` lie among the distances, the ends if beyond.

        2.25: between the distances 2 and 3, at a quarter of the way.
        """
        low, high = cxcywh_to_xyxy(boxes).chunk(2, dim=-1)
        middle, sides = references[..., :2], references[..., 2:]
        moves = (torch.cat([(middle - low) / sides, (high - middle) / sides], dim=-1) - 0.5) * self.config.scale
        last = self.config.steps
        before = (torch.searchsorted(self.distances, moves, right=True) - 1).clamp(0, last - 1)
        start, end = self.distances[before], self.distances[before + 1]
        return (before + ((moves - start) / (end - start)).clamp(0, 1)).clamp(max=last * (1 - 1e-6))


def edge_distillation_loss(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """`[...]`: divergence of distributions from those of a teacher, which has no gradient, both softened by a
    temperature; times its square, so that gradients do not shrink with it (Hinton et al., arXiv 1503.02531, section 2).

    logits, teacher  `[..., R + 1]`
    """
    predicted, goal = (logits / temperature).log_softmax(dim=-1), (teacher.detach() / temperature).log_softmax(dim=-1)
    return temperature**2 * (goal.exp() * (goal - predicted)).sum(dim=-1)
