"""Darknet's models: a `.cfg` with its `.weights`, from YOLOv1 to v4 and their relatives, for evaluation and prediction.

https://github.com/pjreddie/darknet, https://github.com/AlexeyAB/darknet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field
from torch import Tensor, nn
from typing_extensions import override

from detkit.config import Config, UserError
from detkit.data.voc import VOC_CLASSES
from detkit.detectors.detector import AnyDetector, Detector
from detkit.nn.backbones.darknet_weights import load_darknet_weights
from detkit.nn.blocks import BatchNorm2d, ConvBlock
from detkit.nn.input import DarknetInputConfig, ImageInput, LetterboxConfig, StretchConfig
from detkit.nn.outputs import register_outputs
from detkit.nn.selection import DetectionRows, SelectionConfig, images_of_rows, select_detections
from detkit.structures import Categories, Target
from detkit.weights.class_names import coco_categories, read_names
from detkit.weights.darknet_cfg import Section, read_cfg
from detkit.weights.darknet_layers import Network
from detkit.weights.darknet_network import build_network
from detkit.weights.darknet_order import official_layers
from detkit.weights.files import Change, unchanged

DARKNET_EPS = 1e-5  # of its batch norms


class DarknetSelectionConfig(SelectionConfig):
    """Defaults: darknet's `detector valid`."""

    score_threshold: float = Field(0.005, ge=0, le=1)
    nms_threshold: float | None = Field(0.45, ge=0, le=1)
    max_detections: int = Field(1000, ge=1)


class DarknetDetectorConfig(Config):
    """What the `.cfg` does not say."""

    name: Literal["darknet"] = "darknet"
    selection: DarknetSelectionConfig = DarknetSelectionConfig()


@register_outputs
@dataclass(frozen=True, eq=False)
class DarknetOutputs:
    """
    boxes   `[B, N, 4]` xyxy in input px
    scores  `[B, N, K]`: objectness times class
    """

    boxes: Tensor
    scores: Tensor


class DarknetDetector(Detector[DarknetOutputs]):
    """A darknet network, for inference."""

    def __init__(
        self,
        darknet: Network,
        image_input: ImageInput,
        categories: Categories,
        selection: SelectionConfig = DarknetSelectionConfig(),  # noqa: B008
    ) -> None:
        super().__init__(image_input, categories)
        self.darknet = darknet
        self.selection = selection

    @override
    def network(self, images: Tensor, sizes: Tensor) -> DarknetOutputs:
        return DarknetOutputs(*self.darknet(images))

    @override
    def criterion(self, outputs: DarknetOutputs, targets: Sequence[Target]) -> dict[str, Tensor]:
        raise UserError(
            "a darknet file is for evaluation and prediction; to train, take detkit's own detectors: "
            "model.name yolov1, yolov2 or yolov3, configs/yolov1.yaml and so on"
        )

    def detect(self, outputs: DarknetOutputs, sizes: Tensor) -> DetectionRows:
        boxes, scores = outputs.boxes.flatten(0, 1), outputs.scores.flatten(0, 1)
        images = images_of_rows(outputs.boxes.shape[0], outputs.boxes.shape[1], boxes.device)
        return select_detections(boxes, scores, images, self.input.windows(sizes), self.selection)


def load_darknet(
    cfg: Path, weights: Path | None = None, names: Path | None = None, change: Change = unchanged
) -> DarknetDetector:
    """A darknet model in evaluation mode. Raises UserError for files that are none, or do not belong together.

    weights  None: beside `cfg`, with its stem
    names    class names, one a line; None: VOC's for 20 classes, COCO's official ones for 80
    change   of a `DarknetDetectorConfig`
    """
    sections = read_cfg(cfg)
    network = build_network(sections)
    categories = Categories.of_names(_class_names(cfg, network, names))
    detector = DarknetDetector(
        network, _image_input(sections[0]), categories, change(DarknetDetectorConfig()).selection
    )
    weights = weights or cfg.with_suffix(".weights")
    num_bytes = 4 * sum(parameter.numel() for parameter in network.parameters())
    if not weights.is_file() or num_bytes <= weights.stat().st_size:
        network.to_empty(device="cpu")  # otherwise the file is refused below, and a wrong .cfg may ask for any memory
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.reset_running_stats()
    load_darknet_weights(weights, network.weighted_layers())
    return detector.eval()


