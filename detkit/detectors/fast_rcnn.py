"""Fast R-CNN (Girshick, ICCV 2015, arXiv 1504.08083): proposals from elsewhere, one shared map, one region head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, model_validator
from torch import Tensor

from detkit.config import Config
from detkit.detectors.detector import Detector
from detkit.nn.backbones import BackboneConfig, build_backbone
from detkit.nn.backbones.staged import StagedBackbone
from detkit.nn.backbones.vgg import VGGConfig, load_vgg_classifier
from detkit.nn.heads.roi import RoIConfig, RoIHead, RoIOutputs
from detkit.nn.input import ImageInput, InputConfig, ShortSideConfig
from detkit.nn.necks.fpn import FPN, FPNConfig
from detkit.nn.proposals.selective_search import SelectiveSearchConfig
from detkit.structures import Batch, Detections, ImageInfo, Target


class FastRoIConfig(RoIConfig):
    """The paper's (sections 2.3 and 3.1): RoIPool, fc6 and fc7, 64 regions of each of two images."""

    pool: Literal["align", "pool"] = "pool"
    hidden: tuple[int, ...] = (4096, 4096)
    dropout: float = Field(0.5, ge=0, lt=1)
    bg_threshold: tuple[float, float] = (0.1, 0.5)  # its lower end is the paper's hard mining
    batch_size_per_image: int = Field(64, ge=1)
    smooth_l1_beta: float = Field(1.0, ge=0)
    nms_threshold: float = Field(0.3, ge=0, le=1)


class FastRCNNConfig(Config):
    """Defaults: VGG16 on VOC."""

    name: Literal["fast_rcnn"] = "fast_rcnn"
    backbone: BackboneConfig = VGGConfig()
    neck: FPNConfig | None = None  # null: the backbone's levels as they are
    roi: FastRoIConfig = FastRoIConfig()
    proposals: SelectiveSearchConfig = SelectiveSearchConfig(max_boxes=2000)
    input: InputConfig = InputConfig(resize=ShortSideConfig(size=600, max_size=1000))

    @model_validator(mode="after")
    def _levels_agree(self) -> FastRCNNConfig:
        levels = len(self.backbone.levels)
        if self.neck is None and levels > 1:
            raise ValueError(f"backbone.levels: {levels} levels of different widths need a neck, found neck: null")
        if self.roi.pool == "pool" and levels > 1:
            raise ValueError(f"roi.pool: RoIPool reads one level, found {levels}; use align, or one of backbone.levels")
        return self


class FastRCNN(Detector):
    """Faster R-CNN without the network that proposes: `batch.proposals` come with the images."""

    def __init__(
        self,
        backbone: StagedBackbone,
        neck: FPN | None,
        roi: RoIHead,
        proposals: SelectiveSearchConfig,
        image_input: ImageInput,
        class_names: Sequence[str],
    ) -> None:
        super().__init__(image_input, class_names)
        self.backbone = backbone
        self.neck = neck
        self.roi = roi
        self.proposals = proposals

    def forward(self, batch: Batch) -> RoIOutputs:
        if batch.proposals is None:
            raise ValueError("a batch without proposals; Fast R-CNN makes none itself")
        features = self.backbone(self.input(batch))
        if self.neck is not None:
            features = self.neck(features)
        proposals: Sequence[Tensor] = batch.proposals
        samples = None
        if self.training:
            if batch.targets is None:
                raise ValueError("a batch without targets in training mode; call detector.eval() to detect")
            proposals, samples = self.roi.sample(proposals, batch.targets)
        outputs: RoIOutputs = self.roi(features, proposals, samples)
        return outputs

    def criterion(self, outputs: RoIOutputs, targets: Sequence[Target]) -> dict[str, Tensor]:
        return self.roi.criterion(outputs)

    def postprocess(self, outputs: RoIOutputs, infos: Sequence[ImageInfo]) -> list[Detections]:
        return self.roi.postprocess(outputs, infos)


def build_fast_rcnn(config: FastRCNNConfig, class_names: Sequence[str]) -> FastRCNN:
    backbone = build_backbone(config.backbone)
    neck = FPN(config.neck, backbone.out_channels, backbone.out_strides) if config.neck else None
    roi = RoIHead(config.roi, (neck or backbone).out_channels[0], backbone.out_strides, class_names)
    if isinstance(config.backbone, VGGConfig) and config.backbone.weights and config.roi.hidden == (4096, 4096):
        load_vgg_classifier(config.backbone, roi.hidden)
    image_input = ImageInput(config.input, backbone.out_strides[-1])
    return FastRCNN(backbone, neck, roi, config.proposals, image_input, class_names)
