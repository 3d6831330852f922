"""R-CNN's head (Girshick, Donahue, Darrell, Malik, arXiv 1311.2524): a softmax to fine-tune the network with, then, on
features that stand still, linear SVMs that score and ridge regressors that refine.

Legend: P regions of the batch together, N boxes of one image, K classes, F features of a region (fc7), D of its map
(pool5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from detkit.nn.heads.rcnn_stages import BoxRegressionConfig, SVMConfig
from detkit.nn.heads.regions import RegionConfig, RegionHead, RoISamples
from detkit.ops.coders import BoxCoder
from detkit.structures import Detections, ImageInfo


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
    top_k_per_class: int | None = Field(100, ge=1)
    nms_threshold: float = Field(0.3, ge=0, le=1)


@dataclass(frozen=True, eq=False)
class RCNNOutputs:
    """
    proposals  B x `[N, 4]` xyxy in input px, P in all
    logits     `[P, K + 1]`, 0 is background
    margins    `[P, K]` of the SVMs, once there are any
    deltas     `[P, K, 4]`, once there are regressors
    samples    when training
    """

    proposals: tuple[Tensor, ...]
    logits: Tensor
    margins: Tensor | None
    deltas: Tensor | None
    samples: RoISamples | None


class RCNNHead(RegionHead):
    """SVMs and regressors are buffers: part of every checkpoint, none of the optimizer's business.

    `finished` says whether they are fitted to the network as it is; training it further makes them stale.
    """

    config: RCNNHeadConfig
    finished: Tensor
    fc7_scale: Tensor  # []: makes the mean norm that of `svm.feature_norm`
    pool5_scale: Tensor  # []
    svm_weight: Tensor  # [K, F]
    svm_bias: Tensor  # [K]
    box_weight: Tensor  # [K, 4, D]
    box_bias: Tensor  # [K, 4]

    def __init__(self, config: RCNNHeadConfig, in_channels: int, class_names: Sequence[str]) -> None:
        in_features, classes = in_channels * config.output_size**2, len(class_names)
        super().__init__(config, in_features, class_names)
        self.coder = BoxCoder()
        self.register_buffer("finished", torch.tensor(False))
        if config.svm:
            self.register_buffer("fc7_scale", torch.tensor(1.0))
            self.register_buffer("svm_weight", torch.zeros(classes, self.classifier.in_features))
            self.register_buffer("svm_bias", torch.zeros(classes))
        if config.box_regression:
            self.register_buffer("pool5_scale", torch.tensor(1.0))
            self.register_buffer("box_weight", torch.zeros(classes, 4, in_features))
            self.register_buffer("box_bias", torch.zeros(classes, 4))

    def forward(self, pool5: Tensor, proposals: Sequence[Tensor], samples: RoISamples | None = None) -> RCNNOutputs:
        """pool5 `[P, C, output_size, output_size]` of the regions."""
        fc7 = self.describe(pool5)
        margins = deltas = None
        if self.training:
            self.finished.fill_(False)
        elif self.finished:
            if self.config.svm:
                margins = F.linear(fc7 * self.fc7_scale, self.svm_weight, self.svm_bias)
            if self.config.box_regression:
                weight = self.box_weight.flatten(0, 1)
                deltas = F.linear(pool5.flatten(1) * self.pool5_scale, weight, self.box_bias.flatten())
                deltas = deltas.view(-1, len(self.class_names), 4)
        return RCNNOutputs(tuple(proposals), self.classifier(fc7), margins, deltas, samples)

    def criterion(self, outputs: RCNNOutputs) -> dict[str, Tensor]:
        if outputs.samples is None:
            raise ValueError("no sampled proposals: the outputs were computed in evaluation mode or without targets")
        labels = outputs.samples.labels
        loss = F.cross_entropy(outputs.logits.float(), labels, reduction="sum")
        return {"roi_class": loss / max(1, len(labels))}

    @torch.no_grad()
    def postprocess(self, outputs: RCNNOutputs, infos: Sequence[ImageInfo]) -> list[Detections]:
        """Scores are probabilities of the softmax, or sigmoids of the margins: 0.5 is on the hyperplane."""
        boxes = torch.cat(outputs.proposals)
        if outputs.margins is None:
            scores = outputs.logits.float().softmax(dim=1)[:, 1:]
        else:
            scores = outputs.margins.float().sigmoid()
        if outputs.deltas is not None:
            boxes = self.coder.decode(outputs.deltas.float(), boxes)
        return self.detect(boxes, scores, [len(proposals) for proposals in outputs.proposals], infos)
