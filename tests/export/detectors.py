"""Detectors that are as small as detectors can be, so that a test can export them within a second or two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from detkit.detectors.detector import Detector
from detkit.engine.predict import predict
from detkit.engine.proposal_search import ProposalSource
from detkit.export.export import describe
from detkit.export.files import format_of, write_onnx, write_openvino, write_torch_export
from detkit.export.program import Form, complete_form, export_program
from detkit.nn.input import ImageInput, InputConfig
from detkit.nn.outputs import register_outputs
from detkit.nn.proposals import FileProposalsConfig
from detkit.nn.proposals.regions import Regions
from detkit.nn.selection import DetectionRows, SelectionConfig, select_detections
from detkit.structures import Batch, Categories, Detections, KeypointCategories, Target

CELL = 8  # px
SELECTION = SelectionConfig(score_threshold=0.3, nms_threshold=0.3, max_detections=20)
RULES: dict[str, dict[str, Any]] = {
    "stretch": {"name": "stretch", "size": 64},
    "letterbox": {"name": "letterbox", "size": 64},
    "short_side": {"name": "short_side", "size": 48, "max_size": 72},
    "keep": {"name": "keep"},
}


@register_outputs
@dataclass(frozen=True, eq=False)
class CellOutputs:
    """
    logits  float `[B, 3, h, w]`, of three classes in each cell
    """

    logits: Tensor


class Cells(Detector[CellOutputs]):
    """One convolution classifies the cells of a grid; a box is a cell with half a cell around it."""

    def __init__(self, rule: str = "stretch") -> None:
        super().__init__(ImageInput(input_config(rule), CELL), Categories.of_names(["red", "green", "blue"]))
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 3, CELL, CELL)
        self.eval()

    def network(self, images: Tensor, sizes: Tensor) -> CellOutputs:
        return CellOutputs(4 * self.conv(images))

    def criterion(self, outputs: CellOutputs, targets: Sequence[Target]) -> dict[str, Tensor]:
        raise NotImplementedError

    def detect(self, outputs: CellOutputs, sizes: Tensor) -> DetectionRows:
        num_images, _, height, width = outputs.logits.shape
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        centres = torch.stack([x, y], dim=-1).flatten(0, 1) * CELL + CELL / 2.0
        boxes = torch.cat([centres - CELL, centres + CELL], dim=1).expand(num_images, -1, -1)
        tilt = torch.arange(height * width)[:, None] / 1000  # no two cells of padding score the same
        scores = (outputs.logits.flatten(2).transpose(1, 2) + tilt).sigmoid()
        return select_detections(boxes, scores, None, self.input.windows(sizes), SELECTION)


class Parts(Cells):
    """The same with a mask and two keypoints of each detection, whose places follow from its score."""

    def __init__(self, rule: str = "stretch") -> None:
        super().__init__(rule)
        self.categories = replace(self.categories, keypoints=KeypointCategories(("first", "last")))

    def detect(self, outputs: CellOutputs, sizes: Tensor) -> DetectionRows:
        rows = super().detect(outputs, sizes)
        score, x = rows.scores[..., None, None], torch.linspace(-1, 1, 6)
        y = x[:, None]
        first, last = (-((x - place) ** 2) - (y + place / 2) ** 2 for place in (score, -score))
        return replace(rows, masks=(8 * (x + y * score) + 0.37).sigmoid(), heatmaps=torch.stack([first, last], dim=2))


@register_outputs
@dataclass(frozen=True, eq=False)
class ProposedOutputs:
    """
    scores  float `[P, 3]`
    """

    regions: Regions
    scores: Tensor


class Proposed(Detector[ProposedOutputs]):
    """Scores each proposal by its corners and the brightness of its image."""

    proposals = FileProposalsConfig(paths=("proposals.json",))

    def __init__(self, rule: str = "short_side") -> None:
        super().__init__(ImageInput(input_config(rule), CELL), Categories.of_names(["red", "green", "blue"]))
        torch.manual_seed(0)
        self.linear = nn.Linear(5, 3)
        self.eval()

    def forward(self, batch: Batch) -> ProposedOutputs:
        sizes = batch.sizes()
        assert batch.proposals is not None
        return self.network(self.input(batch.images, sizes), sizes, Regions.from_list(batch.proposals))

    def network(self, images: Tensor, sizes: Tensor, proposals: Regions | None = None) -> ProposedOutputs:
        assert proposals is not None
        brightness = (images.sum(dim=(1, 2, 3)) / sizes.prod(dim=1))[proposals.images]
        features = torch.cat([proposals.boxes / 50, brightness[:, None]], dim=1)
        return ProposedOutputs(proposals, self.linear(features).sigmoid() * proposals.valid[:, None])

    def criterion(self, outputs: ProposedOutputs, targets: Sequence[Target]) -> dict[str, Tensor]:
        raise NotImplementedError

    def detect(self, outputs: ProposedOutputs, sizes: Tensor) -> DetectionRows:
        regions, windows = outputs.regions, self.input.windows(sizes)
        return select_detections(regions.boxes, outputs.scores, regions.images, windows, SELECTION)


class RandomProposals(ProposalSource):
    """As many as a picture is high, and none of one that is wider than high."""

    def settings(self) -> dict[str, Any]:
        return {}

    def of_picture(self, picture: np.ndarray) -> np.ndarray:
        height, width = picture.shape[:2]
        rng = np.random.default_rng(height)
        corners = rng.uniform(0, 0.6, (0 if width > height else height, 2))
        sides = rng.uniform(0.1, 0.4, corners.shape)
        return (np.concatenate([corners, corners + sides], axis=1) * np.array([width, height] * 2)).astype(np.float32)


def input_config(rule: str) -> InputConfig:
    return InputConfig.model_validate(
        {"resize": RULES[rule], "mean": (0.0, 0.0, 0.0), "std": (255.0, 255.0, 255.0), "channel_order": "bgr"}
    )


def write_exported(detector: Detector[Any], path: Path, form: Form | None = None) -> Path:
    """The detector as a file in the format of the suffix, compared with nothing."""
    form = complete_form(form or Form(), detector)
    metadata, program = describe(detector, form, None, "none"), export_program(detector, form)
    match format_of(path):
        case "onnx":
            write_onnx(program, metadata, path)
        case "torch_export":
            write_torch_export(program, metadata, path)
        case "openvino":
            write_onnx(program, metadata, path.with_suffix(".onnx"))
            write_openvino(path.with_suffix(".onnx"), metadata, path)
    return path


def random_pictures(*sizes: tuple[int, int]) -> list[np.ndarray]:
    """Noise in large pixels, uint8 `[H, W, 3]`, of these (h, w)."""
    rng = np.random.default_rng(0)
    return [cv2.resize(rng.integers(0, 256, (5, 6, 3)).astype(np.uint8), size[::-1]) for size in sizes]


def assert_same(actual: Detections, expected: Detections, atol: float = 1e-5) -> None:
    """atol  of scores; boxes may differ by a hundred times as many px"""
    assert actual.categories == expected.categories
    assert actual.labels.tolist() == expected.labels.tolist()
    torch.testing.assert_close(actual.scores, expected.scores, rtol=0, atol=atol)
    torch.testing.assert_close(actual.boxes, expected.boxes, rtol=0, atol=100 * atol)
    assert (actual.masks is None, actual.keypoints is None) == (expected.masks is None, expected.keypoints is None)
    if actual.masks is not None and expected.masks is not None:
        assert np.array_equal(actual.masks.dense(), expected.masks.dense())
    if actual.keypoints is not None:
        torch.testing.assert_close(actual.keypoints, expected.keypoints, rtol=0, atol=100 * atol)


def assert_same_predictions(
    actual: Detector[Any],
    expected: Detector[Any],
    pictures: Sequence[np.ndarray],
    proposals: ProposalSource | None = None,
) -> None:
    pairs = zip(predict(actual, pictures, proposals), predict(expected, pictures, proposals), strict=True)
    counts = [len(other) for one, other in pairs if assert_same(one, other) is None]
    assert sum(counts) >= len(pictures), "hardly anything was detected: hardly anything is tested"
