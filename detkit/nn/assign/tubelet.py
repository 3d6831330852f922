"""Assignment of still boxes to tubelets by their mean overlap (ACT).

Legend: N priors and M objects of one clip, T frames.
"""

from __future__ import annotations

from torch import Tensor
from typing_extensions import override

from detkit.nn.assign.iou import BipartiteAssigner
from detkit.ops.tubelets import tubelet_iou
from detkit.structures import Objects


class TubeletAssigner(BipartiteAssigner):
    """SSD's matching by the mean IoU over the frames of a prior, which is the same in all of them, and a tubelet
    (arXiv 1705.01861)."""

    @override
    def overlaps(self, boxes: Tensor, objects: Objects[Tensor]) -> Tensor:
        tubelets = tubelets_of(objects)
        return tubelet_iou(tubelets, boxes[:, None].expand(-1, tubelets.shape[1], -1))


def tubelets_of(objects: Objects[Tensor]) -> Tensor:
    """float32 `[M, T, 4]` xyxy. Raises ValueError if the objects have no `tubes`."""
    if objects.tubes is None:
        raise ValueError("objects: expected tubes [M, T, 4], the boxes in each frame of the clip, found none")
    return objects.tubes
