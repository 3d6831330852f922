"""Which detections a user asked for: by score, by class, and how many.

Legend: K classes.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence

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


def _selection(detector: AnyDetector) -> tuple[SelectionConfig | None, str]:
    """What the detector selects by, and where that stands in its configuration: a part has its name in the model."""
    for name, module in detector.named_modules():
        for holder in (module, getattr(module, "config", None)):
            selection = getattr(holder, "selection", None)
            if isinstance(selection, SelectionConfig):
                return selection, f"model.{name}.selection" if name else ""
    return None, ""
