"""All targets by name, and how many inputs of each `make test` tries: about a minute of one core in all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.fuzz import data_targets, other_targets, weight_targets
from tests.fuzz.harness import Target

BUILDERS: dict[str, Callable[[Path], Target]] = {
    "voc_xml": data_targets.voc_xml,
    "coco": data_targets.coco,
    "yolo_labels": data_targets.yolo_labels,
    "yolo_yaml": data_targets.yolo_yaml,
    "clips": data_targets.clips,
    "videos": data_targets.videos,
    "images": data_targets.images,
    "darknet_cfg": weight_targets.darknet_cfg,
    "darknet_weights": weight_targets.darknet_weights,
    "checkpoint": weight_targets.checkpoint,
    "safetensors_file": weight_targets.safetensors_file,
    "pth_file": weight_targets.pth_file,
    "hugging_face": weight_targets.hugging_face,
    "onnx_file": weight_targets.onnx_file,
    "config": other_targets.config,
    "server": other_targets.server,
}
QUICK = {
    "voc_xml": 1500,
    "coco": 1500,
    "yolo_labels": 1500,
    "yolo_yaml": 200,
    "clips": 1500,
    "videos": 500,
    "images": 700,
    "darknet_cfg": 400,
    "darknet_weights": 2000,
    "checkpoint": 300,
    "safetensors_file": 800,
    "pth_file": 400,
    "hugging_face": 700,
    "onnx_file": 100,
    "config": 150,
    "server": 1500,
}
