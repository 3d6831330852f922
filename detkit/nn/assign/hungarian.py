"""One prediction for each object, at the least total cost (DETR, arXiv 2005.12872, section 3.1).

Legend: L decoder layers, Q predictions of one image, M objects of one image, P pairs of all images in one layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

NEVER = 1e8  # the cost of a pair whose own is not a number: taken if nothing else is left


@dataclass(frozen=True, eq=False)
class Pairs:
    """P = the sum over the images of min(Q, M), the same in every layer; queries rise within an image.

    images   int64 `[P]`
    queries  int64 `[L, P]`
    objects  int64 `[L, P]`, into the objects of all images in a row
    """

    images: Tensor
    queries: Tensor
    objects: Tensor


@torch.no_grad()
def match_hungarian(costs: Sequence[Tensor]) -> Pairs:
    """The pairs of least total cost, for every image and layer. `costs`: of each image, float `[L, Q, M]`.

    All costs go to the CPU, where scipy decides, in one copy. With fewer predictions than objects the dearest objects
    go without. A cost that is not finite is a very high one: the loss says which image it came from.
    """
    device, layers = costs[0].device, len(costs[0])
    flat = torch.cat([cost.flatten() for cost in costs]).float().nan_to_num(NEVER, NEVER, NEVER).cpu()
    images: list[int] = []
    pairs: list[Tensor] = []  # of each image, `[2, L, P_b]`
    first_object = 0
    for image, (part, cost) in enumerate(zip(torch.split(flat, [cost.numel() for cost in costs]), costs, strict=True)):
        found = [linear_sum_assignment(layer) for layer in part.view(cost.shape).numpy()]
        queries, objects = torch.tensor([[pair[side].tolist() for pair in found] for side in (0, 1)]).long()
        pairs.append(torch.stack([queries, objects + first_object]))
        images += [image] * queries.shape[1]
        first_object += cost.shape[2]
    joined = torch.cat([pair.view(2, layers, -1) for pair in pairs], dim=2).to(device)
    return Pairs(torch.tensor(images, dtype=torch.int64, device=device), joined[0], joined[1])
