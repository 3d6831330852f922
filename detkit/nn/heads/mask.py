"""The mask branch of Mask R-CNN (He, Gkioxari, Dollar, Girshick, arXiv 1703.06870, section 3 and figure 4, right).

Legend: B images, D rows of an image, P regions, K classes, C channels, S x S cells of a mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import override

from detkit.nn.heads.branch import Branch, BranchConfig, BranchOutputs
from detkit.nn.heads.class_rows import rows as class_rows
from detkit.nn.heads.regions import conv_layers, init_relu_convs
from detkit.nn.selection import DetectionRows
from detkit.ops.masks import mask_targets
from detkit.structures import MaskCrops, Target


class MaskConfig(BranchConfig):
    """Defaults: torchvision's `maskrcnn_resnet50_fpn`. A mask has twice as many cells a side as `output_size`."""

    channels: tuple[int, ...] = (256, 256, 256, 256)  # of the 3x3 convolutions before the deconvolution
    norm: Literal["none", "bn"] = "none"  # after each of those convolutions
    deconv_channels: int = Field(256, ge=1)
    # soft: the share of a cell that is object, by RoIAlign (torchvision); binary: at least a half of it (Detectron2)
    target: Literal["soft", "binary"] = "soft"


class MaskBranch(Branch):
    """Logits `[P, K, S, S]`: a mask of each class, of which that of the region's class counts."""

    config: MaskConfig

    def __init__(self, config: MaskConfig, in_channels: int, strides: Sequence[int], num_classes: int) -> None:
        super().__init__(config, strides)
        self.layers = conv_layers(in_channels, config.channels, config.norm)
        self.deconv = nn.ConvTranspose2d((in_channels, *config.channels)[-1], config.deconv_channels, 2, stride=2)
        self.classifier = nn.Conv2d(config.deconv_channels, num_classes, 1)
        init_relu_convs(self)

    @override
    def predict(self, pooled: Tensor) -> Tensor:
        logits: Tensor = self.classifier(F.relu(self.deconv(self.layers(pooled))))
        return logits

    @override
    def criterion(self, outputs: BranchOutputs, targets: Sequence[Target]) -> dict[str, Tensor]:
        """The mean binary cross-entropy over the cells of the objects that have a mask (section 3)."""
        rows, masks = self._targets(outputs, targets)
        logits = outputs.logits[rows, outputs.labels[rows]].float()
        loss = F.binary_cross_entropy_with_logits(logits, masks, reduction="sum") / max(1, masks.numel())
        return {"mask": self.config.loss_weight * loss}

    @torch.no_grad()
    def _targets(self, outputs: BranchOutputs, targets: Sequence[Target]) -> tuple[Tensor, Tensor]:
        """The rows of regions whose object has a mask, int64 `[M]`, and float32 `[M, S, S]`."""
        regions, size, binary = outputs.regions, 2 * self.config.output_size, self.config.target == "binary"
        rows, parts = [], []
        for image, (target, window) in enumerate(zip(targets, outputs.windows, strict=True)):
            masks = target.not_ignored().masks
            if not isinstance(masks, MaskCrops):
                raise ValueError("expected targets with masks: the data set has none, or they were not read")
            known = torch.as_tensor(masks.sizes.prod(axis=1) > 0, device=window.device)
            here = torch.nonzero(regions.images == image).squeeze(1)
            here = here[known[outputs.objects[here]]]
            rows.append(here)
            parts.append(mask_targets(masks, outputs.objects[here], regions.boxes[here], window, size, aligned=binary))
        result = torch.cat(parts)
        return torch.cat(rows), (result >= 0.5).float() if binary else result

    @override
    def values(self, logits: Tensor, labels: Tensor) -> Tensor:
        return logits[torch.arange(labels.shape[0], device=labels.device), labels].float().sigmoid()

    @override
    def with_values(self, rows: DetectionRows, values: Tensor) -> DetectionRows:
        return replace(rows, masks=values)

    def class_rows(self, num_classes: int) -> dict[str, Tensor]:
        """Which rows of its weights belong to which class, had it `num_classes`; see `detkit.nn.heads.class_rows`."""
        return {"classifier": class_rows(range(num_classes))}
