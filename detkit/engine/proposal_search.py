"""Proposals for every image of a data set, searched once and stored, and how well they cover the objects."""

from __future__ import annotations

import hashlib
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from typing_extensions import override

from detkit.config import UserError
from detkit.data.check_cache import cache_folder
from detkit.data.checks import DataError
from detkit.data.collate import collate
from detkit.data.dataset import ImageDataset
from detkit.data.loader import Loader
from detkit.data.proposal_files import match_proposals, read_proposals
from detkit.data.proposal_folder import ProposalFolder, proposals_exist
from detkit.data.transforms import resize_sample
from detkit.detectors.detector import AnyDetector
from detkit.detectors.faster_rcnn import FasterRCNN
from detkit.engine import distributed
from detkit.engine.sources import load_detector
from detkit.engine.speed import for_prediction
from detkit.evaluation.proposal_recall import proposal_quality
from detkit.nn.proposals import DetectorProposalsConfig, FileProposalsConfig, ProposalsConfig
from detkit.nn.proposals.selective_search import SelectiveSearchConfig, selective_search
from detkit.nn.selection import to_original
from detkit.structures import Objects, Sample

PROPOSALS = "proposals"  # folder in that of the data


class ProposalSource(ABC):
    """Gives boxes float32 `[N, 4]` xyxy of an image in its own pixels, those likely to be objects first."""

    in_workers = True  # several processes may ask at once

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """The name of the source and everything that the boxes of an image depend on."""

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
    """Proposals of published files. The settings hold a hash of each file's content, not its path."""

    in_workers = False

    def __init__(self, config: FileProposalsConfig) -> None:
        self.config = config
        self.name = f"model.proposals: {', '.join(config.paths)}"

    def settings(self) -> dict[str, Any]:
        try:
            hashes = [hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in self.config.paths]
        except OSError as error:
            raise DataError(f"model.proposals.paths: {error.filename}: {error.strerror}") from error
        return {**self.config.model_dump(mode="json"), "paths": hashes}

    @override
    def of_picture(self, picture: np.ndarray) -> np.ndarray:
        raise UserError(
            f"{self.name}: no proposals for a new picture; tools/eval.py detects on the images of the files, and a "
            "detector trained with selective_search or detector for model.proposals.name on any"
        )

    def of_dataset(self, dataset: ImageDataset) -> Callable[[int], np.ndarray]:
        proposals = {
            image_id: boxes[: self.config.max_boxes] for image_id, boxes in read_proposals(self.config.paths).items()
        }
        return match_proposals(dataset, proposals, self.name, allow_missing=self.config.allow_missing).__getitem__


class DetectorProposals(ProposalSource):
    """The proposals of a trained Faster R-CNN, at that detector's own input size."""

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
        if detector.input.clip is not None:
            raise UserError(f"model.proposals.source: {config.source} takes clips; name a Faster R-CNN of pictures")
        self.config, self.detector = config, for_prediction(detector.to(device))
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
        sample = resize_sample(Sample(picture, Objects.empty(), 0), info.input_size)
        batch = collate([(sample, info)], detector.input.stride, with_targets=False).to(detector.input.mean.device)
        sizes = batch.sizes()
        (boxes,) = detector.propose(detector.input(batch.images, sizes), sizes).to_list(1)
        return np.asarray(to_original(boxes[: self.config.max_boxes], info).cpu().numpy())


def proposal_source(config: ProposalsConfig, device: torch.device | str = "cpu") -> ProposalSource:
    """`device` is for a source that is a network."""
    match config:
        case SelectiveSearchConfig():
            return SelectiveSearchProposals(config)
        case FileProposalsConfig():
            return FileProposals(config)
        case DetectorProposalsConfig():
            return DetectorProposals(config, device)


def source_of(detector: AnyDetector) -> ProposalSource | None:
    """The source of the detector's proposals, on the same device; None for one that needs none."""
    return proposal_source(detector.proposals, detector.input.mean.device) if detector.proposals else None


