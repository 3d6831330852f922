"""Proposals for every image of a data set, made once and kept, and how well they cover the objects."""

from __future__ import annotations

import hashlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from detkit.config import UserError
from detkit.data.checks import DataError
from detkit.data.collate import collate
from detkit.data.dataset import ImageDataset
from detkit.data.loader import Loader
from detkit.data.proposal_files import match_proposals, read_proposals
from detkit.data.proposals import ProposalFolder
from detkit.data.transforms import resize_sample
from detkit.detectors.detector import Detector
from detkit.detectors.faster_rcnn import FasterRCNN
from detkit.engine import distributed
from detkit.engine.run import load_detector
from detkit.evaluation.proposals import proposal_quality
from detkit.nn.heads.detections import to_original
from detkit.nn.proposals import DetectorProposalsConfig, FileProposalsConfig, ProposalsConfig
from detkit.nn.proposals.selective_search import SelectiveSearchConfig, selective_search
from detkit.ops.boxes import clip_boxes
from detkit.structures import Sample

PROPOSALS = "proposals"  # folder in that of the data


class ProposalSource(ABC):
    """Boxes float32 `[N, 4]` xyxy of an image in its own pixels, those likely to be objects first."""

    in_workers = True  # several processes may ask at once

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """The name, and all else that the boxes of an image depend on."""

    @abstractmethod
    def of_picture(self, picture: np.ndarray) -> np.ndarray:
        """Of any picture, uint8 `[H, W, 3]` RGB."""

    def of_dataset(self, dataset: ImageDataset) -> Callable[[int], np.ndarray]:
        """Index of an image -> its boxes. Raises DataError if there are none for this data set."""
        return partial(self._of_image, dataset)

    def _of_image(self, dataset: ImageDataset, index: int) -> np.ndarray:
        return self.of_picture(dataset.load(index).image)


class SelectiveSearchProposals(ProposalSource):
    def __init__(self, config: SelectiveSearchConfig) -> None:
        self.config = config

    def settings(self) -> dict[str, Any]:
        return self.config.model_dump(mode="json")

    def of_picture(self, picture: np.ndarray) -> np.ndarray:
        return selective_search(picture, self.config)


class FileProposals(ProposalSource):
    """The settings hold what is in the files, not where they lie."""

    in_workers = False

    def __init__(self, config: FileProposalsConfig) -> None:
        self.config = config
        self.where = f"model.proposals: {', '.join(config.paths)}"

    def settings(self) -> dict[str, Any]:
        try:
            hashes = [hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in self.config.paths]
        except OSError as error:
            raise DataError(f"model.proposals.paths: {error.filename}: {error.strerror}") from error
        return {**self.config.model_dump(mode="json"), "paths": hashes}

    def of_picture(self, picture: np.ndarray) -> np.ndarray:
        raise UserError(
            f"{self.where}: no proposals for a new picture; tools/eval.py detects on the images of the files, and a "
            "detector trained with selective_search or detector for model.proposals.name on any"
        )

    def of_dataset(self, dataset: ImageDataset) -> Callable[[int], np.ndarray]:
        found = {
            image_id: boxes[: self.config.max_boxes] for image_id, boxes in read_proposals(self.config.paths).items()
        }
        return match_proposals(dataset, found, self.where, allow_missing=self.config.allow_missing).__getitem__


class DetectorProposals(ProposalSource):
    """What the region proposal network of a trained detector gives at that detector's own input size."""

    in_workers = False  # one network has the device, or all cores, for itself

    def __init__(self, config: DetectorProposalsConfig, device: torch.device | str) -> None:
        try:
            detector, trained = load_detector(config.source)
        except UserError as error:
            raise UserError(f"model.proposals.source: {error}") from error
        if not isinstance(detector, FasterRCNN):
            raise UserError(
                f"model.proposals.source: {config.source} is a {type(detector).__name__} and has no region proposal "
                "network; name a Faster R-CNN"
            )
        self.config, self.detector = config, detector.to(device)
        self.model = trained.model.model_dump(mode="json") if trained else config.source

    def settings(self) -> dict[str, Any]:
        weights = hashlib.sha256()
        for name, value in self.detector.state_dict().items():
            weights.update(name.encode())
            weights.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy())
        return {**self.config.model_dump(mode="json"), "source": self.model, "weights": weights.hexdigest()}

    @torch.inference_mode()
    def of_picture(self, picture: np.ndarray) -> np.ndarray:
        detector = self.detector
        info = detector.input.place(0, picture.shape[:2])
        empty = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.bool_)
        item = resize_sample(Sample(picture, *empty, 0), info.input_size), info
        batch = collate([item], detector.input.stride, with_targets=False).to(detector.input.mean.device)
        images = detector.input(batch)
        outputs = detector.rpn(detector.features(images), batch.input_sizes, (images.shape[2], images.shape[3]))
        (boxes,) = detector.rpn.propose(outputs, batch.infos)
        boxes = clip_boxes(to_original(boxes[: self.config.max_boxes], info), info.orig_size)
        return np.asarray(boxes.cpu().numpy())


