"""R-CNN (Girshick, Donahue, Darrell, Malik, CVPR 2014, arXiv 1311.2524): each proposal passes the network by itself.

Training has three stages: the network, box regressors on its pool5, SVMs on its fc7.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor
from tqdm import tqdm

from detkit.config import Config
from detkit.detectors.region_based import RegionBasedDetector, RegionBasedOutputs, check_one_level
from detkit.nn.backbones import BackboneConfig, build_backbone, load_classifier
from detkit.nn.backbones.alexnet import CaffeNetConfig
from detkit.nn.backbones.staged import StagedBackbone
from detkit.nn.heads.rcnn import RCNNHead, RCNNHeadConfig, RCNNOutputs
from detkit.nn.heads.rcnn_stages import BoxRegressionConfig, HardNegativeSVM, SVMConfig, fit_box_regressor
from detkit.nn.input import ImageInput, InputConfig, KeepConfig
from detkit.nn.proposals import ProposalsConfig
from detkit.nn.proposals.regions import Regions
from detkit.nn.proposals.selective_search import SelectiveSearchConfig
from detkit.ops.iou import box_iou
from detkit.ops.roi import roi_warp
from detkit.structures import Batch, Categories, Target

CROPS = 128  # that pass through the network at once
NORM_REGIONS = 20  # of each image, drawn to measure the norm of the features


class RCNNConfig(Config):
    """Defaults: CaffeNet on VOC."""

    at_test: ClassVar[tuple[str, ...]] = ("proposals",)

    name: Literal["rcnn"] = "rcnn"
    backbone: BackboneConfig = CaffeNetConfig()
    roi: RCNNHeadConfig = RCNNHeadConfig()
    proposals: ProposalsConfig = SelectiveSearchConfig(max_boxes=2000)
    input: InputConfig = InputConfig(resize=KeepConfig())

    @model_validator(mode="after")
    def _one_level(self) -> RCNNConfig:
        check_one_level(self.backbone.strides)
        return self


class RCNN(RegionBasedDetector[RegionBasedOutputs[RCNNOutputs]]):
    """`batch.proposals` come with the images.

    An exported program passes all crops of a batch through the network at once, so its memory grows with their number.
    """

    roi: RCNNHead

    def __init__(
        self,
        backbone: StagedBackbone,
        roi: RCNNHead,
        proposals: ProposalsConfig,
        image_input: ImageInput,
        categories: Categories,
    ) -> None:
        super().__init__(backbone, None, roi, image_input, categories)
        self.proposals = proposals

    def network(
        self,
        images: Tensor,
        sizes: Tensor,
        proposals: Regions | None = None,
        targets: Sequence[Target] | None = None,
    ) -> RegionBasedOutputs[RCNNOutputs]:
        regions, region_targets = self.regions_with_targets(proposals, targets)
        roi = self.roi(self.pool5(images, regions), regions, region_targets)
        return RegionBasedOutputs(roi, self.detect_in_evaluation(roi, sizes))

    def pool5(self, images: Tensor, regions: Regions) -> Tensor:
        """`[P, C, output_size, output_size]`: the maximum over each cell of the last map of each crop."""
        # In training, because batch statistics are those of all crops; an exported program cannot count its parts.
        if self.training or torch.compiler.is_compiling():
            return self._pool5_at_once(images, regions.rois())
        parts = [
            self._pool5_at_once(image, F.pad(part, (1, 0)))  # of image 0
            for image, boxes in zip(torch.split(images, 1), regions.to_list(len(images)), strict=True)
            for part in torch.split(boxes, CROPS)
            if len(part)
        ]
        if not parts:
            size = self.roi.config.output_size
            return images.new_zeros(0, self.backbone.out_channels[-1], size, size)
        return torch.cat(parts)

    def _pool5_at_once(self, images: Tensor, rois: Tensor) -> Tensor:
        config = self.roi.config
        crops = roi_warp(images, rois, config.crop_size, context=config.context)
        pool = maximum_of_cells if torch.compiler.is_compiling() else F.adaptive_max_pool2d
        return pool(self.backbone(crops)[-1], config.output_size)

    @torch.no_grad()
    def finish_training(self, loader: Iterable[Batch]) -> str:
        """Stages two and three, on every training image as it is: fits box regressors and SVMs.

        A first pass over the images computes features of the objects, which are the positives, and of what overlaps
        them; a second one mines hard negatives. A class without an object, or without a negative, is never detected.
        Returns a sentence for the user with the number of examples and such classes.
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

        def choose(target: Target, proposals: Tensor) -> Tensor:
            """The objects, `NORM_REGIONS` proposals at random, and the rest of those near an object."""
            objects = target.not_ignored().boxes
            order = torch.randperm(len(proposals), generator=rng).to(proposals.device)
            drawn, rest = proposals[order[:NORM_REGIONS]], proposals[order[NORM_REGIONS:]]
            return torch.cat([objects, drawn, rest[best_object(rest, objects)[0] > min_iou]])

        examples = Examples()
        for pool5, fc7, regions, target in self._region_features(loader, choose):
            objects = target.not_ignored()
            drawn = slice(len(objects), len(objects) + NORM_REGIONS)
            examples.pool5_norms += pool5[drawn].norm(dim=1).tolist()
            examples.fc7_norms += fc7[drawn].norm(dim=1).tolist()
            iou, matched = best_object(regions, objects.boxes)
            near = torch.nonzero(iou > min_iou).squeeze(1)
            deltas = self.roi.coder.encode(objects.boxes[matched[near]], regions[near])
            for label, row in zip(objects.labels.tolist(), fc7, strict=False):
                examples.fc7[label].append(row.cpu().numpy().copy())
            for label, row, delta in zip(objects.labels[matched[near]].tolist(), pool5[near], deltas, strict=True):
                if config and len(examples.pool5[label]) < config.max_examples:
                    examples.pool5[label].append(row.cpu().numpy().copy())
                    examples.deltas[label].append(delta.cpu().numpy())
        return examples

    def _fit_box_regressors(self, config: BoxRegressionConfig, examples: Examples) -> str:
        scale = scale_to(config.feature_norm, examples.pool5_norms)
        self.roi.pool5_scale.fill_(scale)
        for label in tqdm(range(len(self.categories)), desc="box regressors", leave=False):
            features = stack(examples.pool5[label], self.roi.box_weight.shape[2]) * np.float32(scale)
            weight, bias = fit_box_regressor(features, stack(examples.deltas[label], 4), config)
            self.roi.box_weight[label] = torch.from_numpy(weight)
            self.roi.box_bias[label] = torch.from_numpy(bias)
        return f"box regressors on {sum(map(len, examples.pool5.values())):,} regions"

    def _fit_svms(self, config: SVMConfig, examples: Examples, loader: Iterable[Batch]) -> str:
        scale = scale_to(config.feature_norm, examples.fc7_norms)
        width, labels = self.roi.svm_weight.shape[1], range(len(self.categories))
        svms = [HardNegativeSVM(config, stack(examples.fc7[label], width) * np.float32(scale)) for label in labels]
        for _, fc7, regions, target in self._region_features(loader, objects_and_proposals):
            features = fc7.cpu().numpy() * np.float32(scale)
            for label, svm in enumerate(svms):
                of_class = target.objects.boxes[target.objects.labels == label]  # ignored ones too: no negatives
                far = best_object(regions, of_class)[0] < config.negative_threshold
                svm.add_negatives(features[far.cpu().numpy()])
        for label, svm in enumerate(svms):
            svm.fit()
            self.roi.svm_weight[label] = torch.from_numpy(svm.weight)
            self.roi.svm_bias[label] = svm.bias
        self.roi.fc7_scale.fill_(scale)
        negatives = sum(svm.num_negatives for svm in svms)
        text = f"SVMs on {sum(map(len, examples.fc7.values())):,} objects and {negatives:,} hard negatives"
        missing = [name for name, svm in zip(self.categories.names, svms, strict=True) if not svm.fitted]
        return text + (f"; too few of {', '.join(missing)}, which will never be detected" if missing else "")

    def _region_features(
        self, loader: Iterable[Batch], choose: Callable[[Target, Tensor], Tensor]
    ) -> Iterator[tuple[Tensor, Tensor, Tensor, Target]]:
        """Yields for each image pool5 `[N, D]`, fc7 `[N, F]` and boxes `[N, 4]` of its regions, and its target.

        choose  the target and proposals `[P_i, 4]` of an image -> the boxes of its N regions
        """
        for batch in loader:
            batch = batch.to(self.input.mean.device)
            if batch.targets is None or batch.proposals is None:
                raise ValueError("finish_training: a batch without targets or proposals")
            boxes = [choose(*pair) for pair in zip(batch.targets, batch.proposals, strict=True)]
            pool5 = self.pool5(self.input(batch.images, batch.sizes()), Regions.from_list(boxes))
            counts = [len(part) for part in boxes]
            fc7 = torch.split(self.roi.last_hidden(pool5), counts)
            yield from zip(torch.split(pool5.flatten(1), counts), fc7, boxes, batch.targets, strict=True)


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


