"""The tensor core of a detector under torch.export: the exported program does the same for every batch size."""

from typing import Any

import torch
from torch import Tensor, nn

from detkit.detectors.detector import Detector
from detkit.nn.selection import DetectionRows
from detkit.structures import Batch


class Core(nn.Module):
    """uint8 images `[B, 3, H, W]` and sizes int64 `[B, 2]` -> the outputs of the network and the detections."""

    def __init__(self, detector: Detector[Any]) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Any, DetectionRows]:
        outputs = self.detector.network(self.detector.input(images, sizes), sizes)
        return outputs, self.detector.detect(outputs, sizes)


def check_export(detector: Detector[Any], batch: Batch) -> None:
    """Exports with a dynamic batch dimension, and compares the program with PyTorch on several batch sizes.

    detector  set to evaluation; its score threshold must let it detect something in every image
    batch     at least two images
    One comparison is on pictures of 0 x 0 px, which have no detections.
    """
    core = Core(detector.eval())
    images, sizes = batch.images, batch.sizes()
    count = torch.export.Dim("batch")
    with torch.no_grad():
        exported = torch.export.export(core, (images, sizes), dynamic_shapes=({0: count}, {0: count}), strict=False)
        program: nn.Module = exported.module()
        _compare(core, program, images, sizes)
        _compare(core, program, torch.cat([images, images[:1]]), torch.cat([sizes, sizes[:1]]))
        _compare(core, program, images[:1], sizes[:1])
        _compare(core, program, images, torch.zeros_like(sizes))


def _compare(core: Core, program: nn.Module, images: Tensor, sizes: Tensor) -> None:
    expected_outputs, expected_rows = core(images, sizes)
    assert bool(((expected_rows.counts > 0) == (sizes.prod(dim=1) > 0)).all()), (
        f"expected detections in every picture with pixels, got counts {expected_rows.counts.tolist()}"
    )
    actual_outputs, actual_rows = program(images, sizes)
    for actual, expected in ((actual_outputs, expected_outputs), (actual_rows, expected_rows)):
        assert type(actual) is type(expected)
        pairs = zip(torch.utils._pytree.tree_leaves(actual), torch.utils._pytree.tree_leaves(expected), strict=True)
        for leaf, expected_leaf in pairs:
            torch.testing.assert_close(leaf, expected_leaf, rtol=1e-5, atol=1e-5, equal_nan=True)
