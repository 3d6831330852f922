"""A detector without weights, whose answer everybody can see in the picture."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from detkit.config import UserError
from detkit.detectors.detector import Detector
from detkit.nn.input import ImageInput, InputConfig, ShortSideConfig
from detkit.nn.selection import DetectionRows
from detkit.structures import Batch, Categories, Target

UNLUCKY = 13  # a picture whose first pixel has this value is one that the detector cannot take


class BrightSpot(Detector[Tensor]):
    """Detects the bounds of the bright pixels of its input, with the score 0.75; none where all is dark."""

    def __init__(self, size: int = 60, max_size: int = 1000) -> None:
        rule = ShortSideConfig(size=size, max_size=max_size)
        image_input = ImageInput(InputConfig(resize=rule, mean=(0, 0, 0), std=(1, 1, 1)), 4)
        super().__init__(image_input, Categories.of_names(["spot", "other"]))
        self.batches: list[int] = []  # how many images each had

    def forward(self, batch: Batch) -> Tensor:
        if (batch.images[:, 0, 0, 0] == UNLUCKY).any():
            raise UserError("this picture is an unlucky one")
        self.batches.append(len(batch))
        return super().forward(batch)

    def network(self, images: Tensor, sizes: Tensor) -> Tensor:
        return images.amin(dim=1) > 127

    def criterion(self, outputs: Tensor, targets: Sequence[Target]) -> dict[str, Tensor]:
        raise NotImplementedError

    def detect(self, outputs: Tensor, sizes: Tensor) -> DetectionRows:
        boxes, counts = torch.zeros(len(outputs), 1, 4), torch.zeros(len(outputs), dtype=torch.int64)
        for row, bright in enumerate(outputs):
            y, x = torch.nonzero(bright).unbind(dim=1)
            if len(y):
                boxes[row, 0] = torch.stack([x.min(), y.min(), x.max() + 1, y.max() + 1]).float()
                counts[row] = 1
        return DetectionRows(boxes, counts[:, None] * 0.75, torch.zeros(len(boxes), 1, dtype=torch.int64), counts)


def spot_picture(height: int, width: int, box: tuple[int, int, int, int] | None, corner: int = 0) -> np.ndarray:
    """Dark, with a white box (xyxy) and the value of its first pixel."""
    image = np.zeros((height, width, 3), np.uint8)
    if box:
        image[box[1] : box[3], box[0] : box[2]] = 255
    image[0, 0] = corner
    return image
