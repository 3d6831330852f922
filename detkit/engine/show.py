"""Drawings of what a configuration makes of pictures: each as it is in its file, beside what the network gets.

Legend: N objects of one image, H x W pixels of a picture or of a network input; boxes are float32 `[N, 4]` xyxy.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import torch
from PIL import Image

from detkit.config import UserError
from detkit.data.build import build_dataset
from detkit.data.dataset import ImageDataset
from detkit.data.loader import Loader
from detkit.data.proposal_folder import ProposalFolder
from detkit.data.sampler import Key
from detkit.data.transforms import used_columns
from detkit.detectors.build import build_detector, learned_columns
from detkit.detectors.detector import AnyDetector
from detkit.engine.checks import check_columns
from detkit.engine.drawing import GREY, colour_of, draw_box, draw_keypoints, draw_masks
from detkit.engine.initialise import without_public_weights
from detkit.engine.loaders import evaluation_loader, training_loader
from detkit.engine.proposal_search import ProposalSource, find_proposals, proposal_folder, proposal_source
from detkit.engine.run_folder import create_folder
from detkit.engine.settings import RunConfig
from detkit.files import writing
from detkit.nn.input import ImageInput
from detkit.structures import Batch, Categories, Sample

MAX_WIDTH = 4000  # px of a drawing
MIN_HEIGHT = 480  # px of a drawing: smaller inputs are enlarged, so that names can be read
FONT = cv2.FONT_HERSHEY_SIMPLEX  # of the line above a drawing
TITLE = 26  # px, height of the line above a drawing
GAP = 8  # px
WHITE = (255, 255, 255)
MAX_PROPOSALS = 40  # drawn of each image: more would hide it
SHEET, SHEET_WIDTH = "sheet.jpg", 640  # px of a pair on the sheet
Split = Literal["train", "val"]


def show(config: RunConfig, split: Split, folder: Path, *, count: int = 10, epoch: int = 0) -> Iterator[str]:
    """Draws the first `count` images of a training epoch (from 0), or of the validation, into `folder`.

    A JPEG for each image, `NUMBER_NAME.jpg`, and all of them on `sheet.jpg`. Yields a line about the data, and one for
    each drawing when it is there. Raises UserError for data without images or that training would refuse.
    """
    columns = learned_columns(config.model)
    used = used_columns(config.augment) if split == "train" else ()
    dataset = build_dataset(config.data, split, columns={*columns, *used})
    if not len(dataset):
        raise UserError(f"{dataset.name}: no image to show")
    check_columns(dataset, config.model.name, columns)
    create_folder(folder)
    yield dataset.summary
    with torch.device("meta"):  # no weights: only the input and the proposals are asked for
        detector = build_detector(without_public_weights(config.model), dataset.categories)
    image_input = ImageInput(config.model.input, detector.input.stride)
    image_input.clip = detector.input.clip
    proposals = _proposals_of(config, detector)
    loader = _loader(config, split, dataset, detector, proposals[1] if proposals else None)
    loader.set_epoch(epoch)
    keys: list[Key] = []
    for batch in loader.sampler:  # whole batches, as the loader makes them
        if len(keys) < count:
            keys += batch
    if proposals:
        find_proposals(dataset, *proposals, workers=0, indices=sorted({key.image for key in keys}))
    pairs = []
    for number, (key, seen) in enumerate(zip(keys[:count], _network_inputs(loader, image_input), strict=False), 1):
        pair, text = _draw_pair(dataset.load(key.image), seen, dataset.categories)
        name = re.sub(r"[^\w.-]", "_", Path(dataset.path(key.image)).stem)
        path = folder / f"{number:02d}_{name}.jpg"
        _save(path, pair)
        pairs.append(pair)
        yield f"{path}: {text}"
    _save(folder / SHEET, _sheet(pairs))
    yield f"{folder / SHEET}: all of them"


def _proposals_of(config: RunConfig, detector: AnyDetector) -> tuple[ProposalSource, ProposalFolder] | None:
    if detector.proposals is None:
        return None
    source = proposal_source(detector.proposals)
    return source, proposal_folder(source, Path(config.data.root), config.loader.proposals)


def _loader(
    config: RunConfig, split: Split, dataset: ImageDataset, detector: AnyDetector, proposals: ProposalFolder | None
) -> Loader[Batch]:
    if split == "train":
        alone = config.model_copy(update={"loader": config.loader.model_copy(update={"workers": 0})})
        return training_loader(dataset, detector, alone, proposals, learned_columns(config.model))
    size = config.eval.batch_size
    return evaluation_loader(dataset, detector, batch_size=size, workers=0, proposals=proposals, with_targets=True)


def _network_inputs(loader: Loader[Batch], image_input: ImageInput) -> Iterator[Sample]:
    """What the network gets of each image, padding included: its pixels are normalised and put back. Of a clip its own
    frame."""
    for batch in loader:
        assert batch.targets is not None
        own = batch.images if image_input.clip is None else batch.images[:, :, image_input.clip.before]
        pixels = image_input(own, batch.sizes()) * image_input.std + image_input.mean
        if image_input.flip_channels:
            pixels = pixels.flip(1)
        images = pixels.round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
        for row, info in enumerate(batch.infos):
            proposals = batch.proposals[row].numpy() if batch.proposals else None
            yield Sample(images[row], batch.targets[row].objects.to_arrays(), info.image_id, proposals)


def _draw_pair(file: Sample, network: Sample, categories: Categories) -> tuple[np.ndarray, str]:
    """Both side by side, and the pair in words."""
    height = max(MIN_HEIGHT, network.image.shape[0])
    left, right = (_draw_panel(sample, categories, height) for sample in (file, network))
    gap = np.full((len(left), GAP, 3), 255, np.uint8)
    return np.concatenate([left, gap, right], axis=1), f"{_describe(file)} -> {_describe(network)}"


def _draw_panel(sample: Sample, categories: Categories, height: int) -> np.ndarray:
    """The image scaled to `height` below its description; proposals thin, objects with their class, ignored dashed.

    Masks and keypoints in the colours of the boxes.
    """
    objects = sample.objects
    pairs = zip(objects.labels.tolist(), objects.ignore.tolist(), strict=True)
    colours = [GREY if ignored else colour_of(label) for label, ignored in pairs]
    image = sample.image if objects.masks is None else draw_masks(sample.image, objects.masks, colours)
    scale = min(height / sample.image.shape[0], MAX_WIDTH / sample.image.shape[1])
    width = max(1, round(sample.image.shape[1] * scale))
    interpolation = cv2.INTER_NEAREST if scale > 1 else cv2.INTER_AREA
    rows = max(1, round(sample.image.shape[0] * scale))  # fewer than `height` where the image is very wide
    canvas = cv2.resize(image, (width, rows), interpolation=interpolation)
    stretch = np.array([width / sample.image.shape[1], rows / sample.image.shape[0]] * 2)
    if objects.keypoints is not None:
        skeleton = categories.keypoints.skeleton if categories.keypoints else ()
        canvas = draw_keypoints(canvas, objects.keypoints * [*stretch[:2], 1], skeleton, colours)
    if sample.proposals is not None:
        for x1, y1, x2, y2 in (sample.proposals[:MAX_PROPOSALS] * stretch).round().astype(int).tolist():
            cv2.rectangle(canvas, (x1, y1), (x2, y2), WHITE, 1)
    columns = (objects.boxes * stretch, objects.labels, objects.ignore, colours)
    for box, label, ignored, colour in zip(*columns, strict=True):
        draw_box(canvas, box.tolist(), categories.names[label], colour, dashed=bool(ignored))
    title = np.full((TITLE, width, 3), 255, np.uint8)
    cv2.putText(title, _describe(sample), (4, TITLE - 9), FONT, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    below = np.full((max(0, height - rows), width, 3), 255, np.uint8)
    return np.concatenate([title, canvas, below])


def _describe(sample: Sample) -> str:
    height, width = sample.image.shape[:2]
    ignored = int(sample.objects.ignore.sum())
    count = len(sample.objects) - ignored
    parts = [f"{width} x {height}", f"{count} object{'s' * (count != 1)}"]
    if ignored:
        parts.append(f"{ignored} ignored")
    if sample.proposals is not None:
        parts.append(f"{len(sample.proposals)} proposals")
    return ", ".join(parts)


def _sheet(pairs: Sequence[np.ndarray]) -> np.ndarray:
    """All pairs, two in a row, as wide as each other."""
    sizes = [(SHEET_WIDTH, max(1, round(len(pair) * SHEET_WIDTH / pair.shape[1]))) for pair in pairs]
    small = [cv2.resize(pair, size, interpolation=cv2.INTER_AREA) for pair, size in zip(pairs, sizes, strict=True)]
    rows = [small[start : start + 2] for start in range(0, len(small), 2)]
    sheet = np.full((sum(max(map(len, row)) + GAP for row in rows), 2 * (SHEET_WIDTH + GAP), 3), 255, np.uint8)
    top = 0
    for row in rows:
        for left, pair in zip((0, SHEET_WIDTH + GAP), row, strict=False):
            sheet[top : top + len(pair), left : left + SHEET_WIDTH] = pair
        top += max(map(len, row)) + GAP
    return sheet


def _save(path: Path, image: np.ndarray) -> None:
    with writing(path):
        Image.fromarray(image).save(path, quality=92)