def proposal_folder(source: ProposalSource, data: Path, chosen: str | Path | None = None) -> ProposalFolder:
    """The folder that stores proposals of this source.

    It lies in `chosen`. If that is None it lies in `proposals` in the folder of the data; or where one cannot write
    there and it does not exist yet, in the user's cache.

    data  folder of the data, or a file in it such as YOLO's data.yaml
    """
    data, settings = data.parent if data.is_file() else data, source.settings()
    beside, cache = data / PROPOSALS, cache_folder()
    if chosen is not None:
        return ProposalFolder(Path(chosen), data, settings)
    if cache is None or proposals_exist(beside, settings) or _is_writable(beside):
        return ProposalFolder(beside, data, settings)
    digest = hashlib.sha256(os.fsencode(os.path.abspath(data))).hexdigest()[:16]
    folder = ProposalFolder(cache / PROPOSALS / f"{data.absolute().name}-{digest}", data, settings)
    if distributed.rank() == 0:
        print(f"{beside} is not writable: proposals are kept in {folder.folder}; loader.proposals chooses a folder")
    return folder


def _is_writable(folder: Path) -> bool:
    """Whether one can write in a folder that may have to be created first."""
    exists = next((path for path in (folder, *folder.absolute().parents) if path.exists()), folder)
    return os.access(exists, os.W_OK)


def find_proposals(
    dataset: ImageDataset,
    source: ProposalSource,
    folder: ProposalFolder,
    *,
    workers: int,
    progress: bool = True,
    indices: Iterable[int] | None = None,
) -> list[float]:
    """Searches the images that the folder has no proposals of; returns the seconds of one core for each of them.

    indices  of the images that are needed; None: all
    """
    needed = range(len(dataset)) if indices is None else indices
    missing = [index for index in needed if not folder.path(dataset.path(index)).exists()]
    if not missing:
        return []
    search: Loader[float] = Loader(
        partial(_search, dataset, source.of_dataset(dataset), folder),
        missing,
        workers=workers if source.in_workers else 0,
    )
    title = f"proposals, {dataset.name}"
    return list(tqdm(search, total=len(missing), desc=title, disable=not progress, leave=False))


def proposals_for(
    detector: AnyDetector, dataset: ImageDataset, root: Path, *, workers: int, chosen: str | None = None
) -> ProposalFolder | None:
    """The proposals that `detector` is given for the images of `dataset`, searched now unless they are there already.

    root    the folder of the data, or of a run; proposals lie in it or in `chosen` (see `proposal_folder`)
    chosen  `loader.proposals`

    None for a detector that needs none. With several processes the first one searches and the others wait.
    """
    if detector.proposals is None:
        return None
    with distributed.first_process_first():
        source = proposal_source(detector.proposals, detector.input.mean.device)
        folder = proposal_folder(source, root, chosen)
        find_proposals(dataset, source, folder, workers=workers, progress=distributed.rank() == 0)
    return folder


def describe_proposals(
    dataset: ImageDataset, source: ProposalSource, folder: ProposalFolder, *, workers: int, progress: bool = True
) -> str:
    """Searches what is missing; a report on how many proposals there are and how well they cover the objects."""
    if not len(dataset):
        raise UserError(f"{dataset.name}: no image to find proposals in")
    seconds = find_proposals(dataset, source, folder, workers=workers, progress=progress)
    pairs = ((dataset.ground_truth(i), folder.load(dataset.path(i))) for i in range(len(dataset)))
    quality = proposal_quality(pairs, dataset.categories)
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


def _search(dataset: ImageDataset, boxes_of: Callable[[int], np.ndarray], folder: ProposalFolder, index: int) -> float:
    """Stores the proposals of an image; returns the time that it took, in seconds of one core."""
    start = time.process_time()
    folder.save(dataset.path(index), boxes_of(index))
    return time.process_time() - start
