"""detkit: the lineage of object detection, trainable in one readable package.

`load`, `predict` and `train` are what the command line does, from Python. Nothing is imported before one is called, so
that `import detkit.ops.iou` loads torch and nothing else that is heavy.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detkit.detectors.detector import AnyDetector
    from detkit.engine.predict import AnyImage as AnyImage
    from detkit.engine.settings import RunConfig
    from detkit.structures import Detections

__version__ = "0.2.0"
__all__ = ["load", "predict", "train"]


def load(source: str | Path, *, set: Sequence[str] = ()) -> AnyDetector:
    """A detector ready to predict: on the CPU, in evaluation mode, with faster modules where there are any.

    source  the folder of a run, a checkpoint, an exported file, or public weights such as
            `torchvision:fasterrcnn_resnet50_fpn`, `detr:detr_resnet50` or `yolov3.cfg`
    set     changes of its `model` that need no new weights, such as `model.roi.selection.score_threshold=0.3`

    Raises `detkit.config.UserError` if it is none of these.
    """
    from detkit.engine.sources import load_detector
    from detkit.engine.speed import accelerate

    detector, _ = load_detector(source, [set] if isinstance(set, str) else set)
    accelerate(detector)
    return detector


def predict(detector: AnyDetector | str | Path, images: AnyImage | Iterable[AnyImage]) -> list[Detections]:
    """Detections of each image, in its own pixels and best first, on the device of the detector.

    detector  or what `load` takes
    images    one or several: files of pictures or their content, images of Pillow, uint8 RGB `[H, W, 3]` or grey
              `[H, W]`, or uint8 tensors `[3, H, W]`

    Raises `detkit.config.UserError` for a file that is no picture, and for other arrays.
    """
    from detkit.engine.predict import predict_each

    loaded = load(detector) if isinstance(detector, str | Path) else detector
    one = isinstance(images, str | bytes) or hasattr(images, "shape") or not isinstance(images, Iterable)
    return list(predict_each(loaded, [images] if one else images))  # type: ignore[list-item,arg-type]


def train(
    config: str | Path | RunConfig | None = None,
    *,
    output: str | Path | None = None,
    set: Iterable[str] = (),
    init: str | Path | None = None,
    resume: str | Path | None = None,
) -> Path:
    """Trains a detector and returns the folder of the run, which `load` takes.

    config  a YAML file as in `configs/`, or its content; may be left out with `resume`
    output  the folder; None: the first free of `runs/NAME`, `runs/NAME-2`, ...
    set     changes of single settings, such as `train.epochs=2`
    init    what the weights start from: what `load` takes, or a file of tensors; the same as `train.init`
    resume  the folder of a run to go on with, instead of `output`

    Raises `detkit.config.UserError`, with every problem in it, before data is touched. From objects of one's own,
    train with `detkit.engine.train.train`.
    """
    from detkit.engine.run import prepare_run
    from detkit.engine.train import train_config

    changes = [*set, f"train.init={init}"] if init is not None else set
    with prepare_run(config, output=output, overrides=changes, resume=resume) as (run_config, folder):
        train_config(run_config, folder, resume=resume is not None)
    return folder
