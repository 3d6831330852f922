"""Which detections a user asked for: by score, by class, and how many.

Legend: K classes.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from detkit.config import UserError
from detkit.detectors.detector import AnyDetector
from detkit.engine.class_match import UNUSED, listed, match_classes
from detkit.engine.prediction.settings import PredictionConfig
from detkit.nn.selection import SelectionConfig
from detkit.structures import Categories, Detections

Choice = Callable[[Detections], Detections]


def build_choice(config: PredictionConfig, categories: Categories) -> Choice:
    """Drops detections below the threshold of their class, those of other classes, and all but the best.

    Raises UserError for a class that the detector does not have, and for a threshold that could have no effect.
    """
    labels = _labels(config.classes, "classes", categories)
    own_thresholds = _labels(list(config.class_thresholds), "class_thresholds", categories)
    if unused := [name for name, label in own_thresholds.items() if labels and label not in labels.values()]:
        raise UserError(f"class_thresholds: {unused[0]!r} is not among the classes {listed(config.classes)}; add it")
    thresholds = torch.full((len(categories),), config.score_threshold)
    for name, label in own_thresholds.items():
        thresholds[label] = config.class_thresholds[name]
    if labels:
        others = torch.ones(len(categories), dtype=torch.bool)
        others[list(labels.values())] = False
        thresholds[others] = torch.inf

    def choose(detections: Detections) -> Detections:
        likely = detections.scores >= thresholds[detections.labels]
        return detections[likely][: config.max_detections]

    return choose


def _labels(names: Sequence[str], option: str, categories: Categories) -> dict[str, int]:
    """The label of each name."""
    labels: dict[str, int] = {}
    for name in names:
        label = match_classes([name], categories.names)[0]
        if label < 0:
            known = [other for other in categories.names if other != UNUSED]
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {listed(known)}"
            raise UserError(f"{option}: the detector has no class {name!r}; {hint}")
        if label in labels.values():
            raise UserError(f"{option}: {categories.names[label]!r} is named twice; name it once")
        labels[name] = label
    return labels


def notes_on_choice(config: PredictionConfig, detector: AnyDetector) -> list[str]:
    """Sentences on what was asked for and the detector drops before it can be chosen, and the setting that changes it.

    Of an exported file nothing is known: its limits are part of the program.
    """
    selection, path = _selection(detector)
    if selection is None:
        return []
    notes = []
    lowest = min([config.score_threshold, *config.class_thresholds.values()])
    if lowest < selection.score_threshold:
        hint = f"; --set {path}.score_threshold={lowest:g} changes that" if path else ""
        notes.append(
            f"the detector itself drops what scores {selection.score_threshold:g} or less, so that a threshold of "
            f"{lowest:g} shows no more{hint}"
        )
    most = config.max_detections or 0
    if most > selection.max_detections and not (config.tile or config.tta):
        hint = f"; --set {path}.max_detections={most} changes that" if path else ""
        notes.append(f"the detector itself gives at most {selection.max_detections} detections of a picture{hint}")
    return notes


def drop_early(config: PredictionConfig, detector: AnyDetector) -> None:
    """Lets the detector itself drop what scores less than all thresholds of `config`, which spares it the suppression.

    The choice remains the same: in a greedy suppression a detection never depends on one that scores less. Where it
    may, as when boxes are merged or scores of several views or frames are averaged, nothing is changed.
    """
    selection, _ = _selection(detector)
    lowest = min([config.score_threshold, *config.class_thresholds.values()])
    greedy = selection is not None and (selection.nms_threshold is None or selection.suppression in ("nms", "diou"))
    if selection is None or not greedy or config.tta or config.tubes or lowest <= selection.score_threshold:
        return
    # A detection must score more than this, so one of exactly `lowest` stays. Scores are float32.
    below = float(np.nextafter(np.float32(lowest), np.float32(0)))
    changed = selection.model_copy(update={"score_threshold": below})
    for module in detector.modules():
        if getattr(module, "selection", None) is selection:
            setattr(module, "selection", changed)  # noqa: B010
        own: Any = getattr(module, "config", None)
        if getattr(own, "selection", None) is selection:
            setattr(module, "config", own.model_copy(update={"selection": changed}))  # noqa: B010


def _selection(detector: AnyDetector) -> tuple[SelectionConfig | None, str]:
    """What the detector selects by, and where that stands in its configuration: a part has its name in the model."""
    for name, module in detector.named_modules():
        for holder in (module, getattr(module, "config", None)):
            selection = getattr(holder, "selection", None)
            if isinstance(selection, SelectionConfig):
                return selection, f"model.{name}.selection" if name else ""
    return None, ""
