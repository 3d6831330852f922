"""ACT, the action tubelet detector (Kalogeiton, Weinzaepfel, Ferrari, Schmid, arXiv 1705.01861).

SSD on the frames of a clip: one backbone sees each frame, the levels of all frames are joined along the channels, and
every prior predicts the classes of the clip and a box in each frame. `detkit.evaluation.linking` joins the tubelets of
consecutive clips to tubes. This is the stream of colour pictures; the paper adds one of optical flow, and averages the
class scores of both.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator
from torch import Tensor
from typing_extensions import Self, override

from detkit.detectors.single_shot import SingleShotDetector
from detkit.detectors.ssd import PriorBasedConfig, SSDInputConfig
from detkit.nn.backbones import build_backbone
from detkit.nn.backbones.time_pooling import ClipStagedConfig
from detkit.nn.heads.act import ACTHead, ACTHeadConfig
from detkit.nn.heads.ssd import SSDOutputs
from detkit.nn.input import ImageInput
from detkit.nn.necks import build_neck
from detkit.structures import Categories, Clip


class ACTInputConfig(SSDInputConfig):
    """Caffe's mean and order of channels."""

    mean: tuple[float, float, float] = (104.0, 117.0, 123.0)
    channel_order: Literal["rgb", "bgr"] = "bgr"


class ACT(SingleShotDetector[SSDOutputs]):
    """Backbone and neck run on every frame by itself."""

    @override
    def features(self, images: Tensor) -> list[Tensor]:
        """Clips `[B, 3, T, H, W]` -> levels `[B, T * C_l, H_l, W_l]`, one frame after the other, finest level first."""
        num_clips, _, num_frames, *_ = images.shape
        levels = super().features(images.transpose(1, 2).flatten(0, 1))
        return [
            level.reshape(num_clips, num_frames * level.shape[1], level.shape[2], level.shape[3]) for level in levels
        ]


class ACTConfig(PriorBasedConfig):
    """Defaults: the published RGB stream, on SSD300."""

    name: Literal["act"] = "act"
    head: ACTHeadConfig = ACTHeadConfig()
    input: ACTInputConfig = ACTInputConfig()
    frames: int = Field(6, ge=1)  # T, consecutive ones; a clip is of its first

    @property
    def clip(self) -> Clip:
        return Clip(self.frames, tubes=True)

    @model_validator(mode="after")
    def _backbone_of_pictures(self) -> Self:
        if isinstance(self.backbone, ClipStagedConfig):
            raise ValueError(
                f"backbone: {self.backbone.name} takes clips; expected one of pictures, such as vgg16_ssd or resnet18, "
                "which sees each frame by itself"
            )
        return self


def build_act(config: ACTConfig, categories: Categories) -> ACT:
    backbone = build_backbone(config.backbone)
    neck = build_neck(config.neck, backbone.out_channels, backbone.out_strides)
    in_channels = [config.frames * channels for channels in (neck or backbone).out_channels]
    head = ACTHead(config.head, in_channels, len(categories), config.frames)
    return ACT(backbone, neck, head, ImageInput(config.input, stride=1), categories)
