"""Classes whose sigmoid says how well the box fits too: the losses of RT-DETR, DEIM and LW-DETR.

Legend: see `detkit.nn.heads.set_head`.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from detkit.nn.heads.set_head import ClassTargets, SigmoidClasses
from detkit.nn.losses import (
    FocalLossConfig,
    IoUAwareLossConfig,
    MatchabilityLossConfig,
    VarifocalLossConfig,
    iou_aware_loss,
    matchability_loss,
    varifocal_loss,
)


class QualityClasses(SigmoidClasses):
    """Each class by itself; the target of a matched prediction follows from the IoU of its box with the object.

    focal  of the cost in the matching
    """

    def __init__(
        self,
        num_classes: int,
        focal: FocalLossConfig,
        loss: VarifocalLossConfig | MatchabilityLossConfig | IoUAwareLossConfig,
    ) -> None:
        super().__init__(num_classes, focal)
        self.config = loss

    def loss(self, logits: Tensor, targets: ClassTargets) -> Tensor:
        positive = F.one_hot(targets.labels, self.num_classes + 1)[..., :-1].to(logits.dtype)
        quality = positive * targets.quality[..., None]
        match self.config:
            case VarifocalLossConfig():
                losses = varifocal_loss(logits, quality, positive, self.config, fixed_weights=True)
            case MatchabilityLossConfig():
                losses = matchability_loss(logits, quality, positive, self.config)
            case IoUAwareLossConfig():
                losses = iou_aware_loss(logits, quality, positive, self.config)
        return (losses * targets.weights[..., None]).sum(dim=(1, 2, 3)) / targets.count
