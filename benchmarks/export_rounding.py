"""How far the network of a detector in float32 is from the same in float64: what no exported file can be nearer to.

python benchmarks/export_rounding.py NAME ... [--runs DIR] [--pictures N]      CPU

NAME is one of `export_report.py`, with the weights that it has there; pictures and measure are those of the report too.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from pathlib import Path

import torch
from export_report import DARKNET
from export_sources import prepare
from torch import Tensor

from detkit.detectors.detector import AnyDetector
from detkit.engine.sources import load_detector
from detkit.export.comparison_data import batch_of, comparison_data
from detkit.export.graph import named_tensors
from detkit.export.report import difference, match_regions
from detkit.nn.input import ImageInput
from detkit.structures import Batch

REGIONS = ".regions."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", metavar="NAME")
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR")
    parser.add_argument("--pictures", type=int, default=4, metavar="N")
    options = parser.parse_args()
    for name in options.names:
        with tempfile.TemporaryDirectory() as folder:
            source = prepare(name, options.runs, DARKNET, Path(folder))
            worst = rounding(load_detector(source.source)[0].eval(), options.pictures)
        print(f"{name}, {options.pictures} pictures: {', '.join(f'{key} {value:.1e}' for key, value in worst.items())}")


@torch.no_grad()
def rounding(detector: AnyDetector, num_pictures: int) -> dict[str, float]:
    """The largest difference of each output of the network by its name."""
    exact = copy.deepcopy(detector).double()
    for module in exact.modules():
        if isinstance(module, ImageInput):
            module.register_forward_hook(lambda module, inputs, images: images.double())
    worst: dict[str, float] = {}
    for sample in comparison_data(detector, None, num_pictures, canvas=None).samples:
        batch = batch_of(detector, (sample,))
        outputs, expected = named_tensors(detector(batch), "raw"), in_float64(exact, batch)
        rows = {
            name.removesuffix("regions.boxes"): match_regions(
                *(columns(tensors, name) for tensors in (expected, outputs))
            )
            for name in expected
            if name.endswith(".regions.boxes")
        }
        for name, value in expected.items():
            if value.is_floating_point() and REGIONS not in name:
                other = outputs[name].double()
                for owner in filter(name.startswith, rows):
                    value, other = value[rows[owner][0]], other[rows[owner][1]]
                worst[name] = max(worst.get(name, 0.0), difference(value, other, boxes=name.endswith(".boxes")))
    return worst


def in_float64(detector: AnyDetector, batch: Batch) -> dict[str, Tensor]:
    torch.set_default_dtype(torch.float64)  # anchors and the like are created in it
    try:
        return named_tensors(detector(batch), "raw")
    finally:
        torch.set_default_dtype(torch.float32)


def columns(tensors: dict[str, Tensor], boxes: str) -> list[Tensor]:
    """Of regions, as `match_regions` takes them; outside of a program all are valid."""
    images = tensors[boxes.replace(".boxes", ".images")]
    return [tensors[boxes].float(), images, torch.ones_like(images, dtype=torch.bool)]


if __name__ == "__main__":
    main()
