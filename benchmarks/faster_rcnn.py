"""Faster R-CNN beside torchvision's own: the same weights, the same input, in turn; medians and their ratio.

python benchmarks/faster_rcnn.py [--repeats N]      CUDA if there is one, else the CPU
"""

from __future__ import annotations

import argparse
from functools import partial

import torch
import torchvision
from batches import random_batch
from timing import interleaved
from torch import Tensor
from torchvision.models import detection

from detkit.detectors.build import build_detector
from detkit.structures import Batch
from detkit.weights.torchvision import CONFIGS, convert_keys

# name, (height, width), images of a training step
CASES = [("fasterrcnn_resnet50_fpn", (800, 1056), 1), ("fasterrcnn_mobilenet_v3_large_320_fpn", (320, 416), 4)]
OBJECTS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each, after one that is not counted")
    repeats = parser.parse_args().repeats
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{name}; torch {torch.__version__}, torchvision {torchvision.__version__}; median seconds of {repeats}\n")
    print("| model | work | detkit | torchvision | torchvision / detkit |\n|---|---|---|---|---|")
    for model, (height, width), num_images in CASES:
        torch.manual_seed(0)
        config = CONFIGS[model]
        frozen = {"norm_layer": torchvision.ops.FrozenBatchNorm2d} if "resnet" in model else {}
        theirs = getattr(detection, model)(weights=None, weights_backbone=None, **frozen).to(device)
        norm = config.backbone.model_copy(update={"norm": "frozen_bn" if frozen else "bn", "frozen_stages": 0})
        norm = norm.model_copy(update={"norm_eps": 1e-5})
        ours = build_detector(config.model_copy(update={"backbone": norm}), [str(i) for i in range(90)]).to(device)
        ours.load_state_dict(convert_keys(theirs.state_dict()))
        for work, count in (("inference", 1), ("training step", num_images)):
            batch = random_batch([(height, width)] * count, OBJECTS, classes=90).to(device)
            detkit, reference = (inference, tv_inference) if work == "inference" else (training, tv_training)
            mine, yours = interleaved(
                [partial(detkit, ours, batch), partial(reference, theirs, batch)], repeats, device
            )
            size = f"{work}, {count} x {height} x {width}"
            print(f"| {model} | {size} | {mine:.3f} | {yours:.3f} | {yours / mine:.2f} |", flush=True)


@torch.inference_mode()
def inference(detector: torch.nn.Module, batch: Batch) -> None:
    detector.eval()
    detector.postprocess(detector(batch), batch.infos)


@torch.inference_mode()
def tv_inference(model: torch.nn.Module, batch: Batch) -> None:
    model.eval()(list(batch.images / 255))


def training(detector: torch.nn.Module, batch: Batch) -> None:
    detector.train()
    backward(detector, detector.criterion(detector(batch), batch.targets))


def tv_training(model: torch.nn.Module, batch: Batch) -> None:
    targets = [{"boxes": target.boxes, "labels": target.labels + 1} for target in batch.targets or ()]
    backward(model, model.train()(list(batch.images / 255), targets))


def backward(model: torch.nn.Module, losses: dict[str, Tensor]) -> None:
    torch.stack(list(losses.values())).sum().backward()
    model.zero_grad(set_to_none=True)


if __name__ == "__main__":
    main()
