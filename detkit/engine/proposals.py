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
from detkit.evaluation.proposals import proposal_quality
from detkit.nn.proposals.selective_search import SelectiveSearchConfig, selective_search


def find_proposals(
    dataset: ImageDataset, config: SelectiveSearchConfig, root: Path, *, workers: int, progress: bool = True
) -> tuple[ProposalFolder, list[float]]:
    """The folder with the proposals of all images, and the seconds of each image that was still to be done."""
    folder = ProposalFolder(root, config.model_dump(mode="json"))
    missing = [index for index in range(len(dataset)) if not folder.path(dataset.image_id(index)).exists()]
    search: DataLoader[float] = DataLoader(
        _Search(dataset, config, folder, missing),  # type: ignore[arg-type]
        batch_size=None,
        num_workers=workers,
        worker_init_fn=_init_worker,
    )
    title = f"selective search, {dataset.name}"
    return folder, list(tqdm(search, total=len(missing), desc=title, disable=not progress, leave=False))


def describe_proposals(
    dataset: ImageDataset, config: SelectiveSearchConfig, root: Path, *, workers: int, progress: bool = True
) -> str:
    """Finds what is missing, and says what there is."""
    if not len(dataset):
        raise UserError(f"{dataset.name}: no image to find proposals in")
    folder, seconds = find_proposals(dataset, config, root, workers=workers, progress=progress)
    pairs = ((dataset.ground_truth(i), folder.load(dataset.image_id(i))) for i in range(len(dataset)))
    quality = proposal_quality(pairs, dataset.class_names)
    taken = f"{sum(seconds) / len(seconds):.2f} s an image on one core" if seconds else "all found before"
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
        sample = self.dataset.load(self.indices[number])
        start = time.perf_counter()
        self.folder.save(sample.image_id, selective_search(sample.image, self.config))
        return time.perf_counter() - start


def _init_worker(worker: int) -> None:
    cv2.setNumThreads(0)
