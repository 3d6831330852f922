"""What a run says before it begins: its data, its detector, and the size of a step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from detkit.data.repeat_factors import describe_repeats
from detkit.engine import distributed

if TYPE_CHECKING:
    from detkit.engine.train import Run

NO_VALIDATION = "no validation data: nothing is measured; last.pt is the result, and best.pt is not written"


def describe_run(run: Run) -> str:
    """The lines that are logged before the first step."""
    detector, data, train = run.detector, run.data, run.settings.train
    parameters = list(detector.parameters())
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    threshold, processes = run.settings.loader.repeat_threshold, distributed.world_size()
    batch, images = train.batch_size, train.batch_size * train.accumulate * processes
    lines = [
        *data.train.describe(detector.input.clip),
        *(data.val.describe(detector.input.clip) if data.val else [NO_VALIDATION]),
        f"{type(detector).__name__}: {sum(p.numel() for p in parameters):,} parameters, {trained:,} trained; "
        f"{len(detector.categories)} classes; {processes} x {run.device}",
        *detector.notes,
        *([run.frozen.describe(train.optimizer)] if train.freeze else []),
        *([describe_repeats(data.train, threshold)] if threshold else []),
        f"batch {batch} x accumulate {train.accumulate} x processes {processes} = {images} images a step",
        f"writing to {run.folder}",
    ]
    return "\n".join(lines)
