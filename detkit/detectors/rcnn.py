"""R-CNN (Girshick, Donahue, Darrell, Malik, CVPR 2014, arXiv 1311.2524): each proposal passes the network by itself.

Training has three stages: the network, box regressors on its pool5, SVMs on its fc7.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor
from tqdm import tqdm

from detkit.config import Config
from detkit.detectors.region_based import RegionBasedDetector
from detkit.nn.backbones import BackboneConfig, build_backbone, load_classifier
from detkit.nn.backbones.alexnet import CaffeNetConfig
from detkit.nn.backbones.staged import StagedBackbone
from detkit.nn.heads.rcnn import RCNNHead, RCNNHeadConfig, RCNNOutputs
from detkit.nn.heads.rcnn_stages import BoxRegressionConfig, HardNegativeSVM, SVMConfig, fit_box_regressor
from detkit.nn.input import ImageInput, InputConfig, KeepConfig
from detkit.nn.proposals import ProposalsConfig
from detkit.nn.proposals.selective_search import SelectiveSearchConfig
from detkit.ops.iou import box_iou
from detkit.ops.roi import roi_warp
from detkit.structures import Batch, Target

CROPS = 128  # that pass through the network at once
NORM_REGIONS = 20  # of each image, drawn to measure the norm of the features


class RCNNConfig(Config):
    """Defaults: CaffeNet on VOC."""

    name: Literal["rcnn"] = "rcnn"
    backbone: BackboneConfig = CaffeNetConfig()
    roi: RCNNHeadConfig = RCNNHeadConfig()
    proposals: ProposalsConfig = SelectiveSearchConfig(max_boxes=2000)
    input: InputConfig = InputConfig(resize=KeepConfig())

    @model_validator(mode="after")
    def _one_level(self) -> RCNNConfig:
        if len(self.backbone.levels) != 1:
            raise ValueError(f"backbone.levels: expected one level, found {list(self.backbone.levels)}")
        return self


class RCNN(RegionBasedDetector):
    """`batch.proposals` come with the images."""

    roi: RCNNHead

    def __init__(
        self,
        backbone: StagedBackbone,
        roi: RCNNHead,
        proposals: ProposalsConfig,
        image_input: ImageInput,
        class_names: Sequence[str],
    ) -> None:
        super().__init__(backbone, None, roi, image_input, class_names)
        self.proposals = proposals

    def forward(self, batch: Batch) -> RCNNOutputs:
        proposals, samples = self.chosen(batch.proposals, batch)
        outputs: RCNNOutputs = self.roi(self.pool5(self.input(batch), proposals), proposals, samples)
        return outputs

    def pool5(self, images: Tensor, boxes: Sequence[Tensor]) -> Tensor:
        """`[P, C, output_size, output_size]`: the maximum over each cell of the last map of each crop."""
        config = self.roi.config

        def maps(images: Tensor, boxes: Sequence[Tensor]) -> Tensor:
            crops = roi_warp(images, boxes, config.crop_size, context=config.context)
            return F.adaptive_max_pool2d(self.backbone(crops)[-1], config.output_size)

        if self.training:  # batch statistics are those of all crops
            return maps(images, boxes)
        parts = [
            maps(image, [part])
            for image, of_image in zip(torch.split(images, 1), boxes, strict=True)
            for part in torch.split(of_image, CROPS)
            if len(part)
        ]
        if not parts:
            return images.new_zeros(0, self.backbone.out_channels[-1], config.output_size, config.output_size)
        return torch.cat(parts)

    @torch.no_grad()
    def finish_training(self, loader: Iterable[Batch]) -> str:
        """Stages two and three, on every training image as it is: box regressors and SVMs; what they were made of.

        A first pass over the images describes the objects, which are the positives, and what overlaps them; a second
        one mines hard negatives. A class without an object, or without a negative, is never detected, and the text says
        so.
        """
        config = self.roi.config
        if config.svm is None and config.box_regression is None:
            return "nothing to fit"
        self.eval()
        examples = self._collect(loader)
        text = []
        if config.box_regression:
            text.append(self._fit_box_regressors(config.box_regression, examples))
        if config.svm:
            text.append(self._fit_svms(config.svm, examples, loader))
        self.roi.finished.fill_(True)
        return "; ".join(text)

    def _collect(self, loader: Iterable[Batch]) -> Examples:
        config, rng = self.roi.config.box_regression, torch.Generator().manual_seed(0)
        min_iou = config.min_iou if config else 1.0

        def regions_of(target: Target, proposals: Tensor) -> Tensor:
            """The objects, `NORM_REGIONS` proposals at random, and the rest of those near an object."""
            objects, _ = target.objects()
            rest = torch.randperm(len(proposals), generator=rng).to(proposals.device)
            drawn, rest = proposals[rest[:NORM_REGIONS]], proposals[rest[NORM_REGIONS:]]
            return torch.cat([objects, drawn, rest[best_object(rest, objects)[0] > min_iou]])

        examples = Examples()
        for pool5, fc7, regions, target in self._described(loader, regions_of):
            objects, labels = target.objects()
            drawn = slice(len(objects), len(objects) + NORM_REGIONS)
            examples.pool5_norms += pool5[drawn].norm(dim=1).tolist()
            examples.fc7_norms += fc7[drawn].norm(dim=1).tolist()
            iou, match = best_object(regions, objects)
            near = torch.nonzero(iou > min_iou).squeeze(1)
            deltas = self.roi.coder.encode(objects[match[near]], regions[near])
            for label, row in zip(labels.tolist(), fc7, strict=False):
                examples.fc7[label].append(row.cpu().numpy().copy())
            for label, row, delta in zip(labels[match[near]].tolist(), pool5[near], deltas, strict=True):
                if config and len(examples.pool5[label]) < config.max_examples:
                    examples.pool5[label].append(row.cpu().numpy().copy())
                    examples.deltas[label].append(delta.cpu().numpy())
        return examples

    def _fit_box_regressors(self, config: BoxRegressionConfig, examples: Examples) -> str:
        scale = scale_to(config.feature_norm, examples.pool5_norms)
        self.roi.pool5_scale.fill_(scale)
        for label in tqdm(range(len(self.class_names)), desc="box regressors", leave=False):
            features = stack(examples.pool5[label], self.roi.box_weight.shape[2]) * np.float32(scale)
            weight, bias = fit_box_regressor(features, stack(examples.deltas[label], 4), config)
            self.roi.box_weight[label] = torch.from_numpy(weight)
            self.roi.box_bias[label] = torch.from_numpy(bias)
        return f"box regressors on {sum(map(len, examples.pool5.values())):,} regions"

    def _fit_svms(self, config: SVMConfig, examples: Examples, loader: Iterable[Batch]) -> str:
        scale = scale_to(config.feature_norm, examples.fc7_norms)
        width, labels = self.roi.svm_weight.shape[1], range(len(self.class_names))
        svms = [HardNegativeSVM(config, stack(examples.fc7[label], width) * np.float32(scale)) for label in labels]
        everything = self._described(loader, lambda target, proposals: torch.cat([target.objects()[0], proposals]))
        for _, fc7, regions, target in everything:
            features = fc7.cpu().numpy() * np.float32(scale)
            for label, svm in enumerate(svms):
                of_class = target.boxes[target.labels == label]  # those to ignore too: they are no negatives
                far = best_object(regions, of_class)[0] < config.negative_threshold
                svm.see(features[far.cpu().numpy()])
        for label, svm in enumerate(svms):
            svm.fit()
            self.roi.svm_weight[label] = torch.from_numpy(svm.weight)
            self.roi.svm_bias[label] = svm.bias
        self.roi.fc7_scale.fill_(scale)
        kept = sum(svm.num_negatives for svm in svms)
        text = f"SVMs on {sum(map(len, examples.fc7.values())):,} objects and {kept:,} hard negatives"
        missing = [name for name, svm in zip(self.class_names, svms, strict=True) if not svm.fitted]
        return text + (f"; too few of {', '.join(missing)}, which will never be detected" if missing else "")

    def _described(
        self, loader: Iterable[Batch], regions_of: Callable[[Target, Tensor], Tensor]
    ) -> Iterator[tuple[Tensor, Tensor, Tensor, Target]]:
        """Of each image: pool5 `[N, D]` and fc7 `[N, F]` of its regions `[N, 4]`, and its target."""
        for batch in loader:
            batch = batch.to(self.input.mean.device)
            if batch.targets is None or batch.proposals is None:
                raise ValueError("finish_training: a batch without targets or proposals")
            regions = [regions_of(*of_image) for of_image in zip(batch.targets, batch.proposals, strict=True)]
            pool5 = self.pool5(self.input(batch), regions)
            counts = [len(of_image) for of_image in regions]
            fc7 = torch.split(self.roi.describe(pool5), counts)
            yield from zip(torch.split(pool5.flatten(1), counts), fc7, regions, batch.targets, strict=True)


@dataclass
class Examples:
    """Float32 rows by label, on the CPU.

    fc7          `[F]` of every object
    pool5        `[D]` of regions that overlap an object enough
    deltas       `[4]` from those to the object
    fc7_norms    of regions drawn at random
    pool5_norms  of the same
    """

    fc7: dict[int, list[np.ndarray]] = field(default_factory=lambda: defaultdict(list))
    pool5: dict[int, list[np.ndarray]] = field(default_factory=lambda: defaultdict(list))
    deltas: dict[int, list[np.ndarray]] = field(default_factory=lambda: defaultdict(list))
    fc7_norms: list[float] = field(default_factory=list)
    pool5_norms: list[float] = field(default_factory=list)


def best_object(regions: Tensor, objects: Tensor) -> tuple[Tensor, Tensor]:
    """The highest IoU `[N]` of each region with an object, 0 without any, and which object that is."""
    if not len(objects):
        return regions.new_zeros(len(regions)), regions.new_zeros(len(regions), dtype=torch.int64)
    iou, match = box_iou(regions, objects).max(dim=1)
    return iou, match


def scale_to(norm: float, norms: Sequence[float]) -> float:
    """The factor that makes `norm` of the mean of `norms`; 1 where there is nothing to measure."""
    mean = float(np.mean(norms)) if norms else 0.0
    return norm / mean if mean else 1.0


def stack(rows: Sequence[np.ndarray], width: int) -> np.ndarray:
    return np.stack(rows) if rows else np.zeros((0, width), np.float32)


def build_rcnn(config: RCNNConfig, class_names: Sequence[str]) -> RCNN:
    backbone = build_backbone(config.backbone)
    roi = RCNNHead(config.roi, backbone.out_channels[0], class_names)
    load_classifier(config.backbone, roi.hidden)
    return RCNN(backbone, roi, config.proposals, ImageInput(config.input, 1), class_names)
