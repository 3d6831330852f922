"""Postprocessing of dense detectors beside torchvision's: 30,000 candidates over 80 classes on one image, in turn.

python benchmarks/postprocess.py [--repeats N]      CUDA if there is one, else the CPU

torchvision's side is the loop over classes of its `batched_nms` on the same boxes above the same threshold. detkit's is
`select_detections`, which clips and cuts besides.
"""

from __future__ import annotations

import argparse
from functools import partial

import torch
from timing import head, row
from torch import Tensor
from torchvision.ops.boxes import _batched_nms_vanilla

from detkit.nn.selection import SelectionConfig, select_detections

CANDIDATES, CLASSES, SIDE = 30_000, 80, 640
SELECTION = SelectionConfig(score_threshold=0.001, nms_threshold=0.45, max_detections=300)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15, help="timed runs of each, after one that is not counted")
    repeats = parser.parse_args().repeats
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    boxes, scores = (tensor.to(device) for tensor in candidates())
    head(["detkit", "torchvision", "torchvision / detkit"], ["torchvision"], device, repeats)
    ways = {"detkit": partial(detkit, boxes, scores), "torchvision": partial(per_class, boxes, scores)}
    row(f"postprocess, {CANDIDATES} candidates, {CLASSES} classes", ways, repeats, device)


def candidates() -> tuple[Tensor, Tensor]:
    """Boxes `[N, 4]` in clusters, as a detector's are, and scores `[N, K]`, one a candidate above the threshold."""
    torch.manual_seed(0)
    center = (torch.rand(300, 2) * SIDE)[torch.randint(0, 300, (CANDIDATES,))] + 8 * torch.randn(CANDIDATES, 2)
    half = (10 + 60 * torch.rand(CANDIDATES, 2)) / 2
    scores = torch.zeros(CANDIDATES, CLASSES)
    scores[torch.arange(CANDIDATES), torch.randint(0, CLASSES, (CANDIDATES,))] = 0.002 + 0.9 * torch.rand(CANDIDATES)
    return torch.cat([center - half, center + half], dim=1), scores


def detkit(boxes: Tensor, scores: Tensor) -> None:
    images = torch.zeros(CANDIDATES, dtype=torch.int64, device=boxes.device)
    windows = boxes.new_tensor([[0, 0, SIDE, SIDE]])
    select_detections(boxes, scores, images, windows, SELECTION)


def per_class(boxes: Tensor, scores: Tensor) -> None:
    candidate, label = torch.nonzero(scores > SELECTION.score_threshold, as_tuple=True)
    keep = _batched_nms_vanilla(boxes[candidate], scores[candidate, label], label, SELECTION.nms_threshold)
    keep[: SELECTION.max_detections]


if __name__ == "__main__":
    main()
