"""What the export report exports: the configurations of `configs/`, and the public detectors with random weights.

Nothing is downloaded: a publisher's own model is built with random weights, and its state is saved under the
publisher's names, so that `load_detector` reads it as it reads a downloaded file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from random_weights import spread
from torch import Tensor, nn
from torchvision.models import detection

from detkit.config import UserError
from detkit.data.build import build_dataset
from detkit.detectors.build import build_detector
from detkit.detectors.detector import AnyDetector
from detkit.engine.checkpoint import save_checkpoint
from detkit.engine.config_files import PACKAGED, load_named
from detkit.engine.run import LAST, detector_state, load_last
from detkit.engine.settings import RunConfig
from detkit.engine.sources import load_detector
from detkit.export.comparison_data import batch_of, comparison_data
from detkit.weights.detr import convert_keys as convert_detr
from detkit.weights.torchvision import CONFIGS as TORCHVISION
from detkit.weights.torchvision import convert_keys as convert_torchvision

CONFIGURATIONS = tuple(sorted(file.stem for file in PACKAGED.glob("*.yaml")))
DETR = "detr_resnet50"
PICTURES = 4  # from which random weights have their statistics
SIZE = (480, 640)  # (h, w) px of the picture that a publisher's own model is exported with
RANDOM, SEED = "random", 0


@dataclass(frozen=True)
class Source:
    """
    source   for `load_detector`
    weights  trained, random or real
    own      the publisher's own model with the same weights, in evaluation mode, and its inputs; None: there is none
    """

    source: str
    weights: str
    own: tuple[nn.Module, tuple[Any, ...]] | None = None


def prepare(name: str, runs: Path, darknet: Path, folder: Path) -> Source:
    """
    name     a configuration, a public detector, or the stem of `darknet`
    runs     folder with trained runs; a configuration without one there has random weights
    darknet  a `.cfg` with its `.weights` beside it
    folder   for files of random weights

    Raises UserError if there are no such weights.
    """
    torch.manual_seed(SEED)
    if name in TORCHVISION:
        model = getattr(detection, name)(weights=None, weights_backbone=None)
        source = f"torchvision:{name}:{_publish(model, 'torchvision', name, convert_torchvision, folder)}"
        return Source(source, RANDOM, (model.eval(), ([torch.rand(3, *SIZE)],)))
    if name == DETR:
        backbone = transformers.ResNetConfig(out_features=["stage4"])
        config = transformers.DetrConfig(backbone_config=backbone, use_timm_backbone=False, num_labels=91)
        model = transformers.DetrForObjectDetection(config)
        source = f"detr:{name}:{_publish(model, 'detr', name, convert_detr, folder)}"
        return Source(source, RANDOM, (model.eval(), (torch.randn(1, 3, *SIZE),)))
    if name == darknet.stem:
        if not darknet.is_file():
            raise UserError(f"{name}: its files are not here: --darknet names its .cfg, with the .weights beside it")
        return Source(str(darknet), "real")
    return _configuration(name, runs, folder)


def _configuration(name: str, runs: Path, folder: Path) -> Source:
    if (runs / name / LAST).is_file():
        settings = load_detector(runs / name)[1]
        epochs = settings.train.epochs if settings else 0
        return Source(str(runs / name), f"trained, {load_last(runs / name)['epoch']} of {epochs} epochs")
    settings = load_named(name)
    detector = build_detector(settings.model, build_dataset(settings.data, "val").categories)
    _spread(detector, settings)
    file = folder / "random.pt"
    save_checkpoint(file, detector_state(settings, detector))
    return Source(str(file), RANDOM)


def _publish(
    model: nn.Module,
    publisher: str,
    name: str,
    convert: Callable[[Mapping[str, Tensor]], dict[str, Tensor]],
    folder: Path,
) -> Path:
    """Spreads the weights of a publisher's model, and saves them under the publisher's names."""
    file = folder / f"{name}.pth"
    torch.save(model.state_dict(), file)
    detector, _ = load_detector(f"{publisher}:{name}:{file}")
    _spread(detector, None)
    state = detector.state_dict()
    for key, tensor in convert(model.state_dict()).items():
        if key in state:  # not the counters of batch norms, which are frozen in the detector
            tensor.copy_(state[key])
    torch.save(model.state_dict(), file)
    return file


def _spread(detector: AnyDetector, settings: RunConfig | None) -> None:
    data = comparison_data(detector, settings, PICTURES, canvas=None)
    spread(detector, batch_of(detector, data.samples))
