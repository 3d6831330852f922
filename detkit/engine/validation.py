"""The validation data of a run, on which its detector is measured again and again."""

from __future__ import annotations

from pathlib import Path

import torch

from detkit.data.dataset import ImageDataset
from detkit.detectors.detector import AnyDetector
from detkit.engine import distributed
from detkit.engine.evaluate import detection_store, evaluate
from detkit.engine.loaders import evaluation_loader
from detkit.engine.proposal_search import proposals_for
from detkit.engine.settings import RunSettings
from detkit.evaluation.build import build_evaluators, choose_protocols
from detkit.evaluation.evaluator import Evaluation


def has_objects(dataset: ImageDataset) -> bool:
    """Whether there is an object that counts. Without any there is no score: it is nan."""
    return not bool(dataset.objects.ignore.all())


class Validation:
    """By the protocol of the settings alone.

    detector   says how pictures are resized, and what proposals it is given
    proposals  folder in which those are stored
    """

    def __init__(self, detector: AnyDetector, dataset: ImageDataset, settings: RunSettings, proposals: Path) -> None:
        self.config, workers = settings.eval, settings.loader.workers
        self.loader = evaluation_loader(
            dataset,
            detector,
            batch_size=self.config.batch_size,
            workers=workers,
            proposals=proposals_for(detector, dataset, proposals, workers=workers, chosen=settings.loader.proposals),
        )
        self.store = detection_store(dataset)
        self.evaluators = build_evaluators(
            choose_protocols([self.config.protocol], self.store, detector.columns, "this detector", dataset.unusual),
            self.store,
            coco_backend=self.config.coco_backend,
            max_detections=self.config.max_detections,
            link=self.config.link,
        )
        self.has_objects = has_objects(dataset)

    def measure(self, detector: AnyDetector, device: torch.device) -> Evaluation:
        return evaluate(
            detector,
            self.loader,
            self.store,
            self.evaluators,
            device=device,
            amp=self.config.amp,
            progress=distributed.rank() == 0,
        )