def maximum_of_cells(level: Tensor, cells: int) -> Tensor:
    """`F.adaptive_max_pool2d` to `cells` a side in operators that ONNX has, also where cells differ in size."""
    for dim in (2, 3):
        side = level.shape[dim]
        borders = [(i * side // cells, -(-(i + 1) * side // cells)) for i in range(cells)]
        level = torch.stack([level.narrow(dim, start, end - start).amax(dim) for start, end in borders], dim)
    return level


def objects_and_proposals(target: Target, proposals: Tensor) -> Tensor:
    """Boxes `[N, 4]` of the objects that are not ignored, then of the proposals."""
    return torch.cat([target.not_ignored().boxes, proposals])


def best_object(regions: Tensor, objects: Tensor) -> tuple[Tensor, Tensor]:
    """The highest IoU `[N]` of each region with an object, 0 without any, and the index of that object."""
    if not len(objects):
        return regions.new_zeros(len(regions)), regions.new_zeros(len(regions), dtype=torch.int64)
    iou, matched = box_iou(regions, objects).max(dim=1)
    return iou, matched


def scale_to(norm: float, norms: Sequence[float]) -> float:
    """The factor that brings the mean of `norms` to `norm`; 1 where there is nothing to measure."""
    mean = float(np.mean(norms)) if norms else 0.0
    return norm / mean if mean else 1.0


def stack(rows: Sequence[np.ndarray], width: int) -> np.ndarray:
    return np.stack(rows) if rows else np.zeros((0, width), np.float32)


def build_rcnn(config: RCNNConfig, categories: Categories) -> RCNN:
    backbone = build_backbone(config.backbone)
    roi = RCNNHead(config.roi, backbone.out_channels[0], len(categories))
    detector = RCNN(backbone, roi, config.proposals, ImageInput(config.input, 1), categories)
    if note := load_classifier(config.backbone, roi.hidden):
        detector.notes.append(note)
    return detector
