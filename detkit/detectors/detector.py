"""The verbs that every detector has."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeAlias

import torch
from torch import Tensor, nn

from detkit.config import UserError
from detkit.nn.input import ImageInput
from detkit.nn.outputs import OutputsT
from detkit.nn.proposals import ProposalsConfig
from detkit.nn.selection import DetectionRows
from detkit.structures import Batch, Categories, Column, Detections, ImageInfo, Target

if TYPE_CHECKING:
    import detkit


class Detector(nn.Module, ABC, Generic[OutputsT]):
    """A tensor core, which can be exported, and a rim around it that speaks of batches and original pixels.

    The rim:
        outputs    = detector(batch)
        losses     = detector.criterion(outputs, batch.targets)      scalars, already weighted; their sum is optimised
        detections = detector.postprocess(outputs, batch.infos)      original pixels, on the CPU

    The core:
        outputs = detector.network(images, sizes)
        rows    = detector.detect(outputs, sizes)                    input pixels, a fixed number of rows and a count

    A detector knows its categories and, through `input`, how its images are resized, padded and normalised. One that
    is given its proposals says in `proposals` how they are made. One with a stage that is not gradient descent also has
    `finish_training(loader)`: the engine calls it once when the epochs are done, with every training image as it is,
    and logs the line that it returns. The loop keeps `images_seen`, the training images of this process so far.
    `notes` are sentences about how it was built, for the user, and `columns` what it detects beside boxes. An exported
    program with `needs_fixed_canvas` takes images of one height and width.
    """

    proposals: ProposalsConfig | None = None
    columns: tuple[Column, ...] = ()
    finish_training: Callable[[Iterable[Batch]], str] | None = None
    images_seen: int = 0
    needs_fixed_canvas: bool = False

    def __init__(self, image_input: ImageInput, categories: Categories) -> None:
        super().__init__()
        self.notes: list[str] = []
        self.input = image_input
        self.categories = categories

    def forward(self, batch: Batch) -> OutputsT:
        sizes = batch.sizes()
        return self.network(self.input(batch.images, sizes), sizes)

    @abstractmethod
    def network(self, images: Tensor, sizes: Tensor) -> OutputsT:
        """
        images  float `[B, 3, H, W]`, normalised by `input`
        sizes   int64 `[B, 2]`: (h, w) of each picture on its canvas
        """

    @abstractmethod
    def criterion(self, outputs: OutputsT, targets: Sequence[Target]) -> dict[str, Tensor]: ...

    def set_class_weights(self, weights: Tensor) -> None:
        """From now on the loss of the class is multiplied by `weights` `[K]` where each class is the target.

        Background has the weight 1, and what a loss is divided by stays as it is.
        """
        raise UserError(
            f"train.class_weights: {type(self).__name__} has no loss that can weigh its {len(weights)} classes"
        )

    @abstractmethod
    def detect(self, outputs: OutputsT, sizes: Tensor) -> DetectionRows: ...

    @torch.no_grad()
    def postprocess(self, outputs: OutputsT, infos: Sequence[ImageInfo]) -> list[Detections]:
        sizes = torch.tensor([info.input_size for info in infos], device=self.input.mean.device)
        return self.detect(outputs, sizes).to_detections(infos, self.categories)

    def predict(self, images: detkit.AnyImage | Iterable[detkit.AnyImage]) -> list[Detections]:
        """Detections of one or several images, in their own pixels and best first: `detkit.predict`."""
        import detkit

        return detkit.predict(self, images)


AnyDetector: TypeAlias = Detector[Any]  # for those who hand outputs on and never look into them


def check_num_classes(num_classes: int, categories: Categories) -> None:
    """Raises ValueError unless a head has as many classes as there are categories."""
    if num_classes != len(categories):
        raise ValueError(
            f"the head has num_classes {num_classes}, expected {len(categories)}, one for each of the categories "
            f"{', '.join(categories.names[:8])}{', ...' if len(categories) > 8 else ''}"
        )