def proposal_source(config: ProposalsConfig, device: torch.device | str = "cpu") -> ProposalSource:
    """`device` is for a source that is a network."""
    match config:
        case SelectiveSearchConfig():
            return SelectiveSearchProposals(config)
        case FileProposalsConfig():
            return FileProposals(config)
        case DetectorProposalsConfig():
            return DetectorProposals(config, device)


def source_of(detector: Detector) -> ProposalSource | None:
    """What gives `detector` its proposals, on the same device; None for one that wants none."""
    return proposal_source(detector.proposals, detector.input.mean.device) if detector.proposals else None


def proposal_folder(source: ProposalSource, data: Path, root: Path | None = None) -> ProposalFolder:
    """Where proposals of this source are kept, in `root` or in the folder of the data."""
    return ProposalFolder(root or data / PROPOSALS, data, source.settings())


def find_proposals(
    dataset: ImageDataset, source: ProposalSource, folder: ProposalFolder, *, workers: int, progress: bool = True
) -> list[float]:
    """Fills the folder with what it lacks; the seconds of a core for each image that was still to be done."""
    missing = [index for index in range(len(dataset)) if not folder.path(dataset.path(index)).exists()]
    if not missing:
        return []
    search = Loader(
        _Search(dataset, source.of_dataset(dataset), folder, missing),
        itemgetter(0),
        batch_size=1,
        num_workers=workers if source.in_workers else 0,
    )
    title = f"proposals, {dataset.name}"
    return list(tqdm(search, total=len(missing), desc=title, disable=not progress, leave=False))


def proposals_for(detector: Detector, dataset: ImageDataset, data_root: str, *, workers: int) -> ProposalFolder | None:
    """What `detector` is to be given for the images of `dataset`: found now if it is not kept below `data_root` yet.

    None for a detector that wants none. With several processes the first one searches and the others wait.
    """
    if detector.proposals is None:
        return None
    with distributed.first_process_first():
        source = proposal_source(detector.proposals, detector.input.mean.device)
        folder = proposal_folder(source, Path(data_root))
        find_proposals(dataset, source, folder, workers=workers, progress=distributed.rank() == 0)
    return folder


def describe_proposals(
    dataset: ImageDataset, source: ProposalSource, folder: ProposalFolder, *, workers: int, progress: bool = True
) -> str:
    """Finds what is missing, and says what there is."""
    if not len(dataset):
        raise UserError(f"{dataset.name}: no image to find proposals in")
    seconds = find_proposals(dataset, source, folder, workers=workers, progress=progress)
    pairs = ((dataset.ground_truth(i), folder.load(dataset.path(i))) for i in range(len(dataset)))
    quality = proposal_quality(pairs, dataset.class_names)
    taken = f"{sum(seconds) / len(seconds):.2f} s of one core an image" if seconds else "all found before"
    return "\n".join(
        [
            dataset.summary,
            f"{folder.folder}: {taken}",
            f"boxes an image              {quality.boxes:9.1f}",
            f"recall at IoU 0.5           {quality.recall:9.4f}",
            f"mean average best overlap   {quality.mabo:9.4f}",
        ]
    )


class _Search:
    """What a worker does for an image; the answer is the time it took."""

    def __init__(
        self,
        dataset: ImageDataset,
        boxes_of: Callable[[int], np.ndarray],
        folder: ProposalFolder,
        indices: list[int],
    ) -> None:
        self.dataset, self.boxes_of, self.folder, self.indices = dataset, boxes_of, folder, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, number: int) -> float:
        index = self.indices[number]
        start = time.process_time()
        self.folder.save(self.dataset.path(index), self.boxes_of(index))
        return time.process_time() - start