def load_official(detector: AnyDetector, path: Path) -> None:
    """Fills a YOLOv1, v2, v3, v4 or v7 of detkit from the weights that darknet published for the same configuration.

    Raises UserError if the file does not fit.
    """
    layers = official_layers(detector, str(path))
    load_darknet_weights(path, layers)
    for layer in layers:
        if isinstance(layer, ConvBlock) and isinstance(layer.norm, BatchNorm2d):
            assert layer.norm.running_var is not None
            layer.norm.running_var += DARKNET_EPS - layer.norm.eps  # YOLOv7's norms have another


def convert_network(darknet: DarknetDetector, detector: AnyDetector, source: str) -> dict[str, Tensor]:
    """The weights of a darknet network under the names of `detector`, a YOLOv1, YOLOv2, YOLOv3, YOLOv4 or YOLOv7.

    Layers answer to each other by their order. The number of classes and anchors may differ, and with it shapes of the
    last layers. Raises UserError, which begins with `source`, if the two have not as many layers.
    """
    layers, own = official_layers(detector, source), darknet.darknet.weighted_layers()
    if len(layers) != len(own):
        raise UserError(
            f"{source}: its network has {len(own)} layers with weights, this {type(detector).__name__} {len(layers)}; "
            "take the configuration of the same network: yolov1 to yolov4, yolov7 and their relatives have one "
            "in detkit, others are for eval and predict alone"
        )
    names = {module: name for name, module in detector.named_modules()}
    state: dict[str, Tensor] = {}
    for layer, source_layer in zip(layers, own, strict=True):
        if isinstance(layer, nn.Conv2d) and isinstance(source_layer, ConvBlock):  # the last layers, without a norm
            source_layer = source_layer.conv
        state |= {f"{names[layer]}.{key}": tensor for key, tensor in source_layer.state_dict().items()}
        if isinstance(layer, ConvBlock) and isinstance(layer.norm, BatchNorm2d):
            name = f"{names[layer]}.norm.running_var"
            state[name] = state[name] + (DARKNET_EPS - layer.norm.eps)
    return state


def load_darknet_source(source: str, change: Change = unchanged) -> DarknetDetector:
    """A darknet model by `CFG`, `CFG:WEIGHTS` or `CFG:WEIGHTS:NAMES`; an empty part stands for its default."""
    parts = [Path(part) if part else None for part in source.split(":", 2)]
    cfg, weights, names = [*parts, None, None][:3]
    if cfg is None:
        raise UserError("darknet:: expected darknet:CFG, darknet:CFG:WEIGHTS or darknet:CFG:WEIGHTS:NAMES")
    return load_darknet(cfg, weights, names, change)


def _image_input(net: Section) -> ImageInput:
    """RGB / 255, stretched as AlexeyAB's darknet does, or with `letter_box=1` as Redmon's always does."""
    width, height = net.integer("width"), net.integer("height")
    if width != height:
        raise net.error(f"expected a square input, found {width} x {height}; set width and height alike")
    resize = LetterboxConfig(size=width) if net.flag("letter_box") else StretchConfig(size=width)
    config = DarknetInputConfig(resize=resize)
    return ImageInput(config, stride=width)


def _class_names(cfg: Path, network: Network, names: Path | None) -> tuple[str, ...]:
    counts = sorted({head.num_classes for head in network.heads})
    if len(counts) > 1:
        raise UserError(f"{cfg}: expected one number of classes, found {' and '.join(map(str, counts))} in its heads")
    (count,) = counts
    if names:
        return read_names(names, count)
    if count == len(VOC_CLASSES):
        return VOC_CLASSES
    if count == len(coco := coco_categories()):
        return coco.names
    raise UserError(
        f"{cfg}: the names of its {count} classes are not known; name a file with one a line: "
        f"darknet:{cfg}:{cfg.with_suffix('.weights')}:NAMES"
    )
