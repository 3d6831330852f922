"""A sliding window in passes over whole levels beside the same windows one crop after the other, in turn.

python benchmarks/sliding_window.py [--repeats N]      CUDA if there is one, else the CPU
"""

from __future__ import annotations

import argparse
from functools import partial

import torch
from timing import head, row

from detkit.detectors.sliding_window import SlidingWindow, SlidingWindowConfig, build_sliding_window
from detkit.nn.proposals.windows import Level
from detkit.structures import Categories

IMAGE = (240, 320)  # (h, w), as the built-in pictures
CROPS = 256  # that pass through the network at once


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of each, after one that is not counted")
    repeats = parser.parse_args().repeats
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    detector = build_sliding_window(SlidingWindowConfig(), Categories.of_names([str(label) for label in range(20)]))
    detector.eval().to(device)
    with torch.inference_mode():
        levels = detector.pyramid(torch.randn(3, *IMAGE, device=device))
        windows = sum(len(level.boxes()) for level in levels)
        head(["dense", "crop by crop", "crop by crop / dense"], [], device, repeats)
        ways = {"dense": partial(detector.dense, levels), "crops": partial(one_by_one, detector, levels)}
        row(f"{windows:,} windows of a picture of {IMAGE[1]} x {IMAGE[0]}", ways, repeats, device)


def one_by_one(detector: SlidingWindow, levels: list[Level]) -> None:
    for level in levels:
        for part in torch.arange(len(level.boxes()), device=level.image.device).split(CROPS):
            detector.roi(detector.backbone(level.crops(part).contiguous())[-1], [part])


if __name__ == "__main__":
    main()
