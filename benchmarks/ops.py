"""Box ops beside torchvision's, in turn, and the import of `detkit.ops.iou` beside torch's.

python benchmarks/ops.py [--repeats N]      CUDA if there is one, else the CPU

The results are compared too: equal, but for RoIAlign, whose sums are in another order.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torchvision
from timing import head, row
from torch import Tensor
from torch.testing import assert_close

from detkit.nn.anchors import AnchorConfig, AnchorGrid
from detkit.ops.iou import box_iou
from detkit.ops.masks import paste_masks
from detkit.ops.nms import class_aware_nms, nms
from detkit.ops.roi import roi_align
from detkit.structures import MaskCrops

SIDE = 1000  # px of the image
ROIS, MAP, POOLED, STRIDE = 512, (1, 256, 50, 68), 7, 16
IMPORTS = 5
MASKS, PICTURE = 100, (800, 1333)
FEATURE_SIZES = ((200, 304), (100, 152), (50, 76), (25, 38), (13, 19))  # of 800 x 1216 px


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15, help="timed runs of each, after one that is not counted")
    repeats = parser.parse_args().repeats
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    head(["detkit", "torchvision", "torchvision / detkit"], ["torchvision"], device, repeats)
    for count in (1000, 5000):
        boxes1, boxes2 = clustered(count).to(device), clustered(count).to(device)
        ways = {"detkit": partial(box_iou, boxes1, boxes2)}
        ways["torchvision"] = partial(torchvision.ops.box_iou, boxes1, boxes2)
        compare(f"IoU, {count} x {count}", ways, repeats, device)
    for count in (1000, 5000, 20000):
        boxes, scores = clustered(count).to(device), torch.randperm(count).float().to(device)
        ways = {"detkit": partial(nms, boxes, scores, 0.5)}
        ways["torchvision"] = partial(torchvision.ops.nms, boxes, scores, 0.5)
        compare(f"NMS, {count} boxes, {len(ways['detkit']())} kept", ways, repeats, device)
    for count in (5000, 20000):
        boxes, scores = clustered(count).to(device), torch.randperm(count).float().to(device)
        labels = torch.randint(0, 80, (count,), device=device)
        ways = {"detkit": partial(class_aware_nms, boxes, scores, labels, 0.5)}
        ways["torchvision"] = partial(torchvision.ops.batched_nms, boxes, scores, labels, 0.5)
        compare(f"class-aware NMS, {count} boxes, 80 classes", ways, repeats, device)
    roi_align_rows(repeats, device)
    mask_rows(repeats, device)
    generator = torchvision.models.detection.anchor_utils.AnchorGenerator(
        tuple((size,) for (size,) in AnchorConfig().sizes), ((0.5, 1.0, 2.0),) * len(FEATURE_SIZES)
    )
    images = torchvision.models.detection.image_list.ImageList(
        torch.empty(1, 3, 800, 1216, device=device), [(800, 1216)]
    )
    maps = [torch.empty(1, 1, *size, device=device) for size in FEATURE_SIZES]
    grid = AnchorGrid(AnchorConfig(), (4, 8, 16, 32, 64)).to(device)
    ways = {"detkit": partial(grid, FEATURE_SIZES, (800, 1216)), "torchvision": lambda: generator(images, maps)[0]}
    compare("anchors of 800 x 1216, five levels", ways, repeats, device)
    torch_s, ours_s = import_seconds()
    print(f"\nimport torch {torch_s:.3f} s, then import detkit.ops.iou {ours_s:.3f} s; medians of {IMPORTS} processes")


def clustered(count: int) -> Tensor:
    """Boxes `[count, 4]`, 30 around each object, as a detector finds them before suppression."""
    objects = torch.rand(count // 30 + 1, 2) * SIDE
    centers = objects.repeat_interleave(30, dim=0)[:count] + 8 * torch.randn(count, 2)
    half = (10 + 60 * torch.rand(count, 2)) / 2
    return torch.cat([centers - half, centers + half], dim=1)


def compare(work: str, ways: dict[str, Callable[[], Tensor]], repeats: int, device: torch.device) -> None:
    assert_close(*(way() for way in ways.values()), rtol=0, atol=0)
    row(work, ways, repeats, device)


def roi_align_rows(repeats: int, device: torch.device) -> None:
    features = torch.randn(MAP, device=device).contiguous(memory_format=torch.channels_last)  # as a detector has them
    corners = torch.rand(ROIS, 2) * torch.tensor([MAP[3], MAP[2]]) * STRIDE
    sides = 16 + torch.rand(ROIS, 2) * 300
    boxes = [torch.cat([corners, corners + sides], dim=1).to(device)]
    gradient = torch.randn(ROIS, MAP[1], POOLED, POOLED, device=device)

    def ours(features: Tensor) -> Tensor:
        return roi_align(features, boxes, POOLED, 1 / STRIDE, sampling_ratio=2)

    def theirs(features: Tensor) -> Tensor:
        return torchvision.ops.roi_align(features, boxes, POOLED, 1 / STRIDE, 2, aligned=True)

    def both_ways(pool: Callable[[Tensor], Tensor], features: Tensor) -> list[Tensor]:
        features = features.detach().requires_grad_()
        pooled = pool(features)
        pooled.backward(gradient)
        assert features.grad is not None
        return [pooled.detach(), features.grad]

    plain = features.contiguous()  # the format that torchvision's kernel reads
    mine, yours = both_ways(ours, features), both_ways(theirs, plain)
    scale = yours[1].abs().max()
    assert_close([mine[0], mine[1] / scale], [yours[0], yours[1] / scale], rtol=0, atol=1e-4)
    work = f"RoIAlign, {ROIS} regions of {MAP[1]} x {MAP[2]} x {MAP[3]}, {POOLED} x {POOLED}"
    row(work, {"detkit": partial(ours, features), "torchvision": partial(theirs, plain)}, repeats, device)
    ways = {"detkit": partial(both_ways, ours, features), "torchvision": partial(both_ways, theirs, plain)}
    row(f"{work}, and its gradient", ways, repeats, device)


def mask_rows(repeats: int, device: torch.device) -> None:
    """Detkit's time is with the encoding as run lengths, one mask after the other, as a detector does it."""
    corners = torch.rand(MASKS, 2) * torch.tensor([1100.0, 600.0])
    boxes = torch.cat([corners, corners + 30 + torch.rand(MASKS, 2) * 200], dim=1).to(device)
    blurred = torch.nn.functional.interpolate(torch.randn(MASKS, 1, 5, 5), (28, 28), mode="bicubic")
    masks = (blurred * 3).sigmoid().to(device)

    def ours() -> list[MaskCrops[np.ndarray]]:
        return [paste_masks(masks[i], boxes[i : i + 1], PICTURE) for i in range(MASKS)]

    def encoded() -> None:
        for crop in ours():
            crop.encode(PICTURE)

    def theirs() -> Tensor:
        return torchvision.models.detection.roi_heads.paste_masks_in_image(masks, boxes, PICTURE) >= 0.5

    pixels = np.concatenate([crop.dense(PICTURE) for crop in ours()])
    assert np.array_equal(pixels, theirs()[:, 0].cpu().numpy())
    ways = {"detkit": encoded, "torchvision": theirs}
    row(f"{MASKS} masks pasted on {PICTURE[0]} x {PICTURE[1]}", ways, repeats, device)


def import_seconds() -> tuple[float, float]:
    """Median seconds of `import torch`, and of `import detkit.ops.iou` after it."""
    code = (
        "from time import time; a = time(); import torch; b = time(); import detkit.ops.iou; print(b - a, time() - b)"
    )
    times = []
    for _ in range(IMPORTS):
        printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
        times.append([float(seconds) for seconds in printed.split()])
    torch_s, ours_s = (statistics.median(seconds) for seconds in zip(*times, strict=True))
    return torch_s, ours_s


if __name__ == "__main__":
    main()
