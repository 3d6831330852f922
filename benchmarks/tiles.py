"""Small objects of large pictures, with and without tiles: how many a detector finds.

python benchmarks/tiles.py SOURCE [--grid N] [--tile PX] [--overlap SHARE] [--score-threshold S]

SOURCE is a detector trained on the built-in data, such as a run of configs/faster_rcnn.yaml. Each large picture is
N x N pictures of the built-in validation set side by side, so that their objects are N times smaller when the whole is
resized to the input of the detector. An object counts as detected if a detection of its class has an IoU of at least
0.5 with it, and as detected twice if several have; a detection that has it with none is false.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from time import perf_counter

import numpy as np
import torch

from detkit.data.build import build_dataset
from detkit.data.dataset import ImageDataset
from detkit.data.shapes import ShapesConfig
from detkit.engine.prediction.inference import build_predict
from detkit.engine.prediction.settings import PredictionConfig
from detkit.engine.sources import load_detector
from detkit.ops.iou import box_iou
from detkit.structures import Detections, Objects, Sample

ROOT, PADDING = "datasets/shapes", 114


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--grid", type=int, default=8, help="pictures a side")
    parser.add_argument("--tile", type=int, default=352, help="px; the largest picture of the set has 352")
    parser.add_argument("--overlap", type=float, default=0.2)
    parser.add_argument("--score-threshold", type=float, default=0.5)
    args = parser.parse_args()
    detector = load_detector(args.source)[0]
    dataset = build_dataset(ShapesConfig(root=ROOT), "val")
    print(f"{'':14} objects  detected  twice  false  s a picture")
    for name, tile in (("without tiles", None), (f"tiles of {args.tile}", args.tile)):
        settings = PredictionConfig(score_threshold=args.score_threshold, tile=tile, overlap=args.overlap)
        predict, counts, seconds, pictures = build_predict(detector, None, settings), np.zeros(4, np.int64), 0.0, 0
        for sample in mosaics(dataset, args.grid):
            begin = perf_counter()
            detections = predict([sample.image])[0]
            seconds, pictures = seconds + perf_counter() - begin, pictures + 1
            counts += count(sample.objects, detections)
        objects, detected, twice, false = counts.tolist()
        print(f"{name:14} {objects:7}  {detected / objects:8.1%}  {twice:5}  {false:5}  {seconds / pictures:11.1f}")


def mosaics(dataset: ImageDataset, grid: int) -> Iterator[Sample]:
    """All whole ones, each picture in the upper left corner of its cell."""
    samples = [dataset.load(index) for index in range(len(dataset))]
    height, width = (max(sample.image.shape[axis] for sample in samples) for axis in (0, 1))
    for first in range(0, len(samples) - grid**2 + 1, grid**2):
        image, parts = np.full((grid * height, grid * width, 3), PADDING, np.uint8), []
        for cell, sample in enumerate(samples[first : first + grid**2]):
            y, x = cell // grid * height, cell % grid * width
            h, w = sample.image.shape[:2]
            image[y : y + h, x : x + w] = sample.image
            columns = sample.objects.columns()
            parts.append(Objects.from_columns({**columns, "boxes": columns["boxes"] + np.float32([x, y, x, y])}))
        yield Sample(image, Objects.cat(parts), first)


def count(objects: Objects[np.ndarray], detections: Detections) -> np.ndarray:
    """int64 `[4]`: objects that count, those detected, those detected twice, detections that are none of any object."""
    truth = objects.to_tensors()
    matches = box_iou(detections.boxes, truth.boxes) >= 0.5
    matches &= detections.labels[:, None] == truth.labels
    times = matches.sum(dim=0)[~truth.ignore]
    false = ~matches.any(dim=1)
    return np.array([len(times), int((times > 0).sum()), int((times > 1).sum()), int(false.sum())])


if __name__ == "__main__":
    with torch.inference_mode():
        main()
