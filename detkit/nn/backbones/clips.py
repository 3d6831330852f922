"""Backbones of clips: `[B, 3, T, H, W]` -> feature levels, addressed by their stride in space like those of images."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from detkit.nn.backbones.c3d import C3DConfig, build_c3d
from detkit.nn.backbones.staged import StagedBackbone
from detkit.nn.backbones.video_resnet import S3DConfig, VideoResNetConfig, build_s3d, build_video_resnet

ClipBackboneConfig = Annotated[C3DConfig | VideoResNetConfig | S3DConfig, Field(discriminator="name")]


def build_clip_backbone(config: ClipBackboneConfig) -> StagedBackbone:
    match config:
        case C3DConfig():
            return build_c3d(config)
        case VideoResNetConfig():
            return build_video_resnet(config)
        case S3DConfig():
            return build_s3d(config)
