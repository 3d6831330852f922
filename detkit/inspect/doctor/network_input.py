"""The objects of a split as the network sees them in evaluation, and the maps that it computes from its input.

Legend: I images, M objects that are not ignored. Sizes are (h, w) in input px.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from detkit.data.collate import canvas_size
from detkit.detectors.build import build_detector
from detkit.detectors.detector import AnyDetector
from detkit.engine.initialise import without_public_weights
from detkit.engine.settings import RunConfig
from detkit.inspect.doctor.reading import Split
from detkit.nn.backbones.time_pooling import ClipStagedConfig
from detkit.nn.input import ImageInput
from detkit.structures import Categories, Size


@dataclass(frozen=True, eq=False)
class InputObjects:
    """
    split     the objects' own
    rows      int64 `[M]`: which of the data set's objects these are
    images    int64 `[M]`: on which image each is
    boxes     float32 `[M, 4]` xyxy in input px
    windows   float32 `[I, 4]` xyxy in input px: where each picture lies on its canvas
    canvases  int64 `[I, 2]`: each image padded as if alone in its batch
    """

    split: Split
    rows: np.ndarray
    images: np.ndarray
    boxes: np.ndarray
    windows: np.ndarray
    canvases: np.ndarray

    @property
    def sides(self) -> np.ndarray:
        """float32 `[M, 2]`: width and height."""
        return np.asarray(self.boxes[:, 2:] - self.boxes[:, :2])

    def by_canvas(self) -> Iterator[tuple[Size, np.ndarray]]:
        """Each canvas that occurs, and the objects on images of it as indices into the M."""
        canvases, group = np.unique(self.canvases, axis=0, return_inverse=True)
        of_object = group.reshape(-1)[self.images]
        order = np.argsort(of_object, kind="stable")
        ends = np.searchsorted(of_object[order], np.arange(len(canvases) + 1))
        for number, (height, width) in enumerate(canvases.tolist()):
            yield (height, width), order[ends[number] : ends[number + 1]]


def network_view(split: Split, image_input: ImageInput) -> InputObjects:
    dataset = split.dataset
    infos = [image_input.place(dataset.image_id(i), (h, w)) for i, (h, w) in enumerate(split.sizes.tolist())]
    scales = np.array([info.scale * 2 for info in infos]).reshape(-1, 4)
    offsets = np.array([info.offset * 2 for info in infos]).reshape(-1, 4)
    sides = np.array([info.input_size[::-1] for info in infos]).reshape(-1, 2)
    windows = np.concatenate([offsets[:, :2], offsets[:, :2] + sides], axis=1)
    canvases = np.array([canvas_size([info], image_input.stride) for info in infos], np.int64).reshape(-1, 2)
    rows = np.flatnonzero(~dataset.objects.ignore)
    images = dataset.image_of_object[rows]
    boxes = dataset.objects.boxes[rows] * scales[images] + offsets[images]
    return InputObjects(split, rows, images, boxes.astype(np.float32), windows.astype(np.float32), canvases)


class Shapes:
    """The detector of a configuration without weights: what its input is, and how large its maps are."""

    def __init__(self, config: RunConfig, categories: Categories) -> None:
        with torch.device("meta"):
            self.detector: AnyDetector = build_detector(without_public_weights(config.model), categories)
        self.image_input = ImageInput(config.model.input, self.detector.input.stride)
        backbone, neck = self.detector.get_submodule("backbone"), getattr(self.detector, "neck", None)
        chosen = config.model.backbone
        self._frames = (chosen.frames,) if isinstance(chosen, ClipStagedConfig) else ()
        self._backbone, self._neck = backbone.eval(), None if neck is None else neck.eval()
        self.strides: tuple[int, ...] = tuple((backbone if neck is None else neck).out_strides)  # type: ignore[arg-type]
        self.map_sizes = lru_cache(maxsize=None)(self._map_sizes)

    @torch.inference_mode()
    def _map_sizes(self, canvas: Size) -> list[Size]:
        """(h, w) in cells of each map of an input of the size `canvas`, finest first."""
        levels = self._backbone(torch.empty((1, 3, *self._frames, *canvas), device="meta"))
        if self._neck is not None:
            levels = self._neck(levels)
        return [(level.shape[2], level.shape[3]) for level in levels]
