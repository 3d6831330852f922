"""From pictures to the detections that a user asked for: detector, test-time augmentation, tiles, choice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from detkit.config import UserError
from detkit.detectors.detector import AnyDetector
from detkit.engine.predict import predict
from detkit.engine.prediction.choice import Choice, build_choice
from detkit.engine.prediction.settings import PredictionConfig
from detkit.engine.prediction.tiles import tiled
from detkit.engine.prediction.tta import SCALES, augmented, flipped
from detkit.engine.prediction.tta import Predict as Predict  # for those who call this
from detkit.engine.proposal_search import ProposalSource, source_of
from detkit.nn.input import KeepConfig
from detkit.structures import Detections


def build_predict(detector: AnyDetector, proposals: ProposalSource | None, config: PredictionConfig) -> Predict:
    """Detections of each picture, uint8 `[H, W, 3]` RGB, in its own pixels, as `config` asks for them.

    proposals  for a detector that is given them; None: the source of its configuration

    Raises UserError for what the detector cannot do.
    """
    choose = build_choice(config, detector.categories)
    proposals = proposals or source_of(detector)

    def at_scale(scale: float) -> Predict:
        return partial(predict, detector, proposals=proposals, scale=scale)

    if detector.input.clip is not None and (config.tta or config.tile):
        raise UserError("tta and tile change pictures, and this detector takes clips; leave them out")
    views = [at_scale(1.0)]
    if "scales" in config.tta:
        _check_takes_scales(detector, at_scale)
        views += [at_scale(scale) for scale in SCALES]
    if "flip" in config.tta:
        views += [flipped(view) for view in views]
    batched = in_batches(augmented(views), config.batch_size)
    if config.tile is not None:
        # before the tiles are joined, so that no detection which nobody sees takes the place of another
        unlimited = build_choice(config.model_copy(update={"max_detections": None}), detector.categories)
        batched = tiled(_chosen(batched, unlimited), config.tile, config.overlap)
    return _chosen(batched, choose)


def in_batches(predict: Predict, batch_size: int) -> Predict:
    """The same detections, of at most `batch_size` pictures at once."""

    def predict_batches(images: Sequence[np.ndarray]) -> list[Detections]:
        starts = range(0, len(images), batch_size)
        return [detections for start in starts for detections in predict(images[start : start + batch_size])]

    return predict_batches


def _chosen(predict: Predict, choose: Choice) -> Predict:
    return lambda images: [choose(detections) for detections in predict(images)]


def _check_takes_scales(detector: AnyDetector, at_scale: Callable[[float], Predict]) -> None:
    """Raises UserError for a detector whose input has no size that could be changed, or only one."""
    if isinstance(detector.input.resize, KeepConfig):
        raise UserError("tta: this detector takes pictures as large as they are, which scales cannot change; use flip")
    try:
        if not detector.needs_fixed_canvas:
            for scale in SCALES:
                at_scale(scale)([np.zeros((64, 64, 3), np.uint8)])
            return
    except RuntimeError:  # such as a fully connected layer, which has weights for one size
        pass
    raise UserError("tta: this detector takes images of one size, which scales would change; use flip")
