"""The tensor core of a detector under torch.export: the exported program does the same for every batch size."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detkit.detectors.detector import Detector
from detkit.detectors.region_based import RegionBasedDetector, RegionBasedOutputs
from detkit.nn.proposals.regions import Regions
from detkit.nn.selection import DetectionRows, images_of_rows
from detkit.ops import dispatch
from detkit.structures import Batch


class Core(nn.Module):
    """uint8 images `[B, 3, H, W]`, sizes int64 `[B, 2]` and, for a detector that is given them, as many proposals
    `[B, P, 4]` of every image -> the outputs of the network and the detections."""

    def __init__(self, detector: Detector[Any]) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor, sizes: Tensor, *proposals: Tensor) -> tuple[Any, DetectionRows]:
        inputs: list[Any] = [self.detector.input(images, sizes), sizes]
        for boxes in proposals:
            torch._check(boxes.shape[0] == images.shape[0])
            image = images_of_rows(boxes.shape[0], boxes.shape[1], boxes.device)
            inputs.append(Regions(boxes.flatten(0, 1), image, torch.ones_like(image, dtype=torch.bool)))
        outputs = self.detector.network(*inputs)
        return outputs, self.detector.detect(outputs, sizes)


def check_export(detector: Detector[Any], batch: Batch) -> None:
    """Exports with a dynamic batch dimension, and compares the program with PyTorch on several batch sizes.

    detector  set to evaluation; its score threshold must let it detect something in every image
    batch     at least two images
    One comparison is on pictures of 0 x 0 px, which have no detections. PyTorch's image pyramid, which is the reason
    for a fixed canvas, has no level of those.
    """
    core = Core(detector.eval())
    inputs = [batch.images, batch.sizes()]
    if isinstance(detector, RegionBasedDetector):
        # Two regions in which a detector sees the same have one score, and either may suppress the other. So no part of
        # a picture is plain, and no two proposals are one in whole pixels, to which R-CNN rounds them.
        noise = torch.randint(16, batch.images.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        inputs[0] = batch.images ^ noise
    if batch.proposals is not None:
        proposals = [boxes.round().unique(dim=0) for boxes in batch.proposals]
        least = min(map(len, proposals))
        inputs.append(torch.stack([boxes[:least] for boxes in proposals]))
    batch_dim = {0: torch.export.Dim("batch")}
    shapes: tuple[Any, ...] = (batch_dim, batch_dim)
    if len(inputs) > 2:
        shapes += ((batch_dim,),)
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        # PyTorch keeps the rows that only fill up a fixed number, as the program does, and takes the ops of torch and
        # torchvision, because other kernels round otherwise: so all outputs can be compared.
        patch.setattr(Regions, "compact", lambda self: self)
        patch.setattr(dispatch, "kernels", lambda: None)
        exported = torch.export.export(core, tuple(inputs), dynamic_shapes=shapes, strict=False)
        program: nn.Module = exported.module()
        _compare(core, program, [torch.cat([value, value[:1]]) for value in inputs])
        _compare(core, program, [value[:1] for value in inputs])
        if not detector.needs_fixed_canvas:
            _compare(core, program, [inputs[0], torch.zeros_like(inputs[1]), *inputs[2:]])


def _compare(core: Core, program: nn.Module, inputs: list[Tensor]) -> None:
    expected_outputs, expected_rows = core(*inputs)
    has_pixels = inputs[1].prod(dim=1) > 0
    assert bool(((expected_rows.counts > 0) == has_pixels).all()), (
        f"expected detections in every picture with pixels, got counts {expected_rows.counts.tolist()}"
    )
    actual_outputs, actual_rows = program(*inputs)
    _compare_rows(actual_rows, expected_rows)
    assert type(actual_outputs) is type(expected_outputs)
    if isinstance(actual_outputs, RegionBasedOutputs):
        actual_outputs, expected_outputs = map(_of_valid_regions, (actual_outputs, expected_outputs))
    leaves = (torch.utils._pytree.tree_leaves(outputs) for outputs in (actual_outputs, expected_outputs))
    for leaf, expected_leaf in zip(*leaves, strict=True):
        torch.testing.assert_close(leaf, expected_leaf, rtol=1e-5, atol=1e-5, equal_nan=True)


def _of_valid_regions(outputs: RegionBasedOutputs[Any]) -> RegionBasedOutputs[Any]:
    """Without the detections, which are compared by themselves, and without regions that only fill up a number."""
    valid = outputs.roi.regions.valid
    return replace(outputs, detections=None, roi=torch.utils._pytree.tree_map(lambda rows: rows[valid], outputs.roi))


def _compare_rows(actual: DetectionRows, expected: DetectionRows) -> None:
    """The same detections, whatever the order of those of one score; the program may cut others of the lowest."""
    torch.testing.assert_close(actual.counts, expected.counts)
    torch.testing.assert_close(actual.scores, expected.scores, rtol=0, atol=1e-5)
    for image, count in enumerate(expected.counts.tolist()):
        is_full = count == expected.scores.shape[1]
        for row in range(count):
            label, box, score = expected.labels[image, row], expected.boxes[image, row], expected.scores[image, row]
            if is_full and score < expected.scores[image, count - 1] + 1e-5:
                continue
            same = (actual.labels[image] == label) & ((actual.scores[image] - score).abs() < 1e-5)
            assert bool((same & ((actual.boxes[image] - box).abs().amax(dim=1) < 1e-3)).any()), (image, row)
