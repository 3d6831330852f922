"""DETR R50 beside Hugging Face's: the same weights, the same input, in turn; medians and their ratio.

python benchmarks/detr.py [--repeats N]      CUDA if there is one, else the CPU

Both train with the paper's dropout, also of attention and within the feed-forward layers, and with the losses of all
six decoder layers. Each runs in a process of its own, detkit as its tools run it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import transformers
from batches import random_batch
from timing import Remote, head, row

from detkit.accelerate import accelerate
from detkit.detectors.build import build_detector
from detkit.detectors.detector import Detector
from detkit.structures import Batch
from detkit.weights.detr import COCO_CATEGORIES, CONFIGS, convert_keys

CASES = [(False, [(800, 1056)]), (True, [(608, 800), (576, 768)])]  # whether it trains, (h, w) of its images
OBJECTS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each, after one that is not counted")
    repeats = parser.parse_args().repeats
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    head(["detkit", "transformers", "transformers / detkit"], ["transformers"], device, repeats)
    for training, sizes in CASES:
        ways = {
            "detkit": Remote(detkit_work, training, sizes, device, as_tools=True),
            "transformers": Remote(transformers_work, training, sizes, device),
        }
        work = "training step" if training else "inference"
        row(f"DETR R50, {work}, {len(sizes)} x {sizes[0][0]} x {sizes[0][1]}", ways, repeats, device)
        for way in ways.values():
            way.end()


def detkit_work(training: bool, sizes: list[tuple[int, int]], device: torch.device) -> Callable[[], None]:
    detector = accelerate(build_pair(device)[0], constant=not training)
    batch = random_batch(sizes, OBJECTS, len(COCO_CATEGORIES)).to(device)
    return partial(train_detkit if training else infer_detkit, detector, batch)


def transformers_work(training: bool, sizes: list[tuple[int, int]], device: torch.device) -> Callable[[], None]:
    detector, model = build_pair(device)
    batch = random_batch(sizes, OBJECTS, len(COCO_CATEGORIES)).to(device)
    if training:
        return partial(train_transformers, model, detector, batch)
    return partial(infer_transformers, model, transformers.DetrImageProcessor(), detector, batch)


def build_pair(device: torch.device) -> tuple[Detector[Any], Any]:
    """detkit's and Hugging Face's DETR with the same random weights."""
    torch.manual_seed(0)
    model = transformers.DetrForObjectDetection(
        transformers.DetrConfig(
            backbone_config=transformers.ResNetConfig(out_features=["stage4"]),
            use_timm_backbone=False,
            num_labels=len(COCO_CATEGORIES),
            auxiliary_loss=True,
            attention_dropout=0.1,
            activation_dropout=0.1,
        )
    ).to(device)
    detector = build_detector(CONFIGS["detr_resnet50"], COCO_CATEGORIES).to(device)
    detector.load_state_dict(convert_keys(model.state_dict()))
    for key, parameter in model.model.backbone.named_parameters():  # it would freeze all stages of its own ResNet
        parameter.requires_grad_(not key.startswith(("model.embedder", "model.encoder.stages.0")))
    return detector, model


@torch.inference_mode()
def infer_detkit(detector: Detector[Any], batch: Batch) -> None:
    detector.eval()
    detector.postprocess(detector(batch), batch.infos)


@torch.inference_mode()
def infer_transformers(model: Any, processor: Any, detector: Detector[Any], batch: Batch) -> None:
    outputs = model.eval()(pixel_values=detector.input(batch.images, batch.sizes()), pixel_mask=pixel_mask(batch))
    processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=[i.orig_size for i in batch.infos])


def train_detkit(detector: Detector[Any], batch: Batch) -> None:
    detector.train()
    assert batch.targets
    torch.stack(list(detector.criterion(detector(batch), batch.targets).values())).sum().backward()
    detector.zero_grad(set_to_none=True)


def train_transformers(model: Any, detector: Detector[Any], batch: Batch) -> None:
    labels = []
    for target, info in zip(batch.targets or (), batch.infos, strict=True):
        boxes, (height, width) = target.objects.boxes, info.input_size
        x1, y1, x2, y2 = (boxes / boxes.new_tensor([width, height] * 2)).unbind(dim=1)
        boxes = torch.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], dim=1)
        labels.append({"class_labels": target.objects.labels, "boxes": boxes})
    images, mask = detector.input(batch.images, batch.sizes()), pixel_mask(batch)
    model.train()(pixel_values=images, pixel_mask=mask, labels=labels).loss.backward()
    model.zero_grad(set_to_none=True)


def pixel_mask(batch: Batch) -> torch.Tensor:
    """int64 `[B, H, W]` as Hugging Face's models take it: 1 on the picture, 0 on the padding."""
    mask = torch.zeros(len(batch), *batch.images.shape[2:], dtype=torch.int64, device=batch.images.device)
    for image, info in zip(mask, batch.infos, strict=True):
        image[: info.input_size[0], : info.input_size[1]] = 1
    return mask


if __name__ == "__main__":
    main()
