"""Proposals for every image of a data set, computed over the cores, once, and how well they cover the objects."""

from __future__ import annotations

import time
from pathlib import Path

import cv2
from torch.utils.data import DataLoader
from tqdm import tqdm

from detkit.config import UserError
from detkit.data.dataset import ImageDataset
from detkit.data.proposals import ProposalFolder
from detkit.detectors.detector import Detector
from detkit.engine import distributed
from detkit.evaluation.proposals import proposal_quality
from detkit.nn.proposals.selective_search import SelectiveSearchConfig, selective_search

PROPOSALS = "proposals"  # folder in that of the data


def proposal_folder(config: SelectiveSearchConfig, data: Path, root: Path | None = None) -> ProposalFolder:
    """Where proposals of these settings are kept, in `root` or in the folder of the data."""
    return ProposalFolder(root or data / PROPOSALS, data, config.model_dump(mode="json"))


def find_proposals(
    dataset: ImageDataset, config: SelectiveSearchConfig, folder: ProposalFolder, *, workers: int, progress: bool = True
) -> list[float]:
    """Fills the folder with what it lacks; the seconds of a core for each image that was still to be done."""
    missing = [index for index in range(len(dataset)) if not folder.path(dataset.path(index)).exists()]
    search: DataLoader[float] = DataLoader(
        _Search(dataset, config, folder, missing),  # type: ignore[arg-type]
        batch_size=None,
        num_workers=workers,
        worker_init_fn=_init_worker,
    )
    title = f"selective search, {dataset.name}"
    return list(tqdm(search, total=len(missing), desc=title, disable=not progress, leave=False))


def proposals_for(detector: Detector, dataset: ImageDataset, data_root: str, *, workers: int) -> ProposalFolder | None:
    """What `detector` is to be given for the images of `dataset`: found now if it is not kept below `data_root` yet.

    None for a detector that wants none. With several processes the first one searches and the others wait.
    """
    if detector.proposals is None:
        return None
    with distributed.first_process_first():
        folder = proposal_folder(detector.proposals, Path(data_root))
        find_proposals(dataset, detector.proposals, folder, workers=workers, progress=distributed.rank() == 0)
    return folder


def describe_proposals(
    dataset: ImageDataset, config: SelectiveSearchConfig, folder: ProposalFolder, *, workers: int, progress: bool = True
) -> str:
    """Finds what is missing, and says what there is."""
    if not len(dataset):
        raise UserError(f"{dataset.name}: no image to find proposals in")
    seconds = find_proposals(dataset, config, folder, workers=workers, progress=progress)
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
        self, dataset: ImageDataset, config: SelectiveSearchConfig, folder: ProposalFolder, indices: list[int]
    ) -> None:
        self.dataset, self.config, self.folder, self.indices = dataset, config, folder, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, number: int) -> float:
        index = self.indices[number]
        image = self.dataset.load(index).image
        start = time.process_time()
        self.folder.save(self.dataset.path(index), selective_search(image, self.config))
        return time.process_time() - start


def _init_worker(worker: int) -> None:
    cv2.setNumThreads(0)
