"""ACT's predictions (Kalogeiton, Weinzaepfel, Ferrari, Schmid, arXiv 1705.01861): SSD's, with a box in each frame.

Legend: B clips, T frames, A priors, P positives of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from typing_extensions import override

from detkit.nn.assign.positives import Positives
from detkit.nn.assign.tubelet import TubeletAssigner, tubelets_of
from detkit.nn.heads.ssd import SSDHead, SSDHeadConfig, SSDOutputs, SSDSelectionConfig
from detkit.nn.selection import DetectionRows
from detkit.nn.tubelet_selection import select_tubelets
from detkit.ops.boxes import at_least_float32
from detkit.structures import Target


class ACTSelectionConfig(SSDSelectionConfig):
    """Overlaps are means over the frames."""

    suppression: Literal["nms"] = "nms"


class ACTHeadConfig(SSDHeadConfig):
    """A prior is an anchor cuboid: the same box in all frames. `fg_threshold` is of the mean IoU over the frames, and
    `ignored_iof` of the box of an ignored object in the first frame."""

    selection: ACTSelectionConfig = ACTSelectionConfig()


class ACTHead(SSDHead):
    """The levels have the channels of all frames, and each prior regresses a box in each frame.

    num_boxes  T
    """

    prefix = "act"

    def __init__(self, config: ACTHeadConfig, in_channels: Sequence[int], num_classes: int, num_boxes: int) -> None:
        super().__init__(config, in_channels, num_classes, num_boxes)
        self.assigner = TubeletAssigner(config.fg_threshold, ignored_iof=config.ignored_iof)

    @override
    def deltas_of(self, positives: Positives, priors: Tensor, targets: Sequence[Target]) -> Tensor:
        tubelets = torch.cat([tubelets_of(target.not_ignored()) for target in targets])[positives.object]
        return self.coder.encode(tubelets, priors[:, None].expand_as(tubelets)).flatten(1)

    @override
    def detect(self, outputs: SSDOutputs, windows: Tensor) -> DetectionRows:
        scores = at_least_float32(outputs.logits).softmax(dim=-1)[..., 1:]
        deltas = outputs.deltas.reshape(*outputs.deltas.shape[:2], self.num_boxes, 4)
        tubelets = self.coder.decode(deltas, outputs.priors.expand(deltas.shape[0], -1, -1))
        return select_tubelets(tubelets, scores, windows, self.config.selection)
