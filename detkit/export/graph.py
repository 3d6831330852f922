"""The whole of a detector as one module of tensors: what is written into an exported file.

Legend: B images, H x W pixels of the canvas, P proposals of an image, D detections of an image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkit.detectors.detector import AnyDetector
from detkit.export.metadata import Pictures
from detkit.export.resize import resize_pictures, sizes_of
from detkit.nn.proposals.regions import Regions
from detkit.nn.selection import DetectionRows, images_of_rows
from detkit.ops.boxes import clip_to_windows

DETECTIONS = ("boxes", "scores", "labels", "counts")
# What some detectors give of each detection besides: the name of the output, and its column of `DetectionRows`.
FURTHER = {"masks": "masks", "keypoint_heatmaps": "heatmaps", "tubes": "tubes"}


class Whole(nn.Module):
    """
    images          uint8 `[B, 3, H, W]` RGB, or clips `[B, 3, T, H, W]`. `pictures` is `exact`: each resized as the
                    detector's input spec says, in the upper left corner of its canvas or in the middle of its
                    letterbox; other pixels are not read.
                    `resize`: as they are, all of one size
    sizes           int64 `[B, 2]`: (h, w) of each picture on its canvas
    original_sizes  int64 `[B, 2]`: (h, w) of each picture before it was resized; None: boxes stay in input pixels
    proposals       float32 `[B, P, 4]` xyxy in pixels of `images`, for a detector that is given them; those without
                    area only fill up the number

    Returns the `DETECTIONS`, whose boxes are in original pixels and whose rows beyond the count are 0, then those of
    `FURTHER` that the detector has, then the outputs of the network where `raw`.
    """

    def __init__(
        self, detector: AnyDetector, pictures: Pictures = "exact", *, detections: bool = True, raw: bool = False
    ) -> None:
        super().__init__()
        self.detector = detector
        self.pictures, self.detections, self.raw = pictures, detections, raw

    def forward(
        self,
        images: Tensor,
        sizes: Tensor | None = None,
        original_sizes: Tensor | None = None,
        proposals: Tensor | None = None,
    ) -> dict[str, Tensor]:
        detector = self.detector
        results: dict[str, Tensor] = {}
        if self.pictures == "resize":
            original_sizes = sizes_of(images, images.shape[2:])
            images, sizes = resize_pictures(images, detector.input)
        assert sizes is not None
        original_sizes = sizes if original_sizes is None else original_sizes
        scale = (sizes / original_sizes).flip(1).repeat(1, 2)
        offset = detector.input.windows(sizes)[:, :2].repeat(1, 2)
        inputs: list[Any] = [detector.input(images, sizes), sizes]
        if proposals is not None:
            # Else a program takes the two numbers for different ones, and concludes that a batch of one is not allowed.
            torch._check(proposals.shape[0] == images.shape[0])
            if self.pictures == "resize":
                proposals = proposals * scale[:, None] + offset[:, None]
            inputs.append(_regions(proposals))
        outputs = detector.network(*inputs)
        if self.detections:
            rows = detector.detect(outputs, sizes)
            boxes = (rows.boxes - offset[:, None]) / scale[:, None]
            windows = F.pad(original_sizes.flip(1), (2, 0)).to(boxes.dtype)
            filled = torch.arange(boxes.shape[1], device=boxes.device) < rows.counts[:, None]
            boxes = torch.where(filled[..., None], clip_to_windows(boxes, windows[:, None]), 0.0)
            if rows.tubes is not None:
                tubes = (rows.tubes - offset[:, None, None]) / scale[:, None, None]
                rows = replace(rows, tubes=clip_to_windows(tubes, windows[:, None, None]))
            results |= dict(zip(DETECTIONS, (boxes, rows.scores, rows.labels, rows.counts), strict=True))
            for name, column in FURTHER.items():
                if (value := getattr(rows, column)) is not None:
                    results[name] = torch.where(filled.view(*filled.shape, *[1] * (value.ndim - 2)), value, 0.0)
        if self.raw:
            results |= named_tensors(outputs, "raw")  # darknet has `scores` of its own
        return results


def _regions(proposals: Tensor) -> Regions:
    has_area = (proposals[..., 2:] > proposals[..., :2]).all(dim=-1)
    images = images_of_rows(proposals.shape[0], proposals.shape[1], proposals.device)
    return Regions(proposals.flatten(0, 1), images, has_area.flatten())


def named_tensors(outputs: object, prefix: str = "") -> dict[str, Tensor]:
    """The tensors in outputs (dataclasses, dicts, tuples), by their path: `raw.rpn.logits.0`; without detections."""
    if isinstance(outputs, Tensor):
        return {prefix: outputs}
    if outputs is None or isinstance(outputs, DetectionRows):
        return {}
    if isinstance(outputs, (tuple, list)):
        children: Mapping[str, object] = {str(index): value for index, value in enumerate(outputs)}
    else:
        children = outputs if isinstance(outputs, Mapping) else vars(outputs)
    return {
        name: tensor
        for key, value in children.items()
        for name, tensor in named_tensors(value, f"{prefix}.{key}" if prefix else key).items()
    }
