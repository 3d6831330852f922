"""Fast R-CNN (Girshick, ICCV 2015, arXiv 1504.08083): proposals from elsewhere, one shared map, one region head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, model_validator

from detkit.config import Config
from detkit.detectors.region_based import RegionBasedDetector, check_pooled_levels
from detkit.nn.backbones import BackboneConfig, build_backbone, load_classifier
from detkit.nn.backbones.staged import StagedBackbone
from detkit.nn.backbones.vgg import VGGConfig
from detkit.nn.heads.regions import RoIOutputs
from detkit.nn.heads.roi import RoIConfig, RoIHead
from detkit.nn.input import ImageInput, InputConfig, ShortSideConfig
from detkit.nn.necks.fpn import FPN, FPNConfig
from detkit.nn.proposals import ProposalsConfig
from detkit.nn.proposals.selective_search import SelectiveSearchConfig
from detkit.structures import Batch


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
    proposals: ProposalsConfig = SelectiveSearchConfig(max_boxes=2000)
    input: InputConfig = InputConfig(resize=ShortSideConfig(size=600, max_size=1000))

    @model_validator(mode="after")
    def _levels_agree(self) -> FastRCNNConfig:
        check_pooled_levels(self.backbone.levels, self.neck, self.roi.pool)
        return self


class FastRCNN(RegionBasedDetector):
    """Faster R-CNN without the network that proposes: `batch.proposals` come with the images."""

    def __init__(
        self,
        backbone: StagedBackbone,
        neck: FPN | None,
        roi: RoIHead,
        proposals: ProposalsConfig,
        image_input: ImageInput,
        class_names: Sequence[str],
    ) -> None:
        super().__init__(backbone, neck, roi, image_input, class_names)
        self.proposals = proposals

    def forward(self, batch: Batch) -> RoIOutputs:
        proposals, samples = self.chosen(batch.proposals, batch)
        outputs: RoIOutputs = self.roi(self.features(self.input(batch)), proposals, samples)
        return outputs


def build_fast_rcnn(config: FastRCNNConfig, class_names: Sequence[str]) -> FastRCNN:
    backbone = build_backbone(config.backbone)
    neck = FPN(config.neck, backbone.out_channels, backbone.out_strides) if config.neck else None
    roi = RoIHead(config.roi, (neck or backbone).out_channels[0], backbone.out_strides, class_names)
    load_classifier(config.backbone, roi.hidden)
    image_input = ImageInput(config.input, backbone.out_strides[-1])
    return FastRCNN(backbone, neck, roi, config.proposals, image_input, class_names)
