"""A detector whose head sees the targets in training, because it learns to undo noise on their boxes."""

from __future__ import annotations

from typing import Any

from typing_extensions import override

from detkit.detectors.single_shot import SingleShotDetector
from detkit.structures import Batch


class DenoisedDetector(SingleShotDetector[Any]):
    """Its outputs are those of its head."""

    head: Any

    @override
    def forward(self, batch: Batch) -> Any:
        sizes = batch.sizes()
        images = self.input(batch.images, sizes)
        targets = batch.targets if self.training else None
        return self.head(self.features(images), sizes, (images.shape[-2], images.shape[-1]), targets)
