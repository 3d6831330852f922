"""R-CNN's head (Girshick, Donahue, Darrell, Malik, arXiv 1311.2524): a softmax to fine-tune the network with, then, on
features that stand still, linear SVMs that score and ridge regressors that refine.

Legend: B images, P regions of the batch together, K classes, F features of a region (fc7), D of its map (pool5).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor
from typing_extensions import Self, override

from detkit.nn.heads.class_rows import rows
from detkit.nn.heads.rcnn_stages import NEVER, BoxRegressionConfig, SVMConfig
from detkit.nn.heads.regions import NO_SAMPLES, LayeredRegionHead, RegionConfig, RegionTargets
from detkit.nn.outputs import register_outputs
from detkit.nn.proposals.regions import Regions
from detkit.nn.selection import DetectionRows, SelectionConfig
from detkit.ops.coders import BoxCoder


class RCNNSelectionConfig(SelectionConfig):
    top_k_per_class: int | None = Field(100, ge=1)
    nms_threshold: float | None = Field(0.3, ge=0, le=1)


class RCNNHeadConfig(RegionConfig):
    """The paper's, for CaffeNet or AlexNet. `svm: null` scores with the softmax (appendix B: mAP 54.2 -> 50.9)."""

    crop_size: int = Field(227, ge=1)  # px, both sides of a warped region
    context: int = Field(16, ge=0)  # px of the crop on each side that show what surrounds the region
    output_size: int = Field(6, ge=1)  # cells a side of pool5, the maximum over the last map
    hidden: tuple[int, ...] = (4096, 4096)
    dropout: float = Field(0.5, ge=0, lt=1)
    batch_size_per_image: int = Field(64, ge=1)
    svm: SVMConfig | None = SVMConfig()
    box_regression: BoxRegressionConfig | None = BoxRegressionConfig()
    selection: RCNNSelectionConfig = RCNNSelectionConfig()


@register_outputs
@dataclass(frozen=True, eq=False)
class RCNNOutputs:
    """
    regions  the P regions
    logits   `[P, K + 1]`, 0 is background
    margins  `[P, K]` of the SVMs once they are fitted, else None
    deltas   `[P, K, 4]` of the regressors once they are fitted, else None
    targets  of the regions when training, else None
    """

    regions: Regions
    logits: Tensor
    margins: Tensor | None
    deltas: Tensor | None
    targets: RegionTargets | None


class RCNNHead(LayeredRegionHead[RCNNOutputs]):
    """SVMs and regressors are buffers: part of every checkpoint, but not trained by the optimizer.

    `finished` says whether they are fitted to the network as it is; training it further makes them stale. A program
    that is exported cannot ask a tensor: it computes what `finished` was when the mode was set last.
    """

    config: RCNNHeadConfig
    finished: Tensor
    fc7_scale: Tensor  # []: brings the mean norm of fc7 to `svm.feature_norm`
    pool5_scale: Tensor  # []: brings that of pool5 to `box_regression.feature_norm`
    svm_weight: Tensor  # [K, F]
    svm_bias: Tensor  # [K]
    box_weight: Tensor  # [K, 4, D]
    box_bias: Tensor  # [K, 4]

    def __init__(self, config: RCNNHeadConfig, in_channels: int, num_classes: int) -> None:
        in_features = in_channels * config.output_size**2
        super().__init__(config, in_features, num_classes)
        self.coder = BoxCoder()
        self.register_buffer("finished", torch.tensor(False))
        self.finished_when_exported = False
        if config.svm:
            self.register_buffer("fc7_scale", torch.tensor(1.0))
            self.register_buffer("svm_weight", torch.zeros(num_classes, self.classifier.in_features))
            self.register_buffer("svm_bias", torch.full((num_classes,), NEVER))
        if config.box_regression:
            self.register_buffer("pool5_scale", torch.tensor(1.0))
            self.register_buffer("box_weight", torch.zeros(num_classes, 4, in_features))
            self.register_buffer("box_bias", torch.zeros(num_classes, 4))

    @override
    def train(self, mode: bool = True) -> Self:
        self.finished_when_exported = bool(self.finished)
        return super().train(mode)

    def forward(self, pool5: Tensor, regions: Regions, targets: RegionTargets | None = None) -> RCNNOutputs:
        """pool5 `[P, C, output_size, output_size]` of the regions."""
        fc7 = self.last_hidden(pool5)
        margins = deltas = None
        if self.training:
            self.finished.fill_(False)
        elif self.finished_when_exported if torch.compiler.is_compiling() else self.finished:
            if self.config.svm:
                margins = F.linear(fc7 * self.fc7_scale, self.svm_weight, self.svm_bias)
            if self.config.box_regression:
                weight = self.box_weight.flatten(0, 1)
                deltas = F.linear(pool5.flatten(1) * self.pool5_scale, weight, self.box_bias.flatten())
                deltas = deltas.view(-1, self.num_classes, 4)
        return RCNNOutputs(regions, self.classifier(fc7), margins, deltas, targets)

    def criterion(self, outputs: RCNNOutputs) -> dict[str, Tensor]:
        if outputs.targets is None:
            raise ValueError(NO_SAMPLES)
        labels = outputs.targets.labels
        return {"roi_class": self.class_loss(outputs.logits, labels) / max(1, len(labels))}

    @torch.no_grad()
    def detect(self, outputs: RCNNOutputs, windows: Tensor) -> DetectionRows:
        """Scores are probabilities of the softmax, or sigmoids of the margins: 0.5 is on the hyperplane."""
        boxes = outputs.regions.boxes
        if outputs.margins is None:
            scores = outputs.logits.float().softmax(dim=1)[:, 1:]
        else:
            scores = outputs.margins.float().sigmoid()
        if outputs.deltas is not None:
            boxes = self.coder.decode(outputs.deltas.float(), boxes)
        return self.select(outputs.regions, boxes, scores, windows)

    @override
    def class_rows(self, num_classes: int) -> dict[str, Tensor]:
        of_each_class = ("svm_weight", "svm_bias", "box_weight", "box_bias")
        return super().class_rows(num_classes) | dict.fromkeys(of_each_class, rows(range(num_classes)))
