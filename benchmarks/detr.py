"""DETR R50, RT-DETR R18 and D-FINE S beside Hugging Face's: the same weights, the same input, in turn; medians and
their ratio.

python benchmarks/detr.py [--repeats N] [--models NAME ...]      CUDA if there is one, else the CPU

All train with the losses of all decoder layers, and DETR with the paper's dropout, also of attention and within the
feed-forward layers. RT-DETR and D-FINE have denoising queries, as published; Hugging Face's loss of D-FINE is less work
than the published one, which detkit has. Each runs in a process of its own, detkit as its tools run it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import transformers
from batches import random_batch
from timing import Remote, head, row

from detkit.accelerate import accelerate
from detkit.detectors.build import build_detector
from detkit.detectors.detector import Detector
from detkit.engine.speed import for_prediction
from detkit.structures import Batch, Size
from detkit.weights import d_fine, detr, rt_detr

OBJECTS, CLASSES = 8, len(detr.COCO_CATEGORIES)


@dataclass(frozen=True)
class Model:
    """
    build        Hugging Face's with random weights
    processor    what makes detections of its outputs
    convert      the module with `hf_config` and `convert_keys`
    infer, train  (h, w) of the pictures
    """

    build: Callable[[], Any]
    processor: Any
    convert: Any
    infer: Sequence[Size]
    train: Sequence[Size]


def detr_r50() -> Any:
    model = transformers.DetrForObjectDetection(
        transformers.DetrConfig(
            backbone_config=transformers.ResNetConfig(out_features=["stage4"]),
            use_timm_backbone=False,
            num_labels=CLASSES,
            auxiliary_loss=True,
            attention_dropout=0.1,
            activation_dropout=0.1,
        )
    )
    for key, parameter in model.model.backbone.named_parameters():  # it would freeze all stages of its own ResNet
        parameter.requires_grad_(not key.startswith(("model.embedder", "model.encoder.stages.0")))
    return model


def rt_detr_r18() -> Any:
    backbone = transformers.RTDetrResNetConfig(
        layer_type="basic",
        depths=[2, 2, 2, 2],
        hidden_sizes=[64, 128, 256, 512],
        out_features=["stage2", "stage3", "stage4"],
    )
    config = transformers.RTDetrConfig(
        backbone_config=backbone,
        encoder_in_channels=[128, 256, 512],
        hidden_expansion=0.5,
        decoder_layers=3,
        freeze_backbone_batch_norms=False,
        num_labels=CLASSES,
    )
    return transformers.RTDetrForObjectDetection(config)


def d_fine_s() -> Any:
    channels = [64, 256, 512, 1024]
    backbone = transformers.HGNetV2Config(
        stem_channels=[3, 16, 16],
        stage_in_channels=[16, 64, 256, 512],
        stage_mid_channels=[16, 32, 64, 128],
        stage_out_channels=channels,
        stage_num_blocks=[1, 1, 2, 1],
        stage_numb_of_layers=[3, 3, 3, 3],
        use_learnable_affine_block=True,
        hidden_sizes=channels,
        out_indices=[2, 3, 4],
    )
    config = transformers.DFineConfig(
        backbone_config=backbone,
        freeze_backbone_batch_norms=False,
        encoder_in_channels=channels[1:],
        hidden_expansion=0.5,
        depth_mult=0.34,
        decoder_layers=3,
        decoder_n_points=[3, 6, 3],
        num_labels=CLASSES,
    )
    return transformers.DFineForObjectDetection(config)


MODELS = {
    "DETR R50": Model(detr_r50, transformers.DetrImageProcessor, detr, [(800, 1056)], [(608, 800), (576, 768)]),
    "RT-DETR R18": Model(rt_detr_r18, transformers.RTDetrImageProcessor, rt_detr, [(640, 640)], [(640, 640)] * 2),
    "D-FINE S": Model(d_fine_s, transformers.RTDetrImageProcessor, d_fine, [(640, 640)], [(640, 640)] * 2),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each, after one that is not counted")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    head(["detkit", "transformers", "transformers / detkit"], ["transformers"], device, args.repeats)
    for name in args.models:
        for training in (False, True):
            ways = {
                "detkit": Remote(detkit_work, name, training, device, as_tools=True),
                "transformers": Remote(transformers_work, name, training, device),
            }
            sizes = MODELS[name].train if training else MODELS[name].infer
            work = f"{'training step' if training else 'inference'}, {len(sizes)} x {sizes[0][0]} x {sizes[0][1]}"
            row(f"{name}, {work}", ways, args.repeats, device)
            for way in ways.values():
                way.end()


def detkit_work(name: str, training: bool, device: torch.device) -> Callable[[], None]:
    detector, _, batch = build(name, training, device)
    if training:
        return partial(train_detkit, accelerate(detector), batch)
    return partial(infer_detkit, for_prediction(detector), batch)


def transformers_work(name: str, training: bool, device: torch.device) -> Callable[[], None]:
    detector, model, batch = build(name, training, device)
    if training:
        return partial(train_transformers, model, detector, batch)
    return partial(infer_transformers, model, MODELS[name].processor(), detector, batch)


def build(name: str, training: bool, device: torch.device) -> tuple[Detector[Any], Any, Batch]:
    """detkit's and Hugging Face's with the same random weights, and what they are given."""
    torch.manual_seed(0)
    case = MODELS[name]
    model = case.build().to(device)
    detector = build_detector(case.convert.hf_config(model.config.to_dict()), detr.COCO_CATEGORIES).to(device)
    detector.load_state_dict(case.convert.convert_keys(model.state_dict()))
    return detector, model, random_batch(list(case.train if training else case.infer), OBJECTS, CLASSES).to(device)


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
