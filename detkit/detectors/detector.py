"""The verbs that every detector has."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from detkit.nn.input import ImageInput
from detkit.nn.proposals import ProposalsConfig
from detkit.structures import Batch, Detections, ImageInfo, Target


class Detector(nn.Module):
    """
    outputs    = detector(batch)
    losses     = detector.criterion(outputs, batch.targets)      scalars, already weighted; their sum is optimised
    detections = detector.postprocess(outputs, batch.infos)      original pixels

    A detector knows its class names and, through `input`, how its images are resized, padded and normalised. One that
    is given its proposals says in `proposals` how they are made. One with a stage that is not gradient descent also has
    `finish_training(loader)`: the engine calls it once when the epochs are done, with every training image as it is,
    and logs the line that it returns.
    """

    proposals: ProposalsConfig | None = None
    finish_training: Callable[[Iterable[Batch]], str] | None = None

    def __init__(self, image_input: ImageInput, class_names: Sequence[str]) -> None:
        super().__init__()
        if not class_names:
            raise ValueError("class_names: expected at least one class")
        self.input = image_input
        self.class_names = tuple(class_names)

    @abstractmethod
    def forward(self, batch: Batch) -> Any: ...

    @abstractmethod
    def criterion(self, outputs: Any, targets: Sequence[Target]) -> dict[str, Tensor]: ...

    @abstractmethod
    def postprocess(self, outputs: Any, infos: Sequence[ImageInfo]) -> list[Detections]: ...
