"""One prediction for each object, at the least total cost (DETR, arXiv 2005.12872, section 3.1).

Legend: B images, L layers that predict, Q predictions of one image, M objects of the batch, M_b of one image, C class
logits, P pairs of all images in one layer. Boxes are cxcywh in parts of the picture's sides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from detkit.ops.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from detkit.ops.iou import generalized_box_iou
from detkit.structures import Target

INVALID_COST = 1e8  # instead of a cost that is not finite: such a pair is taken only if no other is left


@dataclass(frozen=True, eq=False)
class SetTargets:
    """The objects of a batch, image after image.

    boxes   float `[M, 4]`
    labels  int64 `[M]`
    counts  objects of each image
    """

    boxes: Tensor
    labels: Tensor
    counts: list[int]

    @staticmethod
    def of(targets: Sequence[Target], sides: Tensor) -> SetTargets:
        """Those that are not ignored; sides `[B, 4]`: (w, h, w, h) of each picture in px."""
        objects = [target.not_ignored() for target in targets]
        boxes = [xyxy_to_cxcywh(part.boxes) / side for part, side in zip(objects, sides, strict=True)]
        return SetTargets(
            torch.cat(boxes), torch.cat([part.labels for part in objects]), [len(part) for part in objects]
        )

    def repeat(self, copies: int) -> tuple[SetTargets, Tensor]:
        """The objects of every image `copies` times, and which row here each of them is."""
        rows = torch.arange(len(self.labels), device=self.labels.device)
        rows = torch.cat([part.repeat(copies) for part in torch.split(rows, self.counts)])
        return SetTargets(self.boxes[rows], self.labels[rows], [count * copies for count in self.counts]), rows


@dataclass(frozen=True, eq=False)
class Pairs:
    """Predictions and the objects that they answer for. P is the sum over the images of min(Q, M_b), in every layer.

    This is no `Assignment` of every prediction to an object: only a few of many predictions have one, and pairs index
    them directly, where a search for the positive ones would make a GPU wait.

    images       int64 `[P]`, the same in every layer
    predictions  int64 `[L, P]`, ascending within an image
    objects      int64 `[L, P]`, rows of `SetTargets`
    """

    images: Tensor
    predictions: Tensor
    objects: Tensor

    def rows(self) -> tuple[Tensor, Tensor, Tensor]:
        """Layer, image and prediction of each pair: the index of a tensor `[L, B, Q, ...]` that gives `[L, P, ...]`."""
        layers = torch.arange(len(self.predictions), device=self.predictions.device)[:, None]
        return layers, self.images, self.predictions


class HungarianAssigner:
    """Every object gets the prediction that makes the total cost of all pairs least (equation 1).

    The cost of a pair is class_weight * class_cost + l1_weight * L1 distance - giou_weight * GIoU. `class_cost` takes
    logits `[L, Q, C]` and labels `[M_b]` and returns `[L, Q, M_b]`.
    """

    def __init__(
        self,
        class_cost: Callable[[Tensor, Tensor], Tensor],
        class_weight: float,
        l1_weight: float,
        giou_weight: float,
    ) -> None:
        self.class_cost = class_cost
        self.class_weight, self.l1_weight, self.giou_weight = class_weight, l1_weight, giou_weight

    @torch.no_grad()
    def assign(self, logits: Tensor, boxes: Tensor, targets: SetTargets) -> Pairs:
        """logits `[L, B, Q, C]`, boxes `[L, B, Q, 4]`; every layer and image is assigned by itself."""
        images = zip(
            logits.float().unbind(1),
            boxes.float().unbind(1),
            torch.split(targets.boxes.float(), targets.counts),
            torch.split(targets.labels, targets.counts),
            strict=True,
        )
        return solve([self._costs(*image) for image in images])

    def _costs(self, logits: Tensor, boxes: Tensor, target_boxes: Tensor, labels: Tensor) -> Tensor:
        """`[L, Q, M_b]` of one image."""
        target_boxes = target_boxes.expand(boxes.shape[0], -1, -1)
        giou = generalized_box_iou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(target_boxes))
        distance = torch.cdist(boxes, target_boxes, p=1)
        class_cost = self.class_cost(logits, labels)
        return self.class_weight * class_cost + self.l1_weight * distance - self.giou_weight * giou


@torch.no_grad()
def solve(costs: Sequence[Tensor]) -> Pairs:
    """The pairs of least total cost in each image and layer; costs are float `[L, Q, M_b]`, one tensor an image.

    All costs go to the CPU, where scipy decides, in one copy. With fewer predictions than objects the objects that
    cost most go without. A cost that is not finite counts as a very high one, so that a diverged network reaches its
    loss, where the training loop names the images.
    """
    from scipy.optimize import linear_sum_assignment  # half a second to import, and prediction does not need it

    device, layers = costs[0].device, costs[0].shape[0]
    flat = torch.cat([cost.flatten() for cost in costs]).float()
    flat = flat.nan_to_num(INVALID_COST, INVALID_COST, INVALID_COST).cpu()
    images: list[int] = []
    pairs: list[Tensor] = []  # of each image `[2, L, P_b]`
    first_object = 0
    for image, (part, cost) in enumerate(zip(torch.split(flat, [cost.numel() for cost in costs]), costs, strict=True)):
        solutions = [linear_sum_assignment(layer) for layer in part.view(cost.shape).numpy()]
        predictions, objects = torch.tensor(
            [[solution[side].tolist() for solution in solutions] for side in (0, 1)], dtype=torch.int64
        )
        pairs.append(torch.stack([predictions, objects + first_object]))
        images += [image] * predictions.shape[1]
        first_object += cost.shape[2]
    joined = torch.cat([pair.view(2, layers, -1) for pair in pairs], dim=2).to(device)
    return Pairs(torch.tensor(images, dtype=torch.int64, device=device), joined[0], joined[1])
